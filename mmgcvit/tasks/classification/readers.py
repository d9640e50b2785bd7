"""Strict versions of timm's readers of image folders, tar files and Hugging Face data sets; WebDataset shards."""

from __future__ import annotations

import glob
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.reader_factory import create_reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from mmgcvit.errors import ClassificationDataError
from mmgcvit.utils import summarize
from mmgcvit.utils.images import IMAGES, OTHER_IMAGES, is_image
from mmgcvit.utils.text import counted


class ShardReader(Reader):
    """Reader of WebDataset shards with random access: tar files with ``KEY.jpg`` (or .png, ...) and ``KEY.cls``.

    The headers of the shards are read once at the start, so that every sample has an index, as in a folder: shuffling,
    several processes, resuming and evaluation are exact, which streaming cannot guarantee.

    Args:
        patterns: path with * or ?, or several of them for shards on several disks.
        classes: number of classes.

    Raises:
        ClassificationDataError: no file matches; a shard is not a tar file, contains no image, an image without a
            ``.cls`` file, or two images with the same key; or a label is not an integer from 0 to ``classes`` - 1.
    """

    def __init__(self, patterns: str | Sequence[str], classes: int) -> None:
        super().__init__()
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self.shards = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
        if not self.shards:
            raise ClassificationDataError(f"shards {', '.join(map(repr, patterns))}: no files match")
        suffixes = set(IMAGES)
        places: list[tuple[int, int, int, int]] = []
        self.keys: list[str] = []
        for number, shard in enumerate(self.shards):
            images: dict[str, tuple[int, int]] = {}
            labels: dict[str, int] = {}
            try:
                with tarfile.open(shard, "r:") as tar:
                    for member in tar:
                        folder, _, name = member.name.rpartition("/")
                        stem, _, suffix = name.partition(".")  # WebDataset's rule: a key ends at the first dot
                        key = f"{folder}/{stem}" if folder else stem
                        if f".{suffix.lower()}" in suffixes:
                            if key in images:
                                raise ClassificationDataError(f"shard {shard}: two images with the key {key}")
                            images[key] = (member.offset_data, member.size)
                        elif suffix == "cls":
                            content = file.read() if (file := tar.extractfile(member)) else b""
                            labels[key] = _label(content, f"shard {shard}: {key}.cls", classes)
            except tarfile.TarError as error:
                raise ClassificationDataError(f"shard {shard}: not a tar file, or truncated: {error}") from error
            lacking = [key for key in images if key not in labels]
            if lacking or not images:
                raise ClassificationDataError(
                    f"shard {shard}: "
                    + (
                        f"{counted(len(lacking), 'image')} without a .cls, the first {lacking[0]}"
                        if lacking
                        else f"no image; allowed: {', '.join(sorted(suffixes))}"
                    )
                )
            places += [(number, *place, labels[key]) for key, place in images.items()]
            self.keys += images
        self.places = np.array(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        shard, offset, size, label = self.places[index].tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        key = self.keys[index]
        return key.rpartition("/")[2] if basename else f"{self.shards[self.places[index, 0]]}:{key}"


class TarReader(ReaderImageInTar):
    """timm's reader of a tar file or a folder of tar files, with one class per folder inside.

    timm labels images by the last folder of their path or by their tar file, drops images of unknown classes, and reads
    tar files in file-system order. This reader rejects ambiguous trees, sorts images by tar file and path, and in a
    folder of tar files names them by both.

    Args:
        path: tar file, or folder of tar files.
        names: classes in the order of their labels; by default those in the files, in natural order.
        **arguments: arguments of ReaderImageInTar.

    Raises:
        ClassificationDataError: a file is not a tar file, is truncated or has no images; images are in no class folder,
            in hidden folders, in folders inside class folders, or in two folders with the same name; or a class is not
            among ``names``.
    """

    samples: Any  # an array of (member, tar file, nested tar file)

    def __init__(self, path: Path, names: Sequence[str] | None = None, **arguments: Any) -> None:
        tars = [path] if path.is_file() else sorted(path.glob("*.tar"))
        if not tars:
            raise ClassificationDataError(f"{path}: no *.tar in this folder")
        for tar in tars:
            if not tarfile.is_tarfile(tar):
                raise ClassificationDataError(f"{tar}: not a tar file, or truncated at its beginning")
        try:
            with _all_suffixes():
                super().__init__(str(path), **arguments)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ClassificationDataError(f"{path}: cannot be read: {error}") from error
        except (ValueError, AssertionError) as error:  # timm found no images, or its cached list belongs to other files
            raise ClassificationDataError(
                f"{path}: no image in it, or timm's list of its members "
                f"(_*_tarinfos.pickle) belongs to other tar files: {error}"
            ) from error
        keys = [[natural_key(part) for part in _in_tar(*sample)] for sample in self.samples]
        self.samples = self.samples[sorted(range(len(keys)), key=keys.__getitem__)]
        folders = [_folder_in_tar(*sample) for sample in self.samples]
        self._refuse_ambiguous(path, folders)
        labels = [folder.name for folder in folders]
        ids = _numbered(names or sorted(set(labels), key=natural_key))
        _refuse_unknown(path, sorted(set(labels) - ids.keys()), ids)
        self.targets = np.array([ids[label] for label in labels])
        self.class_to_idx = self.class_name_to_idx = ids

    def _refuse_ambiguous(self, path: Path, folders: Sequence[PurePosixPath]) -> None:
        known: dict[tuple[str, PurePosixPath], str] = {}
        by_name: dict[tuple[str, str], PurePosixPath] = {}
        for folder, sample in zip(folders, self.samples, strict=True):
            known.setdefault((sample[1], folder), "/".join(filter(None, _in_tar(*sample))))
        for (tar, folder), image in known.items():
            hidden = any(part.startswith(".") for part in folder.parts)
            if hidden or not folder.name:
                kind = "hidden folders" if hidden else "no class folder"
                raise ClassificationDataError(f"{path}: images in {kind}, such as {image}; expected: CLASS/NAME.jpg")
            outer = [parent for parent in folder.parents if (tar, parent) in known]
            if outer:
                raise ClassificationDataError(
                    f"{path}: {image} is in a folder inside the class folder {outer[0]}; expected: CLASS/NAME.jpg"
                )
            other = by_name.setdefault((tar, folder.name), folder)
            if other != folder:
                raise ClassificationDataError(
                    f"{path}: two folders of one class, {other} and {folder}; allowed in a "
                    "tar file: one (a tar file for each split)"
                )

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        parts = _in_tar(*self.samples[index])
        return parts[-1].rpartition("/")[2] if basename else "/".join(filter(None, parts))


@contextmanager
def _all_suffixes() -> Iterator[None]:
    """Let timm's reader of tar files take images with any suffix of :data:`IMAGES`, and not only .png, .jpg, .jpeg."""
    before = get_img_extensions()
    set_img_extensions(IMAGES)
    try:
        yield
    finally:
        set_img_extensions(before)


def _in_tar(member: tarfile.TarInfo, tar: str | None, child: tarfile.TarInfo | None) -> tuple[str, str, str]:
    """Tar file (in a folder of tar files), nested tar file, and path of an image, each '' if there is none."""
    return tar or "", "" if child is None else child.name, os.path.normpath(member.name)


def _folder_in_tar(member: tarfile.TarInfo, tar: str | None, child: tarfile.TarInfo | None) -> PurePosixPath:
    """Folder of an image; a tar file counts as a folder with its name, unless it is the whole data set."""
    stems = [PurePosixPath(name).stem for name in (tar, child and child.name) if name]
    return PurePosixPath(*stems, os.path.dirname(os.path.normpath(member.name)))


def read_labels(reader: Any) -> list[int]:
    """Labels of all samples of a reader, in order; opens no image."""
    if isinstance(reader, ShardReader):
        return reader.places[:, 3].tolist()
    if isinstance(reader, ReaderImageInTar):
        return [int(label) for label in reader.targets]
    if hasattr(reader, "iter_targets"):  # Hugging Face
        return [int(label) for label in reader.iter_targets()]
    return [label for _, label in reader.samples]


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(names)}


def _label(content: bytes, where: str, classes: int) -> int:
    try:
        label = int(content)
    except ValueError:
        label = -1
    if not 0 <= label < classes:
        raise ClassificationDataError(
            f"{where} holds {content[:20]!r}; allowed: an integer from 0 to {classes - 1} ({counted(classes, 'class')})"
        )
    return label


def _refuse_unknown(where: Path, unknown: Sequence[str], names: Iterable[str]) -> None:
    if unknown:
        names = list(names)
        raise ClassificationDataError(
            f"{where}: folders that are not among the {counted(len(names), 'class')}: {summarize(unknown)}; classes: "
            f"{summarize(names)}"
        )


def _refuse_absent(where: Path, names: Sequence[str] | None, there: Iterable[str]) -> None:
    absent = [name for name in names or () if name not in there]
    if absent:
        raise ClassificationDataError(
            f"{where}: {len(absent)} of the {counted(len(names or ()), 'class')} without an image to train on: "
            f"{summarize(absent)}"
        )


def folder_reader(
    root: Path, split: str, names: Sequence[str] | None, arguments: Mapping[str, Any], training: bool
) -> Reader:
    """Return timm's folder reader, after checking that it would drop no image and assign no wrong class.

    (timm uses the last folder of a path as the class, at any depth, and drops images of unknown classes and with
    suffixes other than .png, .jpg and .jpeg. Here ``input_key`` is all suffixes of :data:`IMAGES` by default.)
    """
    folder = root / split
    if not folder.is_dir():
        raise ClassificationDataError(f"{folder}: no such folder; expected: {folder}/CLASS/NAME.jpg")
    key = arguments.get("input_key")
    suffixes = set(key.split(";")) if key else set(IMAGES)
    images: dict[str, list[str]] = {}  # keyed by the folder below the root, '.' for the root itself
    left_out: Counter = Counter()  # images with other suffixes
    for place, _, _ in os.walk(folder, followlinks=True):
        found = []
        with os.scandir(place) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.is_dir() or (suffix and suffix not in suffixes.union(IMAGES, OTHER_IMAGES)):
                    continue
                if not entry.is_file() and os.path.exists(entry.path):  # reading a pipe would wait for its other end
                    raise ClassificationDataError(f"{entry.path}: neither a file nor a folder; remove it")
                if suffix in suffixes:
                    found.append(entry.name)
                elif suffix or is_image(entry.path):
                    left_out[suffix] += 1
        if found:
            images[os.path.relpath(place, folder)] = found
    if left_out and not key:
        counts = summarize(
            f"{count} {f'*{suffix}' if suffix else 'without a suffix'}" for suffix, count in left_out.items()
        )
        raise ClassificationDataError(
            f"{folder}: images that would be left out: {counts}; allowed: {', '.join(IMAGES)}. Convert or rename them, "
            "or name the suffixes to be read in the data set: input_key='.jpg;.png'"
        )
    for wrong, what in (
        (lambda parts: parts == ["."], "in no class folder"),
        (lambda parts: parts[0] != "." and any(part.startswith(".") for part in parts), "in hidden folders"),
        (lambda parts: len(parts) > 1, "in folders inside class folders"),
    ):
        lost = sorted(inside for inside in images if wrong(inside.split(os.sep)))
        if lost:
            count = sum(len(images[inside]) for inside in lost)
            example = os.path.normpath(os.path.join(lost[0], min(images[lost[0]])))
            hint = ". `mmgcvit predict` classifies images without labels" if lost == ["."] else ""
            raise ClassificationDataError(
                f"{folder}: {counted(count, 'image')} {what}, such as {example}; expected: "
                f"{folder}/CLASS/NAME.jpg{hint}"
            )
    classes = sorted(
        (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=natural_key
    )
    _refuse_unknown(folder, [name for name in classes if names is not None and name not in names], names or ())
    if not images:
        raise ClassificationDataError(f"{folder}: no image in class folders; expected: {folder}/CLASS/NAME.jpg")
    lacking = [name for name in classes if name not in images]
    if lacking:
        raise ClassificationDataError(
            f"{folder}: {counted(len(lacking), 'class folder')} without an image: {summarize(lacking)}; fill or "
            "remove them"
        )
    if training:
        _refuse_absent(folder, names, images)
    arguments = {**arguments, "input_key": ";".join(sorted(suffixes))}
    return create_reader("", root=str(folder), class_map=_numbered(classes if names is None else names), **arguments)


def tar_reader(
    root: Path, split: str, names: Sequence[str] | None, arguments: Mapping[str, Any], training: bool
) -> Reader:
    """Return a :class:`TarReader` for a file, with or without its suffix, or a folder of tar files."""
    path = root / split if split else root
    if not path.exists() and path.with_name(path.name + ".tar").is_file():
        path = path.with_name(path.name + ".tar")
    if not path.exists():
        raise ClassificationDataError(f"{path}: no such tar file or folder of tar files")
    reader = TarReader(path, names, **arguments)
    if training and names is not None:
        _refuse_absent(path, names, {names[index] for index in set(reader.targets.tolist())})
    return reader


def hugging_face_reader(
    root: str, split: str, names: Sequence[str] | None, numbered: bool, arguments: Mapping[str, Any]
) -> Reader:
    """Return timm's reader of Hugging Face data sets, with labels in the order of ``names``.

    Args:
        root: name or folder of the data set.
        split: name of the split.
        names: classes in the order of the labels; None for those of the data set.
        numbered: whether ``names`` are numbers, so that labels are not mapped.
        arguments: arguments of ReaderHfds.
    """
    reader = create_reader(f"hfds/{root}", split=split, **arguments)
    where = f"{root}, split {split!r}, column {reader.label_key!r}"
    own = [name for name, _ in sorted(reader.class_to_idx.items(), key=lambda pair: pair[1])]
    if names is None and not own:
        raise ClassificationDataError(
            f"{where}: its labels have no names (no ClassLabel); give classes=<their number, "
            "their names in the order of the labels, or a file of names>"
        )
    columns = reader.dataset.column_names
    labels = set(reader.dataset.unique(reader.label_key) if reader.label_key in columns else reader.iter_targets())
    expected = list(names or ())
    known = range(len(own) if own and not numbered else len(expected))
    mapped = names is not None and not numbered and (own or all(isinstance(label, str) for label in labels))
    wrong = [label for label in labels if not (mapped and not own) and (type(label) is not int or label not in known)]
    if wrong:
        raise ClassificationDataError(
            f"{where}: {counted(len(wrong), 'label')} such as {wrong[0]!r}; allowed: integers from 0 to "
            f"{len(known) - 1} ({counted(len(known), 'class')})"
        )
    if mapped:
        beyond = sorted({own[label] if own else label for label in labels} - set(expected))
        if beyond:
            raise ClassificationDataError(
                f"{where}: {counted(len(beyond), 'class that is', 'classes that are')} not among the {len(expected)}: "
                f"{summarize(beyond)}"
            )
        reader.class_to_idx, reader.remap_class = _numbered(expected), True  # timm's own mapping, by name
    return reader
