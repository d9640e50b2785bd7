"""Table of published weights (names, URLs, evaluation settings), and a cache of fetched files that are verified."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock

from mmgcvit.backbone.arch import ARCHS
from mmgcvit.checkpoint.download import MIRROR, check_url, download
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.errors import CheckpointError
from mmgcvit.utils import atomic_path, file_sha256

LICENCE = "CC BY-NC-SA 4.0"  # also applies to conversions of the authors' files
_HUB = "https://huggingface.co/nvidia/GCViT/resolve/main/"
_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights-morevit/"


@dataclass(frozen=True)
class Weights:
    """A published weight file.

    Args:
        name: name with scheme, e.g. ``gcvit://tiny_in1k``.
        url: the publisher's URL.
        arch: variant, a key of :data:`~mmgcvit.backbone.arch.ARCHS`.
        input_size: side of the training images, in pixels.
        crop: evaluation crop of the publisher, as a fraction of the resized image.
        squash: whether the image is resized to a square for evaluation instead of being cropped.
        top1: published ImageNet-1k top-1 accuracy, in percent; None if unpublished.
        sha256: first hexadecimal digits of the SHA-256 of the file; '' if unpublished.
        licence: licence of the weights.
    """

    name: str
    url: str
    arch: str
    input_size: int
    crop: float
    squash: bool = False
    top1: float | None = None
    sha256: str = ""
    licence: str = LICENCE

    @property
    def window_size(self) -> tuple[int, ...]:
        """Window side per stage, in tokens."""
        return ARCHS[self.arch]["window_size"]

    @property
    def filename(self) -> str:
        """Last component of the URL."""
        return self.url.rsplit("/", 1)[-1]


# Evaluation settings and accuracies: for the authors from their web page, for timm from its pretrained configs. timm's
# file names end in hashes.
# fmt: off
WEIGHTS: dict[str, Weights] = {
    weights.name: weights for weights in (
        *(Weights(f"gcvit://{arch}_in1k", f"{_HUB}gcvit_1k_{arch}.pth.tar", arch, 224, crop, top1=top1)
          for arch, crop, top1 in (
              ("xxtiny", 1.0, 79.9), ("xtiny", 0.875, 82.0), ("tiny", 1.0, 83.5), ("tiny2", 0.875, 83.7),
              ("small", 0.875, 84.3), ("small2", 0.875, 84.8), ("base", 1.0, 85.0), ("large", 1.0, 85.7))),
        Weights("gcvit://large_in21k-224", f"{_HUB}gcvit_21k_large_224.pth.tar", "large", 224, 1.0, top1=86.6),
        Weights("gcvit://large_in21k-384", f"{_HUB}gcvit_21k_large_384.pth.tar", "large-384", 384, 1.0, True, 87.4),
        Weights("gcvit://large_in21k-512", f"{_HUB}gcvit_21k_large_512.pth.tar", "large-512", 512, 1.0, True, 87.6),
        *(Weights(f"timm://gcvit_{arch}.in1k", f"{_TIMM}gcvit_{arch}_224_nvidia-{sha}.pth", arch, 224, 0.875,
                  sha256=sha)
          for arch, sha in (("xxtiny", "d1d86009"), ("xtiny", "274b92b7"), ("tiny", "ac783954"),
                            ("small", "4e98afa2"), ("base", "f009139b"))),
    )
}
# fmt: on


@dataclass(frozen=True)
class NgcFile:
    """A file of NVIDIA TAO on NGC, which has no URL for downloads without an account or NVIDIA's program.

    Args:
        resource: model on NGC.
        version: its version.
        filename: the file of this version.
        arch: variant, a key of :data:`~mmgcvit.backbone.arch.ARCHS`.
        contents: what the file contains.
        licence: licence of the weights, as the model's page states it.
    """

    resource: str
    version: str
    filename: str
    arch: str
    contents: str
    licence: str

    @property
    def name(self) -> str:
        """NGC's name with the scheme ``ngc://``."""
        return f"ngc://nvidia/tao/{self.resource}:{self.version}"

    @property
    def page(self) -> str:
        """Page of the model on NGC."""
        return f"https://catalog.ngc.nvidia.com/orgs/nvidia/teams/tao/models/{self.resource}"


NGC_FILES: dict[str, NgcFile] = {
    file.name: file for file in (
        NgcFile("pretrained_dino_coco", "dino_gc_vit_tiny_trainable_v1.0", "dino_gcvit_tiny0_ep12.pth", "tiny",
                "DINO, COCO", LICENCE),
        *(NgcFile("pretrained_dino_imagenet", version, f"{version}.pth", arch, "ImageNet", LICENCE)
          for version, arch in (("gcvit_large_imagenet22k_384", "large-384"),
                                *((f"gcvit_{arch}_imagenet1k", arch)
                                  for arch in ("large", "base", "small", "tiny", "xtiny", "xxtiny")))),
        *(NgcFile("pretrained_dino_nvimagenet", f"gcvit_{arch}_nvimagenet", f"gcvit_{arch}_nvimagenet.pth", arch,
                  "NVImageNet", "NVIDIA AI Enterprise EULA") for arch in ("base", "small", "tiny", "xtiny", "xxtiny")),
    )
}  # fmt: skip


def find_weights(name: str) -> Weights:
    """Return the entry of :data:`WEIGHTS` with this name.

    Raises:
        CheckpointError: the name is unknown, or that of a file to download by hand.
    """
    if name in NGC_FILES:
        file = NGC_FILES[name]
        raise CheckpointError(
            f"weights {name!r}: to download by hand from {file.page} (version {file.version}, licence {file.licence}); "
            f"allowed then: the path of {file.filename}"
        )
    if name not in WEIGHTS:
        raise CheckpointError(f"weights {name!r}; allowed: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def cache_dir() -> Path:
    """Folder of fetched files: ``mmgcvit`` in torch.hub's cache, which ``TORCH_HOME`` relocates."""
    return Path(torch.hub.get_dir()) / "mmgcvit"


def fetch(source: str) -> Path:
    """Return the local path of a published file; download it from its publisher or ``MMGCVIT_MIRROR`` if necessary.

    A file in the cache is always complete: it is downloaded under a temporary name, verified, and then renamed. An
    interrupted download resumes if the server supports it. Concurrent processes may request the same file. The SHA-256
    is compared with the published one, or with the one recorded at the first download.

    Args:
        source: a name in :data:`WEIGHTS`, or a URL (https; http from this machine, or with ``MMGCVIT_ALLOW_HTTP=1``).

    Returns:
        Path in :func:`cache_dir`.

    Raises:
        CheckpointError: the name is unknown, the server does not respond or sends something other than a checkpoint, or
            the file differs from the expected one.
    """
    if source.startswith(("http://", "https://")):
        check_url(source)
        url, sha256 = source, ""
        # files with the same name at different URLs are different files
        place = hashlib.sha256(source.encode()).hexdigest()[:8]
        target = cache_dir() / f"{place}-{Path(urlparse(source).path).name or 'weights'}"
    else:
        weights = find_weights(source)
        url, sha256, target = mirrored(weights.url), weights.sha256, cache_dir() / weights.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        record = target.with_name(target.name + ".sha256")
        known = _recorded(record) or sha256
        if not target.is_file():
            part = target.with_name(target.name + ".part")
            _copy(Path(url), part) if "://" not in url else download(url, part)
            try:
                read_checkpoint(part)
            except CheckpointError as error:  # a truncated file, a web page, a Git LFS pointer
                part.unlink()
                raise CheckpointError(f"{url}: the download is not a checkpoint and was removed: {error}") from error
            found = file_sha256(part)
            if not found.startswith(known):
                part.unlink()
                raise CheckpointError(
                    f"{url}: not the expected file: its SHA-256 is {found}, not {known}...; "
                    f"removed. (The SHA-256 of the first download is recorded in {record})"
                )
            _write_record(record, found, target)
            part.replace(target)
        elif not (found := file_sha256(target)).startswith(known):
            raise CheckpointError(
                f"{target} has changed since it was fetched: its SHA-256 is {found}, not {known}; "
                "remove it to download it again"
            )
        elif not _recorded(record):  # lost or damaged
            read_checkpoint(target)
            _write_record(record, found, target)
    return target


def _recorded(record: Path) -> str:
    """SHA-256 in the record of a fetched file; '' if there is none, or if it is empty or torn."""
    words = record.read_bytes().split() if record.is_file() else []
    return words[0].decode() if words and re.fullmatch(rb"[0-9a-f]{64}", words[0]) else ""


def _write_record(record: Path, digest: str, target: Path) -> None:
    with atomic_path(record) as unfinished:
        unfinished.write_text(f"{digest}  {target.name}\n")


def mirrored(url: str) -> str:
    """URL or path to fetch a published file from: its own URL, or its file in ``MMGCVIT_MIRROR`` (a URL or folder)."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return url
    name = url.rsplit("/", 1)[-1]
    if mirror.startswith(("http://", "https://")):
        return f"{mirror.rstrip('/')}/{name}"
    return str(Path(mirror.removeprefix("file://")).expanduser() / name)


def _copy(source: Path, part: Path) -> None:
    if not source.is_file():
        raise CheckpointError(f"{MIRROR}: {source}: no such file")
    shutil.copyfile(source, part)


# Former names, kept for one release
@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield a temporary path that the caller renames; use :func:`mmgcvit.utils.atomic_path` instead."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield building
    finally:
        building.unlink(missing_ok=True)
