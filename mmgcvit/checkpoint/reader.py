"""Reading of checkpoint files without executing code from them.

:func:`read_checkpoint` is the only reader of the package. mmengine's loaders call it, too (``loading.py``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from mmgcvit.checkpoint.limits import DECRYPT, RefusedError, check_contents
from mmgcvit.checkpoint.other_files import is_safetensors, read_h5, read_safetensors
from mmgcvit.checkpoint.torch_files import read_old, read_zip
from mmgcvit.errors import CheckpointError
from mmgcvit.utils.text import printable

#: Environment variable that names the files to trust, separated as in PATH; for tools without ``--trust-checkpoint``.
VARIABLE = "MMGCVIT_TRUST_CHECKPOINT"

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trust_checkpoints(trust: bool = True) -> Iterator[None]:
    """Let :func:`read_checkpoint` unpickle files inside the block that it would refuse. **They can run any code.**

    This is ``--trust-checkpoint`` of the commands. Damaged files are refused in any case.

    Args:
        trust: False has no effect.

    Examples:
        >>> with trust_checkpoints():
        ...     model = init_detector(config, "my_own.pth")
    """
    token = _trusted.set(trust or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


def is_named(path: Path) -> bool:
    """Whether the environment variable :data:`VARIABLE` names a file. A folder in it stands for nothing."""
    named = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    return any(os.path.realpath(os.path.expanduser(name)) == os.path.realpath(path) for name in named)


def is_trusting() -> bool:
    """Whether :func:`trust_checkpoints` is active."""
    return _trusted.get()


def read_checkpoint(
    path: str | os.PathLike, map_location: str | torch.device | None = "cpu", trust: bool | None = None
) -> dict[str, Any]:
    """Read a checkpoint: torch's (.pth, .pth.tar, ...), .safetensors or Keras' .h5, detected by content.

    No code from the file runs. Settings objects in it become placeholders; loss curves of mmengine are restored.
    Checksums of a zip file are verified. Memory stays below three times the size of the file plus 200 MB.

    Args:
        path: the file.
        map_location: device for the tensors; anything else that ``torch.load`` accepts means the CPU.
        trust: unpickle the file with ``torch.load``, which **can run any code**, if it asks for something that this
            reader refuses. Default: whether :func:`trust_checkpoints` is active, or the environment variable
            :data:`VARIABLE` names the file.

    Returns:
        The contents of the file: a dict of tensors by name, or a dict that contains such a dict among other entries.

    Raises:
        CheckpointError: the file does not exist, is not a checkpoint, is truncated or damaged, claims more bytes than
            it has, or asks for code to be executed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r}: no such file")
    size = path.stat().st_size
    device = torch.device(map_location) if isinstance(map_location, (str, torch.device)) else torch.device("cpu")
    trust = _trusted.get() or is_named(path) if trust is None else trust
    name = f"checkpoint {printable(repr(str(path)))} ({size:,} bytes)"
    try:
        found = _read(path, size, device)
        check_contents(found, size)
    except RefusedError as error:
        if trust:
            return _unpickle(path, device, f"{name}: {printable(str(error))}")
        raise RefusedError(
            f"{name}: {printable(str(error))}. If you trust its source: --trust-checkpoint, or {VARIABLE}=<the file> "
            "in tools without this option"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {printable(str(error))}") from error
    except Exception as error:  # readers do not document what they raise for a damaged file
        reason = printable(f"{type(error).__name__}: {error}".splitlines()[0][:300])
        raise CheckpointError(f"{name}: truncated or damaged ({reason})") from error
    return found


def _read(path: Path, size: int, device: torch.device) -> Any:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_h5(path, size, device)
    if is_safetensors(head):
        return read_safetensors(path, size, device)
    if head.lstrip()[:1] == b"<":
        raise CheckpointError("it is a web page (HTML or XML), not a checkpoint: check the URL or path")
    if head.startswith(b"PK\x03\x04"):
        return read_zip(path, size, device)
    if head.startswith(b"\x80"):
        return read_old(path, size, device)
    if path.suffix in (".tlt", ".etlt"):
        raise CheckpointError(f"it is encrypted by NVIDIA TAO: {DECRYPT}")
    raise CheckpointError(
        f"not a checkpoint; allowed: torch's .pth, .safetensors, Keras' .h5. It begins with {head[:16]!r}"
    )


def _unpickle(path: Path, device: torch.device, reason: str) -> Any:
    """Read a trusted file with torch, which runs whatever the file asks for."""
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "").lower() in ("1", "y", "yes", "true"):
        raise RefusedError(f"{reason}. TORCH_FORCE_WEIGHTS_ONLY_LOAD forbids to trust it")
    print_log(f"{reason}. It is trusted: its code runs", logger="current", level=logging.WARNING)
    try:
        return torch.load(path, map_location=device, weights_only=False)
    except Exception as error:  # whatever the code of the file raises
        text = printable(f"{type(error).__name__}: {error}".splitlines()[0][:300])
        raise CheckpointError(f"{reason}. Trusted, but torch cannot read it, either ({text})") from error
