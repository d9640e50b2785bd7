"""Measure time and memory of backbones: python tools/benchmark.py --models gcvit-tiny swin-t --shapes 800x1344"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("benchmark"))
