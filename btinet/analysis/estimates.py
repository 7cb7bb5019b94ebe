"""Values of every setting, seed by seed and resample by resample, for differences between settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from btinet.analysis.resampling import Floats, intervals, over_seeds
from btinet.analysis.summaries import Entry, Row

IDENTITY = ("dataset", "preset", "method", "variant")


@dataclass(frozen=True)
class Estimate:
    """A quantity of one setting, or a difference of two: for each seed [1 + R], the value and its resamples."""

    by_seed: Mapping[int, Floats]

    def __sub__(self, other: Estimate) -> Estimate:
        """Seed by seed and resample by resample, over the seeds that both have."""
        return Estimate(
            {seed: self.by_seed[seed] - other.by_seed[seed] for seed in self.by_seed if seed in other.by_seed}
        )

    @property
    def seeds(self) -> set[int]:
        return {seed for seed, values in self.by_seed.items() if not np.isnan(values[0])}

    @property
    def mean(self) -> float | None:
        values = [values[0] for values in self.by_seed.values() if not np.isnan(values[0])]
        return float(np.mean(values)) if values else None

    def on(self, seeds: Iterable[int]) -> Estimate:
        return Estimate({seed: self.by_seed[seed] for seed in seeds})

    def resampled(self) -> Floats:
        """[1 + R], over seeds."""
        return over_seeds(list(self.by_seed.values()))

    def summary(self) -> dict[str, float | None]:
        """Mean over seeds under "" and its interval under "_low" and "_high"; None where undefined."""
        if not self.seeds:
            return dict.fromkeys(("", "_low", "_high"))
        values = self.resampled()
        low, high = (float(end) for end in intervals(values))
        ends = (None, None) if np.isnan(low) else (low, high)
        return {"": float(values[0]), "_low": ends[0], "_high": ends[1]}


class Estimates:
    """All of them; :meth:`add` as entries are made, :meth:`get` by setting, table and columns."""

    def __init__(self) -> None:
        self._values: dict[tuple[Any, ...], dict[int, Floats]] = {}

    def add(self, run: Row, table: str, entries: Sequence[Entry], names: Sequence[str]) -> None:
        """Keep these values of a run's entries."""
        identity = tuple(run[name] for name in IDENTITY)
        for entry in entries:
            for name in names:
                key = (identity, table, name, *sorted(entry.within.items(), key=lambda item: item[0]))
                self._values.setdefault(key, {})[run["seed"]] = entry.values[name]

    def get(self, setting: Row, table: str, name: str, within: Row | None = None, **changed: str) -> Estimate | None:
        """A quantity of the setting with some of :data:`IDENTITY` changed; None where there is none."""
        identity = tuple(changed.get(column, setting[column]) for column in IDENTITY)
        key = (identity, table, name, *sorted((within or {}).items(), key=lambda item: item[0]))
        found = self._values.get(key)
        return Estimate(found) if found else None
