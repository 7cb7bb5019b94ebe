from __future__ import annotations

import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from btinet.datasets import duplicates as module
from btinet.datasets.duplicates import DUPLICATES, FINGERPRINT_BYTES, GRID, clusters, find_duplicates, fingerprint
from btinet.datasets.phantom import draw


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


@cache
def phantom(index: int) -> np.ndarray:
    return rgb(draw(index)[0])


def find(images: dict[str, np.ndarray]) -> list[dict[str, object]]:
    hashes = [hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest() for image in images.values()]
    return find_duplicates(list(images), hashes, [fingerprint(image) for image in images.values()]).to_pylist()


def pairs(*ids: tuple[str, str]) -> pa.Table:
    rows = [{"a": a, "b": b, "similarity": 0.9, "exact": False} for a, b in ids]
    return pa.Table.from_pylist(rows, DUPLICATES)


def random_fingerprints(count: int, seed: int = 0) -> list[bytes]:
    values = np.random.default_rng(seed).integers(-128, 128, (count, FINGERPRINT_BYTES), dtype=np.int8)
    return [row.tobytes() for row in values]


def test_one_bright_cell_by_hand() -> None:
    """The cell deviates by 720/9 from its neighbourhood, its neighbours by -90/9; two cells away there is nothing."""
    grey = np.full((GRID, GRID), 100)
    grey[10, 7] = 190
    cells = np.frombuffer(fingerprint(rgb(grey)), np.int8).reshape(GRID, GRID)
    beside, corner = round(-14 * 9 * 90 / (720 + 5 * 90 + 162)), round(-14 * 9 * 90 / (720 + 3 * 90 + 162))
    centre = round(14 * 9 * 720 / (720 + 8 * 90 + 162))
    assert cells[9:12, 6:9].tolist() == [[corner, beside, corner], [beside, centre, beside], [corner, beside, corner]]
    assert np.count_nonzero(cells) == 9


def test_cells_that_cut_pixels_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are in quarters of a pixel."""
    monkeypatch.setattr(module, "GRID", 2)
    assert module._cell_sums(np.array([[10, 20, 30]], np.uint8)).tolist() == [[40, 80], [40, 80]]
    assert module._cell_sums(np.array([[7]], np.uint8)).tolist() == [[7, 7], [7, 7]]
    assert module._cell_sums(np.arange(8, dtype=np.uint8).reshape(2, 4)).tolist() == [[4, 20], [36, 52]]


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (450, 600), (301, 417)])
def test_cells_are_the_matrix_product(size: tuple[int, int]) -> None:
    """As each cell's share of each pixel, in 1/GRID, multiplied out."""

    def shares(length: int) -> np.ndarray:
        pixel, cell = np.arange(length) * GRID, np.arange(GRID)[:, None] * length
        return np.clip(np.minimum(pixel + GRID, cell + length) - np.maximum(pixel, cell), 0, None)

    grey = np.random.default_rng(2).integers(0, 256, size, dtype=np.uint8)
    assert (module._cell_sums(grey) == shares(size[0]) @ grey.astype(np.int64) @ shares(size[1]).T).all()


def test_the_fingerprint_is_that_of_this_version() -> None:
    rows, columns = np.mgrid[0:301, 0:417]
    colours = np.stack([rows * columns % 251, rows * 3 % 256, (rows // 7 + columns // 5) % 2 * 255], axis=2)
    golden = fingerprint(colours.astype(np.uint8))
    assert len(golden) == FINGERPRINT_BYTES
    assert hashlib.sha256(golden).hexdigest() == "68caa95b216a07112299c8ba62cc6b5a068cff279ffa3c7a4c118ac3697ef58c"


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (23, 25)])
def test_images_of_any_size_have_a_fingerprint(size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, size)
    assert len(fingerprint(rgb(grey))) == FINGERPRINT_BYTES


def test_extremes_fit_int8() -> None:
    grey = np.zeros((GRID, GRID))
    grey[::4, ::4] = 255
    for image in (grey, 255 - grey):
        cells = np.frombuffer(fingerprint(rgb(image)), np.int8).reshape(GRID, GRID)
        assert (np.sign(cells[::4, ::4]) == (1 if image is grey else -1)).all()


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((200, 180), Image.Resampling.BILINEAR))


def annotated(image: np.ndarray) -> np.ndarray:
    copy = image.copy()
    copy[100:104, 60:180] = 255
    copy[60:150, 118:122] = 255
    return copy


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: jpeg(image, 40), id="jpeg"),
        pytest.param(lambda image: np.clip(image + 30.0, 0, 255).astype(np.uint8), id="brighter"),
        pytest.param(lambda image: (image * 0.7).astype(np.uint8), id="less contrast"),
        pytest.param(resized, id="resized"),
        pytest.param(lambda image: image[2:-2, 2:-2], id="cropped"),
        pytest.param(annotated, id="annotated"),
        pytest.param(lambda image: image[:, ::-1], id="mirrored"),
    ],
)
def test_a_changed_copy_is_found(change: Callable[[np.ndarray], np.ndarray]) -> None:
    for index in range(10):
        original = phantom(index)
        (pair,) = find({"copy": change(original), "original": original})
        assert (pair["a"], pair["b"], pair["exact"]) == ("copy", "original", False)


def test_unrelated_images_are_not_duplicates() -> None:
    assert find({str(index): phantom(index) for index in range(40)}) == []


def test_an_exact_pair() -> None:
    image = phantom(0)
    assert find({"z": image, "other": phantom(1), "a": image}) == [
        {"a": "a", "b": "z", "similarity": 1.0, "exact": True}
    ]


def test_constant_images_are_duplicates_of_their_exact_copies_only() -> None:
    black, grey = np.zeros((30, 40, 3), np.uint8), np.full((30, 40, 3), 90, np.uint8)
    assert find({"a": black, "b": grey, "c": phantom(0), "d": black}) == [
        {"a": "a", "b": "d", "similarity": 1.0, "exact": True}
    ]


def test_similarity_is_the_cosine() -> None:
    first, second, third = (np.zeros(FINGERPRINT_BYTES, np.int8) for _ in range(3))
    first[:2], second[:2], third[:2] = (3, 4), (4, 3), (4, -3)
    table = find_duplicates(["a", "b", "c"], ["1", "2", "3"], [first.tobytes(), second.tobytes(), third.tobytes()])
    assert table.schema == DUPLICATES
    assert table.to_pylist() == [{"a": "a", "b": "b", "similarity": pytest.approx(24 / 25), "exact": False}]


def test_neither_order_nor_blocks_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"s{index}" for index in range(50)]
    prints = random_fingerprints(40) + random_fingerprints(10)
    hashes = [f"h{index % 45}" for index in range(50)]
    expected = find_duplicates(ids, hashes, prints)
    rows = expected.to_pylist()
    assert len(rows) == 15  # ten copies, and five more of the same hash
    assert [(row["a"], row["b"]) for row in rows] == sorted((row["a"], row["b"]) for row in rows)
    assert all(row["a"] < row["b"] for row in rows)
    assert sum(row["exact"] for row in rows) == 5

    order = np.random.default_rng(1).permutation(50)
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    shuffled = find_duplicates([ids[i] for i in order], [hashes[i] for i in order], [prints[i] for i in order])
    assert shuffled.equals(expected)


def test_nothing_gives_an_empty_table() -> None:
    assert find_duplicates([], [], []).equals(DUPLICATES.empty_table())
    assert clusters([], DUPLICATES.empty_table()).tolist() == []


def test_faults_of_the_caller_are_named() -> None:
    with pytest.raises(ValueError, match="listed twice"):
        find_duplicates(["a", "a"], ["1", "2"], random_fingerprints(2))
    with pytest.raises(ValueError, match="576 bytes"):
        find_duplicates(["a"], ["1"], [b"short"])
    with pytest.raises(ValueError, match="argument"):
        find_duplicates(["a", "b"], ["1"], random_fingerprints(2))
    with pytest.raises(ValueError, match="not listed"):
        clusters(["a"], pairs(("a", "b")))
    with pytest.raises(ValueError, match="1 groups for 2 samples"):
        clusters(["a", "b"], pairs(), ["g"])


def test_memory_stays_below_the_whole_matrix() -> None:
    count = 6000
    ids = [f"s{index:04d}" for index in range(count)]
    prints = random_fingerprints(count - 1)
    tracemalloc.start()
    try:
        table = find_duplicates(ids, ids, [*prints, prints[17]])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert table.to_pylist() == [{"a": "s0017", "b": "s5999", "similarity": 1.0, "exact": False}]
    assert peak < count**2 * 4


def test_clusters_are_transitive_and_numbered_by_smallest_id() -> None:
    ids = ["e", "c", "a", "d", "b"]
    assert clusters(ids, pairs(("c", "d"), ("d", "e"))).tolist() == [2, 2, 0, 2, 1]
    assert clusters(ids, pairs()).tolist() == [4, 2, 0, 3, 1]


def test_clusters_join_groups() -> None:
    ids = ["a", "b", "c", "d", "e", "f"]
    groups = ["g", None, "g", "h", None, "h"]
    assert clusters(ids, pairs(), groups).tolist() == [0, 1, 0, 2, 3, 2]
    assert clusters(ids, pairs(("b", "c"), ("a", "f")), groups).tolist() == [0, 0, 0, 0, 1, 0]


def test_clusters_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    ids = [f"s{index}" for index in range(60)]
    table = pairs(*(tuple(sorted(rng.choice(ids, 2, replace=False))) for _ in range(25)))
    groups = [f"g{index % 7}" if index % 5 == 0 else None for index in range(60)]
    expected = dict(zip(ids, clusters(ids, table, groups).tolist(), strict=True))
    order = rng.permutation(60)
    shuffled = [ids[i] for i in order]
    numbers = clusters(shuffled, table.take(rng.permutation(25)), [groups[i] for i in order])
    assert dict(zip(shuffled, numbers.tolist(), strict=True)) == expected
    assert set(numbers) == set(range(numbers.max() + 1))


@pytest.mark.real_data
def test_real_busi(shared: Path, tmp_path: Path) -> None:
    archive = shared / "data" / "busi.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is absent")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    files = sorted(tmp_path.glob("Dataset_BUSI_with_GT/*/*).png"))  # no mask's name ends like this
    images = {file.stem: np.asarray(Image.open(file).convert("RGB")) for file in files}
    assert len(images) == 780

    rows = find(images)
    assert [(row["a"], row["b"]) for row in rows if row["exact"]] == [("benign (433)", "malignant (145)")]
    assert sum(not row["exact"] for row in rows) == 186
    across = {(row["a"], row["b"]) for row in rows if str(row["a"]).split()[0] != str(row["b"]).split()[0]}
    assert len(across) == 9
    assert {("benign (399)", "malignant (93)"), ("benign (437)", "normal (34)")} < across

    sizes = np.bincount(clusters(list(images), pa.Table.from_pylist(rows, DUPLICATES)))
    assert (sizes > 1).sum() == 132
    assert sizes[sizes > 1].sum() == 290
    assert sizes.max() == 4
