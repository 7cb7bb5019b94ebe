"""Where a dataset is found, and which image files are not read as something else than they are."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from btinet.config import DatasetSettings
from btinet.datasets.files import read_mask, read_rgb, shown
from btinet.datasets.registry import open_reader
from btinet.datasets.sample import Check, SampleError
from btinet.errors import InputError
from btinet.storage import Storage, cache_folder

DEEP = np.random.default_rng(0).integers(0, 4096, (20, 30, 4), dtype=np.uint16)


@pytest.mark.parametrize("name", ["i.png", "i.tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_more_than_8_bits_are_refused(tmp_path: Path, name: str, channels: int) -> None:
    """Pillow would give the upper 8 bits of colours."""
    cv2.imwrite(str(tmp_path / name), DEEP[:, :, :channels])
    for read in (read_rgb, read_mask):
        with pytest.raises(SampleError, match=f"{name}: more than 8 bits a channel .*: save it with 8"):
            read(Storage(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["i.jpg", "i.png"])
@pytest.mark.parametrize(("orientation", "is_upright"), [(1, True), (0, True), (3, False), (6, False)])
def test_an_image_that_is_to_be_turned_is_refused(
    tmp_path: Path, name: str, orientation: int, is_upright: bool
) -> None:
    """Its mask may have been drawn on it as it is stored, or as it is shown."""
    file = Storage(str(tmp_path / name))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (30, 20)).save(file.path, exif=exif)
    if is_upright:
        assert read_rgb(file).shape == (20, 30, 3)
    else:
        with pytest.raises(
            SampleError, match=f"{name}: is to be turned .*orientation {orientation}.*: save it upright"
        ):
            read_rgb(file)


def test_what_cannot_be_read_is_the_samples_fault(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, check in (("folder", "unreadable"), ("loop", "unreadable"), ("none", "missing-file")):
        with pytest.raises(SampleError, match=f"{name}.png: .*: get") as caught:
            read_rgb(Storage(str(tmp_path / f"{name}.png")))
        assert caught.value.finding.check == Check(check)


def test_a_name_that_is_not_utf8_can_be_shown() -> None:
    assert shown(Storage("/data/größe\udce4.png")) == "/data/größe\\xe4.png"


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("busi", "Dataset_BUSI_with_GT"),
        ("busi", "benign"),
        ("ham10000", "HAM10000_images_part_2"),
        ("brisc2025", "brisc2025"),
        ("brisc2025", "classification_task"),
        ("mine", "mine"),
        ("mine", "labels.csv"),
    ],
)
def test_an_archive_beside_the_layout_is_refused(tmp_path: Path, name: str, layout: str) -> None:
    (tmp_path / f"{name}.tar").touch()
    (tmp_path / layout).mkdir()
    with pytest.raises(InputError, match=rf"{tmp_path} holds {name}\.tar and {layout}: keep the one that is meant"):
        open_reader(DatasetSettings(name=name), str(tmp_path))


def test_what_a_killed_unpacking_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\na.png,x\n")
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.add(tmp_path / "labels.csv", "labels.csv")
    (tmp_path / "labels.csv").unlink()
    digest = (Storage(str(tmp_path)) / "mine.tar").sha256()[:16]
    left, others = (cache_folder() / "raw" / f"{name}.0123.part" for name in (digest, "other"))
    for folder in (left, others):
        (folder / "images").mkdir(parents=True)
    assert open_reader(DatasetSettings(name="mine"), str(tmp_path)).classes == ("x",)
    assert (left.exists(), others.exists()) == (False, True)
