"""Drawings of predictions, with Pillow: boxes, masks, label maps, and the most probable classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmgcvit.runtime.predictions import Classification, Detections, Panoptic, Prediction, Segmentation
from mmgcvit.utils.images import to_display

SMALL = 512  # images with a longer side below this are enlarged
OTHER_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
LEGEND = 40  # most classes in a legend
Colour = tuple[int, int, int]
Area = tuple[float, float, float, float]  # x1, y1, x2, y2


#: Colours that are easy to tell apart, on dark and on light images.
DISTINCT: tuple[Colour, ...] = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 225, 25), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (170, 110, 40), (0, 128, 128), (210, 245, 60), (250, 190, 212), (128, 0, 0), (0, 0, 160),
    (220, 190, 255), (128, 128, 0), (170, 255, 195), (255, 215, 180), (128, 128, 128), (0, 90, 0),
)  # fmt: skip
#: Names of a first class that is no object; it is black.
BACKGROUND = ("background", "unlabeled", "unlabelled", "void", "ignore")


def default_palette(classes: Sequence[str]) -> tuple[Colour, ...]:
    """Return a colour for each class, for data sets without colours: the same ones for the same number of classes.

    Up to 20 colours are easy to tell apart; more are spread over the hues.
    """
    first: list[Colour] = [(0, 0, 0)] if classes and str(classes[0]).lower() in BACKGROUND else []
    colours = [*first, *DISTINCT]
    for i in range(len(classes) - len(colours)):
        hue, saturation, value = i * 0.618034 % 1, (0.9, 0.55, 0.75)[i % 3], (0.95, 0.8, 0.6)[i // 3 % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
        colours.append((red, green, blue))
    return tuple(colours[: len(classes)])


def draw(
    image: np.ndarray,
    prediction: Prediction,
    palette: Sequence[Colour],
    score_thr: float = 0.3,
    top: int = 5,
    with_scores: bool = True,
    is_frame: bool = False,
) -> Image.Image:
    """Draw a prediction on its image. Small images are enlarged, so that text and lines are readable.

    Args:
        image: (H, W) or (H, W, C), RGB.
        prediction: its prediction.
        palette: RGB colour of each class.
        score_thr: boxes with a lower score are not drawn.
        top: number of classes of a classifier.
        with_scores: whether labels of boxes have the score.
        is_frame: for a frame of a video: the size of the result depends on the sizes of the image and of the classes
            only. The legend of a label map has all classes, without their shares.
    """
    zoom = zoom_of(image.shape)
    pixels = to_display(image).repeat(zoom, axis=0).repeat(zoom, axis=1)
    if isinstance(prediction, Detections):
        return _objects(pixels, prediction, palette, score_thr, zoom, with_scores)
    if isinstance(prediction, Segmentation):
        return _label_map(pixels, prediction, palette, zoom, is_frame)
    assert isinstance(prediction, Classification)
    lines = [(f"{name}  {value:.2f}", None) for name, value in prediction.top(top)]
    return _with_panel(Image.fromarray(pixels), lines)


def _objects(
    pixels: np.ndarray, found: Detections, palette: Sequence[Colour], score_thr: float, zoom: int, with_scores: bool
) -> Image.Image:
    """Draw masks, boxes, and labels with scores. Objects of the ground truth have no score (NaN)."""
    shown = found.select(~(found.scores < score_thr))
    order = range(len(shown))
    for i in reversed(order):  # the highest score on top
        if shown.regions is not None:
            region = shown.regions[i]
            mask = region.mask.repeat(zoom, axis=0).repeat(zoom, axis=1)
            y, x = region.y * zoom, region.x * zoom
            part = pixels[y : y + mask.shape[0], x : x + mask.shape[1]]
            part[mask] = (0.55 * part[mask] + 0.45 * np.array(palette[shown.labels[i]])).astype(np.uint8)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    size = text_size(image)
    line = max(2, size // 8)
    for i in reversed(order):
        x1, y1, x2, y2 = (float(value) * zoom for value in shown.boxes[i])
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=palette[shown.labels[i]], width=line)
    labels: list[tuple[Area, str, Colour]] = []
    for i in order:
        score = f" {shown.scores[i]:.2f}" if with_scores and not np.isnan(shown.scores[i]) else ""
        number = f" #{shown.tracks[i]}" if shown.tracks is not None and shown.tracks[i] >= 0 else ""
        text = fitted(f"{shown.names[i]}{number}{score}", size, image.width)
        area = _place(image, shown.boxes[i] * zoom, text, size, [area for area, *_ in labels])
        labels.append((area, text, palette[shown.labels[i]]))
    for (x1, y1, x2, y2), text, colour in reversed(labels):
        pen.rectangle((x1, y1, x2, y2), fill=colour)
        font = load_font(size, text.isascii())
        pen.text((x1 + size // 4, (y1 + y2) / 2), text, fill=_contrast(colour), font=font, anchor="lm")
    return image


def _place(image: Image.Image, box: np.ndarray, text: str, size: int, taken: Sequence[Area]) -> Area:
    """Find a place for the label of a box where no other label is: above the box, in it, below it; else above it."""
    x1, y1, _, y2 = map(float, box)
    width, height = load_font(size, text.isascii()).getlength(text) + size // 2, size * 1.3
    x = min(max(0.0, x1), max(0.0, image.width - width))
    places = [y1 - height, y1, y2 - height, y2]
    inside = [y for y in places if 0 <= y <= image.height - height] or [max(0.0, min(y1, image.height - height))]
    free = [y for y in inside if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
    y = (free or inside)[0]
    return x, y, x + width, y + height


def _overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _label_map(
    pixels: np.ndarray, found: Segmentation, palette: Sequence[Colour], zoom: int, is_frame: bool
) -> Image.Image:
    """Blend the colours of the classes with the image; a legend below names them, with their shares of the image.

    The segments of a panoptic prediction have white borders. Pixels with a label that is no class, such as 255 in a
    ground truth, are left as they are.
    """
    colours = np.array(palette, np.uint8)
    for y in range(0, found.height, 64):  # rows, to save memory
        labels = found.labels[y : y + 64].repeat(zoom, axis=0).repeat(zoom, axis=1)
        part = pixels[y * zoom : (y + 64) * zoom]
        known = labels < len(colours)
        blended = (part.astype(np.uint16) + colours[np.where(known, labels, 0)]) // 2
        part[:] = np.where(known[..., None], blended, part)
    if isinstance(found, Panoptic):
        segments = found.segments.repeat(zoom, axis=0).repeat(zoom, axis=1)
        pixels[:-1][segments[:-1] != segments[1:]] = 255
        pixels[:, :-1][segments[:, :-1] != segments[:, 1:]] = 255
    counts = np.bincount(found.labels.ravel(), minlength=len(found.classes))[: len(found.classes)]
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    if is_frame:
        order = list(range(len(counts)))
    shares = [f"  {100 * count / found.labels.size:.1f} %" for count in counts]
    lines: list[tuple[str, Colour | None]] = [
        (found.classes[i] + ("" if is_frame else shares[i]), palette[i]) for i in order[:LEGEND]
    ]
    if len(order) > LEGEND:
        lines.append((f"and {len(order) - LEGEND} more", None))
    return _with_panel(Image.fromarray(pixels), lines)


def _with_panel(image: Image.Image, lines: Sequence[tuple[str, Colour | None]]) -> Image.Image:
    """Add lines of text below an image, in columns, with the colours that they explain."""
    size = text_size(image)
    swatch = int(size * 1.4) if any(colour is not None for _, colour in lines) else 0
    width = max(image.width, size * 16)
    texts = [fitted(text, size, width - swatch - size) for text, _ in lines]
    column = swatch + size + max((load_font(size, text.isascii()).getlength(text) for text in texts), default=0)
    columns = max(1, int(width // column)) if swatch else 1
    rows = -(-len(lines) // columns)
    step = int(size * 1.5)
    canvas = Image.new("RGB", (width, image.height + rows * step + size // 2), (24, 24, 24))
    canvas.paste(image, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for i, (text, (_, colour)) in enumerate(zip(texts, lines, strict=True)):
        x, y = size // 2 + i // rows * column, image.height + size // 4 + i % rows * step
        if colour is not None:
            pen.rectangle((x, y + size // 4, x + size, y + size // 4 + size), fill=colour, outline=(128, 128, 128))
        font = load_font(size, text.isascii())
        pen.text((x + swatch, y + step / 2), text, fill=(255, 255, 255), font=font, anchor="lm")
    return canvas


def zoom_of(size: Sequence[int]) -> int:
    """Factor by which an image of this height and width is enlarged, so that text and lines are readable."""
    return max(1, round(SMALL / max(size[:2])))


def text_size(image: Image.Image) -> int:
    """Height of the text on an image, in pixels."""
    return min(64, max(14, round((image.width * image.height) ** 0.5 / 45)))


def fitted(text: str, size: int, width: float) -> str:
    """Shorten a text to a width in pixels."""
    font, short = load_font(size, text.isascii()), text
    while short and font.getlength(short) > width - size // 2:
        text = text[:-1]
        short = f"{text}..." if text else ""
    return short


@cache
def load_font(size: int, ascii_only: bool) -> Any:
    """Pillow's own font; for other letters one of the system, if there is one with them."""
    for name in () if ascii_only else OTHER_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _contrast(colour: Colour) -> Colour:
    """Black on a light colour, white on a dark one."""
    red, green, blue = colour
    return (0, 0, 0) if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else (255, 255, 255)
