"""Pictures with one class each: timm's readers and transforms as an mmengine data set."""

from __future__ import annotations

import glob
import io
import logging
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from timm.data import create_transform
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.reader_factory import create_reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset

from mmgcvit.checkpoint.errors import some
from mmgcvit.datasets.errors import ClassificationDataError, CorruptPictureError

READERS = ("folder", "tar", "shards", "hfds")
MAX_REFETCH = 1000  # pictures tried in place of one that cannot be decoded


class ShardReader(Reader):
    """Pictures in WebDataset shards, in any order: tar files with ``KEY.jpg`` (or .png, ...) beside ``KEY.cls``.

    The shards' headers are read once, at the start, for the places of their members, so that a sample has an index, as
    in a folder: shuffling, several processes, resuming and evaluation are exact. A stream could promise none of them.

    Args:
        patterns: paths with * or ?, or several of them, as of shards on several disks.

    Raises:
        ClassificationDataError: no such file, or a shard with a picture without a ``.cls``, or with no picture.
    """

    def __init__(self, patterns: str | Sequence[str]) -> None:
        super().__init__()
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self.shards = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
        if not self.shards:
            raise ClassificationDataError(f"shards {', '.join(map(repr, patterns))}: there are no such files")
        suffixes = get_img_extensions(as_set=True)
        places: list[tuple[int, int, int, int]] = []
        self.keys: list[str] = []
        for number, shard in enumerate(self.shards):
            pictures: dict[str, tuple[int, int]] = {}
            labels: dict[str, int] = {}
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")  # WebDataset's rule: a key ends at the first dot
                    key = f"{folder}/{stem}" if folder else stem
                    if f".{suffix.lower()}" in suffixes:
                        pictures[key] = (member.offset_data, member.size)
                    elif suffix == "cls":
                        labels[key] = int(tar.extractfile(member).read())
            lacking = [key for key in pictures if key not in labels]
            if lacking or not pictures:
                raise ClassificationDataError(
                    f"shard {shard}: " + (f"{len(lacking)} pictures without a .cls, the first {lacking[0]}" if lacking
                                          else f"no picture; allowed: {', '.join(sorted(suffixes))}"))
            places += [(number, *place, labels[key]) for key, place in pictures.items()]
            self.keys += pictures
        self.places = np.array(places, dtype=np.int64)
        self._files: dict[int, BinaryIO] = {}

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


@DATASETS.register_module()
class ClassificationDataset(Dataset):
    """Pictures and their classes, by index, whatever they are stored in.

    Args:
        data_root: folder of the data; of 'shards' a pattern or several, of 'hfds' the name of a Hugging Face data set
            or the folder of one.
        split: what stands below ``data_root``: a folder such as 'train' ('folder'), a tar file, with or without its
            suffix, or a folder of tar files ('tar'), a pattern ('shards'), the name of the split ('hfds').
        reader: 'folder' (a folder per class), 'tar' (the same in tar files), 'shards' (WebDataset's), 'hfds' (Hugging
            Face's ``datasets``). The first, second and last are timm's.
        pipeline: transforms. They get ``file`` (opened), ``img_path``, ``targets`` (the class) and ``sample_idx``.
        classes: names in the order of the labels, a file with one in each line, or of 'shards' how many there are. By
            default the class folders' names, numbers in them by their value, or those of the Hugging Face data set.
            Pictures of folders that are not among them are an error.
        test_mode: no sample may be replaced by another one.
        **reader_args: timm's reader's, such as input_key and target_key of 'hfds'.

    Items are what the pipeline makes of a sample; with :class:`TimmTransform` a dict of ``inputs`` (3, H, W) uint8,
    ``targets`` and ``sample_idx``.

    Raises:
        ClassificationDataError: an unknown reader, no such folder or file, a class folder without pictures, or one
            that is not among ``classes``.
    """

    def __init__(self, data_root: str | Sequence[str], split: str = "", reader: str = "folder",
                 pipeline: Sequence[dict] = (), classes: Sequence[str] | str | int | None = None,
                 test_mode: bool = False, **reader_args: Any) -> None:
        if reader not in READERS:
            raise ClassificationDataError(f"reader={reader!r}; allowed: {', '.join(READERS)} (those that stream would "
                                          "lose or double samples among processes, and cannot be resumed)")
        self.root, self.test_mode = data_root, test_mode
        names = _class_names(classes)
        if reader == "shards":
            self.reader: Reader = ShardReader(str(Path(str(data_root)) / split) if split else data_root)
            if names is None:
                raise ClassificationDataError("classes=None; allowed with reader='shards': their number, their names, "
                                              "or a file of names, as shards hold numbers")
        elif reader == "hfds":
            self.reader = create_reader(f"hfds/{data_root}", split=split or "train", **reader_args)
        else:
            build = _folder_reader if reader == "folder" else _tar_reader
            self.reader = build(Path(str(data_root)), split, names, reader_args)
        if names is None:
            ids = self.reader.class_to_idx
            names = tuple(sorted(ids, key=ids.get))
        self.given_classes = classes is not None
        self.metainfo = {"classes": names}
        self.pipeline = Compose(list(pipeline))

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """Path of a sample, below the root where it is a folder's."""
        return str(self.reader.filename(index))

    def __getitem__(self, index: int) -> Any:
        """What the pipeline makes of a sample, or, where it skips that one, of another.

        Raises:
            ClassificationDataError: nothing but samples that the pipeline skips.
        """
        for _ in range(MAX_REFETCH):
            file, label = self.reader[index][:2]
            with file:
                result = self.pipeline({"file": file, "img_path": self.name(index), "targets": int(label),
                                        "sample_idx": index})
            if result is not None:
                return result
            if self.test_mode:
                raise ClassificationDataError(f"{self.name(index)}: the pipeline leaves this sample out; allowed in "
                                              "evaluation: one that stops (corrupt='stop')")
            index = int(np.random.randint(len(self)))
        raise ClassificationDataError(f"{self.root}: {MAX_REFETCH} pictures one after another cannot be decoded")


def _class_names(classes: Sequence[str] | str | int | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, int):
        return tuple(map(str, range(classes)))
    if isinstance(classes, str):
        path = Path(classes)
        if not path.is_file():
            raise ClassificationDataError(f"classes={classes!r}: there is no such file")
        classes = path.read_text().split("\n")
        classes = [line.strip() for line in classes if line.strip()]
    return tuple(map(str, classes))


def _numbered(names: Sequence[str] | None) -> Mapping[str, int] | None:
    return None if names is None else {name: index for index, name in enumerate(names)}


def _folder_reader(root: Path, split: str, names: Sequence[str] | None, arguments: Mapping[str, Any]) -> Reader:
    folder = root / split
    if not folder.is_dir():
        raise ClassificationDataError(f"{folder}: there is no such folder; expected: {folder}/CLASS/NAME.jpg")
    try:
        reader = create_reader("", root=str(folder), class_map=_numbered(names), **arguments)
    except RuntimeError as error:
        raise ClassificationDataError(f"{folder}: no picture in folders of "
                                      f"{'the given classes' if names else 'classes'}; expected: "
                                      f"{folder}/CLASS/NAME.jpg") from error
    seen = {name.partition("/")[0] for name in reader.filenames()}
    lacking = sorted(path.name for path in folder.iterdir()
                     if path.is_dir() and not path.name.startswith(".") and path.name not in seen)
    unknown = [name for name in lacking if names is not None and name not in names]
    if unknown:
        raise ClassificationDataError(f"{folder}: {len(unknown)} folders that are not among the {len(names)} classes: "
                                      f"{some(unknown)}")
    if lacking:
        raise ClassificationDataError(f"{folder}: {len(lacking)} class folders without a picture: {some(lacking)}; "
                                      "fill or remove them")
    if "" in reader.class_to_idx:
        raise ClassificationDataError(f"{folder}: pictures that lie in no class folder, such as "
                                      f"{next(name for name in reader.filenames() if '/' not in name)}; expected: "
                                      f"{folder}/CLASS/NAME.jpg")
    return reader


def _tar_reader(root: Path, split: str, names: Sequence[str] | None, arguments: Mapping[str, Any]) -> Reader:
    path = root / split if split else root
    if not path.exists() and path.with_name(path.name + ".tar").is_file():
        path = path.with_name(path.name + ".tar")
    if not path.exists():
        raise ClassificationDataError(f"{path}: there is no such tar file or folder of tar files")
    reader = ReaderImageInTar(str(path), class_map=_numbered(names) or "", **arguments)
    if not len(reader):
        raise ClassificationDataError(f"{path}: no picture in it")
    reader.class_to_idx = reader.class_name_to_idx
    return reader


@TRANSFORMS.register_module()
class LoadPillowImage:
    """Decode a sample's ``file`` to its last pixel into ``img``, an RGB picture of Pillow's.

    Args:
        corrupt: what a picture does that cannot be decoded. 'stop': it raises. 'skip': it is named in the log and
            counted in ``skipped``, and the data set takes another one.

    Raises:
        CorruptPictureError: from calls, with ``corrupt='stop'``.
    """

    def __init__(self, corrupt: str = "stop") -> None:
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadPillowImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        self.corrupt = corrupt
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # of all workers

    def __call__(self, results: dict) -> dict | None:
        """Decode; None where the picture is skipped."""
        try:
            with Image.open(results["file"]) as image:
                results["img"] = image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise a dozen kinds
            said = f"picture {results['img_path']}: cannot be decoded: {error}"
            if self.corrupt == "stop":
                raise CorruptPictureError(f"{said}. It stops the run; with `tools/train.py --corrupt skip` it would be "
                                          "left out of training and counted") from error
            self.skipped += 1
            # An error, as of the processes but the first mmengine shows nothing less.
            print_log(f"skipped {said}", logger="current", level=logging.ERROR)
            return None
        return results


@TRANSFORMS.register_module()
class TimmTransform:
    """timm's ``create_transform`` on ``img``, up to uint8: normalising and erasing are the model's preprocessor's.

    Args:
        **arguments: of ``create_transform``, but for those of normalising and erasing.

    The result is ``inputs`` (3, H, W) uint8, ``targets`` and ``sample_idx``.

    Raises:
        ValueError: an argument that belongs to the preprocessor.
    """

    def __init__(self, **arguments: Any) -> None:
        others = [name for name in arguments if name.startswith("re_") or name in ("mean", "std", "normalize",
                                                                                   "use_prefetcher")]
        if others:
            raise ValueError(f"TimmTransform: {', '.join(others)}; allowed: what is not normalising or erasing, which "
                             "are the data_preprocessor's (mean, std, erasing)")
        self.transform = create_transform(**arguments, use_prefetcher=True)

    def __call__(self, results: dict) -> dict:
        """Transform ``img`` (H, W) of any size."""
        inputs = self.transform(results["img"])
        return {"inputs": torch.as_tensor(inputs), "targets": results["targets"], "sample_idx": results["sample_idx"]}
