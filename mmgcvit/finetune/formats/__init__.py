"""The annotation formats, and the recognition of the one that a data set has."""

from __future__ import annotations

from pathlib import Path

from mmgcvit.errors import AnnotationError, UsageError
from mmgcvit.finetune.data import TASKS, Data, Item, merge_repeated
from mmgcvit.finetune.formats.base import Format
from mmgcvit.finetune.formats.class_folders import ClassFolders
from mmgcvit.finetune.formats.coco import Coco
from mmgcvit.finetune.formats.cvat import Cvat
from mmgcvit.finetune.formats.label_maps import LabelMaps
from mmgcvit.finetune.formats.label_studio import LabelStudio
from mmgcvit.finetune.formats.labelme import LabelMe
from mmgcvit.finetune.formats.voc import Voc
from mmgcvit.finetune.formats.yolo import Yolo
from mmgcvit.finetune.scan import Scan
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted, is_utf8

#: All formats by name.
FORMATS: dict[str, Format] = {
    known.name: known
    for known in (Coco(), Yolo(), Voc(), LabelMe(), Cvat(), LabelStudio(), LabelMaps(), ClassFolders())
}


def read_data(source: str | Path, task: str | None = None, format_name: str | None = None) -> Data:
    """Recognise the format of annotated images and read them.

    Args:
        source: a folder, or one annotation file.
        task: a key of :data:`~mmgcvit.finetune.data.TASKS`; by default what the annotations are for.
        format_name: a key of :data:`FORMATS`; by default the format is recognised.

    Returns:
        The data; its first task is the one to use.

    Raises:
        UsageError: the task or format is unknown.
        AnnotationError: the format is not recognised, or more than one is; or the annotations cannot be read or do not
            suit the task.
    """
    if task is not None and task not in TASKS:
        raise UsageError(f"task={task!r}; allowed: {', '.join(TASKS)}")
    if format_name is not None and format_name not in FORMATS:
        raise UsageError(f"format={format_name!r}; allowed: {', '.join(FORMATS)}")
    scan = Scan(source)
    data = recognise(scan, task, format_name).read(scan, task)
    if found := scan.by_name_only:
        data.notes.append(
            f"{counted(len(found), 'image is', 'images are')} not where the annotations say; found by name, such as "
            f"{found[0]}"
        )
    _require_utf8(data)
    data.notes += _outside(data, scan)
    merge_repeated(data)
    if not any(data.splits.values()):
        raise AnnotationError(f"{scan.source}: {FORMATS[data.format].title}: there are no images in it")
    if scan.source == scan.root and data.tasks != ("semantic",):
        used = {item.path for item in data.items}
        if left := [path for path in scan.images if path not in used]:
            data.notes.append(
                f"{counted(len(left), 'image file is', 'image files are')} not in the annotations, such as {left[0]}: "
                "left out"
            )
    if task is not None and task not in data.tasks:
        reason = _without_mask(data) if task == "segment" else ""
        raise AnnotationError(
            f"{scan.source}: task={task!r}: the annotations are for {', '.join(data.tasks)}{reason}; allowed: "
            f"{', '.join(data.tasks)}"
        )
    if task is not None:
        data.tasks = (task,)
    elif data.tasks == ("detect",) and any(i.segmentation is not None for item in data.items for i in item.instances):
        data.notes.append(f"the masks are not used{_without_mask(data)}")
    return data


def _require_utf8(data: Data) -> None:
    """Check the names that are written to text files.

    Raises:
        AnnotationError: a name cannot be written as UTF-8.
    """
    for name in data.classes:
        if not is_utf8(name):
            raise AnnotationError(f"class {name!r}: the name is not UTF-8; allowed: UTF-8. Rename it")
    for item in data.items:
        for path in (item.path, item.label_map):
            if path is not None and not is_utf8(str(path)):
                raise AnnotationError(
                    f"file {str(path)!r}: the name is not UTF-8; allowed: UTF-8. Rename it, such as by: convmv -f "
                    "cp1252 -t utf-8 -r --notest FOLDER"
                )


def _outside(data: Data, scan: Scan) -> list[str]:
    """Note about images that the annotations name outside of the data set's folder; none if there are none."""
    paths = [item.path for item in data.items if not item.path.is_relative_to(scan.root)]
    folders = dict.fromkeys(path.parent for path in paths)
    return (
        [f"{counted(len(paths), 'image is', 'images are')} outside of {scan.root}, in {summarize(folders, 4)}"]
        if paths
        else []
    )


def recognise(scan: Scan, task: str | None = None, format_name: str | None = None) -> Format:
    """Return the one format that the files are in.

    Raises:
        AnnotationError: no format, or more than one, is found; lists what was seen and what is allowed.
    """
    wanted = [FORMATS[format_name]] if format_name else [f for f in FORMATS.values() if not task or task in f.tasks]
    found = {known: files for known in wanted if (files := known.find(scan))}
    if len(found) > 1:  # images beside annotation files are in folders, too
        found = {known: files for known, files in found.items() if known.name != ClassFolders.name}
    if len(found) == 1:
        return next(iter(found))
    if found:
        lines = [f"  --format {known.name}: {known.title}: {summarize(files, 3)}" for known, files in found.items()]
        listed = "\n".join(lines)
        raise AnnotationError(f"{scan.source}: annotations in more than one format; choose one:\n{listed}")
    layouts = "\n".join(f"  {known.name}: {known.layout}" for known in wanted)
    raise AnnotationError(f"{scan.source}: no known annotations. Seen: {_seen(scan)}. Allowed:\n{layouts}")


def _seen(scan: Scan) -> str:
    kinds: dict[str, int] = {}
    for path in scan.files:
        kinds[path.suffix.lower() or "no suffix"] = kinds.get(path.suffix.lower() or "no suffix", 0) + 1
    tops = sorted({f"{path.relative_to(scan.root).parts[0]}/" for path in scan.files if path.parent != scan.root})
    shown = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items(), key=lambda kind: -kind[1])[:8])
    shown = shown if scan.source == scan.root else f"this file, and in its folder {shown}"
    return shown + (f"; folders {summarize(tops)}" if tops else "; no folders")


def _without_mask(data: Data) -> str:
    def bare(item: Item) -> int:
        return sum(instance.segmentation is None and not instance.crowd for instance in item.instances)

    missing = sum(map(bare, data.items))
    example = next((item.path for item in data.items if bare(item)), None)
    return f" ({counted(missing, 'object has', 'objects have')} no mask, such as in {example})" if missing else ""
