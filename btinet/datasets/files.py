"""What the readers of image files share: finding the dataset's folder, decoding images and masks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btinet.config import DatasetSettings
from btinet.errors import InputError

MASK_THRESHOLD = 127
"""A pixel belongs to the mask when its 8-bit grey value is above this."""


def dataset_root(settings: DatasetSettings, data_root: str | None, remedy: str) -> Path:
    """The folder to look for a dataset in: ``settings.root``, else ``data_root``, else BTINET_DATA_ROOT.

    Args:
        remedy: how to get the dataset and lay it out, for the error message.

    Raises:
        InputError: none of the three is given, or the folder does not exist.
    """
    given = {
        "datasets.root": settings.root,
        "data_root": data_root,
        "BTINET_DATA_ROOT": os.environ.get("BTINET_DATA_ROOT"),
    }
    for field, value in given.items():
        if value:
            root = Path(value).expanduser()
            if not root.is_dir():
                raise InputError(f"dataset {settings.name!r}: {field}: no such folder: {root}; {remedy}")
            return root
    raise InputError(f"dataset {settings.name!r}: none of {', '.join(given)} says where it is; {remedy}")


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode an image file of any 8-bit mode as RGB [H, W, 3]; transparency is dropped."""
    return np.asarray(_decode(path).convert("RGB"))


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Decode a mask file of any 8-bit mode as [H, W] of 0 and 1."""
    return (np.asarray(_decode(path).convert("L")) > MASK_THRESHOLD).astype(np.uint8)


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    # Pillow reports broken files as any of these, by format and by where the fault lies
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded ({error}): get this file again") from error
    if image.mode.startswith(("I", "F")):  # converting to 8 bit would clip it silently
        raise InputError(f"{path}: {image.mode} pixels are not supported: save it with 8 bits a channel")
    return image
