"""The documentation's site: it builds, without a broken link, and asks nothing of the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page

REPOSITORY = Path(__file__).parents[2]


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(REPOSITORY, folder)
    assert built.returncode == 0, built.stderr
    return folder


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


def test_broken_links_end_the_build(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(REPOSITORY / "docs", project / "docs")
    shutil.copy(REPOSITORY / "mkdocs.yml", project)
    for path in REPOSITORY.iterdir():
        if path.name not in ("docs", "mkdocs.yml", "build"):
            (project / path.name).symlink_to(path)
    with (project / "docs/index.md").open("a") as page:
        page.write("\n[a](no-page.md) [b](metrics.md#no-heading) [c](../btinet/no_module.py)\n")
    built = build(project, tmp_path / "site")
    assert built.returncode != 0
    for link in ("no-page.md", "no-heading", "source/btinet/no_module.py.md"):
        assert link in built.stderr
    assert built.stderr.count("WARNING") == 3, built.stderr


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
