"""Check the data sets of a config before training: python tools/check_data.py CONFIG"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("check-data"))
