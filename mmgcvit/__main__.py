"""``mmgcvit`` and ``python -m mmgcvit``: the commands that need no config."""

from __future__ import annotations

import argparse
import sys

from mmgcvit.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="mmgcvit", description="GC ViT for OpenMMLab")
    parser.add_argument("--version", action="version", version=f"mmgcvit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="check the software stack; exit 1 if something needed is missing")
    parser.parse_args(argv)

    from mmgcvit import doctor

    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
