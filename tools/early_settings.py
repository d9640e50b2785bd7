"""Settings that must be made before torch is imported; a tool imports this module first."""

import os

# Threads of GNU OpenMP, which torch uses on Linux, wait for each other by spinning. On a machine with other work, the
# thread that is waited for may not run meanwhile: a step then takes many times as long. Spinning for a shorter time
# costs nothing on a quiet machine (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
