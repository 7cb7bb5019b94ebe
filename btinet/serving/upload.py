"""Bytes from anybody to pixels: only the kinds that are named here, and not more pixels than allowed."""

from __future__ import annotations

import importlib.util
import io
import math
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from btinet.errors import InputError
from btinet.inference.images import FORMATS, decode_dicom, decode_image, has_dicom_prefix
from btinet.serving.limits import MEGA, Refused

DICOM = "application/dicom"
KINDS = (*(f"image/{name.lower()}" for name in FORMATS), *([DICOM] if importlib.util.find_spec("pydicom") else []))
"""Content types that are taken here."""
NAMES = ", ".join(FORMATS) + (", single-frame DICOM" if DICOM in KINDS else "")

PLACE = "the upload"
DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax of a DICOM file that is compressed as a whole: how large it gets shows only when it is too late."""


def decode_upload(content: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """An uploaded image as RGB [H, W, 3].

    Raises:
        Refused: 413 if it has too many pixels, 422 if it cannot be decoded.
    """
    try:
        if DICOM in KINDS and has_dicom_prefix(content):
            _check_pixels(_dicom_sizes(content), max_pixels)
            return decode_dicom(content, PLACE)
        return decode_image(content, PLACE, lambda image: _check_pixels(_sizes(image), max_pixels))
    except InputError as error:
        is_bomb = isinstance(error.__cause__, Image.DecompressionBombError)
        raise Refused(413 if is_bomb else 422, str(error)) from error


def _sizes(image: Image.Image) -> list[tuple[int, int]]:
    """An image's own size and, in TIFF, that of its tiles, each of which is decoded whole."""
    sizes = [image.size]
    if isinstance(image, TiffImageFile):
        width, height = (image.tag_v2.get(tag) for tag in (TILEWIDTH, TILELENGTH))
        if isinstance(width, int) and isinstance(height, int):
            sizes.append((width, height))
    return sizes


def _dicom_sizes(content: bytes) -> list[tuple[int, int]]:
    """A DICOM image's size and, in JPEG and JPEG 2000, that of what is compressed, whatever the header says."""
    import pydicom
    from pydicom.encaps import generate_frames

    if DEFLATED in content:
        raise Refused(422, f"{PLACE}: is deflated DICOM, which is not taken here: save it with another transfer syntax")
    try:
        elements = pydicom.dcmread(io.BytesIO(content))
        sizes = [(int(elements.Columns), int(elements.Rows))]
        if elements.file_meta.TransferSyntaxUID.is_encapsulated:
            frame = next(generate_frames(elements.PixelData, number_of_frames=1))
            with suppress(UnidentifiedImageError), Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
                sizes.append(image.size)
        return sizes
    # as in decode_dicom: any of many kinds
    except Exception as error:
        raise Refused(422, f"{PLACE}: cannot be decoded as DICOM ({error})") from error


def _check_pixels(sizes: list[tuple[int, int]], max_pixels: int) -> None:
    width, height = max(sizes, key=math.prod)
    if width * height > max_pixels:
        message = f"{width} x {height} pixels are {width * height / MEGA:.1f} megapixels"
        raise Refused(413, f"{PLACE}: {message}; at most {max_pixels / MEGA:g} are taken: make it smaller")
