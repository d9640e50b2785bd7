"""The garbage collector while millions of objects are made."""

from __future__ import annotations

import gc

import pytest

from mmgcvit.utils.memory import paused_collector


@paused_collector()
def during() -> bool:
    return gc.isenabled()


def test_collector_is_paused():
    assert gc.isenabled()
    assert not during()
    with paused_collector():
        assert not during()  # nested
        assert not gc.isenabled()
    with pytest.raises(KeyError), paused_collector():
        raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.freeze()
    with paused_collector():
        pass
    assert gc.get_freeze_count() > 0  # as before
    gc.unfreeze()
    gc.disable()
    try:
        with paused_collector():
            pass
        assert not gc.isenabled()  # as before
    finally:
        gc.enable()
