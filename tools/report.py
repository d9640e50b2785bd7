"""Write the report of a run, a page to be opened in a browser: python tools/report.py WORK_DIR [--checkpoint ...]."""

import early_settings  # noqa: F401

# isort: split
import argparse
import sys

from mmgcvit import apis
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.report.make import make_report
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.paths import short_path
from mmgcvit.utils.text import shown


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", help="folder of a run of tools/train.py, also of an unfinished one")
    parser.add_argument("--checkpoint", help="checkpoint to evaluate (default: the best one, else the last one)")
    parser.add_argument("--out", help="file to write (default: report.html in the folder of the run)")
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    add_trust_argument(parser)
    args = parser.parse_args()
    try:
        with apis.short_output(), trust_checkpoints(args.trust_checkpoint):
            file = make_report(args.work_dir, args.checkpoint, args.out, args.device)
    except apis.UsageError as error:
        sys.exit(shown(f"report: {error}"))
    print(short_path(file))


if __name__ == "__main__":
    main()
