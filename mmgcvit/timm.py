"""GC ViT as timm models for images of any size: ``import mmgcvit.timm`` registers ``gcvit_*_any``.

timm's own ``gcvit_*`` are built for one input size. These take any size, as :class:`~mmgcvit.GCViT` does, and load the
same weights.

Example:
    >>> import timm, mmgcvit.timm
    >>> model = timm.create_model("gcvit_tiny_any", features_only=True)
    >>> [tuple(m.shape) for m in model(torch.randn(2, 3, 200, 300))]
    [(2, 64, 50, 75), (2, 128, 25, 38), (2, 256, 13, 19), (2, 512, 7, 10)]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from mmgcvit.backbone import GCViT
from mmgcvit.backbone.arch import ARCHS
from mmgcvit.backbone.checks import check_choice
from mmgcvit.checkpoint.fit import LoadReport
from mmgcvit.checkpoint.loading import accept_bare_network, load_pretrained
from mmgcvit.checkpoint.weights import WEIGHTS, Weights


class GCViTModel(nn.Module):
    """GC ViT with timm's interface for image models.

    Args:
        arch: a name in :data:`~mmgcvit.backbone.arch.ARCHS`, or a dict, as for :class:`~mmgcvit.GCViT`.
        in_chans: channels of the input images.
        num_classes: number of classes; 0 for a model without classifier.
        global_pool: pooling of the last map: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
        drop_rate: dropout rate before the classifier.
        proj_drop_rate: dropout rate after the projection of attention and in the MLPs.
        attn_drop_rate: dropout rate of the attention weights.
        drop_path_rate: drop path rate of the last block. As everywhere in timm, 0 if it is not given.
        output_stride: only 32: the network cannot be dilated.
        **backbone: further arguments of :class:`~mmgcvit.GCViT`, such as ``window_size`` or ``pad``.

    Attributes:
        feature_info: for each stage its channels, its reduction and the name of its module.

    Raises:
        ValueError: an argument has a value that is not allowed.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        **backbone: Any,
    ) -> None:
        super().__init__()
        check_choice("output_stride", output_stride, (32,))
        self.in_chans, self.num_classes, self.global_pool, self.drop_rate = (
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
        )
        self.backbone = GCViT(
            arch,
            in_channels=in_chans,
            drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            out_indices=(3,),
            **backbone,
        )
        self.feature_info = [
            {"num_chs": channels, "reduction": 4 * 2**i, "module": f"backbone.stages.{i}"}
            for i, channels in enumerate(self.backbone.arch.dims)
        ]
        self.num_features = self.backbone.arch.dims[-1]
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features
        accept_bare_network(self)  # state dicts of timm's gcvit_* and of the authors

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) of images (B, in_chans, H, W) of any size."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map, (B, C, ceil(H / 32), ceil(W / 32)), after its norm."""
        return self.backbone(x, (len(self.backbone.stages) - 1,))[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the last map; with ``pre_logits`` only pool."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the maps of the stages.

        Args:
            x: (B, in_chans, H, W).
            indices: stages to return; an int n for the last n, None for all.
            norm: unused. As in timm's GC ViT, only the map of the last stage is normalised, always.
            stop_early: compute no stage after the last one returned.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: return only the list of maps.

        Returns:
            The map of the last stage that was computed (NCHW), and the list of maps. The map of stage i is
            (B, C * 2^i, ceil(H / stride), ceil(W / stride)) with a stride of 4 * 2^i pixels.

        Raises:
            ValueError: ``output_fmt`` is not allowed, or the input is not a batch of images.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r}; allowed: 'NCHW', 'NHWC'")
        chosen = self._stages(indices)
        stages = sorted({*chosen} if stop_early else {*chosen, len(self.backbone.stages) - 1})
        maps = dict(zip(stages, self.backbone(x, stages), strict=True))
        kept = [maps[i].permute(0, 2, 3, 1) if output_fmt == "NHWC" else maps[i] for i in chosen]
        return kept if intermediates_only else (maps[stages[-1]], kept)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of ``indices``, and the classifier; returns the indices of the stages."""
        chosen = self._stages(indices)
        if (last := max(chosen)) < len(self.backbone.stages) - 1:
            self.backbone.stages, self.backbone.out_indices = self.backbone.stages[: last + 1], ()
            del self.backbone.norm3
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            prune_head = True
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def _stages(self, indices: int | Sequence[int] | None) -> list[int]:
        """Resolve timm's ways to choose stages: None for all, n for the last n, negative indices from the end."""
        count = len(self.backbone.stages)
        if indices is None or isinstance(indices, int):
            chosen = list(range(count))[-(count if indices is None else indices) :]
            valid = indices is None or 1 <= indices <= count
        else:
            chosen = [index + count if index < 0 else index for index in indices]
            valid = bool(chosen) and all(0 <= index < count for index in chosen)
        if not valid:
            raise ValueError(f"indices={indices!r}; allowed: 1 to {count}, or stages from {-count} to {count - 1}")
        return chosen

    def get_classifier(self) -> nn.Module:
        """Return the linear layer of the classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; 0 classes for none."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        reference = next(self.parameters())
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=self.global_pool, drop_rate=self.drop_rate)
        self.head.to(device=reference.device, dtype=reference.dtype).train(self.training)
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass, which saves memory and takes time."""
        for stage in self.backbone.stages:
            stage.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm assigns parameters to layers, for layer-wise learning rate decay."""
        stages = r"^backbone\.stages\.(\d+)"
        blocks = stages if coarse else [
            (rf"{stages}\.(?:downsample|query)", (0,)),
            (rf"{stages}\.blocks\.(\d+)", None),
            (r"^backbone\.norm", (99999,)),
        ]  # fmt: skip
        return {"stem": r"^backbone\.stem", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the position bias tables; timm itself excludes biases and norms."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def load_pretrained(self, source: str | Path) -> LoadReport:
        """Load a file, a URL or a published name, see :func:`mmgcvit.load_pretrained`; timm calls this."""
        return load_pretrained(self, source)


def _config(weights: Weights) -> dict[str, Any]:
    """timm's description of pretrained weights."""
    size = weights.input_size
    return {
        "file": weights.name,  # timm passes it to load_pretrained of the model, which fetches and reads the file
        "custom_load": True,
        "license": "cc-by-nc-sa-4.0",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": weights.crop,
        "crop_mode": "squash" if weights.squash else "center",
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "backbone.stem.conv",
        "classifier": "head.fc",
        "fixed_input_size": False,
    }


def _tag(weights: Weights) -> str:
    """Name of the weights in timm: 'in1k' for timm's own files, 'nvidia_...' for the authors'."""
    scheme, _, name = weights.name.partition("://")
    if scheme == "timm":
        return name.partition(".")[2]
    return "nvidia_in21k_ft_in1k" if "in21k" in name else "nvidia_in1k"


def _register(arch: str) -> Callable[..., Any]:
    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        # timm's other classes read the output of the stages: padded maps of shape (B, H, W, C)
        check_choice("feature_cls", kwargs.get("feature_cls", "getter"), ("getter",))
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        if "file" in overlay:  # newer versions of timm would read it themselves: they refuse most layouts
            kwargs["pretrained_cfg_overlay"] = {"custom_load": True, **overlay}
        return build_model_with_cfg(
            GCViTModel,
            create.__name__,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **{"arch": arch, **kwargs},
        )

    create.__name__ = create.__qualname__ = _name(arch)
    create.__doc__ = f"GC ViT {arch} for images of any size."
    globals()[create.__name__] = create
    return register_model(create)


def _name(arch: str) -> str:
    return f"gcvit_{arch.replace('-', '_')}_any"


default_cfgs = generate_default_cfgs(
    {
        f"{_name(arch)}.{_tag(weights)}": _config(weights)
        for arch in ARCHS
        # 'in1k' of timm comes before 'nvidia_...' of the authors: the first entry is the default
        for weights in sorted((w for w in WEIGHTS.values() if w.arch == arch), key=_tag)
    }
)
__all__ = ["GCViTModel"]
MODELS = tuple(_register(arch).__name__ for arch in ARCHS)
