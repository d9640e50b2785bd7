"""The documentation site: navigation, commands, code blocks, API pages, notebooks, the drawing, the build."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT

from mmgcvit.commands import COMMANDS

yaml = pytest.importorskip("yaml")
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md")),
         *sorted((ROOT / "configs").rglob("*.md"))]  # fmt: skip
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = "<!-- run -->"  # before a block that a test executes
MODULES = ("mmgcvit", "mmgcvit.apis", "mmgcvit.checkpoint", "mmgcvit.explain", "mmgcvit.runtime")
all_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
all_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def in_navigation(part: object) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(part, str):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from in_navigation(inner)


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """(line before it, code) of each code block of a language."""
    return re.findall(rf"^([^\n]*)\n```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def cells(path: Path, kind: str) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


@functools.cache
def options_of(*command: str) -> frozenset[str]:
    """The options that `--help` lists."""
    out = io.StringIO()
    prints = mock.patch.object(sys, "argv", [*command, "--help"]), contextlib.redirect_stdout(out)
    with prints[0], prints[1], contextlib.suppress(SystemExit):
        if command[0].endswith(".py"):
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        else:
            importlib.import_module(f"{command[0]}.__main__").main([*command[1:], "--help"])
    found = frozenset(re.findall(r"(?<![\w-])--[a-z][\w-]*", out.getvalue()))
    assert "--help" in found
    return found


def commands(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(command, its arguments) of each tool that a text names with arguments."""
    text = text.replace("\\\n", " ").replace("\n    [", " [").replace("\n    -", " -")
    for tool, rest in re.findall(r"(tools/\w+\.(?:py|sh)) ([^`\n#]*)", text):
        yield (tool,), rest
    for rest in re.findall(r"python -m mmgcvit\.runtime ([^`\n#]*)", text):
        yield ("mmgcvit.runtime",), rest
    for words in re.findall(r"(?:^|[ `])mmgcvit ((?:weights )?[a-z-]+\b[^`\n#]*)", text, re.MULTILINE):
        names = words.split()
        known = names[:2] if names[0] in ("weights", "data") else names[:1]
        if names[0] in COMMANDS:
            yield ("mmgcvit", *known), " ".join(names[len(known) :])


def test_every_page_is_in_the_navigation_once():
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    listed = list(in_navigation(SITE["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | set(hooks["PAGES"].values())
    for source in hooks["PAGES"]:
        assert (ROOT / source).is_file()


def test_links_become_links_of_the_site():
    pytest.importorskip("mkdocs")
    page_of = runpy.run_path(str(DOCS / "hooks.py"))["page_of"]
    assert page_of("README.md") == "index.md"
    assert page_of("docs/images/app.jpg") == "images/app.jpg"
    assert page_of("configs/segmentation") == "recipes/segmentation.md"
    assert page_of("configs/segmentation/custom_template.py") == "files/configs/segmentation/custom_template.py.md"
    assert page_of("notebooks/own_detector.ipynb") == "tutorials/own_detector.md"


@all_pages
def test_options_exist(page: Path):
    for command, rest in commands(page.read_text(encoding="utf-8")):
        tool = command[0]
        assert not tool.startswith("tools/") or (ROOT / tool).is_file(), tool
        if tool.endswith(".sh"):  # they pass options on
            command = ("tools/test.py",) if "test" in tool else ("tools/train.py",)
        wanted = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest))
        if wanted:
            assert wanted <= options_of(*command), f"{' '.join(command)}: {wanted - options_of(*command)}"


def test_commands_are_found():
    found = [command for page in PAGES for command, _ in commands(page.read_text(encoding="utf-8"))]
    assert {
        ("tools/dist_train.sh",),
        ("mmgcvit", "train"),
        ("mmgcvit.runtime",),
        ("mmgcvit", "app"),
        ("mmgcvit", "weights", "fetch"),
    } <= set(found)


@all_pages
def test_code_compiles(page: Path):
    text = page.read_text(encoding="utf-8")
    for _, code in blocks(text, "python"):
        compile(code, str(page), "exec")
    for _, code in blocks(text, "json"):
        json.loads(code)
    for _, code in blocks(text, "bash"):
        shlex.split(code, comments=True)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if RUN in page.read_text(encoding="utf-8")], ids=lambda p: p.stem
)
def test_marked_code_runs(page: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marked = [code for before, code in blocks(page.read_text(encoding="utf-8"), "python") if before == RUN]
    assert marked
    for code in marked:
        exec(compile(code, str(page), "exec"), {})


@pytest.mark.parametrize(
    "module", ["mmgcvit", "mmgcvit.apis", "mmgcvit.checkpoint", "mmgcvit.explain", "mmgcvit.runtime"]
)
def test_api_pages_have_every_public_name(module: str):
    listed = {name.rpartition(".")[2] for page in (DOCS / "api").glob("*.md")
              for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)}  # fmt: skip
    public = set(importlib.import_module(module).__all__)
    errors = {"CheckpointError", "RunStopped", "UsageError"}  # on the page of errors
    assert public - {"__version__", "CorruptPictureHook"} - errors <= listed


def test_drawing_is_up_to_date():
    draw = runpy.run_path(str(DOCS / "images/padding.py"))["draw"]
    assert draw() == (DOCS / "images/padding.svg").read_text(encoding="utf-8")


def test_model_zoo_has_the_published_weights():
    from mmgcvit.checkpoint.weights import WEIGHTS

    text = (DOCS / "model-zoo.md").read_text(encoding="utf-8")
    rows = [tuple(cell.strip() for cell in row) for row in re.findall(
        r"^\| `((?:gcvit|timm)://\S+)` \|([^|]*)\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)]  # fmt: skip
    assert rows == [
        (w.name, w.arch, str(w.input_size), "" if w.top1 is None else f"{w.top1:.1f}") for w in WEIGHTS.values()
    ]
    for config in re.findall(r"`([\w-]+\.py)`", text):
        assert list((ROOT / "configs").glob(f"*/{config}")), config


@all_notebooks
def test_notebooks_are_clean(path: Path):
    content = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
    code = cells(path, "code")
    for cell in code:
        compile(cell, str(path), "exec")
    assert "find_spec" in code[1]  # code[0] has the settings
    for tool, rest in re.findall(r'run\("(\w+\.py)", (.*)\)', "\n".join(code)):
        assert set(re.findall(r'"(--[a-z-]+)"', rest)) <= options_of(f"tools/{tool}")
    for link in re.findall(r"\]\((?!http)([^)#]+)", "\n".join(cells(path, "markdown"))):
        assert (path.parent / link).is_file(), link


@pytest.mark.slow
@all_notebooks
def test_notebooks_run(path: Path, tmp_path: Path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("onnxscript")
    book = nbformat.read(path, 4)
    settings = [i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(settings) == 1
    names = {node.targets[0].id for node in ast.parse(book.cells[settings[0]].source).body}
    assert {"IMAGES", "ITERATIONS"} <= names
    book.cells.insert(settings[0] + 1, nbformat.v4.new_code_cell("IMAGES, ITERATIONS = 18, 6"))
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert list((tmp_path / "work_dirs").glob("*/report.html"))
    assert list(tmp_path.glob("*.onnx"))


@pytest.mark.slow
def test_site_is_built_without_warnings(tmp_path: Path, monkeypatch, caplog):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    index = (tmp_path / "llms.txt").read_text(encoding="utf-8")
    linked = re.findall(r"^- \[[^\]]+\]\((\S+?)\)(?:: .+)?$", index, re.MULTILINE)
    assert len(linked) == len(list(in_navigation(SITE["nav"])))
    for link in [*linked, "tutorials/own_detector.ipynb", "files/configs/detection/custom_coco_template.py.html"]:
        assert (tmp_path / link).is_file(), link
    scripts = re.findall(r'<script[^>]* src="([^"]+)"', (tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "iframe-worker.js" in scripts
    assert not any("://" in script for script in scripts)  # nothing from other servers
    if (chromium := shutil.which("chromium") or shutil.which("google-chrome")) is not None:  # search without a server
        address = f"{(tmp_path / 'api/backbone.html').as_uri()}?q=carafe"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
        shown = subprocess.run([chromium, *options, address], capture_output=True, text=True, timeout=120).stdout
        assert f'href="{(tmp_path / "install.html").as_uri()}?h=carafe#' in shown
    page = (tmp_path / "api/backbone.html").read_text(encoding="utf-8")
    assert "global_query_reductions" in page
    assert ":class:" not in re.sub(r"<code>.*?</code>", "", page)
