from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from btinet.config import DatasetSettings
from btinet.datasets.archive import pack
from btinet.datasets.busi import BusiReader
from btinet.datasets.prepare import prepare
from btinet.datasets.prepared import open_prepared
from btinet.datasets.registry import open_reader
from btinet.datasets.sample import Check, SampleError
from btinet.datasets.splits import load_split
from btinet.errors import InputError
from btinet.storage import Storage

HEIGHT, WIDTH = 40, 48


def grey(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def box(top: int, left: int, height: int = 10, width: int = 12) -> np.ndarray:
    """A mask with one rectangle marked, values 0 and 255."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 255
    return mask


def write(path: Path, pixels: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def make_tree(root: Path, count: int = 4, reverse: bool = False) -> Path:
    """A sound BUSI of ``count`` images a class; returns its class folders' parent."""
    folder = root / "Dataset_BUSI_with_GT"
    numbers = range(1, count + 1)
    for number in reversed(numbers) if reverse else numbers:
        for offset, name in enumerate(("benign", "malignant", "normal")):
            write(folder / name / f"{name} ({number}).png", grey(100 * offset + number), "RGB")
            mask = box(5, number) if name != "normal" else np.zeros((HEIGHT, WIDTH), np.uint8)
            write(folder / name / f"{name} ({number})_mask.png", mask, "1")
    return folder


def load(root: Path, sample_id: str) -> tuple[np.ndarray, np.ndarray]:
    reader = BusiReader(Storage(str(root)))
    return reader.load(next(sample for sample in reader.samples() if sample.sample_id == sample_id))


def test_samples_are_sorted_with_labels_in_class_order(tmp_path: Path) -> None:
    make_tree(tmp_path, count=11)
    samples = BusiReader(Storage(str(tmp_path))).samples()
    assert [s.sample_id for s in samples] == sorted(s.sample_id for s in samples)
    assert samples[1].sample_id == "benign (10)"
    assert samples[1].source == "benign/benign (10).png"
    assert {(s.sample_id.split()[0], s.label) for s in samples} == {
        ("benign", 0),
        ("malignant", 1),
        ("normal", 2),
    }
    assert all(s.group_id is None for s in samples)


def test_root_may_be_the_official_folder_or_its_parent(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    assert [s.sample_id for s in BusiReader(Storage(str(folder))).samples()] == [
        s.sample_id for s in BusiReader(Storage(str(tmp_path))).samples()
    ]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_image_modes(tmp_path: Path, mode: str) -> None:
    folder = make_tree(tmp_path)
    pixels = box(3, 4) if mode == "1" else grey(7)
    write(folder / "benign" / "benign (1).png", pixels, mode)
    image, _ = load(tmp_path, "benign (1)")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat(pixels[:, :, None], 3, axis=2))


def test_colour_survives_a_palette(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    colours = Image.new("P", (WIDTH, HEIGHT), 1)
    colours.putpalette([0, 0, 0, 200, 10, 30])
    colours.save(folder / "benign" / "benign (1).png")
    image, _ = load(tmp_path, "benign (1)")
    assert np.unique(image.reshape(-1, 3), axis=0).tolist() == [[200, 10, 30]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_mask_modes(tmp_path: Path, mode: str) -> None:
    folder = make_tree(tmp_path)
    write(folder / "benign" / "benign (1)_mask.png", box(20, 30), mode)
    _, mask = load(tmp_path, "benign (1)")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, box(20, 30) // 255)


def test_transparency_does_not_mark_a_mask(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[5, 6] = (255, 255, 255, 0)
    pixels[7, 8] = (0, 0, 0, 255)
    Image.fromarray(pixels).save(folder / "benign" / "benign (1)_mask.png")
    _, mask = load(tmp_path, "benign (1)")
    assert np.argwhere(mask).tolist() == [[5, 6]]


def test_mask_threshold_is_above_127(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[0, :3] = (127, 128, 255)
    write(folder / "benign" / "benign (1)_mask.png", pixels)
    _, mask = load(tmp_path, "benign (1)")
    assert mask[0, :3].tolist() == [0, 1, 1]


def test_several_masks_are_merged(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    write(folder / "malignant" / "malignant (2)_mask.png", box(0, 0))
    write(folder / "malignant" / "malignant (2)_mask_1.png", box(5, 5))
    write(folder / "malignant" / "malignant (2)_mask_2.png", box(25, 30), "RGBA")
    _, mask = load(tmp_path, "malignant (2)")
    np.testing.assert_array_equal(mask, (box(0, 0) | box(5, 5) | box(25, 30)) // 255)


def test_a_normal_image_needs_no_mask_file(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    (folder / "normal" / "normal (1)_mask.png").unlink()
    _, mask = load(tmp_path, "normal (1)")
    assert mask.shape == (HEIGHT, WIDTH)
    assert not mask.any()


def test_every_fault_is_reported_at_once_and_nothing_published(tmp_path: Path) -> None:
    folder = make_tree(tmp_path / "data", count=8)
    benign, malignant = folder / "benign", folder / "malignant"
    (benign / "benign (1)_mask.png").unlink()
    whole = (benign / "benign (2).png").read_bytes()
    (benign / "benign (2).png").write_bytes(whole[: len(whole) // 2])
    (benign / "benign (3).png").write_bytes(b"this is no image")
    Image.new("1", (WIDTH, HEIGHT - 1), 1).save(benign / "benign (4)_mask.png")
    write(benign / "benign (5)_mask.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    Image.fromarray(grey(1).astype(np.uint16) * 200).save(benign / "benign (6).png")
    (malignant / "malignant (1).png").unlink()
    write(malignant / "copy of malignant (2).png", grey(1))
    for file in (folder / "normal").iterdir():
        file.unlink()
    (folder / "normal").rmdir()
    (benign / "._benign (1).png").write_bytes(b"macOS leaves these; they are ignored")

    settings = DatasetSettings(name="busi", root=str(tmp_path / "data"))
    store = Storage(str(tmp_path / "store"))
    with pytest.raises(InputError) as caught:
        prepare(settings, 32, store)
    message = str(caught.value)
    expected = [
        ("benign (1).png", "has no mask file"),
        ("benign (2).png", "cannot be decoded"),
        ("benign (3).png", "is not an image"),
        ("benign (4)_mask.png", "mask is 48x39 but its image is 48x40"),
        ("benign (5).png", "no pixel of the lesion is marked"),
        ("benign (6).png", "more than 8 bits a channel are not supported"),
        ("malignant (1)_mask.png", "mask without image"),
        ("copy of malignant (2).png", "not a name of the official layout"),
        ("class normal", "has no usable image"),
    ]
    lines = message.splitlines()
    assert f"{len(expected)} problem(s)" in lines[0]
    assert len(lines) == len(expected) + 1
    for file, fault in expected:
        assert any(file in line and fault in line for line in lines), (file, fault)
    assert not (store / "datasets").exists()


def test_a_lesion_marked_in_a_normal_image_is_a_fault(tmp_path: Path) -> None:
    folder = make_tree(tmp_path, count=8)
    write(folder / "normal" / "normal (1)_mask.png", box(1, 1))
    settings = DatasetSettings(name="busi", root=str(tmp_path))
    with pytest.raises(InputError, match=r"normal \(1\).png: a lesion is marked, and class normal has none"):
        prepare(settings, 32, Storage(str(tmp_path / "store")))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0, 1, 1, 0], [0, 1, 1, 0]),  # masks of 0 and 1
        ([0, 255, 250, 3], [0, 1, 1, 0]),  # JPEG noise
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_mask_values(tmp_path: Path, levels: list[int], expected: list[int]) -> None:
    folder = make_tree(tmp_path)
    write(folder / "benign" / "benign (1)_mask.png", np.tile(np.array(levels, np.uint8), (HEIGHT, WIDTH // 4)))
    np.testing.assert_array_equal(load(tmp_path, "benign (1)")[1], np.tile(expected, (HEIGHT, WIDTH // 4)))


def test_a_grey_mask_is_a_fault(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    write(folder / "benign" / "benign (1)_mask.png", grey(3))
    with pytest.raises(SampleError, match=r"\(1\)_mask.png: mask is not binary: 7\d% of its pixels") as caught:
        load(tmp_path, "benign (1)")
    assert caught.value.finding.check == Check.NON_BINARY_MASK


@pytest.mark.parametrize(("levels", "values"), [((0, 1, 2), "0, 1, 2"), ((0, 31), "0, 31"), ((2,), "2")])
def test_numbers_of_classes_are_no_mask(tmp_path: Path, levels: tuple[int, ...], values: str) -> None:
    """They would all be black, and the image one without lesion."""
    folder = make_tree(tmp_path)
    write(folder / "benign" / "benign (1)_mask.png", np.resize(np.array(levels, np.uint8), (HEIGHT, WIDTH)))
    with pytest.raises(SampleError, match=f"its values are {values}, none of them white: save the lesion as 255") as at:
        load(tmp_path, "benign (1)")
    assert at.value.finding.check == Check.NON_BINARY_MASK


def test_the_order_of_files_on_disk_does_not_matter(tmp_path: Path) -> None:
    make_tree(tmp_path / "a")
    make_tree(tmp_path / "b", reverse=True)
    hashes = [
        prepare(
            DatasetSettings(name="busi", root=str(tmp_path / x)), 32, Storage(str(tmp_path / f"s{x}"))
        ).manifest.hash
        for x in "ab"
    ]
    assert hashes[0] == hashes[1]


def test_where_the_dataset_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("settings", "argument", "environment"):
        make_tree(tmp_path / name)
    monkeypatch.setenv("BTINET_DATA_ROOT", str(tmp_path / "environment"))
    argument = str(tmp_path / "argument")
    rooted = DatasetSettings(name="busi", root=str(tmp_path / "settings"))
    assert open_reader(rooted, argument).origin == str(tmp_path / "settings")
    assert open_reader(DatasetSettings(name="busi"), argument).origin == argument
    assert open_reader(DatasetSettings(name="busi")).origin == str(tmp_path / "environment")


def test_a_missing_root_tells_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BTINET_DATA_ROOT", raising=False)
    with pytest.raises(InputError, match=r"datasets\.root, data_root, BTINET_DATA_ROOT.*download BUSI"):
        open_reader(DatasetSettings(name="busi"))
    with pytest.raises(InputError, match=r"datasets\.root: no such folder.*download BUSI"):
        open_reader(DatasetSettings(name="busi", root=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match=r"holds no BUSI images.*download BUSI"):
        open_reader(DatasetSettings(name="busi", root=str(tmp_path)))


def test_an_unknown_dataset_is_looked_for_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset 'bussi'[^$]*manifest\.csv"):
        open_reader(DatasetSettings(name="bussi"), str(tmp_path))


def test_a_dataset_packed_into_one_file(tmp_path: Path) -> None:
    make_tree(tmp_path / "official", count=8)
    reversed_tree = make_tree(tmp_path / "reversed", count=8, reverse=True)
    os.utime(reversed_tree / "benign" / "benign (1).png", (1, 1))
    packed = tmp_path / "raw" / "busi.tar"
    pack(tmp_path / "official", packed)
    pack(tmp_path / "reversed", tmp_path / "again.tar")
    assert packed.read_bytes() == (tmp_path / "again.tar").read_bytes()
    plain, from_file = (
        prepare(
            DatasetSettings(name="busi"), 32, Storage(str(tmp_path / f"store-{name}")), str(tmp_path / name)
        ).manifest
        for name in ("official", "raw")
    )
    assert from_file.files == plain.files


@pytest.mark.real_data
def test_real_busi(tmp_path: Path) -> None:
    shared = Path(os.environ.get("BTINET_TEST_SHARED", Path(__file__).parents[2].parent / "shared"))
    archive = shared / "data" / "busi.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is absent; set BTINET_TEST_SHARED to the folder that holds data/busi.tar")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")

    samples = BusiReader(Storage(str(tmp_path))).samples()
    assert sum(len(s.files) > 2 for s in samples) == 17
    assert sum(len(s.files) - 1 for s in samples) == 798

    store = Storage(str(tmp_path / "store"))
    manifest = prepare(DatasetSettings(name="busi", root=str(tmp_path)), 64, store).manifest
    assert manifest.class_counts == {"benign": 437, "malignant": 210, "normal": 133}
    prepared = open_prepared(store, "busi", manifest.hash)
    has_mask = prepared.samples["has_mask"].to_numpy()
    np.testing.assert_array_equal(has_mask, prepared.labels < 2)

    split = load_split(store, prepared, "paper", 42)
    rows = {name: split.rows(name) for name in ("train", "val", "test")}
    assert {name: len(rows[name]) for name in rows} == {"train": 545, "val": 118, "test": 117}
    assert np.bincount(prepared.labels[rows["test"]]).tolist() == [66, 31, 20]
    assert has_mask[rows["test"]].sum() == 97
