"""Bytes from anybody to pixels: only the kinds that are named here, and never more pixels than allowed.

Pillow by itself opens many more kinds, some of which start other programs.
"""

from __future__ import annotations

import importlib.util
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from btinet.datasets.files import decode_rgb
from btinet.errors import InputError
from btinet.inference.images import decode_dicom, has_dicom_prefix
from btinet.serving.limits import MEGA, Refused

DICOM = "application/dicom"
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/bmp": "BMP", "image/tiff": "TIFF"}
"""Pillow's name of each kind."""
KINDS = (*FORMATS, *([DICOM] if importlib.util.find_spec("pydicom") else []))
"""Content types that are taken here."""
NAMES = "PNG, JPEG, BMP, TIFF" + (", single-frame DICOM" if DICOM in KINDS else "")

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
            _check_pixels(*_dicom_size(content), max_pixels)
            return decode_dicom(content, PLACE)
        with Image.open(io.BytesIO(content), formats=list(FORMATS.values())) as image:  # reads no pixels yet
            _check_pixels(*image.size, max_pixels)
        return decode_rgb(content, PLACE)
    except UnidentifiedImageError as error:
        raise Refused(422, f"{PLACE}: is not an image of these kinds: {NAMES}") from error
    except Image.DecompressionBombError as error:
        raise Refused(413, f"{PLACE}: {error}") from error
    except InputError as error:
        raise Refused(422, str(error)) from error


def _dicom_size(content: bytes) -> tuple[int, int]:
    import pydicom

    if DEFLATED in content:
        raise Refused(422, f"{PLACE}: is deflated DICOM, which is not taken here: save it with another transfer syntax")
    try:
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        return int(header.Columns), int(header.Rows)
    # as in decode_dicom: any of many kinds
    except Exception as error:
        raise Refused(422, f"{PLACE}: cannot be decoded as DICOM ({error})") from error


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        message = f"{width} x {height} pixels are {width * height / MEGA:.1f} megapixels"
        raise Refused(413, f"{PLACE}: {message}; at most {max_pixels / MEGA:g} are taken: make it smaller")
