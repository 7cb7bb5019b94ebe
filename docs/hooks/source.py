"""Links from the docs to files of the project, such as ``../btinet/config.py``: GitHub shows the file, and so does the
site, on a page made here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)(?=[)#])")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page for each file of the project that some page links to, and a list for each folder.

    A link that leads nowhere gets no page, and so ends MkDocs' build as any other broken link does.
    """
    linked: set[Path] = set()
    for page in files.documentation_pages():
        for link in LINK.findall(page.content_string):
            path = outside(page.src_uri, link)
            if path is not None and (REPOSITORY / path).exists():
                linked.update((path, *members(path)))
    for path in sorted(linked):
        files.append(File.generated(config, page_of(path), content=content(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The same links, to those pages."""

    def to_page(match: re.Match[str]) -> str:
        path = outside(page.file.src_uri, match[1])
        return match[1] if path is None else relpath(page_of(path), PurePosixPath(page.file.src_uri).parent)

    return LINK.sub(to_page, markdown)


def outside(page: str, link: str) -> Path | None:
    """The path in the project that a page's link leads to; None where that is in docs/."""
    path = Path(normpath(Path("docs", page).parent / link))
    return None if path.parts[0] == "docs" else path


def members(path: Path) -> Iterator[Path]:
    """The files of a folder."""
    if (REPOSITORY / path).is_dir():
        yield from (path / file.name for file in (REPOSITORY / path).glob("*.py"))


def page_of(path: Path) -> str:
    return f"source/{path.as_posix()}.md"


def content(path: Path) -> str:
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# `{path}`\n\n"
    if (REPOSITORY / path).is_dir():
        return head + "".join(f"* [{file.name}]({path.name}/{file.name}.md)\n" for file in sorted(members(path)))
    return f"{head}~~~~~~{LANGUAGES.get(path.suffix, 'text')}\n{(REPOSITORY / path).read_text()}\n~~~~~~\n"
