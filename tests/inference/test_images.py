"""Finding images, and decoding them as datasets are prepared; DICOM as a viewer shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from PIL import ExifTags, Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from btinet.datasets.prepare import resize_image
from btinet.errors import InputError
from btinet.inference.images import BadImage, Opened, Source, decode_dicom, find_images, open_image
from btinet.storage import Storage


def write_dicom(file: Path, pixels: np.ndarray, **fields: Any) -> Path:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    frames = pixels.ndim == 4
    rows, columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    data.Rows, data.Columns = rows, columns
    data.SamplesPerPixel = 3 if pixels.ndim >= 3 else 1
    data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames:
        data.NumberOfFrames = len(pixels)
    for name, value in fields.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file


def decoded(file: Path) -> np.ndarray:
    return decode_dicom(file.read_bytes(), str(file))


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
CT = np.array([[-1000, 0], [40, 440]], np.int16)


class TestDicom:
    @pytest.mark.parametrize(
        ("pixels", "fields", "expected"),
        [
            (RAMP, {}, RAMP),
            (RAMP, {"PhotometricInterpretation": "MONOCHROME1"}, 255 - RAMP),
            (np.array([[100, 200], [150, 100]], np.uint16), {}, [[0, 255], [128, 0]]),
            # stored + 0 * slope in HU; the window of 40 +- 200, exact
            (CT, {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, [[0, 102], [128, 255]]),
            (
                (CT + 1024).astype(np.uint16),
                {
                    "RescaleSlope": 1,
                    "RescaleIntercept": -1024,
                    "WindowCenter": 40,
                    "WindowWidth": 400,
                    "VOILUTFunction": "LINEAR_EXACT",
                    "PhotometricInterpretation": "MONOCHROME1",
                },
                [[255, 153], [127, 0]],
            ),
        ],
        ids=["8-bit", "monochrome1", "16-bit", "window", "rescaled-window-inverted"],
    )
    def test_grey(self, tmp_path: Path, pixels: np.ndarray, fields: dict[str, Any], expected: Any) -> None:
        image = decoded(write_dicom(tmp_path / "i.dcm", pixels, **fields))
        assert image.shape == (*pixels.shape, 3)
        np.testing.assert_allclose(image[:, :, 1], expected, atol=1)

    def test_rgb(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
        assert (decoded(write_dicom(tmp_path / "i.dcm", pixels)) == pixels).all()

    @pytest.mark.parametrize("bits", [8, 16])
    def test_palette(self, tmp_path: Path, bits: int) -> None:
        """Its colours, not the indices."""
        colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [128, 128, 128]], np.uint8)
        fields: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for name, values in zip(("Red", "Green", "Blue"), colours.T, strict=True):
            fields[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
            table = values.tobytes() if bits == 8 else (values.astype(np.uint16) * 257).tobytes()
            fields[f"{name}PaletteColorLookupTableData"] = table
        indices = np.array([[0, 1], [2, 3]], np.uint8)
        assert (decoded(write_dicom(tmp_path / "i.dcm", indices, **fields)) == colours[indices]).all()

    @pytest.mark.parametrize("window", [{"WindowCenter": None, "WindowWidth": None}, {"WindowCenter": 150}])
    def test_no_whole_window(self, tmp_path: Path, window: dict[str, Any]) -> None:
        """As without one: from the least value to the largest."""
        pixels = np.array([[100, 200], [150, 100]], np.uint16)
        image = decoded(write_dicom(tmp_path / "i.dcm", pixels, **window))
        assert image[:, :, 0].tolist() == [[0, 255], [128, 0]]

    def test_several_frames(self, tmp_path: Path) -> None:
        file = write_dicom(tmp_path / "i.dcm", np.zeros((3, 8, 8, 3), np.uint8))
        with pytest.raises(InputError, match="has 3 frames: save the one that is meant"):
            decoded(file)

    def test_not_dicom(self, tmp_path: Path) -> None:
        (tmp_path / "i.dcm").write_bytes(b"something else")
        with pytest.raises(InputError, match="cannot be decoded as DICOM"):
            decoded(tmp_path / "i.dcm")

    def test_without_suffix(self, tmp_path: Path) -> None:
        file = write_dicom(tmp_path / "IM0001", RAMP)
        opened = open_image(Source(Storage(str(file)), "IM0001"), 16)
        assert isinstance(opened, Opened)
        assert (opened.prepared.pixels[:, :, 0] == RAMP).all()


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGB"), ("png", "L"), ("png", "RGBA"), ("tif", "RGB"), ("jpg", "L")]
)
def test_as_datasets_are_prepared(tmp_path: Path, suffix: str, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 4), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    file = tmp_path / f"i.{suffix}"
    image.save(file)
    opened = open_image(Source(Storage(str(file)), "i"), 32)
    assert isinstance(opened, Opened)
    with Image.open(file) as again:
        assert (opened.prepared.pixels == resize_image(np.asarray(again.convert("RGB")), 32)).all()
    assert (opened.prepared.width, opened.prepared.height) == (50, 30)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_turned(tmp_path: Path, suffix: str) -> None:
    """As its EXIF orientation says, whatever the kind."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned right by a quarter
    Image.fromarray(pixels).save(tmp_path / f"i.{suffix}", exif=exif)
    opened = open_image(Source(Storage(str(tmp_path / f"i.{suffix}")), "i"), 32)
    assert isinstance(opened, Opened)
    assert (opened.prepared.width, opened.prepared.height) == (16, 32)
    assert opened.preview[:15].max() < 10 and opened.preview[17:].min() > 245


def test_other_kind(tmp_path: Path) -> None:
    """Pillow is asked for the kinds that are documented and no other, whatever the file is called."""
    Image.new("L", (8, 8)).save(tmp_path / "i.png", "GIF")
    bad = open_image(Source(Storage(str(tmp_path / "i.png")), "i"), 32)
    assert isinstance(bad, BadImage) and "is not an image of these kinds: PNG, JPEG" in bad.reason


def test_deep_image(tmp_path: Path) -> None:
    """More than 8 bits a channel are not cut."""
    cv2.imwrite(str(tmp_path / "i.png"), np.zeros((8, 8, 3), np.uint16))
    bad = open_image(Source(Storage(str(tmp_path / "i.png")), "i"), 32)
    assert isinstance(bad, BadImage) and "more than 8 bits a channel" in bad.reason


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/scan_\xe9.png"))
    Image.new("RGB", (8, 8)).save(file)
    (source,) = find_images([str(tmp_path)])
    bad = open_image(source, 32)
    assert isinstance(bad, BadImage) and bad.reason == "its name is not UTF-8: rename it"


def test_large_image_is_kept_small(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1500)).save(tmp_path / "i.png")
    opened = open_image(Source(Storage(str(tmp_path / "i.png")), "i"), 32)
    assert isinstance(opened, Opened)
    assert opened.preview.shape == (512, 1024, 3)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nnot", b"text"])
def test_bad_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.png").write_bytes(content)
    bad = open_image(Source(Storage(str(tmp_path / "i.png")), "i"), 32)
    assert isinstance(bad, BadImage)
    assert "get this file again" in bad.reason and str(tmp_path) not in bad.reason


class TestFind:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("a/1.png", "a/1.jpg", "a/deep/2.TIF", "b/1.png", "a/notes.txt", "b/3.dcm"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return tmp_path

    def names(self, *given: str) -> list[str]:
        return [source.name for source in find_images(given)]

    def test_folder(self, folder: Path) -> None:
        """With the folders below it; two files of one stem get two names."""
        assert self.names(str(folder)) == ["a/1", "a/1-2", "a/deep/2", "b/1", "b/3"]

    def test_glob_file_and_url(self, folder: Path) -> None:
        assert self.names(f"{folder}/*/1.png") == ["1", "1-2"]
        assert self.names(f"{folder}/a/notes.txt", f"file://{folder}/b") == ["notes", "1", "3"]

    def test_names_are_unique(self, tmp_path: Path) -> None:
        for name in ("i-2.png", "i.jpg", "i.png"):
            (tmp_path / name).touch()
        assert self.names(str(tmp_path)) == ["i-2", "i", "i-3"]

    def test_folder_that_a_glob_finds(self, folder: Path) -> None:
        (folder / "a/folder.png").mkdir()
        assert self.names(f"{folder}/a/*.png") == ["1"]

    def test_brackets_in_a_folder_s_name(self, folder: Path) -> None:
        (folder / "a").rename(folder / "[2024] a")
        assert self.names(f"{folder}/[[]2024] a/*.png") == self.names(f"{folder}/[2024] a/[0-9].png") == ["1"]

    def test_results_are_left_out(self, folder: Path) -> None:
        """Of folders and globs; what is named itself is meant."""
        results = [Storage(str(folder / "a"))]
        found = find_images([str(folder), f"{folder}/*/1.png", str(folder / "a/1.jpg")], results=results)
        assert [source.name for source in found] == ["b/1", "b/3", "1", "1-2"]

    def test_nothing(self, folder: Path) -> None:
        for place in (f"{folder}/*.png", str(folder / "empty")):
            (folder / "empty").mkdir(exist_ok=True)
            with pytest.raises(InputError, match="no image there"):
                find_images([place])
