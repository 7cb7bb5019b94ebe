from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from btinet.config import DatasetSettings
from btinet.datasets.brisc2025 import Brisc2025Reader, open_brisc2025
from btinet.datasets.sample import Check, Finding
from btinet.errors import InputError
from btinet.storage import Storage

CODES = {"glioma": "gl", "meningioma": "me", "pituitary": "pi", "no_tumor": "no"}
HEIGHT, WIDTH = 30, 40


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 10:20] = 255
    return mask


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_tree(root: Path, reverse: bool = False) -> Path:
    """Two slices a class in train and one in test; returns the folder of both tasks."""
    folder = root / "brisc2025"
    slices = [
        (part, f"brisc2025_{part}_{number:05}_{code}_{plane}_t1", name)
        for part, planes in (("train", ("ax", "sa")), ("test", ("co",)))
        for number, (name, code) in enumerate(CODES.items(), 1)
        for plane in planes
    ]
    for part, stem, name in reversed(slices) if reverse else slices:
        image = np.full((HEIGHT, WIDTH), 90, np.uint8)
        write(folder / "classification_task" / part / name / f"{stem}.jpg", image)
        if name != "no_tumor":
            write(folder / "segmentation_task" / part / "images" / f"{stem}.jpg", image)
            write(folder / "segmentation_task" / part / "masks" / f"{stem}.png", square())
    return folder


def read(root: Path) -> Brisc2025Reader:
    return Brisc2025Reader(Storage(str(root)))


def only_finding(root: Path) -> Finding:
    (finding,) = read(root).findings()
    return finding


def test_samples(tmp_path: Path) -> None:
    make_tree(tmp_path)
    reader = read(tmp_path)
    samples = reader.samples()
    assert reader.findings() == []
    assert reader.classes == tuple(CODES)
    assert reader.healthy == {"no_tumor"}
    assert [s.sample_id for s in samples] == sorted(s.sample_id for s in samples)
    assert [reader.classes[s.label] for s in samples] == [*CODES, *(name for name in CODES for _ in range(2))]
    assert [s.split for s in samples] == ["test"] * 4 + [None] * 8
    assert {s.group_id for s in samples} == {None}
    assert samples[0].source == "classification_task/test/glioma/brisc2025_test_00001_gl_co_t1.jpg"


def test_masks(tmp_path: Path) -> None:
    make_tree(tmp_path)
    reader = read(tmp_path)
    for sample in reader.samples():
        image, mask = reader.load(sample)
        assert image.shape == (HEIGHT, WIDTH, 3)
        expected = np.zeros_like(square()) if reader.classes[sample.label] == "no_tumor" else square() // 255
        np.testing.assert_array_equal(mask, expected)


def test_root_and_order_on_disk_do_not_matter(tmp_path: Path) -> None:
    folder = make_tree(tmp_path / "a")
    make_tree(tmp_path / "b", reverse=True)
    listed = [[(s.sample_id, s.label, s.source) for s in read(x).samples()] for x in (folder, *tmp_path.iterdir())]
    assert listed[0] == listed[1] == listed[2]


def test_a_name_of_another_class(tmp_path: Path) -> None:
    folder = make_tree(tmp_path) / "classification_task" / "train"
    stem = "brisc2025_train_00001_gl_ax_t1"
    (folder / "glioma" / f"{stem}.jpg").rename(folder / "pituitary" / f"{stem}.jpg")
    finding = only_finding(tmp_path)
    assert (finding.check, finding.severity) == (Check.LAYOUT, "error")
    assert finding.where == str(folder / "pituitary" / f"{stem}.jpg")
    assert "does not belong in train/pituitary (brisc2025_train_NNNNN_pi_PLANE_t1.jpg)" in finding.message
    assert stem not in {s.sample_id for s in read(tmp_path).samples()}


def test_a_name_of_the_other_part(tmp_path: Path) -> None:
    task = make_tree(tmp_path) / "classification_task"
    name = "brisc2025_train_00004_no_ax_t1.jpg"
    (task / "train" / "no_tumor" / name).rename(task / "test" / "no_tumor" / name)
    assert "does not belong in test/no_tumor" in only_finding(tmp_path).message


def test_a_name_of_another_kind(tmp_path: Path) -> None:
    folder = make_tree(tmp_path) / "classification_task" / "train" / "glioma"
    shutil.copy(folder / "brisc2025_train_00001_gl_ax_t1.jpg", folder / "copy.jpg")
    assert only_finding(tmp_path).where == str(folder / "copy.jpg")


def test_a_tumour_without_mask(tmp_path: Path) -> None:
    stem = "brisc2025_test_00001_gl_co_t1"
    mask = make_tree(tmp_path) / "segmentation_task" / "test" / "masks" / f"{stem}.png"
    mask.rename(mask.with_name("brisc2025_test_00099_gl_co_t1.png"))
    missing, unused = read(tmp_path).findings()
    assert (missing.check, missing.severity) == (Check.MISSING_FILE, "error")
    assert Path(missing.where).name == f"{stem}.jpg"
    assert str(mask) in missing.message
    assert (unused.check, unused.severity) == (Check.MISSING_FILE, "error")
    assert "mask without image: add brisc2025_test_00099_gl_co_t1.jpg" in unused.message
    assert stem not in {s.sample_id for s in read(tmp_path).samples()}


def test_a_segmentation_image_without_classification_image(tmp_path: Path) -> None:
    images = make_tree(tmp_path) / "segmentation_task" / "train" / "images"
    shutil.copy(images / "brisc2025_train_00001_gl_ax_t1.jpg", images / "brisc2025_train_00099_gl_ax_t1.jpg")
    finding = only_finding(tmp_path)
    assert (finding.check, finding.severity) == (Check.ORPHAN_FILE, "warning")
    assert finding.where == str(images / "brisc2025_train_00099_gl_ax_t1.jpg")
    assert len(read(tmp_path).samples()) == 12


@pytest.mark.parametrize(
    ("folder", "left"),
    [
        ("classification_task/train/no_tumor", 10),
        ("classification_task/train/glioma", 10),
        ("segmentation_task/train/masks", 6),
        ("segmentation_task/train/images", 12),
    ],
)
def test_a_missing_folder(tmp_path: Path, folder: str, left: int) -> None:
    """One finding, not one a file; the images of the segmentation task are not needed."""
    root = make_tree(tmp_path)
    shutil.rmtree(root / folder)
    assert [(f.check, f.where) for f in read(tmp_path).findings()] == (
        [] if folder.endswith("images") else [(Check.LAYOUT, str(root / folder))]
    )
    assert len(read(tmp_path).samples()) == left


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no BRISC images; download BRISC"):
        read(tmp_path)


@pytest.mark.real_data
def test_real_brisc2025(tmp_path: Path, shared: Path) -> None:
    with tarfile.open(shared / "data" / "brisc2025.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    reader = open_brisc2025(DatasetSettings(name="brisc2025"), str(tmp_path))
    samples = reader.samples()
    assert reader.findings() == []
    counts = {split: Counter(reader.classes[s.label] for s in samples if s.split == split) for split in (None, "test")}
    assert counts == {
        None: {"glioma": 1147, "meningioma": 1329, "pituitary": 1457, "no_tumor": 1067},
        "test": {"glioma": 254, "meningioma": 306, "pituitary": 300, "no_tumor": 140},
    }
    assert sum(len(s.files) == 2 for s in samples) == 4793

    image, mask = reader.load(samples[0])
    assert image.shape[:2] == mask.shape
    assert 0 < mask.mean() < 0.5
