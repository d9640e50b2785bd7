"""mmseg's segmentors as a graph: which class exports which segmentor."""

from __future__ import annotations

from typing import Any

from mmgcvit.errors import ExportError
from mmgcvit.export.encoder_decoder import SegmentationGraph
from mmgcvit.export.graph import ExportGraph
from mmgcvit.export.mask2former import Mask2FormerGraph


def segmentation_graph(model: Any, channels: int = 3) -> ExportGraph:
    """Return the graph of a segmentor.

    Raises:
        ExportError: it cannot be exported.
    """
    mask2former = any(kind.__name__ == "Mask2FormerHead" for kind in type(model.decode_head).__mro__)
    graph = Mask2FormerGraph if mask2former else SegmentationGraph
    if reason := graph.unsupported(model):
        raise ExportError(f"{type(model).__name__} cannot be exported: {reason}")
    return graph(model, channels)
