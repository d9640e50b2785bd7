"""Figures: an image with a heat map or colours on it, a title and a colour bar; and sheets of several figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from mmgcvit.runtime.drawing import fitted, load_font, text_size, zoom_of
from mmgcvit.tasks.base import NetworkInput
from mmgcvit.utils.images import to_display

COLOUR_MAP = "turbo"
BACKGROUND, TEXT = (24, 24, 24), (255, 255, 255)
OPACITY = 0.6  # of a heat map on an image
CELL = 360  # longest side of a figure on a sheet, in pixels
Box = tuple[float, ...]  # x1, y1, x2, y2 in pixels of the original image


def on_image(
    values: np.ndarray, stride: int, place: NetworkInput, size: tuple[int, int], zoom: int = 1, smooth: bool = False
) -> np.ndarray:
    """Bring a map on the network's input to the pixels of the original image.

    Args:
        values: (h, w) or (h, w, C).
        stride: side of a value in pixels of the input.
        place: where the image is in the input.
        size: height and width of the original image.
        zoom: factor by which the result is larger than the original image.
        smooth: interpolate bilinearly, instead of taking the nearest value.

    Returns:
        (height * zoom, width * zoom) or the same with C, float32; NaN where the input does not show the image.
    """
    grids, inside = [], []
    for axis, length in enumerate(size):
        pixels = (torch.arange(length * zoom) + 0.5) / zoom * place.scale[1 - axis] + place.offset[1 - axis]
        grids.append(2 * pixels / (values.shape[axis] * stride) - 1)
        inside.append((pixels >= 0) & (pixels <= place.image.shape[2 + axis]))
    grid = torch.stack(torch.meshgrid(*grids, indexing="ij")[::-1], 2)[None]  # [1, H, W, (x, y)]
    source = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    source = (source if source.ndim == 3 else source[..., None]).permute(2, 0, 1)[None]
    mode = "bilinear" if smooth else "nearest"
    result = F.grid_sample(source, grid.float(), mode, "border", align_corners=False)[0].permute(1, 2, 0)
    result[~(inside[0][:, None] & inside[1])] = torch.nan
    return (result if values.ndim == 3 else result[..., 0]).numpy()


class Canvas:
    """An image that figures are drawn on, enlarged if it is small.

    Args:
        image: (H, W) or (H, W, C), RGB.
        place: where it is in the network's input.
    """

    def __init__(self, image: np.ndarray, place: NetworkInput) -> None:
        self.size, self.place = image.shape[:2], place
        self.zoom = zoom_of(image.shape)
        self.pixels = to_display(image).repeat(self.zoom, axis=0).repeat(self.zoom, axis=1)

    def heat(
        self,
        values: np.ndarray,
        stride: int,
        title: str,
        unit: str = "",
        highest: float | None = None,
        smooth: bool = False,
        box: Box | None = None,
        point: tuple[float, float] | None = None,
    ) -> Image.Image:
        """Draw a heat map with a colour bar from 0 to its highest value.

        Args:
            values: (h, w), not negative; NaN where the image is to be seen.
            stride: side of a value in pixels of the network's input.
            title: text below the image, in one or more lines.
            unit: text after the numbers of the colour bar.
            highest: value of the last colour; by default the highest one.
            smooth: see :func:`on_image`.
            box: a box to draw.
            point: a point to mark, x and y in the original image.
        """
        highest = float(np.nanmax(values)) if highest is None else highest
        heat = on_image(values, stride, self.place, self.size, self.zoom, smooth)
        known = np.isfinite(heat)
        colours = heat_colours(np.where(known, heat, 0) / max(highest, 1e-12))
        pixels = self.pixels * (1 - OPACITY * known[..., None]) + colours * (OPACITY * known[..., None])
        return _with_title(self._marked(pixels, box, point), title, (f"0{unit}", f"{highest:.3g}{unit}"))

    def colours(self, values: np.ndarray, stride: int, title: str) -> Image.Image:
        """Show colours (h, w, 3) from 0 to 1 in the place of the image; parts that the input does not show are grey."""
        pixels = 255 * on_image(values, stride, self.place, self.size, self.zoom)
        return _with_title(self._marked(np.nan_to_num(pixels, nan=128), None, None), title)

    def _marked(self, pixels: np.ndarray, box: Box | None, point: tuple[float, float] | None) -> Image.Image:
        image = Image.fromarray(pixels.round().astype(np.uint8))
        pen, width = ImageDraw.Draw(image), max(2, text_size(image) // 6)
        for colour, line in (((0, 0, 0), 2 * width), (TEXT, width)):
            if box is not None:
                x1, y1, x2, y2 = (value * self.zoom for value in box)
                pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=line)
            if point is not None:
                x, y = ((value + 0.5) * self.zoom for value in point)
                r = 3 * width
                pen.line((x - r, y, x + r, y), fill=colour, width=line)
                pen.line((x, y - r, x, y + r), fill=colour, width=line)
        return image


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3) from 0 to 255 of values from 0 to 1."""
    from matplotlib import colormaps

    return 255 * colormaps[COLOUR_MAP](np.clip(values, 0, 1))[..., :3]


def _with_title(image: Image.Image, title: str, ends: tuple[str, str] | None = None) -> Image.Image:
    """Add a title below an image, and a colour bar with the values at its ends."""
    size = text_size(image)
    width, step = max(image.width, size * 16), int(size * 1.5)
    lines = title.split("\n")
    canvas = Image.new("RGB", (width, image.height + step * (len(lines) + (ends is not None)) + size // 2), BACKGROUND)
    canvas.paste(image, (0, 0))
    pen = ImageDraw.Draw(canvas)
    y = image.height + size // 4
    for line in lines:
        text = fitted(line, size, width - size)
        pen.text((size // 2, y + step / 2), text, fill=TEXT, font=load_font(size, text.isascii()), anchor="lm")
        y += step
    if ends is not None:
        font = load_font(size, True)
        left, right = size + int(font.getlength(ends[0])), width - size - int(font.getlength(ends[1]))
        bar = heat_colours(np.linspace(0, 1, max(1, right - left)))[None].repeat(max(1, step - size // 2), 0)
        canvas.paste(Image.fromarray(bar.round().astype(np.uint8)), (left, y + size // 4))
        pen.text((size // 2, y + step / 2), ends[0], fill=TEXT, font=font, anchor="lm")
        pen.text((width - size // 2, y + step / 2), ends[1], fill=TEXT, font=font, anchor="rm")
    return canvas


def sheet(figures: Sequence[Image.Image], columns: int, cell: int = CELL) -> Image.Image:
    """Arrange figures in rows, each reduced to fit a square of ``cell`` pixels."""
    small = []
    for figure in figures:
        scale = min(1.0, cell / max(figure.size))
        size = max(1, round(figure.width * scale)), max(1, round(figure.height * scale))
        small.append(figure.resize(size, Image.Resampling.LANCZOS))
    columns = min(columns, len(small))
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(figure.height for figure in row) for row in rows]
    gap = 6
    canvas = Image.new("RGB", (sum(widths) + gap * (columns + 1), sum(heights) + gap * (len(rows) + 1)), BACKGROUND)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for figure, width in zip(row, widths, strict=False):
            canvas.paste(figure, (x, y))
            x += width + gap
        y += height + gap
    return canvas
