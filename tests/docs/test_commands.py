"""Every command of the tutorial and the how-to pages is run, as it is written.

A page's ```bash blocks are one script: in order, in a copy of the project with its ``.venv`` active and a home folder
of its own, which holds what the page says it needs (``~/Downloads``, ``~/weights``). It ends at the first command that
fails. No block is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md"))]
NEEDS_REAL_DATA = {"real-data.md"}
LEFT_BEHIND = (".venv", ".git", "results", "build", "data", ".cache", "*_cache", "__pycache__", "*.egg-info")
SECONDS = 3600

FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return [text for _, language, text in FENCE.findall(page.read_text()) if language == "bash"]


def script(page: Path) -> str:
    """The page's blocks, each announced by a line ``block N``."""
    return "".join(f"echo block {number}\n{text}" for number, text in enumerate(blocks(page), start=1))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_says_what_it_is(page: Path) -> None:
    """A block of commands that is not called bash would not be run."""
    languages = {language for _, language, _ in FENCE.findall(page.read_text())}
    assert blocks(page)
    assert languages <= {"bash", "text", "yaml", "python", "csv"}
    assert page.read_text().count("```") == 2 * len(FENCE.findall(page.read_text()))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.real_data] if page.name in NEEDS_REAL_DATA else [])
        for page in PAGES
    ],
)
def test_commands(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    project, home = tmp_path / "btinet", tmp_path / "home"
    shutil.copytree(REPOSITORY, project, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    (project / ".venv").symlink_to(Path(sys.prefix))
    for name in ("pyproject.toml", "requirements.lock"):
        os.utime(project / name, (0, 0))  # older than .venv: `make` has nothing to install
    home.mkdir()
    if page.name in NEEDS_REAL_DATA:
        put_real_data(home, request.getfixturevalue("shared"))

    log = tmp_path / "log"
    with log.open("wb") as stream:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script(page)],
            cwd=project,
            env=os.environ | {"HOME": str(home), "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    status: int | str
    try:
        status = shell.wait(SECONDS - 60)
    except subprocess.TimeoutExpired:
        status = "not finished"
    finally:  # also what it left in the background
        with_group(shell.pid, signal.SIGTERM)
    said = log.read_text()
    sys.stdout.write(said)  # pytest -rA shows it
    assert status == 0, said[-4000:]
    assert re.findall(r"^block (\d+)$", said, re.MULTILINE) == [str(n + 1) for n in range(len(blocks(page)))]


def with_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return


def put_real_data(home: Path, shared: Path) -> None:
    """What the page tells its reader to have. BUSI's archive is a .tar here; `fetch` looks at the content."""
    for folder in ("Downloads", "weights"):
        (home / folder).mkdir()
    (home / "Downloads/Dataset_BUSI.zip").symlink_to(shared / "data/busi.tar")
    (home / "weights/b4.safetensors").symlink_to(shared / "weights/tf_efficientnet_b4.imagenet-partial.safetensors")
