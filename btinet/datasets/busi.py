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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from btinet.config import DatasetSettings
from btinet.datasets.files import dataset_root, read_mask, read_rgb
from btinet.datasets.sample import Sample
from btinet.errors import InputError

FOLDER = "Dataset_BUSI_with_GT"
HOW_TO_GET = (
    "download BUSI (Dataset_BUSI_with_GT.zip, https://scholar.cu.edu.eg/?q=afahmy/pages/dataset), unzip it "
    f"and name the folder that contains {FOLDER}/ with its folders benign, malignant and normal"
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

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER if (root / FOLDER).is_dir() else root
        self.origin = str(root)
        if not any((self.folder / name).is_dir() for name in self.classes):
            raise InputError(f"dataset 'busi': {root} holds no BUSI images; {HOW_TO_GET}")
        self._samples: list[Sample] = []
        self._problems: list[str] = []
        for label, name in enumerate(self.classes):
            self._scan(self.folder / name, label)
        self._samples.sort(key=lambda sample: sample.sample_id)

    def samples(self) -> list[Sample]:
        return self._samples

    def problems(self) -> list[str]:
        return self._problems

    def load(self, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image_path, *mask_paths = sample.files
        image = read_rgb(image_path)
        mask = np.zeros(image.shape[:2], np.uint8)
        for path in mask_paths:
            part = read_mask(path)
            if part.shape != mask.shape:
                raise InputError(f"{path}: mask is {_size(part)} but its image is {_size(image)}: get both files again")
            mask |= part
        self._check_mask(sample, mask)
        return image, mask

    def _check_mask(self, sample: Sample, mask: NDArray[np.uint8]) -> None:
        image_path, *mask_paths = sample.files
        is_lesion = self.classes[sample.label] != "normal"
        if is_lesion and not mask_paths:
            raise InputError(f"{image_path}: has no mask file: add {sample.sample_id}_mask.png beside it")
        if is_lesion and not mask.any():
            raise InputError(f"{mask_paths[0]}: no pixel of the lesion is marked: get the mask again")
        if not is_lesion and mask.any():
            raise InputError(f"{mask_paths[0]}: a normal image has a lesion marked: get the mask again")

    def _scan(self, folder: Path, label: int) -> None:
        """Add the samples and the layout's problems of one class folder."""
        if not folder.is_dir():
            self._problems.append(f"{folder}: class folder is missing: unzip the whole dataset again")
            return
        images: dict[str, Path] = {}
        masks: dict[str, list[Path]] = {}
        # sorted, so that nothing depends on the order in which the disk lists them
        for path in sorted(folder.glob("[!.]*.png")):
            name = FILE_NAME.fullmatch(path.name)
            if name is None or not path.name.startswith(f"{folder.name} "):
                self._problems.append(
                    f"{path}: not a name of the official layout: rename it to '{folder.name} (N).png' or remove it"
                )
            elif name["mask"]:
                masks.setdefault(name["sample_id"], []).append(path)
            else:
                images[name["sample_id"]] = path
        if not images:
            self._problems.append(f"{folder}: holds no images: unzip the whole dataset again")
        for sample_id in sorted(masks.keys() - images.keys()):
            self._problems.append(f"{masks[sample_id][0]}: mask without image: add {sample_id}.png beside it")
        self._samples += [
            Sample(sample_id, label, None, f"{folder.name}/{path.name}", (path, *masks.get(sample_id, ())))
            for sample_id, path in images.items()
        ]


def open_busi(settings: DatasetSettings, data_root: str | None) -> BusiReader:
    return BusiReader(dataset_root(settings, data_root, HOW_TO_GET))


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
