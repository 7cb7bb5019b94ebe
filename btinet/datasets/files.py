"""What the readers of image files share: finding the dataset's folder, decoding images and masks."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from btinet.config import DatasetSettings
from btinet.datasets.archive import extract
from btinet.datasets.sample import Check, Pixels, Sample, SampleError
from btinet.errors import InputError
from btinet.storage import PART, Storage, cache_folder

MASK_THRESHOLD = 127
"""A pixel belongs to the mask when its 8-bit grey value is above this."""

BLUR = 32
"""Grey values this far from black and white are neither; lossy compression stays nearer."""
BLURRED_SHARE = 0.01
"""A mask with more such pixels than this share is not binary."""
MAX_VALUES = 8
"""How many of a mask's values a message names."""

ASPECT_TOLERANCE = 0.01

DEEP = re.compile(";16[BLN]")
"""How Pillow says of colour channels in a file that they have 16 bits; it keeps the upper 8."""
TURNED = range(2, 9)
"""EXIF orientations of an image that is to be turned or mirrored to be shown."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def dataset_root(settings: DatasetSettings, data_root: str | None, remedy: str, layout: Iterable[str] = ()) -> Storage:
    """The folder to look for a dataset in: ``settings.root``, else ``data_root``, else BTINET_DATA_ROOT.

    Where that folder holds the dataset as one file, NAME.tar (``btinet data pack``), it is unpacked into the cache.

    Args:
        remedy: how to get the dataset and lay it out, for the error message.
        layout: names of what lies there where it is laid out, besides a folder of the dataset's name.

    Raises:
        InputError: none of the three is given, the folder does not exist, or it holds the dataset in both ways.
    """
    given = {
        "datasets.root": settings.root,
        "data_root": data_root,
        "BTINET_DATA_ROOT": os.environ.get("BTINET_DATA_ROOT"),
    }
    for field, value in given.items():
        if value:
            root = Storage(value)
            if not root.exists():
                raise InputError(f"dataset {settings.name!r}: {field}: no such folder: {shown(root)}; {remedy}")
            archive = root / f"{settings.name}.tar"
            if not archive.exists():
                return root
            for name in (settings.name, *layout):
                if (root / name).exists():
                    raise InputError(
                        f"dataset {settings.name!r}: {shown(root)} holds {archive.name} and {name}: keep the one that "
                        "is meant"
                    )
            return _unpacked(archive)
    raise InputError(f"dataset {settings.name!r}: none of {', '.join(given)} says where it is; {remedy}")


def _unpacked(archive: Storage) -> Storage:
    """The folder in the cache with the content of a .tar file; unpacked the first time."""
    folder = cache_folder() / "raw" / archive.sha256()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            for left in folder.parent.glob(f"{folder.name}.*{PART}"):  # by a process that was killed
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(archive.path)
                if not archive.is_local:
                    file = Path(scratch) / archive.name
                    archive.download(file)
                extract(file, folder)
    return Storage(str(folder))


def shown(file: Storage) -> str:
    """A file as people write it: a path on a disk (what is not UTF-8 in it as \\xNN), else the URL."""
    return os.fsencode(file.path).decode("utf-8", "backslashreplace") if file.is_local else file.url


def load_files(sample: Sample, mask_may_be_scaled: bool = False) -> Pixels:
    """Decode a sample's image and merge its masks.

    Args:
        mask_may_be_scaled: accept a single mask of another size if it has the image's aspect.

    Raises:
        SampleError: a file is missing or cannot be decoded, or a mask does not fit the image.
    """
    image = read_rgb(sample.files[0])
    mask = np.zeros(image.shape[:2], np.uint8)
    for number, file in enumerate(sample.files[1:]):
        part = read_mask(file)
        if part.shape != mask.shape:
            is_scaled = mask_may_be_scaled and number == 0 and _same_aspect(part, mask)
            if not is_scaled:
                message = f"mask is {_size(part)} but its image is {_size(image)}: get both files again"
                raise SampleError(Check.SIZE_MISMATCH, shown(file), message)
            mask = part
        else:
            mask |= part
    return Pixels(image, mask)


def read_rgb(file: Storage) -> NDArray[np.uint8]:
    """Decode an upright image file of any 8-bit mode as RGB [H, W, 3]; transparency is dropped."""
    return np.asarray(_read_upright(file, "RGB"))


def read_content(file: Storage) -> bytes:
    """A file's bytes; one that is missing or cannot be read is a SampleError."""
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise SampleError(Check.MISSING_FILE, shown(file), "no such file: get it again") from error
    except OSError as error:  # a folder, a link to itself, a broken disk
        reason = error.strerror or error
        raise SampleError(Check.UNREADABLE, shown(file), f"cannot be read ({reason}): get this file again") from error


def read_mask(file: Storage) -> NDArray[np.uint8]:
    """Decode a mask file as [H, W] of 0 and 1: grey values above MASK_THRESHOLD, or 1 where all are 0 or 1."""
    levels = np.asarray(_read_upright(file, "L"))
    brightest = levels.max()
    if brightest <= 1:
        return levels
    blurred = cv2.countNonZero(cv2.inRange(levels, BLUR, 255 - BLUR)) / levels.size
    if blurred > BLURRED_SHARE:
        message = (
            f"mask is not binary: {blurred:.0%} of its pixels are neither black nor white: save the lesion as 255 "
            "and the rest as 0"
        )
        raise SampleError(Check.NON_BINARY_MASK, shown(file), message)
    if brightest <= MASK_THRESHOLD:  # numbers of classes, which are all but black
        values = ", ".join(map(str, np.unique(levels)[:MAX_VALUES]))
        message = f"mask is not binary: its values are {values}, none of them white: save the lesion as 255"
        raise SampleError(Check.NON_BINARY_MASK, shown(file), message)
    return np.asarray(cv2.threshold(levels, MASK_THRESHOLD, 1, cv2.THRESH_BINARY)[1], np.uint8)


def _read_upright(file: Storage, mode: Literal["RGB", "L"]) -> Image.Image:
    image = decode(read_content(file), shown(file))
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation in TURNED:  # what was drawn on it may have been drawn on either
        message = f"is to be turned to be shown (EXIF orientation {orientation}): save it upright"
        raise SampleError(Check.UNREADABLE, shown(file), message)
    return image if image.mode == mode else image.convert(mode)  # which copies even where there is nothing to do


def decode(
    content: bytes,
    place: str,
    kinds: tuple[str, ...] | None = None,
    check: Callable[[Image.Image], None] = lambda image: None,
) -> Image.Image:
    """Decode a file's content, an image of any 8-bit mode, not turned as EXIF may say.

    Args:
        place: what messages call it.
        kinds: Pillow's names of the kinds of files that are taken; by default all that Pillow opens.
        check: is shown the image before its pixels are read.

    Raises:
        SampleError: it is no such image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=kinds) as image:
            check(image)
            is_deep = image.mode.startswith(("I", "F")) or DEEP.search(str(image.tile[:1])) is not None
            image.load()
    except UnidentifiedImageError as error:
        which = f" of these kinds: {', '.join(kinds)}" if kinds else ""
        raise SampleError(Check.UNREADABLE, place, f"is not an image{which}: get this file again") from error
    # Pillow reports broken files as any of these, by format and by where the fault lies
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SampleError(Check.UNREADABLE, place, f"cannot be decoded ({error}): get this file again") from error
    if is_deep:  # converting to 8 bit would clip or cut it silently
        message = "more than 8 bits a channel are not supported: save it with 8"
        raise SampleError(Check.UNREADABLE, place, message)
    return image


def _same_aspect(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return abs(a.shape[1] * b.shape[0] / (a.shape[0] * b.shape[1]) - 1) <= ASPECT_TOLERANCE


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
