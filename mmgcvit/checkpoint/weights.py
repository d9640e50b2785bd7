"""The published weights by name: where they are, what they are, and how they get here whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock
from rich.progress import Progress

from mmgcvit.backbone.arch import ARCHS
from mmgcvit.checkpoint.errors import CheckpointError
from mmgcvit.checkpoint.reader import read_checkpoint

LICENCE = "CC BY-NC-SA 4.0"  # also of what others converted from the authors' files
MIRROR = "MMGCVIT_MIRROR"
_HUB = "https://huggingface.co/nvidia/GCViT/resolve/main/"
_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights-morevit/"
TRIES, TIMEOUT, CHUNK = 5, 30, 1 << 20  # attempts, seconds without an answer, bytes


@dataclass(frozen=True)
class Weights:
    """A published file.

    Args:
        name: with its scheme.
        url: where its publisher has it.
        arch: variant; its windows are :data:`~mmgcvit.backbone.arch.ARCHS`'.
        input_size: side of the pictures that it was trained on, in pixels.
        crop: share of the resized picture that the publisher evaluates.
        squash: the whole picture is squeezed into a square instead of cropped.
        top1: ImageNet-1k top-1 accuracy as published, in percent; None where the publisher's page has none.
        sha256: first hexadecimal digits of the file's SHA-256; '' where it was not published.
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
        """Windows per stage."""
        return ARCHS[self.arch]["window_size"]

    @property
    def filename(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


# Authors: evaluation settings and accuracies of their page. timm: its pretrained configs; the names end in hashes.
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


def find_weights(name: str) -> Weights:
    """The table's row.

    Raises:
        CheckpointError: there is none.
    """
    if name not in WEIGHTS:
        raise CheckpointError(f"weights {name!r}; allowed: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def cache_dir() -> Path:
    """Where fetched files are kept: ``mmgcvit`` in torch.hub's folder (``TORCH_HOME`` moves it)."""
    return Path(torch.hub.get_dir()) / "mmgcvit"


def fetch(source: str) -> Path:
    """A published file, by name or URL, from the cache or from its publisher (or ``MMGCVIT_MIRROR``).

    A file is whole or absent: it grows under another name, is verified, and is then renamed. A download that broke off
    goes on where it stopped if the server can do so. Several processes may ask for the same file. Its SHA-256 is
    compared with the published one, or with the one that was recorded when it came first.

    Args:
        source: a name of :data:`WEIGHTS`, or a URL (http, https).

    Returns:
        The file in :func:`cache_dir`.

    Raises:
        CheckpointError: unknown name, no answer, an answer that is no such file, or another file than before.
    """
    if source.startswith(("http://", "https://")):
        url, sha256 = source, ""
        # the same file name at two places is two files
        place = hashlib.sha256(source.encode()).hexdigest()[:8]
        target = cache_dir() / f"{place}-{Path(urlparse(source).path).name or 'weights'}"
    else:
        weights = find_weights(source)
        url, sha256, target = mirrored(weights.url), weights.sha256, cache_dir() / weights.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        record = target.with_name(target.name + ".sha256")
        known = record.read_text().split()[0] if record.is_file() else sha256
        if not target.is_file():
            part = target.with_name(target.name + ".part")
            _copy(Path(url), part) if "://" not in url else _download(url, part)
            try:
                read_checkpoint(part)
            except CheckpointError as error:  # half a file, a page, a pointer to a file: not to be kept
                part.unlink()
                raise CheckpointError(f"{url}: what comes is no checkpoint, and was removed: {error}") from error
            found = file_sha256(part)
            if not found.startswith(known):
                part.unlink()
                raise CheckpointError(
                    f"{url}: another file than expected: its SHA-256 is {found}, not {known}...; "
                    f"removed. (Recorded at the first download: {record})"
                )
            with temporary(record) as building:
                building.write_text(f"{found}  {target.name}\n")
                building.replace(record)
            part.replace(target)
        elif known and not (found := file_sha256(target)).startswith(known):
            raise CheckpointError(
                f"{target} has changed since it was fetched: its SHA-256 is {found}, not {known}; "
                "remove it to have it fetched again"
            )
    return target


def mirrored(url: str) -> str:
    """Where to take a published file from: its URL, or the same name at ``MMGCVIT_MIRROR`` (a URL or a folder)."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return url
    name = url.rsplit("/", 1)[-1]
    if mirror.startswith(("http://", "https://")):
        return f"{mirror.rstrip('/')}/{name}"
    return str(Path(mirror.removeprefix("file://")).expanduser() / name)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write under and then to rename; what still has it in the end is removed."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield building
    finally:
        building.unlink(missing_ok=True)


def _copy(source: Path, part: Path) -> None:
    if not source.is_file():
        raise CheckpointError(f"{MIRROR}: {source}: there is no such file")
    shutil.copyfile(source, part)


def _download(url: str, part: Path) -> None:
    """Fetch ``url`` into ``part``, going on with what is there, trying again where a connection breaks."""
    for attempt in range(TRIES):
        try:
            return _transfer(url, part)
        except CheckpointError:
            raise
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what is there is no beginning of what the server has
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise CheckpointError(
                    f"{url}: the server answers {error.code} {error.reason}; "
                    f"{MIRROR} (a URL or folder) says where else to look"
                ) from error
            reason: Exception = error
        except http.client.InvalidURL as error:
            raise CheckpointError(f"{url}: not a URL: {error}") from error
        # no connection, a broken one, one that fell silent, an answer that is none
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            reason = error
        if attempt < TRIES - 1:
            time.sleep(min(2**attempt / 4, 4))
    raise CheckpointError(
        f"{url}: {TRIES} attempts failed, the last with {type(reason).__name__}: {reason}; "
        "a further call goes on from there"
    ) from reason


def _transfer(url: str, part: Path) -> None:
    # Of which file the part is a part: only the same one, by the server's own tag, is gone on with.
    origin = part.with_name(part.name + ".from")
    tag = origin.read_text().removeprefix(f"{url}\n") if origin.is_file() else ""
    have = part.stat().st_size if part.is_file() and tag and tag != origin.read_text() else 0
    headers = {"User-Agent": "mmgcvit"} | ({"Range": f"bytes={have}-", "If-Range": tag} if have else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if answer.headers.get_content_type() == "text/html":
            raise CheckpointError(f"{url}: the server sends a web page, not a file of weights")
        length = answer.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        done = have if resumed else 0
        if not resumed:
            origin.write_text(f"{url}\n{answer.headers.get('ETag') or answer.headers.get('Last-Modified') or ''}")
        with part.open("ab" if resumed else "wb") as file, Progress(transient=True) as progress:
            task = progress.add_task(url.rsplit("/", 1)[-1], total=total, completed=done)
            while block := answer.read1(CHUNK):
                file.write(block)
                done += len(block)
                progress.update(task, completed=done)
        if total is not None and done != total:
            raise EOFError(f"the connection ended after {done:,} of {total:,} bytes")
    origin.unlink()
