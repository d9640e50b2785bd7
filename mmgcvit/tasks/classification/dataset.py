"""Images with one class each: timm's readers and transforms as an mmengine data set."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from mmgcvit.datasets.text import read_lines
from mmgcvit.errors import AnnotationError, ClassificationDataError
from mmgcvit.registry import DATASETS
from mmgcvit.tasks.classification.readers import (
    ShardReader,
    folder_reader,
    hugging_face_reader,
    read_labels,
    tar_reader,
)
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted

READERS = ("folder", "tar", "shards", "hfds")
MAX_REFETCH = 1000  # maximum number of images tried in place of one that cannot be decoded


@DATASETS.register_module()
class ClassificationDataset(Dataset):
    """Map-style data set of images with one class each, for several kinds of storage.

    An item is the output of the pipeline; with :class:`TimmTransform` a dict of ``inputs`` (3, H, W) uint8,
    ``targets`` and ``sample_idx``. For training, mmengine's ClassBalancedDataset, RepeatDataset and ConcatDataset may
    be around it.

    Args:
        data_root: folder of the data; for 'shards' one or several patterns, for 'hfds' the name or the folder of a
            Hugging Face data set.
        split: part of ``data_root`` to read: a folder such as 'train' ('folder'); a tar file, with or without its
            suffix, or a folder of tar files ('tar'); a pattern ('shards'); the name of the split ('hfds').
        reader: 'folder' (one folder per class), 'tar' (the same in tar files), 'shards' (WebDataset), 'hfds' (Hugging
            Face ``datasets``). All but 'shards' use timm's readers.
        pipeline: transforms. Their input has ``file`` (opened), ``img_path``, ``targets`` (the class) and
            ``sample_idx``.
        classes: class names in the order of the labels, a file with one name per line, or for 'shards' their number. By
            default the names of the class folders in natural order (numbers sorted by value), or those of the Hugging
            Face data set. Images in other folders are an error. For 'hfds', names are matched with those of the data
            set, and a number leaves its labels unchanged.
        test_mode: samples must not be replaced by others, and classes may have no images.
        **reader_args: arguments of timm's reader, such as input_key and target_key for 'hfds'.

    Raises:
        ClassificationDataError: the reader is unknown; a folder or file does not exist; a class folder has no images or
            is not among ``classes``; in training, one of ``classes`` has no images; there are images outside class
            folders; a label is out of range; or two classes have the same name.
    """

    def __init__(
        self,
        data_root: str | Sequence[str],
        split: str = "",
        reader: str = "folder",
        pipeline: Sequence[dict] = (),
        classes: Sequence[str] | str | int | None = None,
        test_mode: bool = False,
        **reader_args: Any,
    ) -> None:
        if reader not in READERS:
            raise ClassificationDataError(
                f"reader={reader!r}; allowed: {', '.join(READERS)} (streaming readers would "
                "lose or duplicate samples across processes, and cannot be resumed)"
            )
        self.root, self.test_mode, self.has_files = data_root, test_mode, reader == "folder"
        names = class_list(classes)
        if reader == "shards":
            if names is None:
                raise ClassificationDataError(
                    "classes=None; allowed with reader='shards': their number, their names, "
                    "or a file of names, as shards hold numbers"
                )
            self.reader: Any = ShardReader(str(Path(str(data_root)) / split) if split else data_root, len(names))
        elif reader == "hfds":
            self.reader = hugging_face_reader(
                str(data_root), split or "train", names, isinstance(classes, int), reader_args
            )
        else:
            build = folder_reader if reader == "folder" else tar_reader
            self.reader = build(Path(str(data_root)), split, names, reader_args, not test_mode)
        if names is None:
            ids = self.reader.class_to_idx
            names = tuple(sorted(ids, key=ids.get))
        self.given_classes = classes is not None
        self.metainfo = {"classes": names}
        self.pipeline = Compose(list(pipeline))

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """Path of a sample relative to the root folder; its index if it has no path ('hfds')."""
        return str(self.reader.filename(index) or index)

    def path(self, index: int) -> Path | None:
        """File of a sample; None if the samples are not single files ('tar', 'shards', 'hfds')."""
        return Path(self.reader.filename(index, absolute=True)) if self.has_files else None

    def open(self, index: int) -> tuple[BinaryIO, int]:
        """Open a sample's file; returns it with the label.

        Reading a file that has been deleted, or cannot be opened, raises the error; its label is -1.
        """
        try:
            return self.reader[index][:2]
        except OSError as error:
            return _Unopened(error), -1

    @cached_property
    def labels(self) -> list[int]:
        """Classes of all samples; opens no image."""
        return read_labels(self.reader)

    def full_init(self) -> None:
        """Do nothing: everything is read when the data set is built. mmengine's wrappers call it."""

    def get_cat_ids(self, index: int) -> list[int]:
        """Class of a sample as a list of one, for mmengine's ClassBalancedDataset; opens no image."""
        return [self.get_data_info(index)["targets"]]

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Name, class and index of a sample; opens no image."""
        return {"img_path": self.name(index), "targets": self.labels[index], "sample_idx": index}

    def __getitem__(self, index: int) -> Any:
        """Return the output of the pipeline for a sample, or for another one if the pipeline skips it.

        Raises:
            ClassificationDataError: the pipeline skips every sample.
        """
        for _ in range(MAX_REFETCH):
            file, label = self.open(index)
            with file:
                result = self.pipeline(
                    {"file": file, "img_path": self.name(index), "targets": int(label), "sample_idx": index}
                )
            if result is not None:
                return result
            if self.test_mode:
                raise ClassificationDataError(
                    f"{self.name(index)}: the pipeline skips this sample; allowed in "
                    "evaluation: a pipeline that stops (corrupt='stop')"
                )
            index = int(np.random.randint(len(self)))
        raise ClassificationDataError(
            f"{self.root}: {MAX_REFETCH} consecutive images cannot be decoded. Is their drive there?"
        )


class _Unopened(io.RawIOBase, BinaryIO):
    """Stands for a file that could not be opened: reading raises the error."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def read(self, *_: Any) -> bytes:
        raise self.error


def check_names(what: str, names: Sequence[str], whose: str, expected: Sequence[str]) -> None:
    """Check that two data sets, or a checkpoint and a data set, have the same classes in the same order.

    Raises:
        ClassificationDataError: the classes differ; the message names missing and additional classes.
    """
    if tuple(names) == tuple(expected):
        return
    lacking = [name for name in expected if name not in names]
    beyond = [name for name in names if name not in expected]
    parts = [
        f"{counted(len(found), 'class folder is', 'class folders are')} {problem}: {summarize(found)}"
        for found, problem in ((lacking, "missing"), (beyond, f"not among {whose} {len(expected)}"))
        if found
    ]
    raise ClassificationDataError(
        f"{what}: {'; '.join(parts) or f'the classes are in a different order from {whose}'}. The labels of all "
        "following classes would be shifted. Add or remove folders, or set the order of the classes in the data set: "
        "classes=<file with one name per line>"
    )


def class_list(classes: Sequence[str] | str | int | None) -> tuple[str, ...] | None:
    """Return the names that ``classes`` of a data set stands for: names, a file of names, or a number; None for none.

    Raises:
        ClassificationDataError: the file does not exist or is not UTF-8, or a name occurs more than once.
    """
    if classes is None:
        return None
    if isinstance(classes, int):
        return tuple(map(str, range(classes)))
    where = "classes"
    if isinstance(classes, str):
        where = f"classes={classes!r}"
        if not Path(classes).is_file():
            raise ClassificationDataError(f"{where}: no such file")
        try:
            classes = read_lines("classes", classes)
        except AnnotationError as error:
            raise ClassificationDataError(str(error)) from error
    names = tuple(map(str, classes))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ClassificationDataError(f"{where}: names that occur more than once: {summarize(twice)}")
    return names
