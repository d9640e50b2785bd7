"""Generate a small data set: python tools/make_digit_scenes.py OUT --images 1000 --size 160 --seed 0"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("make-digit-scenes"))
