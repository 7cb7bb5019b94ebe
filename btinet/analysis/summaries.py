"""Rows of tables from values with their resamples: for each run, and over the seeds of a setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from btinet.analysis.resampling import Floats, intervals, over_seeds

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One row about one run, without the columns that identify the run."""

    within: Row
    """Columns that tell this row from the run's others in the same table."""
    counts: Mapping[str, int | None]
    values: Mapping[str, Floats]
    """Name -> [1 + R]: the value, then its resamples; [1] where it has none. NaN where undefined."""
    note: str | None = None
    """Why a value is undefined."""
    extra: Row = field(default_factory=dict)
    """Columns about this run alone, which are not summarised over seeds."""


def run_rows(key: Row, entries: Sequence[Entry]) -> Iterator[Row]:
    """A row an entry: ``x``, ``x_low`` and ``x_high`` of every value x."""
    for entry in entries:
        row = {**key, **entry.within, **entry.counts, **entry.extra}
        row["note"] = join_notes(entry.note, _set_values(row, _stack([entry])[0], tuple(entry.values)))
        yield row


def setting_rows(setting: Row, by_seed: Mapping[int, Sequence[Entry]]) -> Iterator[Row]:
    """A row for each ``within`` of a setting's runs.

    ``seeds`` (number of runs); for every count its mean and ``_std``; for every value its mean over the runs that
    have it, ``_std``, ``_low`` and ``_high``; ``note`` names the seed where not all have the same.
    """
    groups: dict[tuple[Any, ...], dict[int, Entry]] = {}
    for seed, entries in by_seed.items():
        for entry in entries:
            groups.setdefault(tuple(entry.within.values()), {})[seed] = entry
    for found in groups.values():
        entries = list(found.values())
        row = {**setting, "seeds": len(by_seed), **entries[0].within}
        for name in entries[0].counts:
            row[name], row[f"{name}_std"] = mean_and_std([entry.counts[name] for entry in entries])
        values = _stack(entries)
        names = tuple(entries[0].values)
        missing = _set_values(row, over_seeds(list(values)), names)
        for index, name in enumerate(names):
            row[f"{name}_std"] = mean_and_std([_number(value) for value in values[:, index, 0]])[1]
        row["note"] = join_notes(_of_seeds({seed: entry.note for seed, entry in found.items()}), missing)
        yield row


def mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Of those that are there; the sample standard deviation is None below two."""
    defined = [value for value in values if value is not None]
    mean = float(np.mean(defined)) if defined else None
    return mean, float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def join_notes(*notes: str | None) -> str | None:
    return "; ".join(dict.fromkeys(filter(None, notes))) or None


def _stack(entries: Sequence[Entry]) -> Floats:
    """[entries, values, 1 + R]."""
    return np.stack([np.stack(list(entry.values.values())) for entry in entries])


def _set_values(row: Row, values: Floats, names: Sequence[str]) -> str | None:
    """Set ``x``, ``x_low`` and ``x_high``; returns why an interval of a defined value is missing."""
    lows, highs = intervals(values)
    missing: dict[str, float] = {}
    for name, value, low, high in zip(names, values, lows, highs, strict=True):
        row[name], row[f"{name}_low"], row[f"{name}_high"] = _number(value[0]), _number(low), _number(high)
        if row[name] is not None and row[f"{name}_low"] is None and values.shape[-1] > 1:
            missing[name] = float(np.isnan(value[1:]).mean())
    if not missing:
        return None
    which = "" if len(missing) == len(names) else f" of {', '.join(missing)}"
    return f"no interval{which}: undefined in {100 * max(missing.values()):.0f} % of the resamples"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _of_seeds(notes: Mapping[int, str | None]) -> str | None:
    if len(set(notes.values())) == 1:
        return next(iter(notes.values()))
    return "; ".join(f"seed {seed}: {note}" for seed, note in notes.items() if note)
