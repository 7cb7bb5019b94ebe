"""Datasets by name."""

from __future__ import annotations

from collections.abc import Callable

from btinet.config import DatasetSettings
from btinet.datasets.brisc2025 import open_brisc2025
from btinet.datasets.busi import open_busi
from btinet.datasets.folder import open_folder
from btinet.datasets.ham10000 import open_ham10000
from btinet.datasets.phantom import open_phantom
from btinet.datasets.sample import Reader
from btinet.errors import InputError

READERS: dict[str, Callable[[DatasetSettings, str | None], Reader]] = {
    "busi": open_busi,
    "ham10000": open_ham10000,
    "brisc2025": open_brisc2025,
    "phantom": open_phantom,
}


def open_reader(settings: DatasetSettings, data_root: str | None = None) -> Reader:
    """Open the dataset that ``settings`` names; one that READERS does not know is a folder of the user's own.

    Args:
        data_root: folder that holds the dataset when ``settings.root`` is None; else BTINET_DATA_ROOT.

    Raises:
        InputError: the folder is not given, missing or of another layout.
    """
    if settings.name in READERS:
        return READERS[settings.name](settings, data_root)
    try:
        return open_folder(settings, data_root)
    except InputError as error:
        known = ", ".join(READERS)
        raise InputError(
            f"{error}\n\n({settings.name!r} is taken for a folder of yours; known are {known}.)"
        ) from error
