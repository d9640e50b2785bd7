"""Show what a model attends to: python tools/explain.py IMAGE [...] CONFIG CHECKPOINT [--stage N] [--at X Y] ..."""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("explain"))
