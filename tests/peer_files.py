"""Checkpoints and inputs for which ``tests/data`` has recorded outputs of the published implementations.

They are random numbers, so they are generated again instead of being stored; see ``tests/data/README.md``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).resolve().parent / "data"
PEER_ARCH = dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=3, layer_scale=1e-5)
# Sum of the absolute values of all weights. If it differs, the random number generators have changed.
CHECKSUMS = {"classification": 110909.47000036, "detection": 113396.53447991, "tfgcvit": 118305.11022936}
_AUTHORS_INPUTS = (  # all drawn from one generator, in this order
    ("authors_classification", "3x224x224", (3, 3, 224, 224)),
    ("authors_detection", "2x200x152", (2, 3, 200, 152)),
    ("authors_detection", "1x150x260", (1, 3, 150, 260)),
)
_TFGCVIT_INPUTS = (("2x224x224", 3), ("1x448x224", 4), ("1x150x260", 5))  # with their seeds


def recipe() -> dict[str, Any]:
    """Load the shapes and seeds, in the order in which the tensors were drawn."""
    return json.loads((DATA / "recipe.json").read_text())


def authors_weights(kind: str) -> dict[str, Tensor]:
    """Generate a state dict with the authors' names; kind is 'classification' or 'detection'.

    Convolutions (and biases of the linear layers in detection) start from PyTorch's default initialisation, drawn from
    the default generator of the process; then one generator randomises everything but the weights of convolutions.
    """
    everything = recipe()
    tensors = everything[kind]["tensors"]
    default = torch.Generator().manual_seed(everything["default_generator_seed"])
    initial: dict[str, Tensor] = {}
    position = 0
    for name, (shape, offset) in sorted(tensors.items(), key=lambda item: item[1][1] or 0):
        if offset is not None:
            torch.rand(offset - position, generator=default)  # draws of tensors that were overwritten later
            initial[name] = torch.empty(shape).uniform_(
                -_bound(tensors, name), _bound(tensors, name), generator=default
            )
            position = offset + initial[name].numel()
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(everything[kind]["seed"])
    for name, (shape, _) in tensors.items():
        if len(shape) == 4:
            value = initial[name]
        elif "gamma" in name:
            value = torch.rand(shape, generator=generator) + 0.5
        else:
            noise = torch.randn(shape, generator=generator)
            if name.endswith("bias_table"):
                value = noise * 0.5
            elif len(shape) == 2:
                value = noise * shape[1] ** -0.5
            elif "norm" in name and name.endswith("weight"):
                value = 1 + 0.2 * noise
            else:
                value = initial.get(name, torch.zeros(shape)) + 0.2 * noise
        state[name] = value
        if name.endswith("bias_table"):
            window = (math.isqrt(shape[0]) + 1) // 2
            state[name.replace("bias_table", "index")] = _position_index(window)
    _check(kind, state)
    return state


def tfgcvit_weights() -> dict[str, np.ndarray]:
    """Generate the data sets in the file written by tfgcvit's ``save_weights``, by path."""
    row = recipe()["tfgcvit"]
    generator = np.random.default_rng(row["seed"])
    found = {}
    for name, shape in row["tensors"].items():
        if "gamma1" in name or "gamma2" in name:
            value = generator.random(shape) + 0.5
        else:
            value = generator.standard_normal(shape)
            if "bias_table" in name:
                value = value * 0.5
            elif name.endswith("/gamma:0"):
                value = 1 + 0.2 * value
            elif len(shape) == 1:
                value = 0.2 * value
            else:
                value = value * (9 if "depthwise" in name else np.prod(shape[:-1])) ** -0.5
        found[name] = value.astype(np.float32)
    _check("tfgcvit", found)
    return found


def write_peer_file(kind: str, folder: Path) -> Path:
    """Write a checkpoint in its publisher's layout; kind is 'classification', 'detection' or 'tfgcvit'."""
    if kind == "tfgcvit":
        import h5py

        path = folder / "tfgcvit.h5"
        with h5py.File(path, "w") as file:
            for name, value in tfgcvit_weights().items():
                file[name] = value
        return path
    state = authors_weights(kind)
    if kind == "classification":  # as timm's saver wraps it
        path = folder / "authors_classification.pth.tar"
        args = argparse.Namespace(model="gc_vit_narrow", lr=0.005, batch_size=128)
        optimizer = dict(state={}, param_groups=[])
        torch.save(dict(epoch=309, arch="gc_vit_narrow", state_dict=state, optimizer=optimizer, args=args), path)
        return path
    path = folder / "authors_detection.pth"
    prefixed = {f"backbone.{name}": value for name, value in state.items()}
    torch.save(dict(meta=dict(epoch=36, CLASSES=("date",)), state_dict=prefixed), path)
    return path


def peer_answers(name: str) -> dict[str, dict[str, Tensor]]:
    """Return the regenerated inputs and the recorded outputs as size -> name -> tensor; ``name`` is the npz file.

    The inputs were rounded to float16 and passed as float32.
    """
    sizes: dict[str, dict[str, Tensor]] = {}
    if name == "tfgcvit":
        for size, seed in _TFGCVIT_INPUTS:
            batch, height, width = map(int, size.split("x"))
            image = np.random.default_rng(seed).standard_normal((batch, height, width, 3)).astype(np.float32)
            sizes[size] = {"input": torch.from_numpy(image).half().float()}
    else:
        generator = torch.Generator().manual_seed(11)
        for file, size, shape in _AUTHORS_INPUTS:
            image = torch.randn(shape, generator=generator)
            if file == name:
                sizes[size] = {"input": image.half().float()}
    with np.load(DATA / f"{name}.npz") as answers:
        for key in answers.files:
            size, part = key.split("/")
            sizes[size][part] = torch.from_numpy(answers[key])
    return sizes


def _bound(tensors: dict[str, Any], name: str) -> float:
    """Bound of PyTorch's uniform default initialisation."""
    shape = tensors[name][0] if len(tensors[name][0]) > 1 else tensors[name.replace(".bias", ".weight")][0]
    return math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(math.prod(shape[1:])))


def _position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens, (window^2, window^2) int64: a buffer in the authors' files."""
    tokens = torch.arange(window**2)
    y, x = tokens // window, tokens % window
    return (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1


def _check(kind: str, state: dict[str, Any]) -> None:
    values = [torch.as_tensor(value) for value in state.values()]
    total = sum(value.double().abs().sum().item() for value in values if value.is_floating_point())
    assert math.isclose(total, CHECKSUMS[kind], rel_tol=1e-6), (
        f"{kind}: sum of absolute values {total!r}, recorded {CHECKSUMS[kind]!r}: the generators of torch "
        f"{torch.__version__} or NumPy {np.__version__} differ from those used for the recorded outputs"
    )
