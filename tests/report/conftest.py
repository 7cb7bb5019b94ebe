"""A report made once for all of these tests."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest

from btinet.analysis import analyse
from btinet.report import ResultTables
from btinet.report.page import Page, render
from btinet.results import find_runs, load_results
from btinet.storage import Storage
from tests.report.folder import write_results


class Made(NamedTuple):
    results: ResultTables
    tables: dict[str, pa.Table]
    page: Page
    file: Path
    """The page on the disk."""


PROVENANCE = {"Prepared busi": "sha256:feed"}
DATASETS = {"busi feed": "dataset-busi-feed.html"}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """BTI-Net, MTAN and U-Net on busi, two seeds each."""
    root = Storage(str(tmp_path_factory.mktemp("report")))
    write_results(root, datasets=("busi",))
    results = load_results(root, find_runs(root, []))
    tables = analyse(results.predictions, resamples=50)
    page = render("demo", tables, results, PROVENANCE, DATASETS)
    file = Path(root.path) / "index.html"
    file.write_text(page.html)
    return Made(results, tables, page, file)
