"""Small ONNX files with descriptions, whose predictions follow from the image by simple rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmgcvit.runtime.metadata import KEY, ModelInfo

CLASSES = ("cat", "dog", "a very long name of a class")
PALETTE = ((220, 20, 60), (119, 11, 32), (0, 0, 230))
HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'

# The box around the pixels above 128, label 1, score max / 255; and a second, unused place.
DETECTOR = """detector ({dtype}[{shape}] images)
 => (float[B,2,4] boxes, float[B,2] scores, int64[B,2] labels{mask_output})
<int64[1] first = {{1}}, int64[1] second = {{2}}, int64[2] sides = {{1, 2}},
 float dark = {{128.0}}, float white = {{255.0}}, int64 two = {{2}}, int64 once = {{1}}{mask_constants}> {{
  values = Cast<to=1>(images)
  grey = ReduceMax<keepdims=0>(values, first)
  above = Greater(grey, dark)
  bright = Cast<to=1>(above)
  columns = ReduceMax<keepdims=0>(bright, first)
  rows = ReduceMax<keepdims=0>(bright, second)
  x1 = ArgMax<axis=1>(columns)
  y1 = ArgMax<axis=1>(rows)
  x2 = ArgMax<axis=1, select_last_index=1>(columns)
  y2 = ArgMax<axis=1, select_last_index=1>(rows)
  x3 = Add(x2, once)
  y3 = Add(y2, once)
  corners = Concat<axis=1>(x1, y1, x3, y3)
  floats = Cast<to=1>(corners)
  box = Unsqueeze(floats, first)
  nothing = Sub(box, box)
  boxes = Concat<axis=1>(box, nothing)
  most = ReduceMax<keepdims=0>(grey, sides)
  share = Div(most, white)
  score = Unsqueeze(share, first)
  zero = Sub(score, score)
  scores = Concat<axis=1>(score, zero)
  some = ReduceMax<keepdims=0>(bright, sides)
  found = Cast<to=7>(some)
  doubled = Mul(found, two)
  label = Sub(doubled, once)
  label2 = Unsqueeze(label, first)
  unused = Cast<to=7>(zero)
  none = Sub(unused, once)
  labels = Concat<axis=1>(label2, none)
  {mask_nodes}
}}"""
SEGMENTOR = """segmentor ({dtype}[{shape}] images) => (uint8[B,H,W] labels)
<int64[1] first = {{1}}, float dark = {{128.0}}> {{
  values = Cast<to=1>(images)
  grey = ReduceMax<keepdims=0>(values, first)
  above = Greater(grey, dark)
  labels = Cast<to=2>(above)
}}"""
CLASSIFIER = """classifier ({dtype}[{shape}] images) => (float[B,3] probabilities)
<int64[2] sides = {{2, 3}}, float scale = {{50.0}}> {{
  values = Cast<to=1>(images)
  means = ReduceMean<keepdims=0>(values, sides)
  scaled = Div(means, scale)
  probabilities = Softmax<axis=1>(scaled)
}}"""
GRAPHS = {"detection": DETECTOR, "segmentation": SEGMENTOR, "classification": CLASSIFIER}
# Left half of the box, or the bright pixels of the input.
BOX_MASK = dict(
    mask_output=", float[B,2,4,4] masks",
    mask_constants=", float[1,1,4,4] half = {1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0}, int64[2] last = {2, 3}",
    mask_nodes="flat = Unsqueeze(zero, last)\n  pair = Concat<axis=1>(flat, flat)\n  masks = Add(pair, half)",
)
IMAGE_MASK = dict(
    mask_output=", float[B,2,H,W] masks",
    mask_constants="",
    mask_nodes="mask = Unsqueeze(bright, first)\n  masks = Concat<axis=1>(mask, mask)",
)
NO_MASK = dict(mask_output="", mask_constants="", mask_nodes="")


def write_model(path: Path, task: str = "detection", described: bool = True, **changed: Any) -> Path:
    """Write a model; ``changed`` are fields of its description."""
    import onnx

    info = ModelInfo(**{"task": task, "classes": CLASSES, "palette": PALETTE, **changed})
    sizes = [str(size or name) for size, name in zip(info.shape, "BHW", strict=True)]
    shape = ",".join([sizes[0], str(info.channels), *sizes[1:]])
    parts = {"box": BOX_MASK, "image": IMAGE_MASK, "": NO_MASK}[info.masks]
    text = GRAPHS[task].format(dtype={"float32": "float"}.get(info.dtype, info.dtype), shape=shape, **parts)
    model = onnx.parser.parse_model(HEAD + text)
    if described:
        onnx.helper.set_model_props(model, {KEY: info.to_json()})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def scene(height: int, width: int, box: tuple[int, int, int, int] | None, value: int = 255) -> np.ndarray:
    """A dark image (height, width, 3) with a bright box x1, y1, x2, y2."""
    image = np.full((height, width, 3), 20, np.uint8)
    if box:
        x1, y1, x2, y2 = box
        image[y1:y2, x1:x2] = value
    return image
