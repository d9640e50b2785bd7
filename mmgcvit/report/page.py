"""What a report consists of, and its HTML page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmgcvit.utils import atomic_path

TEMPLATE = "page.html.j2"
FOLDER = "report"  # beside the page, for its images


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: heading above the table.
        header: names of the columns.
        rows: one tuple per row, as long as the header.
        caption: what the table shows.
        words: number of columns on the left that contain words; the others contain numbers, aligned on the right.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    words: int = 1


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image.

    Attributes:
        name: file name in the folder ``report``, with the suffix ``.png`` or ``.jpg``.
        content: the image on the page.
        alt: description for readers who do not see it.
        label: text below the image; it may have several lines.
        large: a larger version for the folder ``report``; None: the same as on the page.
    """

    name: str
    content: bytes
    alt: str
    label: str = ""
    large: bytes | None = None

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        kind = "png" if self.name.endswith(".png") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Figure:
    """Images side by side with a title and a caption.

    Attributes:
        title: heading of the figure.
        encoded: one plot, or the images of a gallery's entry.
        caption: what it shows, and how to read it.
        wide: whether it takes the whole width of the page.
    """

    title: str
    encoded: Sequence[EncodedImage]
    caption: str
    wide: bool = False

    @classmethod
    def plot(cls, name: str, title: str, content: bytes, caption: str, alt: str = "") -> Figure:
        """Figure of one plot: file name without suffix, heading, content of the PNG file, caption, description."""
        return cls(title, (EncodedImage(f"{name}.png", content, alt or f"Plot: {title}"),), caption)


@dataclass(frozen=True)
class Details:
    """Preformatted text that is folded away.

    Attributes:
        title: the line that is always shown.
        text: the text.
    """

    title: str
    text: str


@dataclass
class Section:
    """A part of the page with a heading.

    Attributes:
        name: anchor of the section.
        title: heading.
        items: its content, in order.
    """

    name: str
    title: str
    items: list[Any] = field(default_factory=list)

    def add(self, *items: Any) -> None:
        """Add content; None is left out."""
        self.items += [item for item in items if item is not None]


def render(
    title: str,
    subtitle: str,
    headline: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    shorten: Callable[[str], str] = str,
) -> str:
    """Return the page: HTML that shows all without other files. Its images link to the files of :func:`write`.

    Args:
        title: title of the page.
        subtitle: line below it.
        headline: names and values of the most important results.
        sections: the content; sections without items are left out.
        shorten: returns a text as it is shown.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["kind"] = lambda item: type(item).__name__
    environment.finalize = lambda value: shorten(value) if isinstance(value, str) and value[:5] != "data:" else value
    shown = [section for section in sections if section.items]
    template = environment.get_template(TEMPLATE)
    return template.render(title=title, subtitle=subtitle, headline=headline, sections=shown, folder=FOLDER)


def write(path: Path, page: str, sections: Sequence[Section]) -> None:
    """Write the page, and its images to the folder ``report`` beside it.

    Images of an earlier report in that folder are removed, except for those of others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(FOLDER)
    folder.mkdir(exist_ok=True)
    listed = folder / "files.txt"
    if listed.is_file():
        for name in listed.read_text(encoding="utf-8").splitlines():
            (folder / Path(name).name).unlink(missing_ok=True)
    encoded = [
        encoded_image
        for section in sections
        for item in section.items
        if isinstance(item, Figure)
        for encoded_image in item.encoded
    ]
    for encoded_image in encoded:
        with atomic_path(folder / encoded_image.name) as temporary:
            temporary.write_bytes(encoded_image.large or encoded_image.content)
    listed.write_text("".join(f"{encoded_image.name}\n" for encoded_image in encoded), encoding="utf-8")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
