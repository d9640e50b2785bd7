"""Consistency of the project's files: versions, metadata, make targets, changelog, issue forms."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

import mmgcvit

yaml = pytest.importorskip("yaml")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", MAKEFILE, re.MULTILINE))


def pyproject() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is in the standard library since Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license", "date-released"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["title"] == "Global Context Vision Transformers"
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Hatamizadeh", "Yin", "Heinrich", "Kautz", "Molchanov"]
    assert paper["year"] == 2023
    assert "2206.09959" in paper["url"]


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == mmgcvit.__version__
    released = re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", CHANGELOG, re.MULTILINE)
    assert released[1] == mmgcvit.__version__
    assert released[2] == str(citation["date-released"])


def test_installed_metadata():
    assert metadata.version("mmgcvit") == mmgcvit.__version__
    project = pyproject()["project"]
    assert project["name"] == "mmgcvit"
    assert "Typing :: Typed" in project["classifiers"]
    assert project["scripts"] == {"mmgcvit": "mmgcvit.__main__:main"}
    assert all(url.startswith("https://") for url in project["urls"].values())


def test_extras_in_documents_exist():
    extras = pyproject()["project"]["optional-dependencies"].keys()
    named = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for group in re.findall(r"(?:mmgcvit|(?<![\w/])\.)\[([a-z]\w*(?:,\s*\w+)*)\]", text):
            named |= {name.strip() for name in group.split(",")}
    for group in re.findall(r"addprefix --extra ,(.*?)\)", MAKEFILE):
        named |= set(group.split())
    assert {"test", "dev", "digits"} <= named  # the patterns still match
    assert named <= extras


def test_make_help_lists_every_target():
    listed = re.findall(r"^\t@echo 'make ([\w-]+) ", MAKEFILE, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == TARGETS
    assert set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()) == TARGETS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_in_the_documents_exist(document: Path):
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```|`([^`\n]+)`", text, re.MULTILINE | re.DOTALL):
        for command in re.findall(r"(?:^|\n)make((?: [a-z][\w-]*)+)", "".join(block)):
            assert set(command.split()) <= TARGETS, command


def test_ci_runs_lint_docs_and_tests():
    assert re.search(r"^exec make lint docs test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_changelog_format():
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading), heading
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for release in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert found == [kind for kind in kinds if kind in found], "unknown, repeated or out of order"


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*_*.yml")), ids=lambda form: form.stem)
def test_issue_forms(form: Path):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= content.keys()
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_pre_commit_runs_the_same_checks_as_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert all(repo["repo"] == "local" for repo in hooks)  # nothing is downloaded
    entries = [hook["entry"] for repo in hooks for hook in repo["hooks"]]
    lint = re.search(r"^lint: install\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    for tool in ("ruff check", "ruff format", "mypy"):
        assert any(f"/bin/{tool}" in entry for entry in entries)
        assert f"/bin/{tool}" in lint


def test_links_between_the_project_files():
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{name}: {link}"


def test_dockerfile():
    """Two targets run `make install`; Python is the only version in it, and a supported one."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    code = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    (python,) = re.findall(r"\d+\.\d+(?:\.\d+)*", code)
    assert f"ARG PYTHON={python}\n" in code
    assert f"Programming Language :: Python :: {python}" in pyproject()["project"]["classifiers"]
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n((?:(?!FROM).*\n?)*)", code, re.MULTILINE))
    assert "make install" in stages["cpu"]
    assert "make install" in stages["cuda"]
    guide = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--target (\w+)", text + guide)) == {"cpu", "cuda"}
    assert "WORKDIR /mmgcvit\n" in text
    assert set(re.findall(r"\$PWD/\w+:(/\w+)/", guide)) == {"/mmgcvit"}


def test_ignored_files_do_not_get_into_images():
    def lines(name: str) -> set[str]:
        text = (ROOT / name).read_text(encoding="utf-8")
        return {re.sub(r"^\*\*/|^/|/$", "", line) for line in text.splitlines() if line and line[0] != "#"}

    assert lines(".gitignore") <= lines(".dockerignore")
