"""Any image file to the pixels that the model sees: as prepared datasets are decoded and resized, and DICOM."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from btinet.datasets.files import IMAGE_SUFFIXES, decode, read_content, shown
from btinet.datasets.prepare import resize_image
from btinet.datasets.sample import Check, SampleError
from btinet.errors import InputError
from btinet.inference.predictor import Prepared
from btinet.storage import Storage

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (*IMAGE_SUFFIXES, *DICOM_SUFFIXES)
GLOB = "*?["
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
"""Pillow's names of what is decoded; by itself it opens many more kinds, some of which start other programs."""

PREVIEW = 1024
"""Longest side of the copy that overlays are drawn on, in pixels: what is kept of a large image is small."""


class Source(NamedTuple):
    """An image file and what its results are called."""

    file: Storage
    name: str
    """Its path below the folder that was given, or its file's name; unique, without suffix."""


class Opened(NamedTuple):
    """A decoded image."""

    source: Source
    prepared: Prepared
    preview: NDArray[np.uint8]
    """RGB [h, w, 3], at most PREVIEW on its longest side."""


class BadImage(NamedTuple):
    """An image that cannot be used."""

    source: Source
    reason: str


def find_images(given: Iterable[str], endpoint: str | None = None, results: Sequence[Storage] = ()) -> list[Source]:
    """The images that files, folders (at any depth), globs and s3:// URLs name, in that order.

    A file that is named itself is taken whatever its suffix; in folders and globs those of SUFFIXES are.

    Args:
        results: folders that predictions are written to: what folders and globs find there is left out.

    Raises:
        InputError: a folder or glob holds no image.
    """
    sources: list[Source] = []
    numbers: dict[str, int] = {}
    taken: set[str] = set()
    written = tuple(f"{folder.url}/" for folder in results)

    def is_meant(file: Storage) -> bool:
        return file.name.lower().endswith(SUFFIXES) and not file.url.startswith(written)

    for text in given:
        place = Storage(text, endpoint)
        if any(character in text for character in GLOB) and not place.exists():
            paths = sorted(place.fs.glob(_pattern(place), withdirs=False))
            files = [Storage(f"{place.protocol}://{path}", place.endpoint) for path in paths]
            named = [(file, file.name) for file in files if is_meant(file)]
        elif place.exists() and place.fs.isdir(place.path):
            files = [file for file in place.find("") if is_meant(file)]
            named = [(file, file.path.removeprefix(place.path).lstrip("/")) for file in files]
        else:
            named = [(place, place.name)]
        if not named:
            raise InputError(f"{text}: no image there; looked for {', '.join(SUFFIXES)}")
        for file, relative in named:
            name = stem = relative.rpartition(".")[0] or relative
            while name in taken:
                numbers[stem] = number = numbers.get(stem, 1) + 1
                name = f"{stem}-{number}"
            taken.add(name)
            sources.append(Source(file, name))
    return sources


def _pattern(place: Storage) -> str:
    """A glob's path; folders in front that are there under just this name are no patterns, whatever is in it."""
    parts = place.path.split("/")
    count = next(n for n in range(len(parts) - 1, -1, -1) if n < 2 or place.fs.exists("/".join(parts[:n])))
    return "/".join([*map(glob.escape, parts[:count]), *parts[count:]])


def open_image(source: Source, size: int) -> Opened | BadImage:
    """Decode an image and resize it to the model's [size, size], exactly as a dataset is prepared."""
    place = shown(source.file)
    try:
        source.file.path.encode()  # as the tables that it goes into
        content = read_content(source.file)
        decoded = (decode_dicom if _is_dicom(source.file.name, content) else decode_image)(content, place)
        return Opened(source, *prepare_image(decoded, size))
    except UnicodeEncodeError:
        return BadImage(source, "its name is not UTF-8: rename it")
    except InputError as error:
        return BadImage(source, str(error).removeprefix(f"{place}: "))


def prepare_image(image: NDArray[np.uint8], size: int) -> tuple[Prepared, NDArray[np.uint8]]:
    """A decoded image RGB [H, W, 3] as the model sees it, and its preview (see :class:`Opened`)."""
    height, width = image.shape[:2]
    preview = Image.fromarray(image)
    preview.thumbnail((PREVIEW, PREVIEW))
    return Prepared(resize_image(image, size), width, height), np.asarray(preview)


def _is_dicom(name: str, content: bytes) -> bool:
    if name.lower().endswith(SUFFIXES):
        return name.lower().endswith(DICOM_SUFFIXES)
    return has_dicom_prefix(content)


def has_dicom_prefix(content: bytes) -> bool:
    """Whether a file's content begins as DICOM files do."""
    return content[128:132] == b"DICM"


def decode_image(
    content: bytes, place: str, check: Callable[[Image.Image], None] = lambda image: None
) -> NDArray[np.uint8]:
    """Decode a file's content, an image of FORMATS of any 8-bit mode, as RGB [H, W, 3]; messages call it ``place``.

    It is turned as its EXIF orientation says, as a viewer shows it; transparency is dropped.

    Args:
        check: is shown the image before its pixels are read.

    Raises:
        SampleError: it is no such image.
    """
    image = decode(content, place, FORMATS, check)
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image.convert("RGB"))


def decode_dicom(content: bytes, place: str) -> NDArray[np.uint8]:
    """Decode a file's content, a single-frame DICOM image, as RGB [H, W, 3]; messages call it ``place``.

    Stored values are rescaled, windowed (VOI LUT) and, for MONOCHROME1, inverted, as a viewer shows them; indices into
    a palette become its colours. Without a window 8-bit values are taken as they are, and deeper ones from their
    minimum to their maximum.

    Raises:
        SampleError: it is not DICOM, of several frames, or its compression cannot be decoded.
        InputError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise InputError("reading DICOM needs pydicom: pip install 'btinet[dicom]'") from error

    def fault(check: Check, message: str) -> SampleError:
        return SampleError(check, place, message)

    try:
        elements = pydicom.dcmread(io.BytesIO(content))
        if (frames := int(elements.get("NumberOfFrames") or 1)) > 1:
            raise fault(Check.UNREADABLE, f"has {frames} frames: save the one that is meant as a single-frame file")
        pixels = elements.pixel_array  # of YBR images pydicom makes RGB
        if elements.PhotometricInterpretation == "PALETTE COLOR":
            colours = apply_color_lut(pixels, elements)
            return _stretched(colours, 0, np.iinfo(colours.dtype).max)
        if elements.SamplesPerPixel == 3:
            return np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else _stretched(pixels))
        values = apply_voi_lut(apply_modality_lut(pixels, elements), elements)
        shown_range = _shown_range(elements)
    except SampleError:
        raise
    # pydicom reports what is wrong with a file as any of many kinds of error, by element and by decoder
    except Exception as error:
        raise fault(Check.UNREADABLE, f"cannot be decoded as DICOM ({error}): get this file again") from error
    grey = _stretched(values, *shown_range) if shown_range else _stretched(values)
    if elements.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[:, :, None], 3, axis=2)


def _shown_range(content: Any) -> tuple[float, float] | None:
    """The values that are black and white after modality and VOI LUT; None: their own extremes."""
    if lut := content.get("VOILUTSequence"):
        return 0, 2 ** lut[0].LUTDescriptor[2] - 1
    has_window = None not in (content.get("WindowCenter"), content.get("WindowWidth"))
    if not has_window and content.BitsStored > 8:
        return None
    if lut := content.get("ModalityLUTSequence"):
        return 0, 2 ** lut[0].LUTDescriptor[2] - 1
    low = -(2 ** (content.BitsStored - 1)) if content.PixelRepresentation else 0
    slope, intercept = float(content.get("RescaleSlope", 1)), float(content.get("RescaleIntercept", 0))
    return low * slope + intercept, (low + 2**content.BitsStored - 1) * slope + intercept


def _stretched(values: NDArray[Any], low: float | None = None, high: float | None = None) -> NDArray[np.uint8]:
    """Values from ``low`` to ``high`` (by default their own extremes) as 0..255."""
    values = values.astype(np.float64)
    low, high = (values.min() if low is None else low), (values.max() if high is None else high)
    return np.rint(np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255).astype(np.uint8)
