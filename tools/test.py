"""Evaluate a checkpoint for any task: python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] ..."""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("test"))
