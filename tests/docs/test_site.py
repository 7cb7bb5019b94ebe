"""The documentation's site: it builds, without a broken link, and asks nothing of the network."""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from playwright.sync_api import Page

REPOSITORY = Path(__file__).parents[2]


BROKEN = "# A page with faults\n\n[a](no-page.md) [b](metrics.md#no-heading) [c](../btinet/no_module.py)\n"


class Heard(logging.Handler):
    """Keeps warnings, which would end a build with ``--strict``."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())


class Built(NamedTuple):
    site: Path
    warnings: list[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The site, with one page more, whose links are broken and which is not in the navigation."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    shutil.copytree(REPOSITORY / "docs", project / "docs")
    shutil.copy(REPOSITORY / "mkdocs.yml", project)
    for path in REPOSITORY.iterdir():
        if path.name not in ("docs", "mkdocs.yml", "build"):
            (project / path.name).symlink_to(path)
    (project / "docs/broken.md").write_text(BROKEN)
    heard = Heard()
    logger = logging.getLogger("mkdocs")
    logger.addHandler(heard)
    config = load_config(str(project / "mkdocs.yml"), site_dir=str(site))
    build(config)
    logger.removeHandler(heard)
    return Built(site, heard.warnings)


@pytest.fixture(scope="module")
def site(built: Built) -> Path:
    return built.site


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_of_docs_is_on_the_site(site: Path) -> None:
    pages = [path.relative_to(REPOSITORY / "docs") for path in (REPOSITORY / "docs").rglob("*.md")]
    assert len(pages) > 10
    for page in pages:
        assert (site / page.with_suffix(".html")).exists(), page


def test_a_link_to_a_file_of_the_project_leads_to_the_file(site: Path) -> None:
    assert 'href="source/btinet/config.py.html"' in (site / "configuration.html").read_text()
    assert "class Experiment" in re.sub("<[^>]+>", "", (site / "source/btinet/config.py.html").read_text())


def test_broken_links_are_warnings_and_there_are_no_others(built: Built) -> None:
    """``make docs`` builds with ``--strict``, which a warning ends."""
    for fault in ("no-page.md", "metrics.md#no-heading", "source/btinet/no_module.py.md", "not included in the"):
        assert sum(fault in warning and "broken.md" in warning for warning in built.warnings) == 1, fault
    assert len(built.warnings) == 4, built.warnings


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_what_belongs_to_a_list_item_is_indented_by_four(page: Path) -> None:
    """With less the site ends the list, and the next item's number is 1 again; GitHub takes both."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"(?<=\n\n) {1,3}\S.*", prose) == []


def test_links_of_the_readme_exist(site: Path) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", (REPOSITORY / "README.md").read_text())
    assert any(link.startswith("docs/") for link in links)
    for link in links:
        path, _, anchor = link.partition("#")
        assert (REPOSITORY / path).exists(), link
        if anchor:
            page = site / Path(path).relative_to("docs").with_suffix(".html")
            assert f'id="{anchor}"' in page.read_text(), link


def test_the_site_asks_nothing_of_the_network(address: str, page: Page) -> None:
    """``page`` fails for a request beyond this machine and for an error in the console."""
    page.goto(f"{address}/index.html", wait_until="networkidle")  # leaving earlier would abort a request
    page.goto(f"{address}/configuration.html", wait_until="networkidle")
    page.get_by_role("textbox", name="Search").fill("plateau")
    page.get_by_role("link", name="Experiment files").first.wait_for()
    page.wait_for_load_state("networkidle")
