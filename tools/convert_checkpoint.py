"""Convert a GC ViT checkpoint from any publisher to another layout.

python tools/convert_checkpoint.py SRC DST [--to mmgcvit|nvidia|timm] [--ema] [--hash] [--force]
"""

import argparse
import sys

from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.checkpoint.commands import convert_file
from mmgcvit.checkpoint.layouts import WRITABLE
from mmgcvit.errors import CheckpointError
from mmgcvit.utils.arguments import add_trust_argument


def main() -> int:
    """Parse the command line, convert, and print the report."""
    parser = argparse.ArgumentParser(description="Convert a GC ViT checkpoint from any publisher to another layout.")
    parser.add_argument("source", help="file, URL, or a name from `mmgcvit weights list`")
    parser.add_argument("target", help=".pth or .safetensors file to write")
    parser.add_argument("--to", choices=WRITABLE, default="mmgcvit", help="layout to write (default: mmgcvit)")
    parser.add_argument("--ema", action="store_true", help="convert the averaged (EMA) weights")
    parser.add_argument("--hash", action="store_true", help="append the first 8 digits of the SHA-256 to the file name")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_trust_argument(parser)
    args = parser.parse_args()
    try:
        with trust_checkpoints(args.trust_checkpoint):
            path, report = convert_file(args.source, args.target, args.to, args.ema, args.hash, args.force)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    print(f"written: {path} (layout {args.to})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
