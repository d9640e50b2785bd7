"""``mmgcvit doctor``: check the software stack."""

from __future__ import annotations

import argparse

from mmgcvit import doctor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there are no arguments."""


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    return doctor.main()
