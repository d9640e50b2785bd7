"""The files below a folder, found once: images by name, and annotation files by their content."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.parsers import expat

import yaml

from mmgcvit.datasets.text import read_bytes, read_json, read_utf8
from mmgcvit.errors import AnnotationError
from mmgcvit.utils import summarize
from mmgcvit.utils.images import IMAGES

#: Kinds of JSON whose content is kept in memory, as it is one file for many images.
KEPT = ("coco", "label studio")
LARGEST = 1e12  # of the numbers in annotations: computing with larger ones would overflow


@dataclass
class Node:
    """An XML element with the line that it begins in."""

    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def find(self, path: str) -> Node | None:
        """First element with this path, such as 'size/width'."""
        return next(self.all(path), None)

    def all(self, path: str) -> Iterator[Node]:
        """Yield the elements with this path."""
        name, _, rest = path.partition("/")
        for child in self.children:
            if child.tag == name:
                if rest:
                    yield from child.all(rest)
                else:
                    yield child


class Scan:
    """The files of a data set. Hidden files and folders are left out.

    Args:
        source: a folder; or one annotation file, whose folder is searched for images.

    Raises:
        AnnotationError: it does not exist, or has no files.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = Path(os.path.abspath(source))
        if not self.source.exists():
            raise AnnotationError(f"{str(source)!r}: no such file or folder")
        self.root = self.source if self.source.is_dir() else self.source.parent
        self.files = sorted(walk(self.root))
        if not self.files:
            raise AnnotationError(f"{str(source)!r}: the folder is empty")
        self.images = [path for path in self.files if path.suffix.lower() in IMAGES]
        chosen = [self.source] if self.source.is_file() else self.files
        self.annotations = [path for path in chosen if path.suffix.lower() not in IMAGES]
        self._kept: dict[Path, Any] = {}
        self.by_name_only: list[Path] = []  # images that were in none of the expected folders

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """Images by file name."""
        found: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            found[path.name].append(path)
        return found

    @cached_property
    def folders(self) -> set[Path]:
        """The folders that hold images."""
        return {path.parent for path in self.images}

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Files that may be annotations, by suffix."""
        return [path for path in self.annotations if path.suffix.lower() in suffixes]

    @cached_property
    def json_kinds(self) -> dict[Path, str]:
        """Kind of each JSON file: 'coco', 'labelme', 'label studio', or '' if it is none of them."""
        return {path: self._json_kind(path) for path in self.with_suffix(".json")}

    def _json_kind(self, path: Path) -> str:
        content = read_json(path)
        kind = ""
        if isinstance(content, dict):
            if "shapes" in content and "imagePath" in content:
                kind = "labelme"
            elif {"images", "annotations", "categories"} <= set(content):
                known = content["annotations"]
                panoptic = (
                    isinstance(known, list) and known and isinstance(known[0], dict) and "segments_info" in known[0]
                )
                kind = "" if panoptic else "coco"
        elif isinstance(content, list) and content and isinstance(content[0], dict):
            first = content[0]
            full = isinstance(first.get("data"), dict) and ("annotations" in first or "completions" in first)
            short = "annotator" in first or "annotation_id" in first
            kind = "label studio" if full or short else ""
        if kind in KEPT:
            self._kept[path] = content
        return kind

    def json(self, path: Path) -> Any:
        """Content of a JSON file."""
        return self._kept[path] if path in self._kept else read_json(path)

    @cached_property
    def xml_roots(self) -> dict[Path, Node]:
        """Root element of each XML file."""
        return {path: read_xml(path) for path in self.with_suffix(".xml")}

    def find_image(self, name: str, near: Sequence[Path], where: str) -> Path:
        """Return the image that an annotation names.

        Args:
            name: as in the annotation; a path with either kind of slash.
            near: folders that the name may be relative to.
            where: place of the annotation, for the error.

        Raises:
            AnnotationError: there is no such image, or several ones in other folders.
        """
        name = name.replace("\\", "/")
        for folder in near:
            if os.path.isfile(path := folder / name):  # unlike Path, False for names that the system refuses
                return Path(os.path.normpath(path))
        found = self.by_name.get(name.rpartition("/")[2], [])
        if len(found) == 1:
            self.by_name_only.append(found[0])
            return found[0]
        if found:
            raise AnnotationError(f"{where}: image {name!r}: several images have this name: {summarize(found, 4)}")
        shown = summarize(dict.fromkeys(map(str, near)), 4)
        raise AnnotationError(f"{where}: image {name!r}: no such file in {shown}, nor anywhere below {self.root}")


def walk(root: Path) -> Iterator[Path]:
    """Find the regular files below a folder, without hidden ones.

    Raises:
        AnnotationError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise AnnotationError(f"{error.filename}: cannot be read: {error.strerror}") from error

    seen = set()
    for folder, names, files in os.walk(root, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith((".", "__MACOSX")))
        # Devices, pipes and dangling links are no files: reading them could wait for ever.
        yield from (path for name in files if not name.startswith(".") and (path := Path(folder, name)).is_file())


def read_yaml(path: Path) -> Any:
    """Read a YAML file; all values stay text, so that names such as `no` and `007` are kept.

    Raises:
        AnnotationError: it is not YAML, with its line.
    """
    try:
        return yaml.load(read_utf8("data set description", path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise AnnotationError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error


def read_xml(path: Path) -> Node:
    """Read an XML file.

    Raises:
        AnnotationError: it is not XML, with its line.
    """
    top = Node("", {}, 0)
    stack = [top]
    content = read_bytes("annotations", path)
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        node = Node(tag, attributes, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)

    def text(content: str) -> None:
        stack[-1].text += content

    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda tag: stack.pop()
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # ValueError: an encoding of several bytes
        raise AnnotationError(f"{path}:{getattr(error, 'lineno', 1)}: not XML: {error}") from error
    return top.children[0]


def number(text: Any, where: str) -> float:
    """Return a finite number that an annotation holds.

    Raises:
        AnnotationError: it is none.
    """
    try:
        value = float("nan") if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if not abs(value) < LARGEST:
        raise AnnotationError(f"{where}: {text!r:.100} is not a number")
    return value


def whole(text: Any, where: str) -> int:
    """Return a whole number of at least 0 that an annotation holds, also if it is written as 640.0.

    Raises:
        AnnotationError: it is none.
    """
    value = number(text, where)
    if value < 0 or value != int(value):
        raise AnnotationError(f"{where}: {text!r}; allowed: a whole number of at least 0")
    return int(value)


def flag(value: Any, where: str) -> bool:
    """Return a truth value that an annotation holds as 0 or 1, true or false; nothing is false.

    Raises:
        AnnotationError: it is something else.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if (text := str(value).strip().lower()) not in ("", "0", "1", "true", "false"):
        raise AnnotationError(f"{where}: {value!r}; allowed: 0, 1")
    return text in ("1", "true")
