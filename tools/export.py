"""Export a trained model, from image to predictions: python tools/export.py CONFIG CHECKPOINT OUT.{onnx,xml,pt2}"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("export"))
