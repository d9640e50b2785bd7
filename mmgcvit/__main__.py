"""The command line ``mmgcvit`` (``python -m mmgcvit``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mmgcvit import commands
from mmgcvit.utils.pipes import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    return run_program(lambda: commands.main(argv))


if __name__ == "__main__":
    sys.exit(main())
