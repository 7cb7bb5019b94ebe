from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from btinet.config import TrainSettings
from btinet.datasets import augment as module
from btinet.datasets.augment import augment

PAPER = TrainSettings()


def settings(flip: float = 0.0, rotate: float = 0.0, degrees: float = 15.0) -> TrainSettings:
    return TrainSettings(flip_probability=flip, rotate_probability=rotate, rotate_degrees=degrees)


def batch(count: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images, (torch.rand(count, 1, size, size, generator=generator) < 0.3).float()


def test_nothing_happens_at_zero_probability() -> None:
    images, masks = batch(4)
    out_images, out_masks = augment(images, masks, np.arange(4), 42, 0, settings())
    assert torch.equal(out_images, images)
    assert torch.equal(out_masks, masks)


def test_flips_are_exact() -> None:
    images, masks = batch(3)
    out_images, out_masks = augment(images, masks, np.arange(3), 42, 0, settings(flip=1.0))
    assert torch.equal(out_images, images.flip(-1, -2))
    assert torch.equal(out_masks, masks.flip(-1, -2))


def test_each_flip_is_drawn_by_itself() -> None:
    images, masks = batch(1)
    images, masks = images.expand(400, -1, -1, -1), masks.expand(400, -1, -1, -1)
    out, _ = augment(images, masks, np.arange(400), 42, 0, settings(flip=0.5))
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-1, -2)]
    counts = [int((out == flipped).all(dim=(1, 2, 3)).sum()) for flipped in flips]
    assert sum(counts) == 400
    assert min(counts) > 70  # 100 are expected of each


@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 6)])
def test_half_a_turn_is_both_flips(monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> None:
    monkeypatch.setattr(module, "_uniforms", lambda *_: np.array([0.9, 0.9, 0.0, 1.0]))  # +180 degrees
    image = torch.arange(float(height * width)).view(1, 1, height, width)
    mask = (image % 3 == 0).float()
    out_image, out_mask = augment(image, mask, np.zeros(1, int), 0, 0, settings(rotate=1.0, degrees=180))
    torch.testing.assert_close(out_image, image.flip(-1, -2), atol=1e-4, rtol=0)
    assert torch.equal(out_mask, mask.flip(-1, -2))


def test_quarter_turn_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_uniforms", lambda *_: np.array([0.9, 0.9, 0.0, 1.0]))  # +90 degrees
    image = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])[None, None]
    out, _ = augment(image, (image > 4).float(), np.zeros(1, int), 0, 0, settings(rotate=1.0, degrees=90))
    torch.testing.assert_close(out[0, 0], torch.tensor([[3.0, 6, 9], [2, 5, 8], [1, 4, 7]]), atol=1e-5, rtol=0)


def test_an_eighth_turn_reflects_about_the_border_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corner of a 3x3 image turned by 45 degrees comes from 0.414 above the top edge in the middle column;
    its reflection lies 0.414 below the edge, between rows 0 and 1."""
    monkeypatch.setattr(module, "_uniforms", lambda *_: np.array([0.9, 0.9, 0.0, 1.0]))
    image = torch.tensor([[0.0, 10, 0], [0, 20, 0], [0, 0, 0]])[None, None]
    out, _ = augment(image, image, np.zeros(1, int), 0, 0, settings(rotate=1.0, degrees=45))
    expected = 10 + (2**0.5 - 1) * 10
    corners = out[0, 0, [0, 0, 2, 2], [0, 2, 0, 2]]
    assert any(abs(value - expected) < 1e-4 for value in corners.tolist())


def test_angles_are_uniform_within_bounds_at_the_given_rate() -> None:
    _, _, angles = module._parameters(np.arange(4000), 42, 3, PAPER)
    turned = np.rad2deg(angles[angles != 0])
    assert abs(len(turned) / 4000 - 0.7) < 0.03
    assert np.abs(turned).max() <= 15
    assert abs(turned.mean()) < 0.6
    assert abs(turned.std() - 30 / 12**0.5) < 0.3


def test_the_mask_stays_binary_and_on_its_object() -> None:
    """An image that is 1 on the mask and 0 elsewhere stays the mask's soft version."""
    masks = torch.zeros(32, 1, 64, 64)
    masks[:, :, 20:44, 10:40] = 1
    images, out = augment(masks.expand(-1, 3, -1, -1), masks, np.arange(32), 7, 2, PAPER)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    overlap = ((images[:, :1] > 0.5) == (out > 0.5)).float().mean(dim=(1, 2, 3))
    assert overlap.min() > 0.99


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images, masks = batch(8)
    rows = np.array([3, 900, 14, 7, 2**40, 0, 5, 6])
    whole_images, whole_masks = augment(images, masks, rows, 42, 5, PAPER)
    order = np.array([6, 1, 4])
    some_images, some_masks = augment(images[order], masks[order], rows[order], 42, 5, PAPER)
    assert torch.equal(some_images, whole_images[order])
    assert torch.equal(some_masks, whole_masks[order])


def test_same_again_and_different_for_other_seeds_epochs_and_rows() -> None:
    rows = np.arange(6)
    first = np.stack(module._parameters(rows, 42, 1, PAPER))
    np.testing.assert_array_equal(first, np.stack(module._parameters(rows, 42, 1, PAPER)))
    for other in ((rows, 43, 1), (rows, 42, 2), (rows, 1, 42), (rows + 6, 42, 1)):
        assert (first != np.stack(module._parameters(*other, PAPER))).any()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_is_kept(memory_format: torch.memory_format) -> None:
    images, masks = batch(4)
    out, _ = augment(images.contiguous(memory_format=memory_format), masks, np.arange(4), 42, 0, PAPER)
    assert out.is_contiguous(memory_format=memory_format)
    expected, _ = augment(images, masks, np.arange(4), 42, 0, PAPER)
    torch.testing.assert_close(out, expected)
