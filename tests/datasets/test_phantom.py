from __future__ import annotations

import numpy as np

from btinet.config import DatasetSettings
from btinet.datasets.phantom import BENIGN, LABELS, MALIGNANT, NORMAL, SIZE, PhantomReader, draw
from btinet.datasets.registry import open_reader


def test_a_sample_depends_on_its_index_alone() -> None:
    few, many = PhantomReader(8), PhantomReader(100)
    assert few.samples() == many.samples()[:8]
    image, mask = few.load(few.samples()[3])
    few.load(few.samples()[5])  # nothing is carried from one to the next
    again, mask_again = many.load(many.samples()[3])
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert (image != many.load(many.samples()[13])[0]).any()  # same class, another image


def test_the_pixels_are_those_of_version_1() -> None:
    """A change of the drawing needs a new PHANTOM_VERSION."""
    summaries = []
    for index in (0, 1):
        image, mask = draw(index)
        summaries.append((round(float(image.mean()), 3), int(image[100, 100]), int(mask.sum())))
    assert summaries == [(124.531, 135, 1931), (156.264, 101, 4590)]


def test_classes_are_as_5_to_3_to_2_in_every_ten() -> None:
    reader = open_reader(DatasetSettings(name="phantom"))
    samples = reader.samples()
    assert len(samples) == 240
    assert reader.classes == ("benign", "malignant", "normal")
    assert np.bincount([s.label for s in samples]).tolist() == [120, 72, 48]
    assert np.bincount(LABELS).tolist() == [5, 3, 2]
    assert [s.sample_id for s in samples] == sorted(s.sample_id for s in samples)
    assert len(open_reader(DatasetSettings(name="phantom", max_samples=20)).samples()) == 20


def test_images_and_masks() -> None:
    reader = PhantomReader(20)
    for sample in reader.samples():
        image, mask = reader.load(sample)
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert (image == image[:, :, :1]).all()
        assert 20 < image.mean() < 230
        assert image.std() > 10
        assert set(np.unique(mask)) <= {0, 1}
        share = mask.mean()
        assert share == 0 if sample.label == NORMAL else 0.003 < share < 0.4


def test_malignant_margins_are_less_regular_than_benign_ones() -> None:
    """Isoperimetric ratio: 1 for a disc, less for a ragged outline."""

    def regularity(index: int) -> float:
        mask = draw(index)[1].astype(int)
        edge = np.abs(np.diff(mask, axis=0)).sum() + np.abs(np.diff(mask, axis=1)).sum()
        return 16 * mask.sum() / edge**2  # of a square: 1

    by_class = {
        label: [regularity(index) for index in range(60) if LABELS[index % 10] == label]
        for label in (BENIGN, MALIGNANT)
    }
    assert np.median(by_class[BENIGN]) > np.median(by_class[MALIGNANT]) + 0.05
    assert min(by_class[BENIGN]) < max(by_class[MALIGNANT])  # but they overlap
