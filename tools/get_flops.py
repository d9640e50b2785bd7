"""Count multiply-adds and parameters of a config's model: python tools/get_flops.py CONFIG --shape H W"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("flops"))
