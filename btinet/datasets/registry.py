"""Datasets by name."""

from __future__ import annotations

from collections.abc import Callable

from btinet.config import DatasetSettings
from btinet.datasets.busi import open_busi
from btinet.datasets.phantom import open_phantom
from btinet.datasets.sample import Reader
from btinet.errors import InputError

READERS: dict[str, Callable[[DatasetSettings, str | None], Reader]] = {
    "busi": open_busi,
    "phantom": open_phantom,
}


def open_reader(settings: DatasetSettings, data_root: str | None = None) -> Reader:
    """Open the dataset that ``settings`` names.

    Args:
        data_root: folder that holds the dataset when ``settings.root`` is None; else BTINET_DATA_ROOT.

    Raises:
        InputError: no dataset has this name, or its folder is not given, missing or of another layout.
    """
    if settings.name not in READERS:
        raise InputError(f"datasets.name: {settings.name!r} is unknown; choose from {', '.join(READERS)}")
    return READERS[settings.name](settings, data_root)
