"""Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Switch the garbage collector off, for code that makes millions of objects and no cycles.

    It would go through all of them again and again: reading COCO's annotations takes more than twice as long with it.
    Where the code calls ``gc.collect()`` itself, as mmengine's data sets do, objects that were there before, such as
    those of all imported packages, are left out.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    if not frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if enabled:
            gc.enable()
