"""Class folders: the images of a class in a folder with its name."""

from __future__ import annotations

from pathlib import Path

from timm.utils.misc import natural_key

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import SPLITS, UNSPLIT, Data, Item
from mmgcvit.finetune.formats.base import Format
from mmgcvit.finetune.formats.label_maps import FOLDERS, IMAGE_FOLDERS
from mmgcvit.finetune.scan import Scan


class ClassFolders(Format):
    """A folder for each class, with or without train/ and val/ around them."""

    name, title, tasks = "folders", "class folders", ("classify",)
    layout = "train/CLASS/NAME.jpg and val/CLASS/NAME.jpg, or CLASS/NAME.jpg, with 2 or more classes"

    def find(self, scan: Scan) -> list[Path]:
        """Return the images in class folders, if all images are in such folders."""
        if scan.source != scan.root:  # a file says nothing about class folders
            return []
        found = [_place(path, scan.root) for path in scan.images]
        names = {name for _, name in filter(None, found)}
        usual = {name for name in names if name.lower() not in (*FOLDERS, *IMAGE_FOLDERS, *SPLITS)}
        return scan.images if len(usual) == len(names) > 1 and all(found) else []

    def read(self, scan: Scan, task: str | None) -> Data:
        """Read the names of folders; the classes are sorted as the data set sorts them."""
        data = Data(self.name, scan.root, [], {}, ("classify",))
        found = [(path, place) for path in scan.images if (place := _place(path, scan.root))]
        data.classes = sorted({name for _, (_, name) in found}, key=natural_key)
        labels = {name: label for label, name in enumerate(data.classes)}
        for path, (split, name) in found:
            data.splits.setdefault(split, []).append(Item(path, label=labels[name]))
        bare = set(labels.values()) - {item.label for item in data.splits.get("train", [])}
        if "train" in data.splits and bare:
            names = [data.classes[label] for label in sorted(bare)]
            raise AnnotationError(f"{scan.root}: no training images of {names}; allowed: some of every class")
        return data


def _place(path: Path, root: Path) -> tuple[str, str] | None:
    """Split and class of an image; None if it is not in a class folder."""
    *folders, _ = path.relative_to(root).parts
    if len(folders) == 1 and folders[0].lower() not in SPLITS:
        return UNSPLIT, folders[0]
    if len(folders) == 2 and folders[0].lower() in SPLITS:
        return SPLITS[folders[0].lower()], folders[1]
    return None
