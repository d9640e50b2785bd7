"""Hooks of MkDocs: pages from files outside docs/, links as on GitHub, and llms.txt.

Links in the repository are relative paths of files, so that they work on GitHub. Here they become links of the site. A
link to a file that is no page (a config, the licence) gets a page with the text of that file.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Pages of the site that are files outside docs/.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    **{f"configs/{task}/README.md": f"recipes/{task}.md" for task in ("detection", "segmentation", "classification")},
    **{f"notebooks/{path.name}": f"tutorials/{path.stem}.md" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
}
SOURCES = {page: source for source, page in PAGES.items()}
# Rank in the search: error messages first, history last.
SEARCH = {"troubleshooting.md": {"boost": 8}, "changelog.md": {"boost": 0.2}, "design.md": {"boost": 0.5}}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]*)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"^( *)(```+).*?^\1\2$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_pages: list[tuple[str, Page]] = []  # (section, page) of the navigation, for llms.txt


def source_of(page: str) -> str:
    """The path in the repository of a page of the site."""
    return SOURCES.get(page, f"docs/{page}")


def page_of(path: str) -> str:
    """The page (or image) of the site that shows a file of the repository."""
    path = f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}.md")


def outside_code(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Matches of a pattern that do not begin in code."""
    code = [match.span() for match in CODE.finditer(text)]
    return (m for m in pattern.finditer(text) if not any(start <= m.start() < end for start, end in code))


def target(source: str, link: str) -> str:
    """The path in the repository that a link in a file of it leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link)) if link else source


def text_of(source: str) -> str:
    """A file of the repository as Markdown."""
    text = (ROOT / source).read_text(encoding="utf-8")
    if source.endswith(".ipynb"):
        title, *rest = map(_cell, json.loads(text)["cells"])
        link = f'<a href="{Path(source).name}" download>Download this notebook</a>'
        return "\n\n".join([title, link, *rest])
    if source.endswith(".md"):
        return text
    language = {".py": "python", ".yml": "yaml", ".sh": "bash"}.get(Path(source).suffix, "text")
    return f"# {Path(source).name}\n\n`{source}`\n\n````{language}\n{text.rstrip()}\n````\n"


def _cell(cell: dict) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    return f"```python\n{text}\n```"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are files outside docs/, and the files that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=text_of(source)))
        if source.endswith(".ipynb"):
            files.append(File.generated(config, f"tutorials/{Path(source).name}", abs_src_path=str(ROOT / source)))
    linked = set()
    for file in files.documentation_pages():
        source = source_of(file.src_uri)
        for match in outside_code(file.content_string, LINK):
            path = target(source, match[2])
            if page_of(path).startswith("files/") and (ROOT / path).is_file():
                linked.add(path)
    for path in sorted(linked):
        shown = File.generated(config, page_of(path), content=text_of(path), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(shown)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links to files of the repository links of the site."""
    here = page.file.src_uri
    page.meta["search"] = {"exclude": True} if here.startswith("files/") else SEARCH.get(here, {})
    source = source_of(here)
    parts, end = [], 0
    for match in outside_code(markdown, LINK):
        link = match[2] and posixpath.relpath(page_of(target(source, match[2])), posixpath.dirname(here) or ".")
        parts += [markdown[end : match.start()], match[1], link, match[3] or ""]
        end = match.end()
    return "".join([*parts, markdown[end:]])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show the roles of docstrings, as in :class:`GCViT`, as code."""
    html = re.sub(r":(?:attr|class|data|func|meth|mod):(?=<code>)", "", html)
    return re.sub(r"<code>~[\w.]*?(\w+)</code>", r"<code>\1</code>", html)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Remember the pages and their sections for llms.txt."""
    _pages[:] = [(page.parent.title if page.parent else "", page) for page in nav.pages]
    return nav


def _first_sentence(markdown: str) -> str:
    """The first sentence of a page, after a colon; nothing if the page begins with a list or table."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    texts = [text for text in plain.split("\n\n") if text[:1] not in ("#", "<", "!", ">")]
    if not texts or not re.match(r"\w|`\w", texts[0]):
        return ""
    sentence = re.split(r"(?<=[.:])\s", texts[0].replace("\n", " "))[0]
    return f": {sentence.rstrip('.:')}"


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt (https://llmstxt.org): the pages by section, with links to their Markdown."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    section = None
    for name, page in _pages:
        if name != section:
            lines += ["", f"## {name}", ""]
            section = name
        link = page.url
        if page.markdown and "\n::: " not in page.markdown:  # API pages have no text of their own
            link = page.file.src_uri
            (Path(config.site_dir) / link).write_text(page.markdown, encoding="utf-8")
        lines.append(f"- [{page.title}]({link}){_first_sentence(page.markdown or '')}")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
