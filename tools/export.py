"""Export a trained model, from image to predictions: python tools/export.py CONFIG CHECKPOINT OUT.{onnx,xml,pt2}"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.export.commands import main

if __name__ == "__main__":
    sys.exit(main())
