"""Lesions: PNG files in a folder a class, each mask beside its image; a clinic's own layout.

nevus/0001.png
nevus/0001.mask.png
melanoma/...
"""

from __future__ import annotations

from btinet.config import DatasetSettings
from btinet.datasets.files import dataset_root, load_files
from btinet.datasets.sample import Finding, Pixels, Sample
from btinet.storage import Storage


class LesionsReader:
    """Reads the folder ``root``."""

    classes = ("nevus", "melanoma")
    healthy: frozenset[str] = frozenset()

    def __init__(self, root: Storage) -> None:
        self.root = root
        self.origin = root.url

    def samples(self) -> list[Sample]:
        found = []
        for label, name in enumerate(self.classes):
            for mask in (self.root / name).find(".mask.png"):
                stem = mask.name.removesuffix(".mask.png")
                image = self.root / name / f"{stem}.png"
                found.append(Sample(f"{name}-{stem}", label, None, f"{name}/{stem}.png", (image, mask)))
        return sorted(found, key=lambda sample: sample.sample_id)

    def findings(self) -> list[Finding]:
        return []

    def load(self, sample: Sample) -> Pixels:
        return load_files(sample)


def open_lesions(settings: DatasetSettings, data_root: str | None) -> LesionsReader:
    return LesionsReader(dataset_root(settings, data_root, "the folder with nevus/ and melanoma/"))
