"""What is added to mmengine's runs."""

from mmgcvit.engine.hooks import CorruptPictureHook, InvalidLossError, InvalidLossHook, ReproducibleHook

__all__ = ["CorruptPictureHook", "InvalidLossError", "InvalidLossHook", "ReproducibleHook"]
