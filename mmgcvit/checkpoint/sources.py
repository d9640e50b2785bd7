"""Where checkpoints come from: files, URLs and names; and the loaders by which mmengine reads all of them.

Importing this module registers these loaders with mmengine's ``CheckpointLoader``, for the whole process: whatever a
``Pretrained`` initialisation of any part of a model, ``load_from``, a resumed run or an inferencer of OpenMMLab loads,
is read by :func:`~mmgcvit.checkpoint.reader.read_checkpoint`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_names

from mmgcvit import compat
from mmgcvit.checkpoint.layouts import unwrap_checkpoint
from mmgcvit.checkpoint.limits import RefusedError
from mmgcvit.checkpoint.reader import is_trusting, read_checkpoint
from mmgcvit.checkpoint.weights import fetch
from mmgcvit.errors import CheckpointError

SCHEMES = ("gcvit://", "timm://", "ngc://")
URLS = ("http://", "https://")
READER = "mmgcvit-reader://"  # prefix of names of which mmengine gets only the weights, whatever the file's layout
Loader = Callable[..., Any]


def resolve_source(source: str) -> Path:
    """Return the local path of a checkpoint given as a path, a URL or a published name; the latter two are fetched.

    Raises:
        CheckpointError: the name is unknown, or the file cannot be fetched.
    """
    if source.startswith((*SCHEMES, *URLS)):
        return fetch(source)
    return Path(source)


def through_reader(source: str) -> str:
    """Name by which mmengine gets a file, a URL or a published name of any publisher as a state dict.

    Names with a scheme of mmengine's (``open-mmlab://``, ``s3://``, ...) are returned unchanged.
    """
    if "://" in source and not source.startswith((*SCHEMES, *URLS)):
        return source
    return READER + source


def load_from_mmgcvit_reader(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint of any publisher for mmengine; the weights are under ``state_dict``."""
    found = read_checkpoint(resolve_source(filename.removeprefix(READER)), map_location)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        return dict(found)
    return {"state_dict": unwrap_checkpoint(found)}


def load_from_source(filename: str, map_location: Any = None) -> Any:
    """Read a file, a URL or a published name for mmengine."""
    return read_checkpoint(resolve_source(filename), map_location)


def load_from_model_zoo(filename: str, map_location: Any = None) -> Any:
    """Read ``torchvision://``, ``open-mmlab://`` and ``mmcls://`` names from the URLs that mmengine knows for them."""
    scheme, _, name = filename.partition("://")
    if scheme in ("torchvision", "modelzoo"):
        urls = mmengine_names.get_torchvision_models()
    elif scheme == "mmcls":
        urls = mmengine_names.get_mmcls_models()
    else:
        urls = mmengine_names.get_external_models()
        name = mmengine_names.get_deprecated_model_names().get(name, name)
    if name not in urls:
        raise CheckpointError(f"checkpoint {filename!r}: mmengine knows no such name")
    url = urls[name]
    found = load_from_source(url if url.startswith(URLS) else str(compat.mmengine_home() / url), map_location)
    if scheme != "mmcls":
        return found
    inner = found.get("state_dict", found)
    return {"state_dict": {key[9:]: value for key, value in inner.items() if key.startswith("backbone.")}}


def _only_trusted(prefix: str, loader: Loader) -> Loader:
    """Let mmengine unpickle files of a storage service only if the user trusts them."""

    @functools.wraps(loader)
    def load_from_service(filename: str, map_location: Any = None, **options: Any) -> Any:
        if not is_trusting():
            raise RefusedError(
                f"checkpoint {filename!r}: mmengine unpickles files of {prefix} itself, which can run code. Copy it to "
                "a local file, or if you trust its source: --trust-checkpoint"
            )
        return loader(filename, map_location, **options)

    return load_from_service


def register_loaders() -> None:
    """Let mmengine read everything with :func:`~mmgcvit.checkpoint.reader.read_checkpoint`."""
    ours: dict[str, Loader] = dict.fromkeys(("", *SCHEMES, *URLS), load_from_source)
    ours |= dict.fromkeys(("torchvision://", "modelzoo://", "open-mmlab://", "openmmlab://", "mmcls://"),
                          load_from_model_zoo)  # fmt: skip
    ours[READER] = load_from_mmgcvit_reader
    for prefix, loader in compat.checkpoint_loaders().items():
        if prefix not in ours and loader.__module__.startswith("mmengine."):
            ours[prefix] = _only_trusted(prefix, loader)
    for prefix, loader in ours.items():
        CheckpointLoader.register_scheme(prefixes=prefix, force=True, loader=loader)


register_loaders()
