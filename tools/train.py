"""Train the model of a config, of any task: python tools/train.py CONFIG [--work-dir DIR] ..."""

import argparse
import sys

from mmgcvit import apis


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    apis.add_runner_arguments(parser)
    parser.add_argument("--resume", nargs="?", const=True, default=False, metavar="CHECKPOINT",
                        help="go on from this checkpoint; without one, from the newest of the work directory")
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--auto-scale-lr", action="store_true",
                        help="scale the learning rate by the global batch size over the config's base_batch_size")
    args = parser.parse_args()
    try:
        apis.train(apis.config_from_arguments(args), args.resume, args.amp, args.auto_scale_lr)
    except apis.UsageError as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    main()
