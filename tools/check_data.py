"""Check the data sets of a config before training: python tools/check_data.py CONFIG"""

import argparse
import sys

from mmgcvit import apis
from mmgcvit.utils.text import shown


def main() -> int:
    """Parse the command line, check the data sets, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="exit status 1 if a problem would break training")
    apis.add_config_arguments(parser)
    parser.add_argument(
        "--workers", type=int, help="number of processes that decode images (default: the usable processor cores)"
    )
    apis.add_pixels_argument(parser)
    args = parser.parse_args()
    from mmgcvit.datasets.check import check_data
    from mmgcvit.datasets.report import print_reports

    try:
        with apis.short_output():
            cfg = apis.load_config(args.config, cfg_options=args.cfg_options)
            reports = check_data(cfg, args.workers, True, args.max_pixels)
    except apis.UsageError as error:
        sys.exit(shown(f"check_data: {error}"))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report Ctrl-C
    print_reports(reports)
    return int(any(report.broken for report in reports))


if __name__ == "__main__":
    sys.exit(main())
