"""Every pad mode, and a backbone with layer scale off and fewer maps, does what a backbone must do."""

from __future__ import annotations

from conftest import TINY
from contract import BackboneContract


class TestPadInput(BackboneContract):
    arguments = dict(pad="input")


class TestPadStage(BackboneContract):
    arguments = dict(pad="stage")


class TestPadWindow(BackboneContract):
    arguments = dict(pad="window")


class TestWithoutLayerScale(BackboneContract):
    arguments = dict(pad="window", arch={**TINY, "layer_scale": None, "window_size": (3, 2, 3, 2)})
