"""The package's classifiers as a graph: images to probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmgcvit.export.graph import ExportGraph, Preprocess


class ClassificationGraph(ExportGraph):
    """Preprocessing, network and softmax.

    Args:
        model: a GCViTClassifier.
        channels: channels of the images.
    """

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        self.preprocess = Preprocess(model.data_preprocessor, channels, bgr=False)  # as Pillow loads
        self.model = model

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return '': every classifier can be exported."""
        return ""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the probabilities of the classes, (B, classes)."""
        return (self.model(self.preprocess(images), mode="predict"),)
