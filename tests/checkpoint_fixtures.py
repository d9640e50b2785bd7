"""Checkpoints in the layouts of all publishers, written from the tensors of a classifier, and models to load them."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file
from torch import Tensor, nn

from mmgcvit import GCViT, GCViTClassifier
from mmgcvit.checkpoint.layouts import export_state_dict, split_state_dict


def authors_names(state: dict[str, Tensor], arch: dict) -> dict[str, Tensor]:
    """Convert a classifier's tensors to the authors' names, independently of the project's conversion tables."""
    theirs = {}
    for name, value in state.items():
        name = name.removeprefix("backbone.")
        if ".attn.qkv." in name or ".attn.kv." in name:
            heads = arch["num_heads"][int(name[7])]
            dim = arch["embed_dims"] * 2 ** int(name[7]) // heads
            parts = len(value) // (heads * dim)
            rows = [value[(h * parts + p) * dim + d] for p in range(parts) for h in range(heads) for d in range(dim)]
            value = torch.stack(rows)
            name = name.replace(".kv.", ".qkv.")
        for old, new in (("stem.conv.", "patch_embed.proj."), ("stem.downsample.", "patch_embed.conv_down."),
                         ("stages.1.downsample", "levels.0.downsample"), ("stages.2.downsample", "levels.1.downsample"),
                         ("stages.3.downsample", "levels.2.downsample"), ("stages.", "levels."),
                         ("query.mbconvs.", "q_global_gen.to_q_global."), ("norm3.", "norm."),
                         ("mbconv.depthwise", "conv.0"), ("mbconv.se.fc1", "conv.2.fc.0"),
                         ("mbconv.se.fc2", "conv.2.fc.2"), ("mbconv.pointwise", "conv.3"), (".depthwise", ".conv.0"),
                         (".se.fc1", ".conv.2.fc.0"),
                         (".se.fc2", ".conv.2.fc.2"), (".pointwise", ".conv.3")):  # fmt: skip
            name = name.replace(old, new)
        if name.endswith("conv.3.weight"):
            value = value[:, :, None, None]
        theirs[name] = value.clone()
        if name.endswith("relative_position_bias_table"):
            window = arch["window_size"][int(name[7])]
            places = [(y, x) for y in range(window) for x in range(window)]
            index = [
                [(a - c + window - 1) * (2 * window - 1) + b - d + window - 1 for c, d in places] for a, b in places
            ]
            theirs[name.replace("bias_table", "index")] = torch.tensor(index)
    return theirs


def write_authors(path: Path, state: dict[str, Tensor], **more: object) -> Path:
    """Write a file like timm's saver: with an optimizer state, and arguments that torch's safe loader refuses."""
    optimizer = dict(state={0: dict(step=3)}, param_groups=[dict(lr=0.1)])
    torch.save(
        dict(
            epoch=310,
            arch="gc_vit_tiny",
            state_dict=state,
            optimizer=optimizer,
            metric=83.4,
            args=argparse.Namespace(lr=0.005, data=Path("imagenet")),
            **more,
        ),
        path,
    )
    return path


def write_detection(path: Path, state: dict[str, Tensor], embed_dims: int) -> Path:
    """Write a file like mmdet 2 for the authors' detectors: one norm per map, no head, and other parts."""
    network = {f"backbone.{name}": value for name, value in state.items() if not name.startswith(("norm.", "head."))}
    for i in range(4):
        dim = embed_dims * 2**i
        network |= {f"backbone.norm{i}.weight": torch.randn(dim), f"backbone.norm{i}.bias": torch.randn(dim)}
    network["neck.lateral_convs.0.conv.weight"] = torch.randn(8, 16, 1, 1)
    network["roi_head.bbox_head.fc_cls.weight"] = torch.randn(4, 8)
    torch.save(dict(meta=dict(epoch=36), state_dict=network), path)
    return path


def write_keras(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a file like tfgcvit's save_weights."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, value in state.items():
            if name.endswith("relative_position_index"):
                continue
            *parts, leaf = name.split(".")
            if "norm" in parts[-1]:
                leaf = {"weight": "gamma", "bias": "beta"}[leaf]
            elif leaf == "weight":
                if value.ndim == 4 and ".conv.0." in name:
                    leaf, value = "depthwise_kernel", value.permute(2, 3, 0, 1)
                else:
                    leaf, value = "kernel", value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T
            layer = parts[:2] if parts[0] == "levels" else parts[:1]
            file["/".join([*layer, *parts, leaf]) + ":0"] = value.numpy()
    return path


def write_all(folder: Path, ours: dict[str, Tensor], authors: dict[str, Tensor], embed_dims: int) -> dict[str, Path]:
    """Write one file per layout; the Keras one only if h5py is installed."""
    found = {
        "nvidia": write_authors(folder / "authors.pth.tar", authors),
        "nvidia-detection": write_detection(folder / "detection.pth", authors, embed_dims),
        "timm": folder / "timm.safetensors",
        "mmgcvit": folder / "ours.pth",
    }
    save_file(
        {k: v.contiguous() for k, v in export_state_dict(split_state_dict(authors).backbone, "timm")[0].items()},
        found["timm"],
    )
    torch.save({"state_dict": ours, "meta": {}}, found["mmgcvit"])
    try:
        import h5py  # noqa: F401
    except ImportError:
        return found
    return found | {"keras": write_keras(folder / "keras.h5", authors)}


class Detector(nn.Module):
    def __init__(self, **backbone) -> None:
        super().__init__()
        self.neck = nn.Linear(2, 2)  # loaded before the backbone; must be unchanged if the backbone fails
        self.backbone = GCViT(**{"arch": TINY, **backbone})


def assert_loaded(backbone: GCViT, classifier: GCViTClassifier) -> None:
    got = backbone.state_dict()
    for name, value in classifier.backbone.state_dict().items():
        if name in got and not name.startswith("norm"):
            assert torch.equal(got[name], value), name


def unchanged(model: nn.Module) -> Callable[[], None]:
    """Return a function that asserts that no tensor of the model has changed since this call."""
    before = copy.deepcopy(model.state_dict())

    def check() -> None:
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name

    return check
