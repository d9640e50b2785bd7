"""Files beside a checkpoint of NVIDIA TAO: its experiment file, and annotations with the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmgcvit.datasets import categories
from mmgcvit.datasets.text import read_json
from mmgcvit.errors import AnnotationError, CheckpointError


@dataclass(frozen=True)
class TaoSettings:
    """Settings of TAO's DINO that do not follow from the shapes of its tensors; the defaults are TAO's.

    Args:
        nheads: attention heads.
        temperature: of the positional encoding (``pe_temperatureH`` and ``pe_temperatureW``).
        num_select: largest number of predictions per image.
        mean: of the input, for values of 0 to 1.
        std: of the input, for values of 0 to 1.
    """

    nheads: int = 8
    temperature: int = 20
    num_select: int = 300
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @classmethod
    def from_spec(cls, path: str | Path) -> TaoSettings:
        """Read an experiment file of TAO (YAML).

        Raises:
            CheckpointError: the file cannot be read, or has a setting that mmdet's DINO does not have.
        """
        try:
            spec = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"TAO's experiment file {str(path)!r} cannot be read: {reason}") from error
        model = _section(spec, "model", path)
        image = _section(_section(spec, "dataset", path), "augmentation", path)
        own = cls()
        height, width = (model.get(f"pe_temperature{axis}", own.temperature) for axis in "HW")
        if height != width:
            raise CheckpointError(
                f"{path}: pe_temperatureH={height}, pe_temperatureW={width}; allowed: the same, as mmdet has one"
            )
        found = cls(
            nheads=model.get("nheads", own.nheads),
            temperature=height,
            num_select=model.get("num_select", own.num_select),
            mean=_tuple(image.get("input_mean", own.mean)),
            std=_tuple(image.get("input_std", own.std)),
        )
        for name in ("nheads", "temperature", "num_select"):
            value = getattr(found, name)
            if type(value) is not int or value < 1:
                raise CheckpointError(f"{path}: {name}={value!r}; allowed: a positive integer")
        for name, lowest in (("mean", 0.0), ("std", 1e-6)):
            value = getattr(found, name)
            numbers = [x for x in value if type(x) in (int, float) and x >= lowest] if isinstance(value, tuple) else []
            if len(numbers) != 3 or len(value) != 3:
                raise CheckpointError(f"{path}: {name}={value!r}; allowed: three numbers >= {lowest:g}")
        return found


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def read_categories(path: str | Path) -> dict[int, str]:
    """Names of the categories of a COCO annotation file by id, in the order of the file.

    Raises:
        CheckpointError: the file cannot be read, or has no categories.
    """
    try:
        found = categories.read_categories(read_json(path), path)
    except AnnotationError as error:
        raise CheckpointError(f"categories: {error}; allowed: a COCO annotation file") from error
    try:
        return {int(identity): name for identity, name in found.items()}
    except ValueError as error:
        raise CheckpointError(f"categories {str(path)!r}: {error}; allowed: ids that are integers") from error


def _section(content: object, name: str, path: str | Path) -> Mapping[str, Any]:
    found = content.get(name) if isinstance(content, Mapping) else None
    if found is None:
        found = {} if isinstance(content, Mapping) else content
    if not isinstance(found, Mapping):
        raise CheckpointError(f"TAO's experiment file {str(path)!r}: no section {name!r}; allowed: model, dataset, ...")
    return found
