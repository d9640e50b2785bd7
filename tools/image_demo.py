"""Predict on images and videos: python tools/image_demo.py INPUT [...] CONFIG CHECKPOINT --out-dir DIR"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("predict"))
