"""Draw the three padding modes: python docs/images/padding.py writes padding.svg beside this file."""

from __future__ import annotations

from pathlib import Path

CELL, WINDOW = 14, 4  # side of a token in pixels, side of a window in tokens
COLUMNS, ROWS = 10, 7  # tokens of the map
LEFT, TEXT, WIDTH = 16, 258, 440
# mode, tokens of the padded map, where the padding is, what the global query is computed from
MODES = [
    ("input", 16, 8, ["The image is padded,", "here to 16 x 8 tokens.", "The maps are cropped."], True),
    ("stage", 12, 8, ["The map of each stage", "is padded to whole", "windows, then cropped."], True),
    ("window", 12, 8, ["Attention pads the", "windows. The padding of", "a window is one token."], False),
]
STYLE = """
text { font: 13px Verdana, DejaVu Sans, sans-serif; fill: #222; }
.mode { font: bold 14px DejaVu Sans Mono, monospace; }
.token { fill: #90b8ea; stroke: #fff; }
.padding { fill: url(#hatch); stroke: #fff; }
.window { fill: none; stroke: #1c3f73; stroke-width: 2; }
.query { fill: none; stroke: #c62828; stroke-width: 3; stroke-dasharray: 7 4; }
""".strip()


def rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    """Return a rectangle of a CSS class."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'


def label(x: float, y: float, words: str, kind: str = "") -> str:
    """Return a line of text."""
    words = words.replace("'", "&#39;")
    return f'<text x="{x:g}" y="{y:g}"' + (f' class="{kind}"' if kind else "") + f">{words}</text>"


def grid(top: float, columns: int, rows: int, merged: bool) -> list[str]:
    """Return the tokens and windows of a map; `merged` draws the padding of a window as one."""
    parts = []
    for row in range(rows):
        for column in range(columns):
            inside = column < COLUMNS and row < ROWS
            if inside or not merged:
                kind = "token" if inside else "padding"
                parts.append(rectangle(kind, LEFT + column * CELL, top + row * CELL, CELL, CELL))
    for y in range(0, rows, WINDOW):
        for x in range(0, columns, WINDOW):
            right, bottom = x + WINDOW, y + WINDOW
            if merged and right > COLUMNS:
                width = right - COLUMNS
                parts.append(rectangle("padding", LEFT + COLUMNS * CELL, top + y * CELL, width * CELL, WINDOW * CELL))
            if merged and bottom > ROWS:
                width, height = min(right, COLUMNS) - x, bottom - ROWS
                parts.append(rectangle("padding", LEFT + x * CELL, top + ROWS * CELL, width * CELL, height * CELL))
            parts.append(rectangle("window", LEFT + x * CELL, top + y * CELL, WINDOW * CELL, WINDOW * CELL))
    return parts


def draw() -> str:
    """Return the drawing as SVG."""
    parts, top = [], 40.0
    for mode, columns, rows, caption, padded in MODES:
        parts.append(label(LEFT, top - 12, f"pad='{mode}'", "mode"))
        parts += grid(top, columns, rows, merged=mode == "window")
        width, height = (columns, rows) if padded else (COLUMNS, ROWS)
        parts.append(rectangle("query", LEFT, top, width * CELL, height * CELL))
        parts += [label(TEXT, top + 30 + 20 * i, line) for i, line in enumerate(caption)]
        top += 8 * CELL + 48
    top -= 18
    legend = [("token", "token of the image"), ("padding", "padding (zeros)"), ("window", "window"),
              ("query", "input of the global query")]  # fmt: skip
    for i, (kind, words) in enumerate(legend):
        x, y = LEFT + 190 * (i % 2), top + 26 * (i // 2)
        parts += [rectangle(kind, x, y, 16, 16), label(x + 24, y + 13, words)]
    total = top + 60
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total:g}" '
        f'viewBox="0 0 {WIDTH} {total:g}">\n'
        f"<title>The three padding modes</title>\n<style>\n{STYLE}\n</style>\n"
        '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="5" height="5" fill="#eee"/><rect width="2" height="5" fill="#bbb"/></pattern></defs>\n'
        f'<rect width="{WIDTH}" height="{total:g}" rx="6" fill="#fff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    Path(__file__).with_name("padding.svg").write_text(draw(), encoding="utf-8")
