"""Checks of downloaded public data sets, and links to where the configs expect them; nothing is downloaded."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from timm.data import ImageNetInfo

from mmgcvit.errors import PrepareError
from mmgcvit.utils import file_sha256, summarize
from mmgcvit.utils.files import file_md5
from mmgcvit.utils.text import counted, shown


@dataclass
class Report:
    """The result of a check: lines for the user, problems, and advice."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """One split of COCO: number of images and of instance annotations."""

    name: str
    images: int
    annotations: int
    archive_md5: str


COCO_URL = "http://images.cocodataset.org"
COCO_ANNOTATIONS = ("annotations_trainval2017", "f4bbac642086de4f52a3fdda2de5fa2c")
COCO_SPLITS = (
    Split("train2017", 118287, 860001, "cced6f7f71b7629ddf16f17bbcfab6b2"),
    Split("val2017", 5000, 36781, "442b8da7639aecaf257c1dceb8ba8c80"),
)
COCO_CATEGORIES = 80


@dataclass(frozen=True)
class Pairs:
    """One split of a segmentation data set: each image has a label map with the same name except for the suffix."""

    images: str
    image_suffix: str
    labels: str
    label_suffix: str
    count: int


ADE_URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
ADE_SPLITS = tuple(
    Pairs(f"images/{name}", ".jpg", f"annotations/{name}", ".png", count)
    for name, count in (("training", 20210), ("validation", 2000))
)
CITYSCAPES_URL = "https://www.cityscapes-dataset.com/downloads"
CITYSCAPES_SPLITS = tuple(
    Pairs(f"leftImg8bit/{name}", "_leftImg8bit.png", f"gtFine/{name}", "_gtFine_labelTrainIds.png", count)
    for name, count in (("train", 2975), ("val", 500))
)

IMAGENET_URL = "https://image-net.org/download-images.php"
IMAGENET_SPLITS = (("train", 1281167, "ILSVRC2012_img_train.tar"), ("val", 50000, "ILSVRC2012_img_val.tar"))
IMAGENET_PER_CLASS = 50  # images per class in val
VAL_SCRIPT = "https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh"


def prepare(name: str, folder: str | Path, data: str | Path = "data") -> Report:
    """Check a data set's folder tree and link it in ``data``, where the configs expect it.

    Args:
        name: one of :data:`DATASETS`.
        folder: the downloaded folder tree.
        data: folder of the configs' data roots, created if necessary.

    Returns:
        The result; the link is created only if there is no problem.

    Raises:
        PrepareError: the name is unknown, the folder does not exist, or another file or folder is in place of the link.
    """
    if name not in DATASETS:
        raise PrepareError(f"data set {name!r}; allowed: {', '.join(DATASETS)}")
    folder = Path(folder)
    if not folder.is_dir():
        raise PrepareError(f"{str(folder)!r}: no such folder")
    check, link = DATASETS[name]
    report = check(folder)
    if not report.problems:
        report.lines.append(_link(folder.resolve(), Path(data) / link))
    return report


def print_report(report: Report) -> None:
    """Print the report."""
    console = Console()
    for line in report.lines:
        console.print(shown(line), markup=False, soft_wrap=True)
    for problem in report.problems:
        console.print(shown(f"error: {problem}"), markup=False, soft_wrap=True)
    for advice in dict.fromkeys(report.advice):
        console.print(shown(advice), markup=False, soft_wrap=True)


def check_coco(folder: Path) -> Report:
    """Check COCO 2017: the number of images and annotations, and the checksum of the annotation archive.

    If ``annotations_trainval2017.zip`` is still in the tree, its MD5 is checked, and each JSON file is compared with
    its copy in the archive. Otherwise only the counts in the JSON file are checked, and its SHA-256 is reported.
    """
    report = Report()
    archive = _archive(folder, *COCO_ANNOTATIONS, "annotations", report)
    for split in COCO_SPLITS:
        images = folder / split.name
        count = _count(images, (".jpg",))
        if count != split.images:
            found = counted(count, "image") if images.is_dir() else "no such folder"
            report.problems.append(f"{images}: {found}; expected {split.images}")
            _archive(folder, split.name, split.archive_md5, split.name, report, needed=True)
        else:
            report.lines.append(f"{images}: {counted(count, 'image')}")
        _coco_json(folder, split, archive, report)
    return report


def check_ade20k(folder: Path) -> Report:
    """Check ADE20K (the 150 classes of the scene parsing challenge): number and names of images and label maps."""
    report = Report()
    for split in ADE_SPLITS:
        _pairs(folder, split, report)
    if report.problems:
        report.advice.append(f"download {ADE_URL}, unpack it, and give its folder ADEChallengeData2016")
    return report


def check_cityscapes(folder: Path) -> Report:
    """Check Cityscapes (fine, 19 training classes): number and names of images and label maps."""
    report = Report()
    for split in CITYSCAPES_SPLITS:
        _pairs(folder, split, report)
        if len(_names(folder / split.labels, split.label_suffix)) != split.count:
            raw = len(_names(folder / split.labels, "_gtFine_labelIds.png")) == split.count
            report.advice.append(
                "the label maps have Cityscapes' own ids; its tools number the training classes: pip install "
                f"cityscapesscripts && CITYSCAPES_DATASET={folder} csCreateTrainIdLabelImgs"
                if raw
                else f"download gtFine_trainvaltest.zip from {CITYSCAPES_URL} (needs an account), unpack in {folder}"
            )
        if len(_names(folder / split.images, split.image_suffix)) != split.count:
            report.advice.append(
                f"download leftImg8bit_trainvaltest.zip from {CITYSCAPES_URL} (needs an account) and "
                f"unpack it in {folder}"
            )
    return report


def check_imagenet(folder: Path) -> Report:
    """Check ImageNet-1k (ILSVRC2012): names of the thousand class folders in both splits, and number of images."""
    report = Report()
    synsets = set(ImageNetInfo("imagenet-1k").label_names())
    for split, expected, archive in IMAGENET_SPLITS:
        path = folder / split
        if not path.is_dir():
            report.problems.append(f"{path}: no such folder; expected {counted(len(synsets), 'class folder')}")
            report.advice.append(f"download {archive} from {IMAGENET_URL} (needs an account) and unpack it into {path}")
            continue
        counts = {
            entry.name: _count(Path(entry.path), (".jpeg", ".jpg")) for entry in os.scandir(path) if entry.is_dir()
        }
        loose, tars = _count(path, (".jpeg", ".jpg")), _count(path, (".tar",))
        lacking, beyond = sorted(synsets - counts.keys()), sorted(counts.keys() - synsets)
        empty = sorted(name for name in synsets & counts.keys() if not counts[name])
        if loose:
            report.problems.append(
                f"{path}: {counted(loose, 'image')} outside class folders, so their classes are unknown"
            )
            report.advice.append(
                f"the archive of val has no class folders; in {path} run the commands of {VAL_SCRIPT}, which create "
                "them and move the images"
                if split == "val"
                else f"move the images in {path} itself into their class folders (names begin with the class), or "
                "somewhere else"
            )
        if tars:
            report.problems.append(f"{path}: {counted(tars, '.tar file that is', '.tar files that are')} not unpacked")
            report.advice.append(
                f"in {path}: for f in *.tar; do mkdir -p ${{f%.tar}} && tar -xf $f -C ${{f%.tar}} && rm $f; done"
            )
        for names, one, many in (
            (lacking, "class folder is missing", "class folders are missing"),
            (empty, "class folder is empty", "class folders are empty"),
            (beyond, "folder is not a class of ImageNet-1k", "folders are not classes of ImageNet-1k"),
        ):
            if names:
                report.problems.append(f"{path}: {counted(len(names), one, many)}: {summarize(names)}")
        if beyond:
            report.advice.append(
                f"move folders that are not classes out of {path}; the thousand classes are named like n01440764"
            )
        found = sum(counts[name] for name in synsets & counts.keys())
        uneven = sorted(name for name in synsets & counts.keys() if counts[name] not in (0, IMAGENET_PER_CLASS))
        if split == "val" and uneven:
            report.problems.append(
                f"{path}: {counted(len(uneven), 'class folder')} without their {IMAGENET_PER_CLASS} images: "
                f"{summarize(uneven)}"
            )
            report.advice.append(
                f"images of val are in the wrong class folders or missing: unpack {archive} "
                f"into an empty {path} again, and run the commands of {VAL_SCRIPT} there"
            )
        if found != expected:
            report.problems.append(f"{path}: {counted(found, 'image')} in class folders; expected {expected}")
        if (found != expected or lacking or empty) and not loose and not tars:
            report.advice.append(f"unpack {archive} (from {IMAGENET_URL}) into {path} again")
        if found == expected and not (lacking or beyond or empty):
            report.lines.append(f"{path}: {counted(found, 'image')} in {counted(len(counts), 'class folder')}")
    return report


def _pairs(folder: Path, split: Pairs, report: Report) -> None:
    images = _names(folder / split.images, split.image_suffix)
    labels = _names(folder / split.labels, split.label_suffix)
    for kind, place, suffix, names in (
        ("image", split.images, split.image_suffix, images),
        ("label map", split.labels, split.label_suffix, labels),
    ):
        found = f"{counted(len(names), kind)} *{suffix}" if (folder / place).is_dir() else "no such folder"
        if len(names) != split.count:
            report.problems.append(f"{folder / place}: {found}; expected {split.count}")
        else:
            report.lines.append(f"{folder / place}: {found}")
        empty = [path for name in sorted(names) if not os.path.getsize(path := folder / place / f"{name}{suffix}")]
        if empty:
            report.problems.append(
                f"{folder / place}: {counted(len(empty), 'file')} of 0 bytes, such as {empty[0].name}: unpack the "
                "archive again"
            )
    alone = sorted(images - labels)
    if alone and labels:
        report.problems.append(
            f"{folder / split.labels}: no label maps for {counted(len(alone), 'image')}, such as {alone[0]}"
        )


def _names(folder: Path, suffix: str) -> set[str]:
    """Paths with this suffix below a folder, without the suffix."""
    if not folder.is_dir():
        return set()
    return {path.relative_to(folder).as_posix().removesuffix(suffix) for path in folder.rglob(f"*{suffix}")}


def _coco_json(folder: Path, split: Split, archive: Path | None, report: Report) -> None:
    path = folder / "annotations" / f"instances_{split.name}.json"
    if not path.is_file():
        report.problems.append(f"{path}: no such file")
        report.advice.append(_download(COCO_ANNOTATIONS[0], "annotations"))
        return
    content = path.read_bytes()
    try:
        instances = json.loads(content)
        counts = tuple(len(instances[key]) for key in ("images", "annotations", "categories"))
    except (ValueError, KeyError, TypeError) as error:
        report.problems.append(f"{path}: not COCO annotations: {type(error).__name__}: {error}")
        report.advice.append(_download(COCO_ANNOTATIONS[0], "annotations"))
        return
    expected = (split.images, split.annotations, COCO_CATEGORIES)
    names = {image.get("file_name") for image in instances["images"] if isinstance(image, dict)}
    if counts != expected:
        report.problems.append(
            f"{path}: {counted(counts[0], 'image')}, {counted(counts[1], 'annotation')}, "
            f"{counted(counts[2], 'category', 'categories')}; expected "
            f"{expected[0]}, {expected[1]}, {expected[2]}"
        )
        report.advice.append(_download(COCO_ANNOTATIONS[0], "annotations"))
        return
    images = folder / split.name
    missing = sorted(str(name) for name in names - set(os.listdir(images))) if images.is_dir() else []
    if missing:
        report.problems.append(
            f"{images}: {counted(len(missing), 'image is', 'images are')} missing that {path.name} lists, such as "
            f"{missing[0]}"
        )
        return
    same = ""
    if archive is not None:
        with zipfile.ZipFile(archive) as members, members.open(f"annotations/{path.name}") as member:
            if member.read() != content:
                report.problems.append(f"{path}: differs from its copy in {archive}; unpack it again")
                return
        same = f", as in {archive.name}"
    report.lines.append(
        f"{path}: {counted(counts[0], 'image')}, {counted(counts[1], 'annotation')}{same}, SHA-256 {file_sha256(path)}"
    )


def _archive(folder: Path, name: str, md5: str, kind: str, report: Report, needed: bool = False) -> Path | None:
    """Return the archive if it is in the tree and intact; report a damaged one, and advise to download a needed one."""
    path = folder / f"{name}.zip"
    if not path.is_file():
        if needed:
            report.advice.append(_download(name, kind))
        return None
    found = file_md5(path)
    if found != md5:
        report.problems.append(f"{path}: MD5 {found}; expected {md5}: the download is damaged")
        report.advice.append(_download(name, kind))
        return None
    if needed:
        report.advice.append(f"unpack {path} in {folder}")
    return path


def _download(name: str, kind: str) -> str:
    return f"download {COCO_URL}/{'annotations' if kind == 'annotations' else 'zips'}/{name}.zip and unpack it there"


def _count(folder: Path, suffixes: tuple[str, ...]) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.lower().endswith(suffixes) for entry in entries)


def _link(source: Path, link: Path) -> str:
    if link.is_symlink() or link.exists():
        if link.resolve() == source:
            return f"{link}: exists already"
        raise PrepareError(f"{link}: another file or folder is in its place; move it away")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(source, target_is_directory=True)
    return f"{link}: linked to {source}"


DATASETS: dict[str, tuple[Callable[[Path], Report], str]] = {
    "coco": (check_coco, "coco"),
    "ade20k": (check_ade20k, "ade/ADEChallengeData2016"),
    "cityscapes": (check_cityscapes, "cityscapes"),
    "imagenet": (check_imagenet, "imagenet"),
}
