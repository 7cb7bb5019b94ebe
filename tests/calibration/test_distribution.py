"""Image statistics by hand, and the distance from training images."""

from __future__ import annotations

import numpy as np
import pytest

from btinet.calibration.distribution import IMAGE_STATISTICS, fit, image_statistics


class TestStatistics:
    def test_two_halves(self) -> None:
        """Left half black, right half white."""
        image = np.zeros((4, 4, 3), np.uint8)
        image[:, 2:] = 255
        assert image_statistics(image, 200, 100) == pytest.approx(
            {
                "image_brightness": 0.5,
                "image_contrast": 0.5,
                "image_colour": 0.0,
                "image_entropy": 1 / 8,
                "image_sharpness": (0 + 1 / 3) / 2,
                "image_black": 0.5,
                "image_white": 0.5,
                "image_aspect": np.log(2),
            }
        )

    def test_colour(self) -> None:
        image = np.broadcast_to(np.array([255, 0, 51], np.uint8), (8, 8, 3))
        found = image_statistics(image, 8, 8)
        assert found["image_colour"] == pytest.approx(1.0)
        assert found["image_brightness"] == pytest.approx(0.4)
        assert set(found) == set(IMAGE_STATISTICS)


class TestDistance:
    rows = tuple(
        {"a": float(a), "b": float(b), "image_colour": 0.0}
        for a, b in np.random.default_rng(0).normal(size=(500, 2)) * [1, 10]
    )
    typical = fit(rows, ["a", "b", "image_colour"])

    def test_mahalanobis(self) -> None:
        """Independent features of known scale: nearly the length of the scaled deviation."""
        assert self.typical.distance({"a": 3.0, "b": 0.0, "image_colour": 0.0}) == pytest.approx(3, rel=0.1)
        assert self.typical.distance({"a": 3.0, "b": 40.0, "image_colour": 0.0}) == pytest.approx(5, rel=0.1)

    def test_colour_where_there_was_none(self) -> None:
        row = {"a": 0.0, "b": 0.0, "image_colour": 0.3}
        assert self.typical.distance(row) > 20
        assert self.typical.unlike(row) == "image_colour 0.3, there mostly 0 to 0"

    def test_not_finite(self) -> None:
        row = {"a": np.nan, "b": 0.0, "image_colour": 0.0}
        assert self.typical.distance(row) == np.inf
        assert self.typical.unlike(row).startswith("a nan")
