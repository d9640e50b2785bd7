"""The backbone contract for each pad mode, and for a backbone without layer scale and with fewer maps."""

from __future__ import annotations

from typing import ClassVar

from conftest import TINY
from contract import BackboneContract


class TestPadInput(BackboneContract):
    arguments: ClassVar = dict(pad="input")


class TestPadStage(BackboneContract):
    arguments: ClassVar = dict(pad="stage")


class TestPadWindow(BackboneContract):
    arguments: ClassVar = dict(pad="window")


class TestWithoutLayerScale(BackboneContract):
    arguments: ClassVar = dict(pad="window", arch={**TINY, "layer_scale": None, "window_size": (3, 2, 3, 2)})
