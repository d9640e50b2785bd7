"""A web page to try a model: python tools/app.py CONFIG CHECKPOINT, or FILE.onnx"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("app"))
