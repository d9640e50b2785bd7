"""Check a downloaded data set and link it where the configs expect it: python tools/prepare_data.py coco DIR"""

import argparse
import sys

from mmgcvit.datasets.prepare import DATASETS, prepare, print_report
from mmgcvit.errors import PrepareError
from mmgcvit.utils.text import shown


def main() -> int:
    """Parse the command line, check and link the data set, and print what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="exit status 1 if something is missing or wrong")
    parser.add_argument("name", choices=DATASETS, help="data set")
    parser.add_argument("folder", help="folder of the downloaded data set")
    parser.add_argument("--data", default="data", help="folder of the configs' data roots (default: data)")
    args = parser.parse_args()
    try:
        report = prepare(args.name, args.folder, args.data)
    except PrepareError as error:
        sys.exit(shown(f"prepare_data: {error}"))
    print_report(report)
    return int(bool(report.problems))


if __name__ == "__main__":
    sys.exit(main())
