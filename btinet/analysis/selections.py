"""Tables 2, 3 and A2 to A5: what the paper selects from all scores' failure detection.

What is selected by a score's success on the test set itself is called *oracle*, which flatters it (paper notes B24);
beside it stands what the validation split selects. Both are scored on test, and both are selected once for all seeds,
by the mean AUROC. An oracle's interval takes its selection as given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from btinet.analysis.schemas import SETTING
from btinet.analysis.summaries import Row
from btinet.evaluation.schema import LEVELS

PRIMARY = {"seg": "positives", "clf": "all"}
"""The population of each task's failures (paper notes B20, B21)."""

CANDIDATES = {
    "seg": ("neg_delta", "neg_align", "seg_energy", "w_seg"),
    "clf": ("w_clf", "neg_delta", "neg_align", "clf_energy"),
}
"""Signals among which the best one is taken: those of Tables A3 and A4. Of equals, the first."""

Scores = dict[tuple[str, str | None], Row]
"""(signal, level) -> row of the detection table."""


class Found:
    """A setting's detection of one task's failures."""

    def __init__(self, rows: Sequence[Row], task: str, population: str | None = None) -> None:
        self.task = task
        chosen = [row for row in rows if (row["task"], row["population"]) == (task, population or PRIMARY[task])]
        self.test, self.val = (
            {(row["signal"], row["level"]): row for row in chosen if row["split"] == split} for split in ("test", "val")
        )

    def best(self, split: str, signals: Sequence[str] | None = None) -> Row:
        """Test row of the candidate whose AUROC is highest on ``split``."""
        names = signals or CANDIDATES[self.task]
        scores = self.test if split == "test" else self.val
        candidates = [scores[name, level] for name in names for level in LEVELS if (name, level) in scores]
        defined = [row for row in candidates if row["auroc"] is not None]
        if defined:
            best = max(defined, key=lambda row: row["auroc"])
            return self.test[best["signal"], best["level"]]
        reason = candidates[0]["note"] if candidates else "no samples"
        counts = ("n", "n_std", "n_failures", "n_failures_std")
        row = {name: value if name in counts else None for name, value in self.test["mc", None].items()}
        return row | {"note": f"nothing to choose from on {split}: {reason}"}


def by_setting(detection: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """(setting's columns with ``seeds``, its rows of the detection table)."""
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in detection:
        settings.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    for rows in settings.values():
        yield {name: rows[0][name] for name in (*SETTING, "seeds")}, rows


def table2(detection: Sequence[Row]) -> Iterator[Row]:
    """Table 2: mc, then w_seg at each level, for segmentation failures."""
    for _, rows in by_setting(detection):
        test = Found(rows, "seg").test
        yield test["mc", None]
        yield from (test["w_seg", level] for level in LEVELS)


def table3(detection: Sequence[Row], population: str = PRIMARY["clf"]) -> Iterator[Row]:
    """Table 3; no rows for a setting that lacks the population."""
    for setting, rows in by_setting(detection):
        found = Found(rows, "clf", population)
        if found.test:
            yield from _choices(
                setting,
                {
                    "mc": found.test["mc", None],
                    "one_minus_conf": found.test["one_minus_conf", None],
                    "upa_oracle": found.best("test"),
                    "upa_validation": found.best("val"),
                },
            )


def table_a2(detection: Sequence[Row]) -> Iterator[Row]:
    for setting, rows in by_setting(detection):
        found = Found(rows, "seg")
        yield from _choices(
            setting,
            {
                "mc": found.test["mc", None],
                "mc_lesion": found.test["mc_lesion", None],
                "one_minus_mask_conf": found.test["one_minus_mask_conf", None],
                "combined_oracle": found.test["neg_delta_weighted_oracle", None],
                "combined_validation": found.test["neg_delta_weighted_validation", None],
                "best_oracle": found.best("test"),
                "best_validation": found.best("val"),
            },
        )


def table_a5(detection: Sequence[Row]) -> Iterator[Row]:
    for setting, rows in by_setting(detection):
        found = Found(rows, "seg")
        yield from _choices(
            setting,
            {
                "mc": found.test["mc", None],
                "mean": found.test["neg_delta_mean", None],
                "weighted_oracle": found.test["neg_delta_weighted_oracle", None],
                "weighted_validation": found.test["neg_delta_weighted_validation", None],
                "best_oracle": found.best("test", ["neg_delta"]),
                "best_validation": found.best("val", ["neg_delta"]),
            },
        )


def levels_table(detection: Sequence[Row], task: str, population: str | None = None) -> Iterator[Row]:
    """Tables A3 (seg) and A4 (clf): the candidates at every level, Monte Carlo dropout and, for clf, 1 - confidence.

    Which is best at its level is computed; the paper's bold print is not consistent (paper notes B28).
    """
    references = ("mc",) if task == "seg" else ("mc", "one_minus_conf")
    for _, rows in by_setting(detection):
        test = Found(rows, task, population).test
        if not test:
            continue
        for signal in references:
            yield {**test[signal, None], "beats_mc": None, "best_of_level": None}
        mc = test["mc", None]["auroc"]
        for signal in CANDIDATES[task]:
            for level in LEVELS:
                row = test[signal, level]
                at_level = [test[name, level]["auroc"] for name in CANDIDATES[task]]
                defined = [value for value in at_level if value is not None]
                known = row["auroc"] is not None
                yield {
                    **row,
                    "beats_mc": row["auroc"] > mc if known and mc is not None else None,
                    "best_of_level": row["auroc"] == max(defined) if known else None,
                }


def _choices(setting: Row, detectors: Mapping[str, Row]) -> Iterator[Row]:
    for detector, row in detectors.items():
        yield {**row, **setting, "detector": detector}
