"""Bootstrap by cluster and over seeds.

Samples of one group (a lesion, a patient) are not independent: whole clusters are drawn, with replacement, a sample
without a group being its own (Field and Welsh, "Bootstrapping clustered data", JRSS B 69, 2007). A draw is a weight per
sample, how often it is drawn. Every statistic is a function of weights [m, n] whose first row is all ones: that row
gives the value itself, the others its resamples, by the same code.

All runs on a dataset share the draws of its clusters, so that the difference of two statistics, resample by resample,
is paired where they are of the same images. Over seeds the bootstrap is hierarchical: seeds are drawn with
replacement, then the clusters in them (Saravanan, Berman and Sober, "Application of the hierarchical bootstrap to
multi-level data in neuroscience", 2020). With two or three seeds it understates how much trainings differ.

Intervals are percentile intervals. A statistic can be undefined in a resample, for instance where it has no failures:
beyond :data:`MAX_UNDEFINED` of the resamples no interval is given. Nor is there one where all samples are of one
cluster: every draw would be the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
MAX_UNDEFINED = 0.05
SEED = 606_29102
"""Of the draws: the same predictions give the same intervals."""

Floats = NDArray[np.floating]
Weights = NDArray[np.uint8]


class Resampling:
    """Draws of each dataset's clusters.

    Args:
        datasets: (name, samples) pairs, where several pairs may be of one dataset; the samples' columns are
            ``sample_id`` and ``group_id``.
        resamples: R; 0 for none, which leaves every interval out.
    """

    def __init__(self, datasets: Iterable[tuple[str, pa.Table]], resamples: int = RESAMPLES) -> None:
        found: dict[str, set[str]] = {}
        for name, samples in datasets:
            found.setdefault(name, set()).update(cluster_ids(samples).to_pylist())
        self._clusters = {name: pa.array(sorted(ids), pa.string()) for name, ids in found.items()}
        self._counts = {name: _draw(len(ids), resamples if len(ids) > 1 else 0) for name, ids in self._clusters.items()}

    def weights(self, dataset: str, samples: pa.Table) -> Weights:
        """[1 + R, n], or [1, n] where the dataset has one cluster: how often each sample is drawn."""
        positions = pc.index_in(cluster_ids(samples), self._clusters[dataset])
        return self._counts[dataset][:, positions.to_numpy(zero_copy_only=False)]


def cluster_ids(samples: pa.Table) -> pa.ChunkedArray:
    """Each sample's group, or where it has none the sample itself."""
    groups, own = samples["group_id"].cast(pa.string()), samples["sample_id"]
    return pc.coalesce(
        pc.binary_join_element_wise("group", groups, "/"), pc.binary_join_element_wise("sample", own, "/")
    )


def no_weights(count: int) -> Weights:
    """[1, n]: the samples as they are, without resamples."""
    return np.ones((1, count), np.uint8)


def blocks(weights: Weights, elements: int = 1 << 18) -> Iterable[slice]:
    """Slices of rows small enough for a processor's cache."""
    rows = max(1, elements // max(1, weights.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(weights), rows))


def over_seeds(values: Sequence[Floats]) -> Floats:
    """Mean over seeds [..., 1 + R] of each seed's values [..., 1 + R], every resample over seeds that are drawn too.

    Seeds in which a statistic is undefined (NaN at 0) are left out.
    """
    stacked = np.stack(values)
    resamples = stacked.shape[-1] - 1
    mean = np.empty(stacked.shape[1:])
    defined = ~np.isnan(stacked[..., 0])  # [S, ...]
    for index in np.ndindex(mean.shape[:-1]):
        chosen = stacked[(defined[(slice(None), *index)], *index)]  # [S', 1 + R]
        if len(chosen) == 0:
            mean[index] = np.nan
            continue
        picks = np.random.default_rng([SEED, len(chosen)]).integers(len(chosen), size=(len(chosen), resamples))
        mean[(*index, 0)] = chosen[:, 0].mean()
        mean[(*index, slice(1, None))] = chosen[picks, np.arange(1, resamples + 1)].mean(0)
    return mean


def intervals(values: Floats) -> tuple[Floats, Floats]:
    """Lower and upper ends [...] of the percentile intervals of [..., 1 + R]; NaN where there is none."""
    resampled = np.sort(values[..., 1:], axis=-1)  # NaN last
    count = resampled.shape[-1]
    defined = count - np.isnan(resampled).sum(-1)
    usable = (defined > 0) & (defined >= (1 - MAX_UNDEFINED) * count) & ~np.isnan(values[..., 0])
    tail = (1 - CONFIDENCE) / 2
    return _quantile(resampled, defined, tail, usable), _quantile(resampled, defined, 1 - tail, usable)


def p_value(differences: Floats) -> float:
    """Two-sided p of "the difference is 0", by where 0 lies among its resamples: [1 + R] -> at least 2 / (R + 1)."""
    resampled = differences[1:]
    beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return float(min(1.0, 2 * (1 + beyond) / (1 + len(resampled))))


def _draw(clusters: int, resamples: int) -> Weights:
    """[1 + R, clusters]: how often each cluster is drawn; first, each once."""
    rng = np.random.default_rng([SEED, clusters])
    counts = np.ones((1 + resamples, clusters), np.uint8)
    if clusters:
        for row in counts[1:]:
            row[:] = np.bincount(rng.integers(clusters, size=clusters), minlength=clusters)
    return counts


def _quantile(ordered: Floats, defined: NDArray[np.integer], q: float, usable: NDArray[np.bool_]) -> Floats:
    """Linear between order statistics, as NumPy's default, of the first ``defined`` values."""
    if ordered.shape[-1] == 0:
        return np.full(ordered.shape[:-1], np.nan)
    place = q * np.maximum(defined - 1, 0)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(defined - 1, 0))
    low, high = (np.take_along_axis(ordered, at[..., None], -1)[..., 0] for at in (below, above))
    return np.where(usable, low + (place - below) * (high - low), np.nan)
