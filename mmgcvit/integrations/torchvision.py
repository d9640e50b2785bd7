"""GC ViT with a feature pyramid, for torchvision's detectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from mmgcvit.backbone import GCViT
from mmgcvit.checkpoint.loading import load_pretrained


class GCViTWithFPN(nn.Module):
    """GC ViT and a feature pyramid network, as torchvision's ``BackboneWithFPN``.

    Args:
        arch: as for :class:`~mmgcvit.GCViT`.
        weights: file, URL or published name to load, see :func:`mmgcvit.load_pretrained`; None for none.
        out_channels: channels of the maps of the pyramid.
        extra_blocks: computes further levels from the others. By default, max pooling adds one, named 'pool', which
            Mask R-CNN expects. For RetinaNet: ``LastLevelP6P7(out_channels, out_channels)`` and
            ``out_indices=(1, 2, 3)``.
        out_indices: stages of the backbone whose maps go into the pyramid.
        **backbone: further arguments of :class:`~mmgcvit.GCViT`.

    Attributes:
        out_channels: channels of each map, which torchvision's detectors read.

    Example:
        >>> from torchvision.models.detection import MaskRCNN
        >>> model = MaskRCNN(GCViTWithFPN("xxtiny"), num_classes=3).eval()
        >>> sorted(model([torch.rand(3, 200, 300)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        weights: str | Path | None = None,
        out_channels: int = 256,
        extra_blocks: ExtraFPNBlock | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.body = GCViT(arch, out_indices=out_indices, **backbone)
        self.fpn = FeaturePyramidNetwork(list(self.body.out_channels), out_channels, extra_blocks or LastLevelMaxPool())
        self.out_channels = out_channels
        if weights is not None:
            load_pretrained(self, weights)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Compute the pyramid of images (B, 3, H, W): maps (B, out_channels, ...) from fine to coarse by level name."""
        maps: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), y) for i, y in enumerate(self.body(x))))
        return maps
