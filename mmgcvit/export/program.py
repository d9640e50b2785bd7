"""Running of ``.pt2`` files by torch, like those of other formats."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmgcvit.runtime.metadata import KEY, ModelInfo
from mmgcvit.runtime.session import Port, Session, reading


class ProgramSession(Session):
    """A ``.pt2`` file in torch. **It is a program**: open only files that you trust.

    The number of threads is that of torch.
    """

    def _open(self, threads: int | None) -> tuple[str | None, Sequence[Port], Sequence[Port]]:
        with contextlib.suppress(ImportError):
            import torchvision  # noqa: F401  registers the operators for NMS and RoIAlign
        extra: dict[str, Any] = {KEY: ""}  # torch fills it with text, and older releases with bytes
        program: Any = reading(self.file, lambda: torch.export.load(self.file, extra_files=extra))
        self.module = program.module()
        text = (extra[KEY] if isinstance(extra[KEY], str) else extra[KEY].decode()) or None
        info = ModelInfo.from_json(text, str(self.file))
        # torch checks the input itself
        inputs = [Port("images", info.dtype, (info.shape[0], info.channels, *info.shape[1:]))]
        return text, inputs, [Port(name, "", ()) for name in info.outputs]

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in self.module(torch.from_numpy(images))]
