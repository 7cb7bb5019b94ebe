"""How far an image is from those the model was trained on: simple image statistics and the model's own signals.

The distance is Mahalanobis' with a Ledoit-Wolf covariance; from which distance on an image is called atypical is
calibrated on the validation split (:func:`btinet.calibration.reliability.certify`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from btinet.config import Strict

FLOOR = 1e-2
"""Smallest scale of an image statistic: in a training set of grey images any colour would be infinitely far."""
TINY = 1e-9

DARK, BRIGHT = 8, 247
"""8-bit grey values up to and from which a pixel counts as black or white."""

IMAGE_STATISTICS = (
    "image_brightness",
    "image_contrast",
    "image_colour",
    "image_entropy",
    "image_sharpness",
    "image_black",
    "image_white",
    "image_aspect",
)


def image_statistics(image: NDArray[np.uint8], width: int, height: int) -> dict[str, float]:
    """IMAGE_STATISTICS of an RGB image [S, S, 3] at the model's size; ``width`` and ``height`` are its own.

    Brightness and contrast: mean and standard deviation of grey values, in [0, 1]. Colour: mean of max - min over the
    channels. Entropy: of the histogram of grey values, as a share of 8 bits. Sharpness: mean absolute difference of
    neighbours. Black, white: shares of pixels. Aspect: log(width / height).
    """
    channels = image.astype(np.float32) / 255
    grey = channels.mean(2)
    levels = np.rint(grey * 255).astype(np.intp)
    shares = np.bincount(levels.ravel(), minlength=256) / levels.size
    present = shares[shares > 0]
    return {
        "image_brightness": float(grey.mean()),
        "image_contrast": float(grey.std()),
        "image_colour": float((channels.max(2) - channels.min(2)).mean()),
        "image_entropy": float(-(present * np.log2(present)).sum() / 8),
        "image_sharpness": float((np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2),
        "image_black": float(shares[: DARK + 1].sum()),
        "image_white": float(shares[BRIGHT:].sum()),
        "image_aspect": float(np.log(width / height)),
    }


class Distribution(Strict):
    """The training images' features: mean, scale, and the inverse covariance of the scaled ones."""

    count: int
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    """1st percentile."""
    high: tuple[float, ...]
    """99th percentile."""
    precision: tuple[tuple[float, ...], ...]

    def distance(self, row: Mapping[str, float]) -> float:
        """Mahalanobis distance of a prediction's features, by name; infinite where one is not finite."""
        z = self._scaled(row)
        if not np.isfinite(z).all():
            return float("inf")
        return float(np.sqrt(max(0.0, z @ np.asarray(self.precision) @ z)))

    def unlike(self, row: Mapping[str, float]) -> str:
        """The feature that deviates most, in words."""
        z = np.abs(self._scaled(row))
        index = int(np.argmax(np.where(np.isfinite(z), z, np.inf)))
        name = self.features[index]
        return f"{name} {row[name]:.3g}, there mostly {self.low[index]:.3g} to {self.high[index]:.3g}"

    def _scaled(self, row: Mapping[str, float]) -> NDArray[np.float64]:
        values = np.array([row[name] for name in self.features], float)
        return (values - np.asarray(self.mean)) / np.asarray(self.scale)


def fit(rows: Sequence[Mapping[str, float]], features: Sequence[str]) -> Distribution:
    """The distribution of these features over training images."""
    values = np.array([[row[name] for name in features] for row in rows], float)
    floors = [FLOOR if name in IMAGE_STATISTICS else TINY for name in features]
    mean, scale = values.mean(0), np.maximum(values.std(0), floors)
    covariance, _ = ledoit_wolf((values - mean) / scale, assume_centered=True)
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    return Distribution(
        count=len(values),
        features=tuple(features),
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        precision=tuple(map(tuple, np.linalg.pinv(covariance, hermitian=True).tolist())),
    )
