"""Command-line arguments that several commands have."""

from __future__ import annotations

import argparse


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, for :func:`mmgcvit.checkpoint.trust_checkpoints`."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle a checkpoint that the safe reader refuses; it can run any code, so only for your own files",
    )
