"""Feature maps as colours, and class activation maps, of the stages of a GC ViT."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmgcvit.backbone import GCViT
from mmgcvit.errors import UsageError
from mmgcvit.explain.attention import check_index, find_backbone
from mmgcvit.tasks.base import CamTarget

CAMS = {"gradcam": "Grad-CAM", "hirescam": "HiResCAM", "eigencam": "EigenCAM"}


def feature_maps(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the map of every stage, (B, C * 2^i, ceil(H / stride_i), ceil(W / stride_i)).

    Maps that the backbone returns are normalized, as there; others are not.

    Args:
        model: a GC ViT, or a model with one.
        image: (B, in_channels, H, W), the input of the backbone.
    """
    backbone = find_backbone(model)
    found: list[Tensor] = []
    handles = [stage.register_forward_hook(lambda _, __, x: found.append(x)) for stage in backbone.stages]
    try:
        with torch.no_grad():
            backbone(image)
            found = [getattr(backbone, f"norm{i}", nn.Identity())(x) for i, x in enumerate(found)]
        return [_cropped(x, image, i) for i, x in enumerate(found)]
    finally:
        for handle in handles:
            handle.remove()


def _layer(backbone: GCViT, stage: int) -> nn.Module:
    """Return the module whose output is the map of a stage, (B, H, W, C): the norm of an output, or the stage."""
    return getattr(backbone, f"norm{stage}", backbone.stages[stage])


def _cropped(x: Tensor, image: Tensor, stage: int) -> Tensor:
    """(B, H', W', C) with the backbone's padding -> (B, C, H, W) without it."""
    rows, columns = (-(-side // (4 * 2**stage)) for side in image.shape[2:])
    return x.permute(0, 3, 1, 2)[:, :, :rows, :columns]


def pca_colours(features: Tensor, rows: int | None = None, columns: int | None = None) -> np.ndarray:
    """Show a feature map as colours: its three principal components as red, green and blue.

    Args:
        features: (C, H, W).
        rows: rows of tokens that are not padding; by default all. The components are those of these tokens.
        columns: columns of tokens that are not padding; by default all.

    Returns:
        (H, W, 3) from 0 to 1. Similar colours are similar features; the colours of two maps cannot be compared.
    """
    inside = features[:, :rows, :columns].flatten(1).T.double()  # [tokens, C]
    mean = inside.mean(0)
    _, _, axes = torch.linalg.svd(inside - mean, full_matrices=False)
    axes = axes[:3]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # an SVD leaves the signs open
    values = (features.flatten(1).T.double() - mean) @ axes.T  # [tokens, 3 or fewer]
    known = (inside - mean) @ axes.T
    low, high = (known.quantile(q, dim=0) for q in (0.01, 0.99))
    values = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    values = torch.where(high - low > 1e-9, values, 0.5)
    values = nn.functional.pad(values, (0, 3 - values.shape[1]), value=0.5)
    return values.unflatten(0, features.shape[1:]).float().cpu().numpy()


def cam(model: nn.Module, image: Tensor, target: CamTarget, method: str, stage: int) -> np.ndarray:
    """Compute a class activation map with the grad-cam package.

    Grad-CAM weights the channels of a map with the mean gradient of the target over all positions, HiResCAM with the
    gradient at each position, which suits targets that depend on a part of the image. Both keep what is positive.
    EigenCAM is the first principal component of the map and does not depend on the target.

    Args:
        model: model with a GC ViT.
        image: (1, C, H, W), its input.
        target: what is explained.
        method: 'gradcam', 'hirescam' or 'eigencam'.
        stage: index of the stage. The map is that of the backbone's output, or else that which the next stage gets.

    Returns:
        (H, W) float32 from 0 to 1.

    Raises:
        UsageError: the package is missing, the method or the stage is unknown, or the target does not depend on its
            map.
    """
    if method not in CAMS:
        raise UsageError(f"method={method!r}; allowed: {', '.join(CAMS)}")
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise UsageError(f"{method} needs the grad-cam package: pip install 'mmgcvit[explain]'")
    backbone = find_backbone(model)
    check_index("stage", stage, len(backbone.stages))
    layer = _layer(backbone, stage)
    found = _cam_class(method)(_Forward(model, target), [layer], lambda x: _cropped(x, image, stage))
    try:
        found.extent = tuple(-(-side // (4 * 2**stage)) * 4 * 2**stage for side in image.shape[2:])
        with _without_gradients_of_parameters(model), torch.enable_grad():
            heat = found(image.detach().clone().requires_grad_(), [target.score])[0]
        gradients = found.activations_and_grads.gradients
        if method != "eigencam" and not any(g.abs().max() > 0 for g in gradients):
            raise UsageError(
                f"stage={stage} for {method}: the gradient of {target.title!r} is zero; allowed: another stage or point"
            )
    finally:
        found.activations_and_grads.release()
    return np.asarray(heat[: image.shape[2], : image.shape[3]], np.float32)


def main_stage(model: nn.Module, image: Tensor, target: CamTarget) -> int:
    """Return the stage whose output changes a target most: the largest sum of |gradient x activation| over positions.

    See also :func:`stage_with_places`.

    Args:
        model: model with a GC ViT.
        image: (1, C, H, W), its input.
        target: what is explained.

    Raises:
        UsageError: the gradient is zero.
    """
    backbone, maps = find_backbone(model), {}
    handles = [
        _layer(backbone, i).register_forward_hook(lambda _, __, x, i=i: maps.update({i: x}))
        for i in backbone.out_indices
    ]
    try:
        with _without_gradients_of_parameters(model), torch.enable_grad():
            score = target.score(target.forward(image.detach().clone().requires_grad_())[0])
            gradients = torch.autograd.grad(score, list(maps.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    shares = {
        stage: 0.0 if gradient is None else float((gradient * x.detach()).sum(-1).abs().sum())
        for (stage, x), gradient in zip(maps.items(), gradients, strict=True)
    }
    if not any(shares.values()):
        raise UsageError(f"the gradient of {target.title!r} is zero; allowed: another point or method")
    return stage_with_places(image, max(shares, key=lambda stage: shares[stage]))


def stage_with_places(image: Tensor, stage: int) -> int:
    """Return the stage, or the last one before it whose map has at least 4 x 4 tokens for an image (B, C, H, W)."""
    while stage and min(image.shape[2:]) <= 3 * 4 * 2**stage:
        stage -= 1
    return stage


class _Forward(nn.Module):
    """A model with the forward pass of a target."""

    def __init__(self, model: nn.Module, target: CamTarget) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, x: Tensor) -> Any:
        """Return the outputs that the target is computed from."""
        return self.target.forward(x)


def _cam_class(method: str) -> Any:
    """Return grad-cam's class, with the extent of the map in pixels and, for EigenCAM, a definite sign."""
    import pytorch_grad_cam

    base: Any = getattr(pytorch_grad_cam, CAMS[method].replace("-", ""))

    class Cam(base):
        """A map covers whole tokens, which may reach beyond the image."""

        extent: tuple[int, int]

        def get_target_width_height(self, _: Tensor) -> tuple[int, int]:
            return self.extent[1], self.extent[0]

        def get_cam_image(
            self, image: Any, layer: Any, target: Any, activations: np.ndarray, gradients: Any, smooth: bool
        ) -> np.ndarray:
            if method == "eigencam":
                return np.stack([_first_component(features) for features in activations])
            if gradients is None:  # the target does not depend on this map
                return np.zeros_like(activations[:, 0])
            return super().get_cam_image(image, layer, target, activations, gradients, smooth)

    return Cam


def _first_component(features: np.ndarray) -> np.ndarray:
    """Project a map (C, H, W) on its first principal component: (H, W).

    The package's own projection needs a square matrix of all tokens, and leaves the sign to chance. Here the extreme
    with the larger absolute value is positive.
    """
    tokens = features.reshape(len(features), -1).T
    tokens = tokens - tokens.mean(0)
    image = (tokens @ np.linalg.svd(tokens, full_matrices=False)[2][0]).reshape(features.shape[1:])
    return -image if -image.min() > image.max() else image


@contextmanager
def _without_gradients_of_parameters(model: nn.Module) -> Iterator[None]:
    """Compute gradients of maps only; frozen backbones give them, too, as the image has a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
