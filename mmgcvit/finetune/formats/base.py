"""Interface of an annotation format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from mmgcvit.finetune.data import Data
from mmgcvit.finetune.scan import Scan


class Format(ABC):
    """An annotation format that is recognised by its files.

    Attributes:
        name: for ``--format``.
        title: for people.
        layout: the files that are expected, for messages and the documentation.
        tasks: the tasks that it may have annotations for.
    """

    name: str
    title: str
    layout: str
    tasks: tuple[str, ...]

    @abstractmethod
    def find(self, scan: Scan) -> list[Path]:
        """Return the files that are in this format; none if the data has another one."""

    @abstractmethod
    def read(self, scan: Scan, task: str | None) -> Data:
        """Read the annotations.

        Args:
            scan: files of which :meth:`find` returns some.
            task: what they are to be used for; None if the user has not said it.

        Raises:
            AnnotationError: they cannot be read; names the file, and the line or the key.
        """


def instance_tasks(data: Data) -> tuple[str, ...]:
    """Tasks that objects can be used for; their masks are used if there are masks only."""
    found = {item.segmentation is not None for image in data.items for item in image.instances if not item.crowd}
    return ("segment", "detect") if found == {True} else ("detect",)
