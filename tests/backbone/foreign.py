"""The names that others give to the network's tensors, turned into ours: just enough for the parity tests."""

from __future__ import annotations

import re

import torch

NVIDIA = [
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.conv_down\.", "stem.downsample."),
    (r"^levels\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^levels\.", "stages."),
    (r"q_global_gen\.to_q_global\.(\d)\.conv\.", r"query.mbconvs.\1."),
    (r"downsample\.conv\.", "downsample.mbconv."),
    (r"(mbconvs\.\d|mbconv)\.0\.", r"\1.depthwise."),
    (r"(mbconvs\.\d|mbconv)\.2\.fc\.0\.", r"\1.se.fc1."),
    (r"(mbconvs\.\d|mbconv)\.2\.fc\.2\.", r"\1.se.fc2."),
    (r"(mbconvs\.\d|mbconv)\.3\.", r"\1.pointwise."),
    (r"(downsample)\.reduction\.", r"\1.reduction."),
    (r"^norm\.", "norm3."),
]
TIMM = [
    (r"^stem\.conv1\.", "stem.conv."),
    (r"^stem\.down\.", "stem.downsample."),
    (r"^stages\.3\.norm\.", "norm3."),
    (r"global_block\.blocks\.conv(\d)\.", lambda m: f"query.mbconvs.{int(m[1]) - 1}."),
    (r"downsample\.conv_block\.|downsample\.conv\.", "downsample.mbconv."),
    (r"\.conv_dw\.", ".depthwise."),
    (r"\.conv_pw\.", ".pointwise."),
    (r"attn\.rel_pos\.", "attn."),
    (r"\.ls(\d)\.gamma$", r".gamma\1"),
]


def rename(state: dict[str, torch.Tensor], rules: list, heads: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Rename by rules in turn; order the rows of qkv by head; 1x1 convolutions become matrices."""
    ours = {}
    for key, value in state.items():
        if key.endswith("relative_position_index") or key.startswith("head."):
            continue
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        if value.ndim == 4 and re.search(r"pointwise|se\.fc", key):
            value = value.flatten(1)
        if ".attn.qkv." in key:
            stage = int(key.split(".")[1])
            parts = value.shape[0] // (32 * heads[stage])
            value = value.reshape(parts, heads[stage], 32, -1).transpose(0, 1).reshape(value.shape)
            key = key.replace("qkv", "kv") if parts == 2 else key
        ours[key] = value
    return ours


def from_keras(path: str) -> dict[str, torch.Tensor]:
    """Tensors of a tfgcvit file under the authors' names, in PyTorch's layouts."""
    import h5py

    state = {}

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        # The path repeats the layer's name: keep what follows the first half.
        parts = name.removesuffix(":0").split("/")
        for cut in range(1, len(parts)):
            if parts[:cut] == parts[cut : 2 * cut]:
                parts = parts[cut:]
                break
        value = torch.from_numpy(item[()])
        leaf = parts[-1]
        if leaf == "depthwise_kernel":
            value = value.permute(2, 3, 0, 1)
        elif leaf == "kernel":
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        renamed = {"kernel": "weight", "depthwise_kernel": "weight", "gamma": "weight", "beta": "bias"}
        parts[-1] = renamed.get(leaf, leaf)
        state[".".join(parts)] = value.contiguous()

    with h5py.File(path) as file:
        file.visititems(visit)
    return state
