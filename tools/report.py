"""Write the report of a run, a page to be opened in a browser: python tools/report.py WORK_DIR [--checkpoint ...]"""

import early_settings  # noqa: F401

# isort: split
import sys

from mmgcvit.commands import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("report"))
