"""The teacher: a frozen network of timm."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import timm
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from mmgcvit.backbone import GCViT
from mmgcvit.backbone.checks import check_integer
from mmgcvit.checkpoint.complete import class_names, load_complete
from mmgcvit.checkpoint.layouts import unwrap_checkpoint
from mmgcvit.checkpoint.loading import load_pretrained
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.saved_config import saved_model
from mmgcvit.checkpoint.sources import resolve_source
from mmgcvit.distillation.settings import backbone_settings, differing, normalisation
from mmgcvit.errors import CheckpointError, UsageError
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted


class Teacher:
    """A network of timm in evaluation mode, without gradients.

    It is not an ``nn.Module``: the state dict, the optimizer, averaged weights and ``train()`` of the student do not
    reach it, and copies of the student share it. Its weights are read when they are needed first, so that a student is
    built for a test or for predictions without them. (A name on the Hub, 'hf-hub:...', still asks the Hub for its
    settings.)

    Args:
        name: name of a model in timm, such as 'resnet50.a1_in1k' or 'hf-hub:timm/...'; or ``gcvit_*_any`` of
            :mod:`mmgcvit.timm`.
        checkpoint: file with its weights, of timm or of a classifier of this package; None for timm's pretrained
            weights.
        num_classes: classes of a checkpoint's head; 0 for a teacher without head. None for those of timm's weights.
        layers: which of its maps are returned, as in timm's ``forward_intermediates``, in their order in the network.
        input_size: side of the square that images are resized to. By default their size is kept, unless the network
            takes only one.
        mean: mean of each channel, of pixel values scaled to [0, 1]; by default that of timm's configuration.
        std: standard deviation of each channel, likewise.
        norm: whether timm applies the final norm of the network to the maps, where it has one.
        **arguments: arguments of ``timm.create_model``, such as ``img_size``, or ``arch`` of a ``gcvit_*_any``.

    Attributes:
        num_classes: classes of its head.
        channels: channels of the maps of ``layers``.

    Raises:
        UsageError: timm has no such model, cannot build it, or it has no such layers.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str | None = None,
        num_classes: int | None = None,
        layers: Sequence[int] = (),
        input_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        norm: bool = True,
        **arguments: Any,
    ) -> None:
        self.name, self.checkpoint, self.layers, self.norm = name, checkpoint, list(layers), norm
        self.arguments = arguments
        if num_classes is not None:
            self.arguments = {**arguments, "num_classes": num_classes}
        with torch.device("meta"):  # the weights are loaded later
            network = self._create(False)
        settings: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
        self.num_classes: int = network.num_classes
        published = settings.get("num_classes")
        if checkpoint is None and num_classes not in (None, 0, published):
            raise UsageError(
                f"teacher: num_classes={num_classes} without a checkpoint; allowed for {name!r}: {published}, as "
                "in timm's weights. A head for other classes would have random weights"
            )
        self.channels = self._channels_of(network)
        if input_size is None and (settings.get("fixed_input_size") or "img_size" in arguments):
            input_size = arguments.get("img_size") or settings["input_size"][-1]
        self.input_size = None if input_size is None else check_integer("teacher: input_size", input_size, 1)
        self.mean = torch.tensor(mean or settings.get("mean") or IMAGENET_DEFAULT_MEAN)
        self.std = torch.tensor(std or settings.get("std") or IMAGENET_DEFAULT_STD)
        self.classes: tuple[str, ...] = ()  # names, once the weights are loaded
        self._network: Any = None

    def __deepcopy__(self, _: Any) -> Teacher:
        return self

    def load(self) -> nn.Module:
        """Return the network with its weights, which are loaded by the first call.

        Raises:
            UsageError: timm's weights cannot be loaded.
            CheckpointError: the checkpoint cannot be read, does not have all weights of the network, or was trained
                with other settings (padding, windows, mean, standard deviation).
        """
        if self._network is None:
            with torch.random.fork_rng(devices=[]):  # random numbers of the student do not depend on its teacher
                network = self._create(self.checkpoint is None)
            if self.checkpoint is not None:
                self._read_weights(network, self.checkpoint)
            self._network = network.requires_grad_(False).eval()
            print_log(f"teacher: {self.name}, {self.checkpoint or 'pretrained weights of timm'}", logger="current")
        return self._network

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Compute logits and maps.

        Args:
            pixels: (B, C, H, W), values from 0 to 255.

        Returns:
            Logits (B, num_classes), or None for a teacher without head; and the map (B, C, H', W') of each layer.

        Raises:
            UsageError: the network cannot apply its norm to its maps.
        """
        network: Any = self.load()
        if next(network.parameters()).device != pixels.device:
            network.to(pixels.device)
        mean, std = (values.to(pixels)[:, None, None] for values in (self.mean, self.std))
        images = (pixels / 255 - mean) / std
        if self.input_size is not None and images.shape[-2:] != (self.input_size, self.input_size):
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        if not self.layers:
            return network(images), []
        try:
            last, maps = network.forward_intermediates(images, indices=self.layers, norm=self.norm)
        except AssertionError as error:
            if "norm" not in str(error):
                raise
            raise UsageError(
                f"teacher: norm={self.norm}; allowed for {self.name!r}: {not self.norm} ({error})"
            ) from error
        return network.forward_head(last) if self.num_classes else None, list(maps)

    def _create(self, pretrained: bool) -> Any:
        importlib.import_module("mmgcvit.timm")  # registers gcvit_*_any
        try:
            return timm.create_model(self.name, pretrained=pretrained, **self.arguments)
        except Exception as error:  # networks of timm raise all types, and so do downloads
            reason = str(error).rstrip(".")
            if pretrained:  # it was built before, without weights
                raise UsageError(
                    f"teacher: timm's weights of name={self.name!r} cannot be loaded: {reason}. Without a network: a "
                    "file (--teacher FILE of `mmgcvit finetune`, or teacher.checkpoint in a config)"
                ) from error
            raise UsageError(
                f"teacher: name={self.name!r}{f' with {self.arguments}' if self.arguments else ''} cannot be built: "
                f"{reason}. `python -c 'import timm; print(timm.list_models(pretrained=True))'` prints the names"
            ) from error

    def _channels_of(self, network: Any) -> list[int]:
        """Channels of the maps of the layers."""
        if not self.layers:
            return []
        known = [info["num_chs"] for info in getattr(network, "feature_info", None) or ()]
        if not hasattr(network, "forward_intermediates") or not known:
            raise UsageError(
                f"teacher: name={self.name!r} provides no feature maps; allowed with features: a model of timm with "
                "forward_intermediates"
            )
        count = len(known)
        order = [layer + count * (layer < 0) for layer in self.layers]
        if not all(0 <= layer < count for layer in order) or order != sorted(set(order)):
            raise UsageError(
                f"teacher: layers={self.layers}; allowed for {self.name!r}: {-count} to {count - 1}, in their order in "
                "the network"
            )
        return [known[layer] for layer in self.layers]

    def _read_weights(self, network: Any, file: str) -> None:
        """Load a checkpoint that has all weights of the network."""
        content = read_checkpoint(resolve_source(file))
        self.classes = class_names(content)
        heads = (f"{network.pretrained_cfg.get('classifier')}.weight", "head.weight")
        tensors = unwrap_checkpoint(content)
        given = next((len(tensors[name]) for name in heads if name in tensors), self.num_classes)
        if self.num_classes and given != self.num_classes:
            raise CheckpointError(
                f"teacher: checkpoint {file!r} has {counted(given, 'class')}, but num_classes={self.num_classes}; "
                "allowed with logits: the same classes"
            )
        if any(isinstance(module, GCViT) for module in network.modules()):
            if missing := load_pretrained(network, file).left_initial:
                raise CheckpointError(f"teacher: checkpoint {file!r} lacks {summarize(missing)}")
        elif not (found := load_complete(network, content, file)).is_exact:
            print_log(f"teacher: checkpoint {file!r}: {found}", logger="current", level=logging.WARNING)
        self._require_settings(network, saved_model(content), file)

    def _require_settings(self, network: nn.Module, model: Mapping[str, Any], file: str) -> None:
        """Compare settings that are no weights with those of the config in a checkpoint, as far as it has them."""
        own: dict[str, Any] = {
            name: tuple(round(value, 6) for value in getattr(self, name).tolist()) for name in ("mean", "std")
        }
        theirs: dict[str, Any] = dict(normalisation(model.get("data_preprocessor") or {}))
        if backbone := next((module for module in network.modules() if isinstance(module, GCViT)), None):
            own |= backbone_settings({**self.arguments, "arch": asdict(backbone.arch)})
            theirs |= backbone_settings(model.get("backbone") or {})
        if wrong := differing(own, theirs):
            given, trained = (", ".join(f"{key}={values[key]!r}" for key in wrong) for values in (own, theirs))
            raise CheckpointError(
                f"teacher: {given}, but checkpoint {file!r} was trained with {trained}; allowed: the same. Set them in "
                f"the config: teacher=dict(..., {trained})"
            )
