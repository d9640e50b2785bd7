"""A classifier that learns from a teacher besides its labels, or without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmgcvit.backbone.checks import check_number
from mmgcvit.distillation.losses import FeatureLoss, LogitsLoss, matched_layers
from mmgcvit.distillation.teacher import Teacher
from mmgcvit.errors import UsageError
from mmgcvit.registry import MODELS
from mmgcvit.tasks.classification.classifier import GCViTClassifier
from mmgcvit.utils.text import counted


@MODELS.register_module()
class DistilledClassifier(GCViTClassifier):
    """A :class:`GCViTClassifier` that is trained with a teacher.

    Its checkpoints are those of a GCViTClassifier: nothing of the teacher is in them. (With ``features``, they also
    have the adapters, for resuming.) The teacher sees the same images as the student, after mixing and erasing, with
    its own normalisation.

    If neither labels nor logits are learned, there is no head: its backbone is pre-trained on images without labels.

    Args:
        teacher: arguments of a :class:`~mmgcvit.distillation.Teacher`, such as ``dict(name='resnet50.a1_in1k')``.
        logits: arguments of a :class:`~mmgcvit.distillation.LogitsLoss`, such as ``dict(temperature=2.0)``. The teacher
            has the classes of the student. None: its logits are not used.
        features: arguments of a :class:`~mmgcvit.distillation.FeatureLoss`, such as ``dict(weight=1.0)``, and
            ``stages=(3,)`` of the student with ``layers=(-1,)`` of the teacher. None: its features are not used.
        label_weight: factor of the loss of the labels; 0 if there are no labels.
        **student: arguments of GCViTClassifier.

    Raises:
        ValueError: an argument is not allowed; the teacher has other classes, or takes other channels; or the
            preprocessor has no mean and standard deviation.
    """

    def __init__(
        self,
        *,
        teacher: Mapping[str, Any],
        logits: Mapping[str, Any] | None = None,
        features: Mapping[str, Any] | None = None,
        label_weight: float = 1.0,
        **student: Any,
    ) -> None:
        super().__init__(**student)
        self.label_weight = check_number("label_weight", label_weight, "a number >= 0")
        if self.label_weight < 0:
            raise UsageError(f"label_weight={label_weight!r}; allowed: a number >= 0")
        if logits is None and features is None:
            raise UsageError(
                "logits=None, features=None, so the teacher would not be used; allowed: a dict for one of them, or for "
                "both, such as logits=dict(temperature=2.0)"
            )
        options = dict(features or {})
        stages, layers = matched_layers(options.pop("stages", (3,)), options.pop("layers", (-1,)))
        if "layers" in teacher:
            raise UsageError(
                f"teacher: layers={teacher['layers']}; allowed in features only, with the stages of the student: "
                "features=dict(stages=(3,), layers=(-1,))"
            )
        arguments: dict[str, Any] = dict(teacher, layers=layers if features is not None else ())
        if logits is None or teacher.get("checkpoint") is not None:
            arguments["num_classes"] = 0 if logits is None else self.num_classes
        self.teacher = Teacher(**arguments)
        self._check_teacher(logits is not None, teacher)
        self.logits_loss = None if logits is None else LogitsLoss(**logits)
        self.feature_loss: FeatureLoss | None = None
        self.stages: tuple[int, ...] = (3,)
        if features is not None:
            self.stages = stages
            own = [self.backbone.arch.dims[stage] for stage in stages]
            self.feature_loss = FeatureLoss(own, self.teacher.channels, **options)
        self.has_head = bool(self.label_weight) or logits is not None
        if not self.has_head:
            del self.head  # it would stay random, and a checkpoint with it would look whole

    def _check_teacher(self, with_logits: bool, given: Mapping[str, Any]) -> None:
        """Compare the teacher with the student."""
        if with_logits and self.teacher.num_classes != self.num_classes:
            raise UsageError(
                f"teacher: {self.teacher.name!r} has {counted(self.teacher.num_classes, 'class')}, but num_classes="
                f"{self.num_classes}; allowed with logits: the same classes. Train the teacher on your classes first, "
                "and set teacher.checkpoint to its file; or use features instead of logits"
            )
        channels = given.get("in_chans", 3)
        if channels != self.backbone.in_channels:
            raise UsageError(
                f"teacher: in_chans={channels}, but the backbone has in_channels={self.backbone.in_channels}; allowed: "
                "the same number, as both see the same images"
            )
        for name, values in (("mean", self.teacher.mean), ("std", self.teacher.std)):
            if len(values) not in (1, channels):
                raise UsageError(
                    f"teacher: {name} of {counted(len(values), 'value')} for in_chans={channels}; allowed: 1 or one "
                    "per channel"
                )
        if not all(isinstance(getattr(self.data_preprocessor, name, None), Tensor) for name in ("mean", "std")):
            raise UsageError(
                f"data_preprocessor={type(self.data_preprocessor).__name__} has no mean and std, which are needed to "
                "undo its normalisation for the teacher; allowed: mmgcvit.ClassificationPreprocessor"
            )

    @property
    def taught_classes(self) -> tuple[str, ...]:
        """Names of the classes whose logits the teacher computes, as far as its checkpoint has them."""
        if self.logits_loss is None:
            return ()
        self.teacher.load()
        return self.teacher.classes

    def init_weights(self) -> None:
        """Initialise the student, and load the teacher; mmengine calls this before a training only."""
        super().init_weights()
        self.teacher.load()

    def forward(
        self, inputs: Tensor, targets: Tensor | None = None, sample_idx: Tensor | None = None, mode: str = "tensor"
    ) -> Any:
        """Compute logits, losses, or probabilities.

        Args:
            inputs: (B, in_channels, H, W) normalised images.
            targets: (B,) class indices, or (B, num_classes) probabilities; for 'loss', unless ``label_weight`` is 0.
            sample_idx: (B,) indices of the samples; unused.
            mode: 'tensor', 'loss' or 'predict'.

        Returns:
            As GCViTClassifier; 'loss' returns ``loss_label``, ``loss_logits`` and ``loss_features``, as far as they
            are used.

        Raises:
            ValueError: as GCViTClassifier; or there is no head, and the mode is not 'loss'.
        """
        if mode != "loss":
            if not self.has_head:
                raise UsageError(
                    f"mode={mode!r}; allowed: 'loss', as a model that learns neither labels nor logits has no head. To "
                    "make predictions, load its backbone into a classifier, detector or segmentor, and train that"
                )
            return super().forward(inputs, targets, sample_idx, mode)
        maps = self.backbone(inputs, self.stages)
        preprocessor: Any = self.data_preprocessor
        taught, taught_maps = self.teacher(inputs * preprocessor.std + preprocessor.mean)
        losses = {}
        if self.has_head:
            logits = self.classify(maps[-1])
            if self.label_weight:
                losses["loss_label"] = self.label_weight * self.label_loss(logits, targets)
            if self.logits_loss is not None:
                losses["loss_logits"] = self.logits_loss(logits, taught)
        if self.feature_loss is not None:
            losses["loss_features"] = self.feature_loss(maps, taught_maps)
        return losses
