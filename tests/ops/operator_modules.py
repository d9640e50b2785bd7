"""Run mmcv's functions with the operators of this package, whichever mmcv is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

mmcv_ops = pytest.importorskip("mmcv.ops")

from mmgcvit.ops import in_use, operators  # noqa: E402

compiled_only = pytest.mark.skipif(in_use() != "compiled", reason="mmcv was installed without compiled operators")


@contextmanager
def ours() -> Iterator[None]:
    """Inside the block, the functions of ``mmcv.ops`` call this package's operators."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("mmcv.ops.") and hasattr(module, "ext_module"):
                patch.setattr(module, "ext_module", operators)
        yield
