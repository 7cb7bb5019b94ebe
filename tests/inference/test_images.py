"""Finding images, and decoding them as datasets are prepared; DICOM as a viewer shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from btinet.datasets.prepare import resize_image
from btinet.errors import InputError
from btinet.inference.images import BadImage, Opened, Source, find_images, open_image, read_dicom
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
        image = read_dicom(Storage(str(write_dicom(tmp_path / "i.dcm", pixels, **fields))))
        assert image.shape == (*pixels.shape, 3)
        np.testing.assert_allclose(image[:, :, 1], expected, atol=1)

    def test_rgb(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
        assert (read_dicom(Storage(str(write_dicom(tmp_path / "i.dcm", pixels)))) == pixels).all()

    def test_several_frames(self, tmp_path: Path) -> None:
        file = write_dicom(tmp_path / "i.dcm", np.zeros((3, 8, 8, 3), np.uint8))
        with pytest.raises(InputError, match="has 3 frames: save the one that is meant"):
            read_dicom(Storage(str(file)))

    def test_not_dicom(self, tmp_path: Path) -> None:
        (tmp_path / "i.dcm").write_bytes(b"something else")
        with pytest.raises(InputError, match="cannot be decoded as DICOM"):
            read_dicom(Storage(str(tmp_path / "i.dcm")))

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

    def test_nothing(self, folder: Path) -> None:
        for place in (f"{folder}/*.png", str(folder / "empty")):
            (folder / "empty").mkdir(exist_ok=True)
            with pytest.raises(InputError, match="no image there"):
                find_images([place])
