"""The README and the pages in docs/: numbers are recounted, examples run, links and options exist, text is short."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_gcvit import PUBLISHED_PARAMETERS
from torch import nn

from mmgcvit.backbone import ARCHS, GCViT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WIDTH, MAX_LINES = 120, 5  # of a paragraph or a list item
MAX_WORDS = 20  # of a table cell
all_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text: str) -> str:
    """The text without fenced code blocks and HTML comments, with as many lines."""
    return re.sub(
        r"^```.*?^```$|<!--.*?-->", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL
    )


def paragraphs(text: str) -> list[tuple[int, str]]:
    """(number of the first line, text) of each paragraph and list item."""
    found: list[tuple[int, str]] = []
    inside = False
    for number, line in enumerate(without_code(text).split("\n"), 1):
        if not line.strip() or line.startswith(("#", "|")):
            inside = False
        elif inside and not re.match(r"\s*([-*]|\d+\.) ", line):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            found.append((number, line.strip()))
            inside = True
    return found


def cells(text: str) -> list[tuple[int, str]]:
    """(number of the line, text) of each table cell."""
    return [
        (number, cell.strip())
        for number, line in enumerate(without_code(text).split("\n"), 1)
        if line.startswith("|")
        for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))
    ]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ARCHS)
def test_arch_table(name: str):
    (row,) = re.findall(rf"^\| {name} \|(.*)\|$", README, re.MULTILINE)
    found = [cell.strip() for cell in row.split("|")]
    arch = ARCHS[name]
    parameters = PUBLISHED_PARAMETERS.get(name)
    if parameters is None:  # unpublished figures are counted
        with torch.device("meta"):
            model = GCViT(name, out_indices=(3,))
            parameters = sum(p.numel() for m in (model, nn.Linear(model.out_channels[0], 1000)) for p in m.parameters())
    assert found == [
        f"{parameters / 1e6:.2f}", str(arch["embed_dims"]),
        *(", ".join(map(str, arch[key])) for key in ("depths", "num_heads")), f"{arch['mlp_ratio']:g}",
        ", ".join(map(str, arch["window_size"])), f"{arch['drop_path_rate']:g}",
        "no" if arch["layer_scale"] is None else "1e-5"]  # fmt: skip


def test_python_example():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import torch" in block]
    names: dict = {}
    exec(code.replace('arch="tiny"', 'arch="xxtiny"'), names)  # the maps have the same shapes
    promised = re.search(r"# (\(2, 64.*)", code)[1]
    assert names["model"].arch.depths == ARCHS["xxtiny"]["depths"]
    assert ", ".join(str(tuple(m.shape)) for m in names["maps"]) == promised


def test_config_example(tmp_path: Path):
    pytest.importorskip("mmdet")
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "custom_imports" in block]
    (tmp_path / "config.py").write_text(code)
    cfg = Config.fromfile(str(tmp_path / "config.py"))
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, GCViT)
    assert [conv.conv.in_channels for conv in model.neck.lateral_convs] == list(model.backbone.out_channels)


def test_window_size_and_pad_multiple():
    with torch.device("meta"):
        assert [GCViT("xxtiny").pad_multiple, GCViT("xxtiny", window_size=8).pad_multiple] == [224, 256]
        assert GCViT("xxtiny", window_size=8).arch.window_size == (8, 8, 16, 8)
    assert "224 for windows of (7, 7, 14, 7), and 256 for" in README
    assert "`window_size=8`, which stands for (8, 8, 16, 8)" in README


def test_pad_modes():
    from mmgcvit.backbone.gcvit import PAD_MODES

    assert set(re.findall(r'^\| `"(\w+)"`', README, re.MULTILINE)) == set(PAD_MODES)


def test_arguments_of_the_backbone():
    """The page lists every argument with its default."""
    import inspect

    text = (ROOT / "docs/backbone.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))
    arguments = inspect.signature(GCViT).parameters
    assert set(rows) == set(arguments) - {"unknown"}
    for name, default in rows.items():
        if default != "of the variant":
            assert eval(default.strip("`")) == arguments[name].default, name


@all_pages
def test_nothing_is_left_to_fill_in(page: Path):
    assert not re.search(r"@[A-Z0-9]+@", page.read_text())


@all_pages
def test_links(page: Path):
    text = without_code(page.read_text())
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_page_is_linked():
    for page in PAGES[1:]:
        if page.parent.name != "api":  # pages of the site only
            assert f"({page.relative_to(ROOT)})" in README


@all_pages
def test_paragraphs_are_short(page: Path):
    long = [
        f"{page.name}:{number}: {text[:60]}"
        for number, text in paragraphs(page.read_text())
        if len(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)) > MAX_LINES
    ]
    assert not long


@all_pages
def test_table_cells_are_short(page: Path):
    long = [f"{page.name}:{n}: {text[:60]}" for n, text in cells(page.read_text()) if len(text.split()) > MAX_WORDS]
    assert not long


def test_images_are_small():
    assert all(path.stat().st_size < 300_000 for path in (ROOT / "docs/images").iterdir())
