from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from btinet.config import DatasetSettings
from btinet.datasets import prepare as module
from btinet.datasets.examine import map_in_order
from btinet.datasets.prepare import choose_subset, prepare, resize_image, resize_mask
from btinet.datasets.prepared import FORMAT, SAMPLES, Manifest, open_prepared, read_manifest, store_folder
from btinet.datasets.registry import READERS
from btinet.datasets.sample import Check, Finding, Pixels, Sample, SampleError
from btinet.errors import InputError
from btinet.storage import Storage, cache_folder

FAKE = DatasetSettings(name="fake")


class FakeReader:
    """Random images; sample i has its own size. Counts what is asked of it."""

    classes = ("a", "b")
    healthy = frozenset({"a"})
    origin = "memory"

    def __init__(self, count: int, broken: tuple[int, ...] = (), change: int = -1) -> None:
        self.count, self.broken, self.change = count, broken, change
        self.loads = 0

    def samples(self) -> list[Sample]:
        changed = f"{self.change}" if self.change >= 0 else ""
        return [Sample(f"s{i:05d}", i % 2, f"g{i // 3}", f"{i}-{changed}", ()) for i in range(self.count)]

    def findings(self) -> list[Finding]:
        return []

    def load(self, sample: Sample) -> Pixels:
        self.loads += 1
        index = int(sample.sample_id[1:])
        if index in self.broken:
            raise SampleError(Check.UNREADABLE, sample.sample_id, "broken: mend it")
        rng = np.random.default_rng(index)
        shape = (20 + index % 7, 30)
        image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        if index == self.change:
            image[0, 0] ^= 255
        return Pixels(image, (rng.random(shape) < 0.5 * (index % 2)).astype(np.uint8))


def use(monkeypatch: pytest.MonkeyPatch, reader: FakeReader) -> FakeReader:
    monkeypatch.setitem(READERS, "fake", lambda settings, data_root: reader)
    return reader


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


def test_the_store_holds_what_the_reader_gave(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 20)
    monkeypatch.setattr(module, "BATCH_ROWS", 8)
    reader = use(monkeypatch, FakeReader(50))
    steps: list[tuple[int, int]] = []
    manifest, reused = prepare(FAKE, 32, store, on_progress=lambda *step: steps.append(step))
    assert not reused
    assert steps == [(done, 50) for done in (8, 16, 20, 28, 36, 40, 48, 50)]
    assert sorted(manifest.files) == [
        "duplicates.parquet",
        *(f"part-0000{n}.arrow" for n in range(3)),
        "samples.parquet",
    ]
    assert manifest.class_counts == {"a": 25, "b": 25}
    assert manifest.count == 50

    prepared = open_prepared(store, "fake", manifest.hash)
    assert len(prepared) == 50
    assert prepared.samples.schema.equals(SAMPLES)
    assert prepared.labels.dtype == np.int64
    rows = np.array([49, 0, 20, 19, 7, 8, 20])
    images, masks = prepared.images(rows), prepared.masks(rows)
    assert (images.dtype, images.shape) == (np.uint8, (7, 32, 32, 3))
    assert (masks.dtype, masks.shape) == (np.uint8, (7, 32, 32))
    samples = reader.samples()
    for position, row in enumerate(rows):
        image, mask = reader.load(samples[row])
        np.testing.assert_array_equal(images[position], resize_image(image, 32))
        np.testing.assert_array_equal(masks[position], resize_mask(mask, 32))
        assert prepared.samples.slice(row, 1).to_pylist() == [
            {
                "sample_id": f"s{row:05d}",
                "group_id": f"g{row // 3}",
                "label": row % 2,
                "split": None,
                "has_mask": bool(row % 2),
                "gt_area": int(masks[position].sum()),
                "source": f"{row}-",
                "source_height": image.shape[0],
                "source_width": 30,
                "intensity_mean": pytest.approx(images[position].mean(), rel=1e-6),
                "intensity_std": pytest.approx(images[position].std(), rel=1e-6),
            }
        ]


def test_rows_are_copies_and_must_exist(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    use(monkeypatch, FakeReader(10))
    prepared = open_prepared(store, "fake", prepare(FAKE, 32, store).manifest.hash)
    images = prepared.images(np.array([1, 2]))
    before = images.copy()
    images[:] = 0
    np.testing.assert_array_equal(prepared.images(np.array([1, 2])), before)
    assert prepared.masks(np.array([], int)).shape == (0, 32, 32)
    for rows in ([-1], [10]):
        with pytest.raises(IndexError):
            prepared.images(np.array(rows))


def test_preparing_again_decodes_nothing_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    reader = use(monkeypatch, FakeReader(10))
    first = prepare(FAKE, 32, store)
    loads = reader.loads
    written = {file.path: Path(file.path).stat().st_mtime_ns for file in store.find("")}
    again = prepare(FAKE, 32, store)
    assert (first.reused, again.reused) == (False, True)
    assert again.manifest == first.manifest
    assert reader.loads == loads
    assert {file.path: Path(file.path).stat().st_mtime_ns for file in store.find("")} == written


def test_same_content_from_another_request_is_not_written_twice(
    monkeypatch: pytest.MonkeyPatch, store: Storage
) -> None:
    use(monkeypatch, FakeReader(10))
    first = prepare(FAKE, 32, store)
    again = prepare(DatasetSettings(name="fake", max_samples=10), 32, store)
    assert again.reused
    assert again.manifest == first.manifest


def test_the_hash_follows_the_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def content_hash(reader: FakeReader, size: int = 32) -> str:
        use(monkeypatch, reader)
        return prepare(FAKE, size, Storage(str(tmp_path / f"{id(reader)}"))).manifest.hash

    base = content_hash(FakeReader(10))
    assert content_hash(FakeReader(10)) == base
    others = [
        content_hash(FakeReader(10, change=4)),
        content_hash(FakeReader(9)),
        content_hash(FakeReader(10), 64),
    ]
    assert len({base, *others}) == 4


def test_the_subset_is_stratified_nested_and_free_of_order() -> None:
    samples = [Sample(f"s{i:03d}", 0 if i < 60 else 1 if i < 97 else 2, None, "", ()) for i in range(100)]
    previous: set[str] = set()
    for size in range(8, 100):
        chosen = choose_subset(samples, size)
        ids = [s.sample_id for s in chosen]
        assert len(ids) == size
        assert ids == sorted(ids)
        assert previous <= set(ids)
        previous = set(ids)
        counts = Counter(s.label for s in chosen)
        for label, members in ((0, 60), (1, 37), (2, 3)):
            assert counts[label] >= 1
            assert abs(counts[label] - members * size / 100) <= 1.5
        assert choose_subset(samples[::-1], size) == chosen
    assert choose_subset(samples, None) == samples


def test_at_most_fifty_problems_are_listed(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    use(monkeypatch, FakeReader(80, broken=tuple(range(10, 75))))
    with pytest.raises(InputError, match="65 problem") as caught:
        prepare(FAKE, 32, store)
    lines = str(caught.value).splitlines()
    assert len(lines) == 52
    assert "s00010: broken: mend it" in lines[1]
    assert lines[-1].strip().startswith("and 15 more; `btinet data audit`")
    assert not store.exists()
    assert list((cache_folder() / "preparing").glob("*/")) == []


def test_samples_are_decoded_as_they_are_taken() -> None:
    """Memory: no more than a few decoded samples wait, whatever the size of the dataset."""
    taken: list[int] = []

    def decode(item: int) -> int:
        taken.append(item)
        return item * 2

    results = map_in_order(decode, iter(range(1000)))
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert len(taken) <= 5 + 2 * 8
    assert list(results) == [2 * item for item in range(5, 1000)]


def test_an_interrupted_preparation_goes_on(monkeypatch: pytest.MonkeyPatch, store: Storage, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 20)
    whole = prepare_elsewhere(monkeypatch, tmp_path)
    reader = use(monkeypatch, FakeReader(50))

    def interrupt(done: int, total: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(FAKE, 32, store, on_progress=interrupt)
    reader.loads = 0
    steps: list[int] = []
    manifest, _ = prepare(FAKE, 32, store, on_progress=lambda done, total: steps.append(done))
    assert reader.loads == 10  # of the last part
    assert steps == [20, 40, 50]
    assert manifest.files == whole.files
    assert manifest.hash == whole.hash
    assert list((cache_folder() / "preparing").glob("*/")) == []


def test_what_a_kill_after_publishing_left_is_no_hindrance(
    monkeypatch: pytest.MonkeyPatch, store: Storage, tmp_path: Path
) -> None:
    """It hit while the parts were removed from the cache."""
    use(monkeypatch, FakeReader(10))

    def half(folder: Path) -> None:
        (folder / "part-00000.arrow").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            prepare(FAKE, 32, store)
    (folder,) = (cache_folder() / "preparing").glob("*/")
    left = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert "part-00000.facts" in left
    assert prepare(FAKE, 32, store).reused
    assert not folder.exists()

    folder.mkdir()
    for name, content in left.items():
        (folder / name).write_bytes(content)
    elsewhere = Storage(str(tmp_path / "elsewhere"))
    assert len(open_prepared(elsewhere, "fake", prepare(FAKE, 32, elsewhere).manifest.hash)) == 10
    assert not folder.exists()


def prepare_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Manifest:
    with monkeypatch.context() as patch:
        use(patch, FakeReader(50))
        return prepare(FAKE, 32, Storage(str(tmp_path / "elsewhere"))).manifest


def test_duplicates_are_part_of_the_store(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    reader = use(monkeypatch, FakeReader(10))
    load = reader.load

    def load_twice(sample: Sample) -> Pixels:
        same = {"s00007": "s00003"}.get(sample.sample_id, sample.sample_id)
        return load(replace(sample, sample_id=same))

    monkeypatch.setattr(reader, "load", load_twice)
    prepared = open_prepared(store, "fake", prepare(FAKE, 32, store).manifest.hash)
    assert prepared.duplicates.to_pylist() == [{"a": "s00003", "b": "s00007", "similarity": 1.0, "exact": True}]


def test_faults_that_only_show_over_all_samples_are_refused(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    reader = use(monkeypatch, FakeReader(10))
    monkeypatch.setattr(reader, "healthy", frozenset())
    with pytest.raises(InputError, match="5 problem") as caught:
        prepare(FAKE, 32, store)
    assert "0-: no pixel of the lesion is marked, and class a has lesions" in str(caught.value)
    monkeypatch.setattr(reader, "healthy", None)  # seen from the masks
    assert prepare(FAKE, 32, store).manifest.count == 10


def test_a_bug_in_a_reader_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    reader = use(monkeypatch, FakeReader(10))
    monkeypatch.setattr(reader, "load", lambda sample: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(FAKE, 32, store)


def test_an_interruption_does_not_make_faults_forgotten(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    """One in a part that was finished, with all its other samples, before the interruption."""
    monkeypatch.setattr(module, "PART_ROWS", 20)
    use(monkeypatch, FakeReader(50, broken=(3,)))

    def interrupt(done: int, total: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(FAKE, 32, store, on_progress=interrupt)
    with pytest.raises(InputError, match="s00003: broken: mend it"):
        prepare(FAKE, 32, store)


def test_a_half_written_store_is_never_read(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    use(monkeypatch, FakeReader(10))
    upload = Storage.upload

    def failing_upload(self: Storage, source: Path) -> None:
        if source.name == "samples.parquet":
            raise OSError("disk full")
        upload(self, source)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "upload", failing_upload)
        with pytest.raises(OSError, match="disk full"):
            prepare(FAKE, 32, store)
    (folder,) = (store / "datasets/fake").children()
    assert [file.name for file in folder.children()] == ["part-00000.arrow"]
    with pytest.raises(InputError, match="btinet prepare"):
        open_prepared(store, "fake", folder.name)
    manifest, reused = prepare(FAKE, 32, store)
    assert not reused
    assert len(open_prepared(store, "fake", manifest.hash)) == 10


@pytest.mark.parametrize("name", ["part-00000.arrow", "samples.parquet"])
def test_a_damaged_file_is_refused(monkeypatch: pytest.MonkeyPatch, store: Storage, name: str) -> None:
    use(monkeypatch, FakeReader(10))
    manifest = prepare(FAKE, 32, store).manifest
    folder = store_folder(store, "fake", manifest.hash)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(InputError, match=f"{name} does not match its manifest: remove that folder and prepare again"):
        open_prepared(store, "fake", manifest.hash)
    folder.remove()  # the remedy works
    assert not prepare(FAKE, 32, store).reused
    assert len(open_prepared(store, "fake", manifest.hash)) == 10


def test_a_missing_file_is_written_again(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    use(monkeypatch, FakeReader(10))
    manifest = prepare(FAKE, 32, store).manifest
    (store_folder(store, "fake", manifest.hash) / "part-00000.arrow").remove()
    with pytest.raises(InputError, match="does not match"):
        open_prepared(store, "fake", manifest.hash)
    assert not prepare(FAKE, 32, store).reused
    assert len(open_prepared(store, "fake", manifest.hash)) == 10


def test_a_damaged_manifest_is_refused(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    use(monkeypatch, FakeReader(10))
    folder = store_folder(store, "fake", prepare(FAKE, 32, store).manifest.hash)
    manifest = (folder / "manifest.json").read_json()
    (folder / "manifest.json").write_json(manifest | {"surprise": 1})
    with pytest.raises(InputError, match="not a manifest"):
        read_manifest(folder)
    (folder / "manifest.json").write_json(manifest | {"format": 99})
    with pytest.raises(InputError, match="format 99"):
        read_manifest(folder)


def test_an_older_store_of_the_same_layout_is_read(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    """What was trained on it is evaluated, packaged and listed as before; preparing makes one of today's format."""
    monkeypatch.setattr(module, "FORMAT", 2)
    use(monkeypatch, FakeReader(10))
    old = prepare(FAKE, 32, store).manifest
    assert len(open_prepared(store, "fake", old.hash)) == 10
    monkeypatch.undo()
    use(monkeypatch, FakeReader(10))
    new = prepare(FAKE, 32, store)
    assert (old.format, new.manifest.format, new.reused) == (2, FORMAT, False)
    assert new.manifest.hash != old.hash


def test_a_remote_store_is_read_through_the_cache(
    monkeypatch: pytest.MonkeyPatch, store: Storage, tmp_path: Path
) -> None:
    use(monkeypatch, FakeReader(10))
    manifest = prepare(FAKE, 32, store).manifest
    rows = np.arange(10)
    expected = open_prepared(store, "fake", manifest.hash).images(rows)

    monkeypatch.setattr(Storage, "is_local", property(lambda self: False))
    monkeypatch.setenv("BTINET_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_prepared(store, "fake", manifest.hash), range(4)))
    assert all(np.array_equal(prepared.images(rows), expected) for prepared in opened)
    cache = tmp_path / "cache" / "datasets" / "fake" / manifest.hash
    assert sorted(file.name for file in cache.iterdir()) == [
        "duplicates.parquet",
        "part-00000.arrow",
        "samples.parquet",
    ]

    downloads: list[str] = []
    download = Storage.download
    monkeypatch.setattr(Storage, "download", lambda self, to: (downloads.append(self.name), download(self, to)))
    open_prepared(store, "fake", manifest.hash)
    assert downloads == []
    (cache / "part-00000.arrow").write_bytes(b"damaged")
    np.testing.assert_array_equal(open_prepared(store, "fake", manifest.hash).images(rows), expected)
    assert downloads == ["part-00000.arrow"]


# resizing


def test_upsampling_by_hand() -> None:
    """2 -> 4 pixels: the new centres lie at -0.25, 0.25, 0.75 and 1.25 of the old grid."""
    image = np.repeat(np.array([[0, 100], [200, 40]], np.uint8)[:, :, None], 3, axis=2)
    expected = [[0, 25, 75, 100], [50, 59, 76, 85], [150, 126, 79, 55], [200, 160, 80, 40]]
    np.testing.assert_array_equal(resize_image(image, 4)[:, :, 0], expected)
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    np.testing.assert_array_equal(resize_mask(mask, 4), np.kron(mask, np.ones((2, 2))))


def test_downsampling_does_not_average_more_than_four_pixels() -> None:
    """6 -> 2 without antialiasing takes the pixels at 1 and 4."""
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_image(image, 2), image[[1, 4]][:, [1, 4]])
    mask = (image[:, :, 0] > 127).astype(np.uint8)
    np.testing.assert_array_equal(resize_mask(mask, 2), mask[[0, 3]][:, [0, 3]])


def test_half_is_rounded_up() -> None:
    image = np.repeat(np.array([[2, 3], [2, 3]], np.uint8)[:, :, None], 3, axis=2)
    assert resize_image(image, 1).tolist() == [[[3, 3, 3]]]


@pytest.mark.parametrize(("height", "width", "size"), [(57, 91, 64), (300, 200, 64), (64, 64, 64), (224, 267, 224)])
def test_resizing_is_torchs_bilinear(height: int, width: int, size: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    reference = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    difference = np.abs(resize_image(image, size) - reference.numpy())
    assert difference.max() < 1  # OpenCV's weights are whole 256ths; the noise is as contrasty as can be
    assert difference.mean() < 0.27  # rounding alone makes it 0.25


def test_nearest_is_exact_where_floats_are_not() -> None:
    """14 * 496 / 224 is 31; 14 times the float 496 / 224 is a little less, and would take row 30."""
    mask = np.repeat(np.arange(496)[:, None], 2, axis=1)
    assert resize_mask(mask, 224)[[14, 28, 42], 0].tolist() == [31, 62, 93]


def test_other_pixels_need_another_format() -> None:
    """The docs name hashes, and storage is searched by FORMAT: who changes these digests raises it and mends both."""
    noise = np.random.default_rng(0).integers(0, 256, (301, 496, 3), np.uint8)
    digests = [
        hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()[:16]
        for pixels in (resize_image(noise, 224), resize_mask(noise[..., 0], 224))
    ]
    assert (FORMAT, *digests) == (3, "ffe6b4553f93e826", "886862d42491f0cd")


def test_parts_are_plain_arrow(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    use(monkeypatch, FakeReader(70))
    folder = store_folder(store, "fake", prepare(FAKE, 32, store).manifest.hash)
    reader = pa.ipc.open_file(pa.memory_map((folder / "part-00000.arrow").path))
    assert [reader.get_batch(n).num_rows for n in range(reader.num_record_batches)] == [16, 16, 16, 16, 6]
    assert reader.schema.field("image").type == pa.binary(32 * 32 * 3)
    assert reader.schema.field("mask").type == pa.binary(32 * 32)
