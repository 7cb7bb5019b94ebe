"""BUSI: breast ultrasound, 780 images in three classes (Al-Dhabyani et al., Data in Brief 2020).

Official layout, each image with one or more masks that are merged::

    Dataset_BUSI_with_GT/benign/benign (1).png
    Dataset_BUSI_with_GT/benign/benign (1)_mask.png
    Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png
    Dataset_BUSI_with_GT/malignant/...
    Dataset_BUSI_with_GT/normal/...           masks are all empty
"""

from __future__ import annotations

import re

from btinet.config import DatasetSettings
from btinet.datasets.files import dataset_root, load_files, shown
from btinet.datasets.sample import Check, Finding, Pixels, Sample, SampleError
from btinet.errors import InputError
from btinet.storage import Storage

FOLDER = "Dataset_BUSI_with_GT"
HOW_TO_GET = (
    "download BUSI (Dataset_BUSI.zip, https://scholar.cu.edu.eg/?q=afahmy/pages/dataset; `btinet data fetch busi` says "
    f"how) and name the folder that contains {FOLDER}/ with its folders benign, malignant and normal"
)
FILE_NAME = re.compile(r"(?P<sample_id>[a-z]+ \(\d+\))(?P<mask>_mask(_\d+)?)?\.png")


class BusiReader:
    """Reads BUSI.

    Args:
        root: the folder that contains ``Dataset_BUSI_with_GT``, or that folder itself.

    Raises:
        InputError: ``root`` holds no class folder at all.
    """

    classes = ("benign", "malignant", "normal")
    healthy = frozenset({"normal"})

    def __init__(self, root: Storage) -> None:
        self.folder = root / FOLDER if (root / FOLDER).exists() else root
        self.origin = shown(root)
        if not any((self.folder / name).exists() for name in self.classes):
            raise InputError(f"dataset 'busi': {self.origin} holds no BUSI images; {HOW_TO_GET}")
        self._samples: list[Sample] = []
        self._findings: list[Finding] = []
        for label, name in enumerate(self.classes):
            self._scan(self.folder / name, label)
        self._samples.sort(key=lambda sample: sample.sample_id)

    def samples(self) -> list[Sample]:
        return self._samples

    def findings(self) -> list[Finding]:
        return self._findings

    def load(self, sample: Sample) -> Pixels:
        if len(sample.files) == 1 and self.classes[sample.label] not in self.healthy:
            message = f"has no mask file: add {sample.sample_id}_mask.png beside it"
            raise SampleError(Check.MISSING_FILE, shown(sample.files[0]), message)
        return load_files(sample)

    def _scan(self, folder: Storage, label: int) -> None:
        """Add the samples and the layout's faults of one class folder."""
        images: dict[str, Storage] = {}
        masks: dict[str, list[Storage]] = {}
        # children are sorted, so that nothing depends on the order in which the disk lists them
        for file in folder.children():
            if file.name.startswith(".") or not file.name.endswith(".png"):
                continue
            name = FILE_NAME.fullmatch(file.name)
            if name is None or not file.name.startswith(f"{folder.name} "):
                message = f"not a name of the official layout: rename it to '{folder.name} (N).png' or remove it"
                self._found(Check.LAYOUT, file, message)
            elif name["mask"]:
                masks.setdefault(name["sample_id"], []).append(file)
            else:
                images[name["sample_id"]] = file
        for sample_id in sorted(masks.keys() - images.keys()):
            self._found(Check.MISSING_FILE, masks[sample_id][0], f"mask without image: add {sample_id}.png beside it")
        self._samples += [
            Sample(sample_id, label, None, f"{folder.name}/{file.name}", (file, *masks.get(sample_id, ())))
            for sample_id, file in images.items()
        ]

    def _found(self, check: Check, where: Storage, message: str) -> None:
        self._findings.append(Finding(check, "error", shown(where), message))


def open_busi(settings: DatasetSettings, data_root: str | None) -> BusiReader:
    return BusiReader(dataset_root(settings, data_root, HOW_TO_GET, (FOLDER, *BusiReader.classes)))
