"""Count the GPU kernels and memory traffic of backbones: python tools/count_kernels.py --models gcvit-tiny"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("count-kernels"))
