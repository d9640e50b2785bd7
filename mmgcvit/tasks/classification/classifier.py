"""The ImageNet classifier."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from mmgcvit.backbone import GCViT
from mmgcvit.backbone.checks import check_choice, check_integer, check_rate
from mmgcvit.backbone.pretrained_init import SafePretrainedInit
from mmgcvit.checkpoint.loading import accept_bare_network
from mmgcvit.registry import type_name
from mmgcvit.tasks.classification.preprocessor import ClassificationPreprocessor
from mmgcvit.utils.text import counted

MODES = ("tensor", "loss", "predict")


def class_weight_problem(weights: Any, num_classes: int) -> str | None:
    """Return what is wrong with the weights of the classes in a loss; None if nothing is, or if there are none."""
    if weights is None:
        return None
    listed = isinstance(weights, (list, tuple))
    if listed and len(weights) == num_classes and all(isinstance(w, (int, float)) and w > 0 for w in weights):
        return None
    shown = f"{reprlib.repr(weights)} ({counted(len(weights), 'value')})" if listed else repr(weights)
    return f"class_weight={shown}; allowed: num_classes={counted(num_classes, 'number')} above 0, one per class"


@MODELS.register_module()
class GCViTClassifier(SafePretrainedInit, BaseModel):
    """GC ViT with a linear head: last map, norm, global average pooling, dropout, linear layer (paper, section 3).

    The parameters are exactly those of the published classifiers.

    Args:
        backbone: config of a :class:`GCViT`; ``out_indices`` is (3,) by default.
        num_classes: number of classes.
        drop_rate: dropout rate before the head.
        label_smoothing: label smoothing for targets that are class indices. (The preprocessor's mixup smooths mixed
            targets.)
        data_preprocessor: config of a :class:`ClassificationPreprocessor` (``num_classes`` is passed to it), or of
            another preprocessor.
        init_cfg: as in mmengine. Use ``dict(type='Pretrained', ...)`` in the backbone, or here to load the head too.
        class_weight: weight of each class in the loss, for imbalanced data. An image has the weight of its class, a
            mixed image the mean of those of its classes; the loss is divided by the sum of the weights.

    Raises:
        ValueError: ``num_classes``, a rate or a class weight is out of range, there is not one weight per class, or the
            last map of the backbone is not that of stage 3.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        label_smoothing: float = 0.0,
        data_preprocessor: Mapping | nn.Module | None = None,
        init_cfg: Mapping | None = None,
        class_weight: Sequence[float] | None = None,
    ) -> None:
        check_integer("num_classes", num_classes, 1)
        if (
            isinstance(data_preprocessor, Mapping)
            and type_name(data_preprocessor) == ClassificationPreprocessor.__name__
        ):
            data_preprocessor = {"num_classes": num_classes, **data_preprocessor}
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.num_classes = num_classes
        self.drop_rate = check_rate("drop_rate", drop_rate)
        self.label_smoothing = smoothing = check_rate("label_smoothing", label_smoothing)
        if problem := class_weight_problem(class_weight, num_classes):
            raise ValueError(problem)
        weights = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", weights, persistent=False)
        self.hard_loss = LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
        self.soft_loss = SoftTargetCrossEntropy()
        self.backbone: GCViT = MODELS.build({"type": "GCViT", "out_indices": (3,), **backbone})
        if self.backbone.out_indices[-1] != 3:
            raise ValueError(
                f"backbone: out_indices={self.backbone.out_indices}; allowed for a classifier: a tuple that ends with 3"
            )
        self.head = nn.Linear(self.backbone.out_channels[-1], num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        accept_bare_network(self)

    def forward(
        self, inputs: Tensor, targets: Tensor | None = None, sample_idx: Tensor | None = None, mode: str = "tensor"
    ) -> Any:
        """Compute logits, their loss, or probabilities.

        Args:
            inputs: (B, in_channels, H, W) normalised images.
            targets: (B,) class indices, or (B, num_classes) probabilities; for 'loss'.
            sample_idx: (B,) indices of the samples; unused.
            mode: 'tensor', 'loss' or 'predict'.

        Returns:
            'tensor': logits (B, num_classes). 'loss': ``dict(loss=...)``, the mean cross-entropy, weighted by class if
            there are class weights. 'predict': probabilities (B, num_classes), float32.

        Raises:
            ValueError: the mode is unknown, targets are missing for 'loss', or a class is out of range.
        """
        check_choice("mode", mode, MODES)
        logits = self.classify(self.backbone(inputs)[-1])
        if mode == "tensor":
            return logits
        if mode == "predict":
            return logits.float().softmax(dim=1)
        return {"loss": self.label_loss(logits, targets)}

    def classify(self, maps: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of the last map (B, C, H, W)."""
        return self.head(F.dropout(maps.mean(dim=(2, 3)), self.drop_rate, self.training))

    def label_loss(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        """Compute the mean cross-entropy of logits (B, num_classes), see :meth:`forward`."""
        if targets is None:
            raise ValueError("targets=None; allowed in mode 'loss': classes or probabilities")
        # (On a GPU this check would synchronise; there CUDA's own assertion fails instead.)
        if targets.ndim == 1 and not targets.is_cuda and (targets.min() < 0 or targets.max() >= self.num_classes):
            raise ValueError(
                f"targets: class {int(targets.max() if targets.min() >= 0 else targets.min())}; allowed: "
                f"0 to {self.num_classes - 1} (num_classes={self.num_classes})"
            )
        if self.class_weight is not None:
            return self._weighted_loss(logits, targets, self.class_weight)
        return (self.soft_loss if targets.ndim == 2 else self.hard_loss)(logits, targets)

    def _weighted_loss(self, logits: Tensor, targets: Tensor, class_weight: Tensor) -> Tensor:
        """Mean cross-entropy of a batch, weighted by the classes of its images.

        torch's own ``weight`` would also weight the shares that label smoothing gives to the other classes, and so
        change the probabilities that the model learns.
        """
        if targets.ndim == 2:
            losses, weights = F.cross_entropy(logits, targets, reduction="none"), targets @ class_weight  # (B,)
        else:
            losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
            weights = class_weight[targets]
        return (losses * weights).sum() / weights.sum()
