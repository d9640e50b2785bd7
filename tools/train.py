"""Train the model of a config for any task: python tools/train.py CONFIG [--work-dir DIR] ..."""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("train"))
