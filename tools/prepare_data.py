"""Check a downloaded data set and link it where the configs expect it: python tools/prepare_data.py coco DIR"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("prepare-data"))
