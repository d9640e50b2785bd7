"""Files of tiny teachers."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import nn

NAME = "test_resnet"  # timm's own model for tests, 0.5 M parameters, with batch norm


def network(name: str = NAME, classes: int = 3, **arguments) -> nn.Module:
    """Build a teacher with reproducible random weights and statistics, in evaluation mode."""
    torch.manual_seed(7)
    model = timm.create_model(name, num_classes=classes, **arguments)
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return model.eval()


def save(folder: Path, name: str = NAME, classes: int = 3, names: tuple[str, ...] = (), **arguments) -> str:
    """Write a teacher to a file, as timm does (or with class names, as mmengine does)."""
    path = folder / f"{name}-{classes}.pth"
    content = {"state_dict": network(name, classes, **arguments).state_dict()}
    if names:
        content["meta"] = {"dataset_meta": {"classes": names}}
    torch.save(content, path)
    return str(path)
