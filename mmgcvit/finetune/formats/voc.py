"""Pascal VOC's format: an XML file per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmgcvit.datasets.text import read_lines
from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import UNSPLIT, Data, Instance, Item, image_size, split_name
from mmgcvit.finetune.formats.base import Format
from mmgcvit.finetune.formats.shapes import angle_note
from mmgcvit.finetune.scan import Node, Scan, flag, number, whole
from mmgcvit.utils.text import counted

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Voc(Format):
    """Pascal VOC XML, also as labelImg, CVAT and Roboflow write it.

    The coordinates are taken as they are, as most tools count pixels from 0; VOC itself counts from 1.
    """

    name, title, tasks = "voc", "Pascal VOC XML", ("detect",)
    layout = "Annotations/NAME.xml and JPEGImages/ (with ImageSets/Main/{train,val}.txt), or NAME.xml beside the images"

    def find(self, scan: Scan) -> list[Path]:
        """Return the XML files of single images."""
        return [path for path, root in scan.xml_roots.items() if root.tag == "annotation"]

    def read(self, scan: Scan, task: str | None) -> Data:
        """Read all files; the classes are the names in them, sorted."""
        data = Data(self.name, scan.root, [], {}, ("detect",))
        files = self.find(scan)
        data.classes = sorted({name for path in files for name in _names(scan.xml_roots[path], path)})
        listed = image_sets(scan, "Main")
        difficult = 0
        for path in files:
            item = _read_item(scan, path, {name: label for label, name in enumerate(data.classes)})
            difficult += sum(instance.crowd for instance in item.instances)
            split = listed.get(path.stem) if listed else split_name(path.parent / "x", scan.root)
            data.splits.setdefault(split or UNSPLIT, []).append(item)
        if listed and UNSPLIT in data.splits:
            left = len(data.splits.pop(UNSPLIT))
            data.notes.append(
                f"{counted(left, 'image is', 'images are')} in none of ImageSets/Main/train.txt, val.txt and "
                "test.txt: left out"
            )
        if not data.classes:
            raise AnnotationError(f"{scan.root}: no object in {len(files)} XML files, so there are no class names")
        data.notes += angle_note([place for path in files for place in _rotated(scan.xml_roots[path], path)])
        if difficult:
            data.notes.append(
                f"{counted(difficult, 'object is', 'objects are')} difficult: ignored in training and evaluation"
            )
        return data


def _read_item(scan: Scan, path: Path, labels: dict[str, int]) -> Item:
    root = scan.xml_roots[path]
    node = root.find("filename")
    where = f"{path}:{(node or root).line}"
    name = node.text.strip() if node is not None else ""
    if not name:
        raise AnnotationError(f"{where}: no filename; allowed: <filename>NAME.jpg</filename>")
    above = path.parent.parent
    near = [path.parent, above / "JPEGImages", above / "images", above]
    near += [folder / path.parent.name for folder in near[1:3]]
    image = scan.find_image(name, near, where)
    sizes = [0 if (side := root.find(f"size/{key}")) is None else
             whole(side.text.strip(), f"{path}:{side.line}: size/{key}") for key in ("width", "height")]  # fmt: skip
    size = (sizes[0], sizes[1]) if all(sizes) else image_size(image)
    item = Item(image, size)
    for entry in root.all("object"):
        x1, y1, x2, y2 = (_read_number(entry, f"bndbox/{corner}", path) for corner in CORNERS)
        hard = entry.find("difficult")
        crowd = hard is not None and flag(hard.text, f"{path}:{hard.line}: difficult")
        item.instances.append(Instance(labels[_name(entry, path)], (x1, y1, x2 - x1, y2 - y1), crowd=crowd))
    return item


def _rotated(root: Node, path: Path) -> Iterator[str]:
    """Yield the places of boxes for which CVAT has written an angle."""
    for entry in root.all("object/attributes/attribute"):
        name, value = entry.find("name"), entry.find("value")
        if name is not None and value is not None and name.text.strip() == "rotation":
            place = f"{path}:{value.line}"
            if number(value.text.strip() or 0, f"{place}: rotation"):
                yield place


def _names(root: Node, path: Path) -> list[str]:
    return [_name(entry, path) for entry in root.all("object")]


def _name(entry: Node, path: Path) -> str:
    node = entry.find("name")
    if node is None or not node.text.strip():
        raise AnnotationError(f"{path}:{entry.line}: object without a name")
    return node.text.strip()


def _read_number(node: Node, key: str, path: Path) -> float:
    found = node.find(key)
    if found is None:
        raise AnnotationError(f"{path}:{node.line}: {node.tag} without {key}")
    return number(found.text.strip(), f"{path}:{found.line}: {key}")


def image_sets(scan: Scan, kind: str) -> dict[str, str]:
    """Split of each image by its stem, from VOC's ImageSets/KIND; empty if there is no validation set."""
    lists = {path.stem: path for path in scan.with_suffix(".txt") if path.parent.parts[-2:] == ("ImageSets", kind)}
    if not {"train", "val"} <= set(lists):
        return {}
    return {name: split for split in ("train", "val", "test") if split in lists
            for name in read_lines("image set", lists[split])}  # fmt: skip
