"""Which classes are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from btinet.analysis.contract import Contract
from btinet.analysis.runs import RUN, EvaluatedRun
from btinet.analysis.summaries import Row


def confusion_rows(run: EvaluatedRun) -> Iterator[Row]:
    if run.test["y_pred"].null_count:  # the method does not classify
        return
    pairs = zip(run.test["y_true"].to_pylist(), run.test["y_pred"].to_pylist(), strict=True)
    for (y_true, y_pred), n in sorted(Counter(pairs).items()):
        yield {**run.key, "y_true": y_true, "y_pred": y_pred, "n": n}


CONFUSION = Contract(
    pa.schema([*RUN, *(pa.field(name, pa.int64()) for name in ("y_true", "y_pred", "n"))]),
    "a run, true class and predicted class: how many test samples",
    confusion_rows,
)
