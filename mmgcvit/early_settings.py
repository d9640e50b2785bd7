"""Settings that must be made before torch is imported: by this package's programs, not by others that import it."""

import ctypes
import os
import sys
from itertools import pairwise

# The parameters of glibc's mallopt() and their values. glibc itself raises MMAP_THRESHOLD up to 32 MB, too.
MALLOC_OPTIONS = {"M_MMAP_THRESHOLD": (-3, 2**25), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def apply() -> None:
    """Make all settings that the environment does not make otherwise."""
    shorten_spinning()
    keep_freed_memory()


def shorten_spinning() -> None:
    """Let threads that wait for each other spin for a shorter time.

    Threads of GNU OpenMP, which torch uses on Linux, wait for each other by spinning. On a machine with other work, the
    thread that is waited for may not run meanwhile: a step then takes many times as long. Spinning for a shorter time
    costs nothing on a quiet machine (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step instead of returning it to the system; whether it does.

    Otherwise, each step gets part of its memory page by page, set to zero by the system (docs/performance.md). Tensors
    of more than 32 MB are still returned when they are freed.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return all(mallopt(*option) == 1 for option in MALLOC_OPTIONS.values())


def is_command() -> bool:
    """Whether this process is the command line ``mmgcvit`` or ``python -m mmgcvit``, or was spawned by it."""
    folder, program = os.path.split((sys.argv or [""])[0])
    # While Python looks for the module of `python -m`, and so imports the packages around it, argv[0] is "-m". In
    # spawned processes, it is the file of the module.
    return (
        program == "mmgcvit"
        or (program == "-m" and ("-m", "mmgcvit") in pairwise(sys.orig_argv))
        or (program == "__main__.py" and os.path.basename(folder) == "mmgcvit")
    )
