"""Layer-wise learning-rate decay: learning rates decrease from the last block to the stem."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmgcvit.backbone.checks import check_number
from mmgcvit.backbone.gcvit import GCViT

ALLOWED = ("layer_decay_rate", "norm_decay_mult", "bias_decay_mult", "table_decay_mult", "embedding_decay_mult")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GCViTLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning-rate decay for a model with a GC ViT (as in BEiT's fine-tuning).

    The learning rate of a parameter in layer l of L (:meth:`GCViT.get_layer_depth`) is
    ``lr * layer_decay_rate ** (L - 1 - l)``; that of necks and heads is ``lr``. Keys of ``paramwise_cfg``:

    - ``layer_decay_rate``: required, above 0, at most 1.
    - ``norm_decay_mult``, ``bias_decay_mult``, ``table_decay_mult``: weight-decay factors of norms, of other 1-D
      parameters (biases, layer scales), and of relative position bias tables; 0 by default.
    - ``embedding_decay_mult``: weight-decay factor of ``nn.Embedding``, such as a decoder's queries; 1 by default.

    Raises:
        ValueError: a key is unknown, the rate is out of range, or the model contains no GC ViT, or several.
    """

    base_wd: float | None

    def _validate_cfg(self) -> None:
        unknown = [key for key in self.paramwise_cfg if key not in ALLOWED]
        if unknown:
            raise ValueError(f"paramwise_cfg: unknown keys {unknown}; allowed: {', '.join(ALLOWED)}")
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 < rate <= 1:
            raise ValueError(f"paramwise_cfg: layer_decay_rate={rate!r}; allowed: a number above 0, at most 1")
        for key in ALLOWED[1:]:
            check_number(f"paramwise_cfg: {key}", self.paramwise_cfg.get(key, 0.0), "a number")
        if self.base_wd is None:
            self.base_wd = 0.0

    def add_params(self, params: list[dict], module: nn.Module, **_: Any) -> None:
        """Append one group per layer and weight decay, with its ``lr``, ``weight_decay`` and ``param_names``."""
        backbones = {name: child for name, child in module.named_modules() if isinstance(child, GCViT)}
        if len(backbones) != 1:
            raise ValueError(f"model: {len(backbones)} GCViT in a {type(module).__name__}; allowed: one")
        ((prefix, backbone),) = backbones.items()
        prefix += "." if prefix else ""
        own = {
            f"{name}.{key}" if name else key: child
            for name, child in module.named_modules()
            for key, _ in child.named_parameters(recurse=False)
        }
        groups: dict[tuple[int, float], dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer, layers = backbone.get_layer_depth(name, prefix)
            decay = (self.base_wd or 0.0) * self._decay_mult(name, parameter, own[name])
            lr = self.base_lr * self.paramwise_cfg["layer_decay_rate"] ** (layers - 1 - layer)
            new = {"params": [], "param_names": [], "lr": lr, "weight_decay": decay}
            group = groups.setdefault((layer, decay), new)
            group["params"].append(parameter)
            group["param_names"].append(name)
        params.extend(groups[key] for key in sorted(groups))

    def _decay_mult(self, name: str, parameter: nn.Parameter, owner: nn.Module) -> float:
        for key, default, hit in (
            ("norm_decay_mult", 0.0, "Norm" in type(owner).__name__),
            ("table_decay_mult", 0.0, name.endswith("relative_position_bias_table")),
            ("embedding_decay_mult", 1.0, isinstance(owner, nn.Embedding)),
            ("bias_decay_mult", 0.0, parameter.ndim == 1),
        ):
            if hit:
                return self.paramwise_cfg.get(key, default)
        return 1.0
