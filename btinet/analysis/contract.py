"""What is agreed about an analysis table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa

from btinet.analysis.runs import EvaluatedRun
from btinet.analysis.summaries import Row


class Contract(NamedTuple):
    schema: pa.Schema
    row: str
    """What a row is."""
    of_run: Callable[[EvaluatedRun], Iterable[Row]] | None = None
    """Makes a run's rows, for tables that need nothing but the run; the others are made in tables.py."""
