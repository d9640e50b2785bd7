"""Settings that must be made before torch is imported: by this package's programs, not by others that import it."""

import os
import sys
from itertools import pairwise


def apply() -> None:
    """Let threads that wait for each other spin for a shorter time, unless the environment says otherwise.

    Threads of GNU OpenMP, which torch uses on Linux, wait for each other by spinning. On a machine with other work, the
    thread that is waited for may not run meanwhile: a step then takes many times as long. Spinning for a shorter time
    costs nothing on a quiet machine (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def is_command() -> bool:
    """Whether this process is the command line ``mmgcvit`` or ``python -m mmgcvit``."""
    program = os.path.basename((sys.argv or [""])[0])
    # While Python looks for the module of `python -m`, and so imports the packages around it, argv[0] is "-m".
    return program == "mmgcvit" or (program == "-m" and ("-m", "mmgcvit") in pairwise(sys.orig_argv))
