"""BRISC 2025: brain MRI, 6000 slices in four classes, 4793 with masks (Fateh et al., Scientific Data 2026).

Official layout; the segmentation task repeats the images that have a tumour::

    brisc2025/classification_task/train/glioma/brisc2025_train_00001_gl_ax_t1.jpg
    brisc2025/classification_task/{train,test}/{glioma,meningioma,pituitary,no_tumor}/...
    brisc2025/segmentation_task/train/images/brisc2025_train_00001_gl_ax_t1.jpg
    brisc2025/segmentation_task/train/masks/brisc2025_train_00001_gl_ax_t1.png

The images are read from the classification task. The authors' test folder is the test set; they have no validation
set, so the samples of their train folder have no split: training and validation are drawn from them. Which slices
are of one patient is not published.
"""

from __future__ import annotations

import re

from btinet.config import DatasetSettings
from btinet.datasets.files import dataset_root, load_files, shown
from btinet.datasets.sample import Check, Finding, Pixels, Sample, SplitName
from btinet.errors import InputError
from btinet.storage import Storage

FOLDER = "brisc2025"
SPLITS: dict[str, SplitName | None] = {"train": None, "test": "test"}
"""The authors' part -> the split of its samples."""
CODES = {"glioma": "gl", "meningioma": "me", "pituitary": "pi", "no_tumor": "no"}
"""Class -> how the names of its files say so."""
SAMPLE_ID = re.compile(r"brisc2025_(?P<part>train|test)_\d+_(?P<code>gl|me|pi|no)_(ax|co|sa)_t1")
HOW_TO_GET = (
    "download BRISC 2025 (https://www.kaggle.com/datasets/briscdataset/brisc2025), unzip it and name the folder "
    f"that contains {FOLDER}/ with its folders classification_task and segmentation_task"
)


class Brisc2025Reader:
    """Reads BRISC 2025.

    Args:
        root: the folder that contains ``brisc2025``, or that folder itself.

    Raises:
        InputError: ``root`` holds no part of the classification task.
    """

    classes = tuple(CODES)
    healthy = frozenset({"no_tumor"})

    def __init__(self, root: Storage) -> None:
        self.folder = root / FOLDER if (root / FOLDER).exists() else root
        self.origin = shown(root)
        self._samples: list[Sample] = []
        self._findings: list[Finding] = []
        if not any((self.folder / "classification_task" / part).exists() for part in SPLITS):
            raise InputError(f"dataset 'brisc2025': {self.origin} holds no BRISC images; {HOW_TO_GET}")
        for part in SPLITS:
            self._scan(part)
        self._samples.sort(key=lambda sample: sample.sample_id)

    def samples(self) -> list[Sample]:
        return self._samples

    def findings(self) -> list[Finding]:
        return self._findings

    def load(self, sample: Sample) -> Pixels:
        return load_files(sample)

    def _scan(self, part: str) -> None:
        """Add the samples and the layout's faults of the authors' train or test folders."""
        classification = self.folder / "classification_task" / part
        segmentation = self.folder / "segmentation_task" / part
        images = {name: self._files(classification / name, ".jpg") for name in self.classes}
        masks = self._files(segmentation / "masks", ".png")
        for label, name in enumerate(self.classes):
            for sample_id, image in images[name].items():
                parsed = SAMPLE_ID.fullmatch(sample_id)
                mask = masks.get(sample_id)
                if parsed is None or parsed["part"] != part or parsed["code"] != CODES[name]:
                    expected = f"brisc2025_{part}_NNNNN_{CODES[name]}_PLANE_t1.jpg"
                    message = f"its name does not belong in {part}/{name} ({expected}): move it to its own folder"
                    self._found(Check.LAYOUT, image, message)
                elif mask is None and name not in self.healthy:
                    if masks:  # without any, the folder has been reported
                        message = f"has no mask: add {shown(segmentation / 'masks' / f'{sample_id}.png')}"
                        self._found(Check.MISSING_FILE, image, message)
                else:
                    source = image.path.removeprefix(f"{self.folder.path}/")
                    files = (image,) if mask is None else (image, mask)
                    self._samples.append(Sample(sample_id, label, None, source, files, SPLITS[part]))
        if not all(images.values()):
            return  # the masks of a missing class need not all be listed
        listed = {sample_id for files in images.values() for sample_id in files}
        for sample_id in sorted(masks.keys() - listed):
            message = f"mask without image: add {sample_id}.jpg to its class folder in classification_task/{part}"
            self._found(Check.MISSING_FILE, masks[sample_id], message)
        for file in (segmentation / "images").children():
            if file.name.endswith(".jpg") and file.name.removesuffix(".jpg") not in listed and file.name[0] != ".":
                message = f"is not read, and classification_task/{part} has no image of this name: add it there"
                self._findings.append(Finding(Check.ORPHAN_FILE, "warning", shown(file), message))

    def _files(self, folder: Storage, suffix: str) -> dict[str, Storage]:
        """A folder's files by sample_id."""
        files = [file for file in folder.children() if file.name.endswith(suffix) and not file.name.startswith(".")]
        if not files:
            self._found(Check.LAYOUT, folder, f"folder is missing or holds no {suffix} files: unzip the dataset again")
        return {file.name.removesuffix(suffix): file for file in files}

    def _found(self, check: Check, where: Storage, message: str) -> None:
        self._findings.append(Finding(check, "error", shown(where), message))


def open_brisc2025(settings: DatasetSettings, data_root: str | None) -> Brisc2025Reader:
    return Brisc2025Reader(dataset_root(settings, data_root, HOW_TO_GET, ("classification_task",)))
