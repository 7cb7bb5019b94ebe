"""HAM10000: dermatoscopy, 10,015 images of 7470 lesions in seven classes (Tschandl et al., Scientific Data 2018).

Official layout; lesions were photographed several times, and the images of one stay together::

    HAM10000_images_part_1/ISIC_0024306.jpg
    HAM10000_images_part_2/ISIC_0029306.jpg
    HAM10000_segmentations_lesion_tschandl/ISIC_0024306_segmentation.png
    HAM10000_metadata.csv                     lesion_id,image_id,dx,dx_type,age,sex,localization

402 of the masks are palette images whose colour 0 is white: it is the colour that counts, not its number.
"""

from __future__ import annotations

from collections import defaultdict

from btinet.config import DatasetSettings
from btinet.datasets.files import dataset_root, load_files, shown
from btinet.datasets.sample import Check, Finding, Pixels, Sample
from btinet.datasets.tables import Row, read_table
from btinet.errors import InputError
from btinet.storage import Storage

IMAGE_FOLDERS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
MASK_FOLDERS = ("HAM10000_segmentations_lesion_tschandl",)
METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
"""The names that the Dataverse gives the table, by download format."""
COLUMNS = ("lesion_id", "image_id", "dx")
HOW_TO_GET = (
    "download HAM10000 (https://doi.org/10.7910/DVN/DBW86T), unzip it and name the folder that contains "
    f"{', '.join(IMAGE_FOLDERS + MASK_FOLDERS)} and {METADATA[0]}"
)


class Ham10000Reader:
    """Reads HAM10000. Masks may be of another size than their images, as where one of them was scaled.

    Args:
        root: the folder that contains the official folders and the metadata.

    Raises:
        InputError: ``root`` holds nothing of HAM10000, or the metadata is not a table.
    """

    classes = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")
    healthy: frozenset[str] = frozenset()

    def __init__(self, root: Storage) -> None:
        self.root = root
        self.origin = shown(root)
        self._samples: list[Sample] = []
        self._findings: list[Finding] = []
        present = {file.name for file in root.children()}
        if not present & {*IMAGE_FOLDERS, *MASK_FOLDERS, *METADATA}:
            raise InputError(f"dataset 'ham10000': {self.origin} holds nothing of HAM10000; {HOW_TO_GET}")
        for name in IMAGE_FOLDERS + MASK_FOLDERS:
            if name not in present:
                self._found(Check.LAYOUT, root / name, "folder is missing: download and unzip it")
        metadata = next((name for name in METADATA if name in present), None)
        if metadata is None:
            self._found(Check.LAYOUT, root / METADATA[0], "metadata is missing: download it")
        else:
            self._read(root / metadata, folders_complete=not self._findings)

    def samples(self) -> list[Sample]:
        return self._samples

    def findings(self) -> list[Finding]:
        return self._findings

    def load(self, sample: Sample) -> Pixels:
        return load_files(sample, mask_may_be_scaled=True)

    def _read(self, metadata: Storage, folders_complete: bool) -> None:
        """Add the samples, and the faults of the metadata and of files that do not belong to it."""
        table = read_table(metadata, COLUMNS)
        self._findings += table.findings
        if absent := [name for name in COLUMNS if name not in table.columns]:
            message = f"has no column {', '.join(absent)}: use the official metadata"
            self._found(Check.LAYOUT, metadata, message)
            return
        images = self._files(IMAGE_FOLDERS, ".jpg")
        masks = self._files(MASK_FOLDERS, "_segmentation.png")
        numbers: dict[str, int] = {}
        for row in table.rows:
            image_id = row.cells["image_id"]
            if fault := self._fault(row, numbers):
                self._findings.append(Finding(Check.METADATA, "error", row.where, fault, (image_id,)))
            elif image_id in images and image_id in masks:
                self._samples.append(self._sample(row, images[image_id], masks[image_id]))
            elif folders_complete:  # else all of a missing folder's files would be listed
                absent = [kind for kind, files in (("image", images), ("mask", masks)) if image_id not in files]
                message = f"{image_id} has no {' and no '.join(absent)} file: download and unzip the folders again"
                self._findings.append(Finding(Check.MISSING_FILE, "error", row.where, message, (image_id,)))
            numbers.setdefault(image_id, row.number)
        self._samples.sort(key=lambda sample: sample.sample_id)
        self._check_lesions()
        for files in (images, masks):
            for image_id in sorted(files.keys() - numbers.keys()):
                message = f"no row of {metadata.name} names it: add the row or remove the file"
                self._findings.append(Finding(Check.ORPHAN_FILE, "warning", shown(files[image_id]), message))

    def _files(self, folders: tuple[str, ...], suffix: str) -> dict[str, Storage]:
        """The files of some folders by image_id."""
        files: dict[str, Storage] = {}
        for folder in folders:
            for file in (self.root / folder).children():
                image_id = file.name.removesuffix(suffix)
                if image_id == file.name or file.name.startswith("."):
                    continue
                if image_id in files:
                    self._found(Check.LAYOUT, file, f"is in {shown(files[image_id])} as well: remove one")
                files[image_id] = file
        return files

    def _fault(self, row: Row, numbers: dict[str, int]) -> str | None:
        """What keeps a row from being used; ``numbers`` are the rows of the images so far."""
        lesion_id, image_id, dx = (row.cells[name] for name in COLUMNS)
        if not image_id:
            return "image_id is empty: fill it in or remove the row"
        if image_id in numbers:
            return f"image_id: {image_id} is in row {numbers[image_id]} already: remove one of them"
        if not lesion_id:
            return f"lesion_id of {image_id} is empty: fill it in, so that the images of a lesion stay together"
        if dx not in self.classes:
            return f"dx: {dx!r} of {image_id} is not one of {', '.join(self.classes)}: correct it"
        return None

    def _sample(self, row: Row, image: Storage, mask: Storage) -> Sample:
        lesion_id, image_id, dx = (row.cells[name] for name in COLUMNS)
        source = image.path.removeprefix(f"{self.root.path}/")
        return Sample(image_id, self.classes.index(dx), lesion_id, source, (image, mask))

    def _check_lesions(self) -> None:
        lesions = defaultdict(list)
        for sample in self._samples:
            lesions[sample.group_id].append(sample)
        for lesion_id, samples in lesions.items():
            labels = sorted({sample.label for sample in samples})
            if len(labels) > 1:
                names = " and ".join(self.classes[label] for label in labels)
                message = f"its images are labelled {names}: correct dx"
                ids = tuple(sample.sample_id for sample in samples)
                self._findings.append(Finding(Check.METADATA, "error", f"lesion {lesion_id}", message, ids))

    def _found(self, check: Check, where: Storage, message: str) -> None:
        self._findings.append(Finding(check, "error", shown(where), message))


def open_ham10000(settings: DatasetSettings, data_root: str | None) -> Ham10000Reader:
    return Ham10000Reader(dataset_root(settings, data_root, HOW_TO_GET, IMAGE_FOLDERS + MASK_FOLDERS + METADATA))
