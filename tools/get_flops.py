"""Print multiply-adds and parameters of a config's model, with published figures: get_flops.py CONFIG --shape H W"""

import early_settings  # noqa: F401

# isort: split
import argparse
import sys

from mmgcvit import apis
from mmgcvit.utils.text import shown


def main() -> None:
    """Parse the command line, count, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    apis.add_config_arguments(parser)
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        required=True,
        metavar=("H", "W"),
        help="height and width of the image, e.g. 800 1344 (COCO), 512 2048 (ADE20K)",
    )
    args = parser.parse_args()
    if min(args.shape) < 1:
        sys.exit(f"get_flops: --shape {args.shape[0]} {args.shape[1]}; allowed: integers of at least 1")
    from mmgcvit import analysis

    try:
        with apis.short_output():
            model = analysis.build_model(apis.load_config(args.config, cfg_options=args.cfg_options))
            flops = analysis.count_flops(model, tuple(args.shape))
    except apis.UsageError as error:
        sys.exit(shown(f"get_flops: {error}"))
    # other overridden values make it a different model
    beside = None if args.cfg_options else analysis.published(args.config, tuple(args.shape))
    analysis.print_flops(flops, beside)


if __name__ == "__main__":
    main()
