"""Convert a GC ViT checkpoint to another layout: python tools/convert_checkpoint.py SRC DST [--to LAYOUT] ..."""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("convert-checkpoint"))
