"""mmdet's detectors as a graph: which class exports which detector."""

from __future__ import annotations

from typing import Any

from mmgcvit.errors import ExportError
from mmgcvit.export.dense import DenseGraph
from mmgcvit.export.graph import ExportGraph
from mmgcvit.export.instances import InstanceGraph
from mmgcvit.export.queries import QueryGraph
from mmgcvit.export.two_stage import TwoStageGraph

GRAPHS: dict[str, type[ExportGraph]] = {
    **dict.fromkeys(TwoStageGraph.detectors, TwoStageGraph),
    **dict.fromkeys(DenseGraph.detectors, DenseGraph),
    **dict.fromkeys(QueryGraph.detectors, QueryGraph),
    **dict.fromkeys(InstanceGraph.detectors, InstanceGraph),
}
#: Operators of mmcv that have a replacement.
OPERATORS = ("RoIAlign", "MultiScaleDeformableAttention")


def detection_graph(model: Any, channels: int = 3) -> ExportGraph:
    """Return the graph of a detector.

    Args:
        model: a detector of mmdet, with weights, on the CPU.
        channels: channels of the images.

    Raises:
        ExportError: the detector, or a part of it, is not supported.
    """
    name = type(model).__name__
    if name not in GRAPHS:
        raise ExportError(f"model.type={name!r} cannot be exported; allowed: {', '.join(GRAPHS)}")
    reason = GRAPHS[name].unsupported(model)
    for path, part in () if reason else model.named_modules():
        if type(part).__module__.startswith("mmcv.ops.") and type(part).__name__ not in OPERATORS:
            reason = f"model.{path}.type={type(part).__name__!r}, an operator of mmcv; allowed: {', '.join(OPERATORS)}"
    if reason:
        raise ExportError(f"{name} cannot be exported: {reason}")
    return GRAPHS[name](model, channels)
