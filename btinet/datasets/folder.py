"""Anybody's own images: a folder with a table, and no code. :data:`CONVENTION` says how."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from btinet.config import DatasetSettings
from btinet.datasets.files import IMAGE_SUFFIXES, dataset_root, load_files, shown
from btinet.datasets.sample import Check, Finding, Pixels, Sample, SplitName
from btinet.datasets.tables import Row, Table, read_table
from btinet.errors import InputError
from btinet.storage import Storage

CONVENTION = """\
A dataset of your own is a folder, on a disk or in object storage, with a table that has one row an image.

Either the table is manifest.csv, and names files by their paths within the folder:

    image,label,mask,group,split
    scans/p1 left.png,benign,outlines/p1 left.png,patient 1,train
    scans/p2.png,normal,,patient 2,test

Or it is labels.csv; then the images are in images/, and masks/ holds the mask of each image that has a lesion, under
the image's name (the ending may differ):

    image,label
    p1 left.png,benign
    p2.png,normal

  image  PNG, JPEG, BMP or TIFF, grey or colour, 8 bits a channel, saved upright (not to be turned by EXIF)
  label  the name of its class, any text or number; two classes or more
  mask   same size as the image, the lesion white (255) and the rest black (0); an empty cell means: no lesion
  group  optional: patient or lesion; images of one group are kept in one split
  split  optional: train, val or test, in all rows or in none. `split: manifest` in the experiment's dataset uses it as
         it is; without that, test stays and the rest is drawn anew

Both tables may have group and split, and be Parquet instead (manifest.parquet, labels.parquet). CSV is in UTF-8.
"""

MANIFEST_COLUMNS = ("image", "label", "mask", "group", "split")
LABELS_COLUMNS = ("image", "label", "group", "split")
TABLES = {
    "manifest.csv": MANIFEST_COLUMNS,
    "manifest.parquet": MANIFEST_COLUMNS,
    "labels.csv": LABELS_COLUMNS,
    "labels.parquet": LABELS_COLUMNS,
}
"""The table's possible names, each with the columns that are read."""

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
MAX_CLASSES = 127
"""More distinct labels than this are no classes, but numbers or names in the wrong column."""
MAX_LISTED = 20
"""How many findings the overview of :func:`init` lists."""


@dataclass
class Entry:
    """A row of the table, and what is wrong with it. Paths are relative to the dataset's root."""

    row: Row
    image: str = ""
    """Empty where the cell cannot be used."""
    masks: list[str] = field(default_factory=list)
    faults: list[tuple[Check, str]] = field(default_factory=list)


class FolderReader:
    """Reads a folder that follows :data:`CONVENTION`.

    Args:
        root: the folder.
        name: what the dataset is called, for error messages.

    Raises:
        InputError: there is no table, or it cannot be read or lacks the columns image and label.
    """

    healthy: frozenset[str] | None = None

    def __init__(self, root: Storage, name: str) -> None:
        self.root = root
        self.origin = shown(root)
        self._samples: list[Sample] = []
        self._findings: list[Finding] = []
        self.table_file = self._find_table(name)
        # labels.csv is a manifest.csv whose images are in images/ and whose masks are found by their names
        self._images_folder = "images" if self.table_file.name.startswith("labels") else ""
        columns = TABLES[self.table_file.name]
        table = read_table(self.table_file, columns)
        if absent := [column for column in ("image", "label") if column not in table.columns]:
            fault = f"has no column {' and no column '.join(absent)}, but {', '.join(table.columns) or 'none'}"
            raise InputError(f"dataset {name!r}: {shown(self.table_file)} {fault}\n\n{CONVENTION}")
        self.classes = tuple(sorted({row.cells["label"] for row in table.rows} - {""}))
        self._findings += table.findings
        self._check_table(table, columns)

        entries = [self._parse(row) for row in table.rows]
        files = self._list_files(entries)
        if self._images_folder:
            _find_masks(entries, files)
        self._check_files(entries, files)
        for entry in entries:
            if entry.faults:
                self._findings += [Finding(check, "error", entry.row.where, message) for check, message in entry.faults]
            else:
                self._samples.append(self._sample(entry, files))
        self._samples.sort(key=lambda sample: sample.sample_id)
        self._check_orphans(entries, files)

    def samples(self) -> list[Sample]:
        return self._samples

    def findings(self) -> list[Finding]:
        return self._findings

    def load(self, sample: Sample) -> Pixels:
        return load_files(sample)

    def _find_table(self, name: str) -> Storage:
        present = {file.name for file in self.root.children()}
        tables = [table for table in TABLES if table in present]
        if not tables:
            remedy = f"`{_command('init', self.root)}` starts one\n\n{CONVENTION}"
            raise InputError(f"dataset {name!r}: {self.origin} holds no {' or '.join(TABLES)}; {remedy}")
        for other in tables[1:]:
            self._found(Check.LAYOUT, shown(self.root / other), f"{tables[0]} is there as well: keep one of them")
        return self.root / tables[0]

    def _check_table(self, table: Table, columns: tuple[str, ...]) -> None:
        """Find what is wrong with the table as a whole."""
        where = shown(self.table_file)
        if unused := [column for column in table.columns if column and column not in columns]:
            # a misspelt mask column would make every image one without lesion
            message = f"column {', '.join(map(repr, unused))} is not used; used are {', '.join(columns)}"
            self._findings.append(Finding(Check.METADATA, "warning", where, message))
        if not table.rows:
            self._found(Check.METADATA, where, "holds no rows: add one an image")
        elif len(self.classes) == 1:
            message = f"the only label is {self.classes[0]!r}: write each image's class, of two or more"
            self._found(Check.CLASS_SIZE, where, message)
        elif len(self.classes) > MAX_CLASSES:
            message = f"label has {len(self.classes)} different values, more than the {MAX_CLASSES} classes supported"
            self._found(Check.METADATA, where, f"{message}: write the class into this column")
        without = [row for row in table.rows if not row.cells.get("split")]
        if without and len(without) < len(table.rows):
            message = f"split is empty in {len(without)} of {len(table.rows)} rows, first in row {without[0].number}"
            self._found(Check.METADATA, where, f"{message}: fill in all or none")

    def _parse(self, row: Row) -> Entry:
        """What a row's cells say, before any file is looked for."""
        entry = Entry(row)
        label, split = row.cells["label"], row.cells.get("split", "")
        entry.image = self._path(entry, "image")
        if row.cells.get("mask") and (mask := self._path(entry, "mask")):
            entry.masks.append(mask)
        if not label:
            entry.faults.append((Check.METADATA, "label is empty: write the image's class"))
        if split not in ("", *SPLITS):
            entry.faults.append((Check.METADATA, f"split: {split!r} is not one of {', '.join(SPLITS)}: correct it"))
        return entry

    def _path(self, entry: Entry, column: str) -> str:
        """The path in a cell; empty, and a fault, where it is none that can be used."""
        cell = entry.row.cells[column]
        path = PurePosixPath(cell)
        if not cell:
            message = f"{column} is empty: name the file, or remove the row"
        elif path.is_absolute() or ".." in path.parts or "\\" in cell:
            message = f"{column}: {cell!r} is not a path within the folder: write folder/name, without .. and \\"
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            message = f"{column}: {cell!r} does not end in {', '.join(IMAGE_SUFFIXES)}: write the file's whole name"
        else:
            return str(PurePosixPath(self._images_folder, path))
        entry.faults.append((Check.METADATA, message))
        return ""

    def _list_files(self, entries: list[Entry]) -> dict[str, Storage]:
        """Path -> image file, for the folders of all images and masks, each of which is listed once."""
        paths = [path for entry in entries for path in (entry.image, *entry.masks) if path]
        folders = {str(PurePosixPath(path).parent) for path in paths}
        if self._images_folder:
            folders |= {_mask_path(folder) for folder in folders} | {"images", "masks"}
        with ThreadPoolExecutor() as pool:  # object storage takes its time for each
            listings = pool.map(self._children, folders)
            return {
                str(PurePosixPath(folder, unicodedata.normalize("NFC", file.name))): file  # as the table's cells are
                for folder, listing in zip(folders, listings, strict=True)
                for file in listing
                if _is_image(file)
            }

    def _children(self, folder: str) -> list[Storage]:
        """What is in a folder; macOS may have written its name decomposed, and the table's cells are composed."""
        if folder == ".":
            return self.root.children()
        return (self.root / folder).children() or (self.root / unicodedata.normalize("NFD", folder)).children()

    def _check_files(self, entries: list[Entry], files: dict[str, Storage]) -> None:
        """Find files that are missing or in several rows."""
        rows: dict[str, int] = {}
        for entry in entries:
            if entry.image:
                if entry.image not in files:
                    message = f"image: no such file: {entry.image}: correct the name, or remove the row"
                    entry.faults.append((Check.MISSING_FILE, message))
                sample_id = self._sample_id(entry)
                first = rows.setdefault(sample_id, entry.row.number)
                if first != entry.row.number:
                    message = f"image: row {first} has {sample_id!r} already: one row an image, and names that differ"
                    entry.faults.append((Check.METADATA, f"{message} in more than the ending"))
            for mask in entry.masks:
                if mask not in files:
                    message = f"mask: no such file: {mask}: correct the name, or leave it empty if there is no lesion"
                    entry.faults.append((Check.MISSING_FILE, message))
            if len(entry.masks) > 1:
                message = f"image has several masks: {', '.join(entry.masks)}: keep one"
                entry.faults.append((Check.METADATA, message))

    def _check_orphans(self, entries: list[Entry], files: dict[str, Storage]) -> None:
        """Find files beside the images and masks that belong to no row."""
        named = {path for entry in entries for path in (entry.image, *entry.masks)}
        for path in sorted(files.keys() - named):
            if self._images_folder and path.startswith("masks/"):
                # not just unused: the image that it was meant for counts as one without lesion
                message = f"no image in {self.table_file.name} has this name: rename it as its image, or remove it"
                self._found(Check.ORPHAN_FILE, shown(files[path]), message)
            else:
                message = f"no row of {self.table_file.name} names it: add a row, or remove the file"
                self._findings.append(Finding(Check.ORPHAN_FILE, "warning", shown(files[path]), message))
        if self._samples and not any(len(sample.files) > 1 for sample in self._samples):
            message = "no image has a mask, so that there is nothing to segment: add masks"
            self._findings.append(Finding(Check.EMPTY_MASK, "warning", shown(self.table_file), message))

    def _sample_id(self, entry: Entry) -> str:
        image = PurePosixPath(entry.image)
        return str(image.relative_to(self._images_folder).with_suffix(""))

    def _sample(self, entry: Entry, files: dict[str, Storage]) -> Sample:
        cells = entry.row.cells
        return Sample(
            sample_id=self._sample_id(entry),
            label=self.classes.index(cells["label"]),
            group_id=cells.get("group") or None,
            source=entry.image,
            files=tuple(files[path] for path in (entry.image, *entry.masks)),
            split=next((name for name in SPLITS if name == cells.get("split")), None),
        )

    def _found(self, check: Check, where: str, message: str) -> None:
        self._findings.append(Finding(check, "error", where, message))


def open_folder(settings: DatasetSettings, data_root: str | None) -> FolderReader:
    """The dataset in ``settings.root``; else in the folder of its name below ``data_root``, or in that itself."""
    root = dataset_root(settings, data_root, f"give the folder that holds your table\n\n{CONVENTION}", TABLES)
    below = root / settings.name
    return FolderReader(below if settings.root is None and below.exists() else root, settings.name)


def init(root: Storage) -> str:
    """Start a dataset in a folder, or check the one that is there; nothing that exists is changed.

    Returns:
        What was found or made, and what to do next.

    Raises:
        InputError: it is a file, or the folder holds something else.
    """
    if root.fs.isfile(root.path):
        raise InputError(f"{shown(root)}: is a file: name the folder that holds the images, or a new one")
    present = {file.name for file in root.children() if not file.name.startswith(".")}
    if present & TABLES.keys():
        return _overview(FolderReader(root, root.name))
    folder = root / "images"
    files = [file for file in folder.find("") if _is_image(file)]
    if foreign := [shown(file) for file in files if file.is_local and shown(file) != file.path]:
        raise InputError(f"{foreign[0]}: its name is not UTF-8, so that no table can hold it: rename it")
    images = [file.path.removeprefix(f"{folder.path}/") for file in files]
    if images:
        _write_csv(root / "labels.csv", [("image", "label"), *((image, "") for image in images)])
        return (
            f"Wrote {shown(root / 'labels.csv')}: a row for each of the {len(images)} images in images/.\n"
            "Fill in the column label and put masks into masks/ under the names of their images.\n"
            "Add the columns group and split if you have them. Then check it:\n\n"
            f"  {_command('init', root)}\n\n{CONVENTION}"
        )
    if present - {"images", "masks"}:
        raise InputError(
            f"{shown(root)} holds no {' or '.join(TABLES)} and no images in images/: put the images into images/, "
            f"or name another folder\n\n{CONVENTION}"
        )
    _write_csv(root / "manifest.csv", [MANIFEST_COLUMNS])
    if root.is_local:  # object storage has no empty folders
        for name in ("images", "masks"):
            Path(root.path, name).mkdir(exist_ok=True)
    return (
        f"Made {shown(root / 'manifest.csv')}: write one row an image.\n"
        "(Or put your images into images/ and remove manifest.csv: a labels.csv is then written for you.)\n"
        f"Then check it:\n\n  {_command('init', root)}\n\n{CONVENTION}"
    )


def dataset_name(root: Storage) -> str:
    """What an experiment calls the dataset in a folder."""
    return re.sub("[^a-z0-9._-]+", "-", root.name.lower()).strip("._-") or "mine"


def _overview(reader: FolderReader) -> str:
    """Samples and masks per class, what is wrong, and what to do next."""
    samples, findings = reader.samples(), reader.findings()
    lines = [f"{shown(reader.table_file)}: usable images: {len(samples)}"]
    for label, name in enumerate(reader.classes):
        of_class = [sample for sample in samples if sample.label == label]
        masks = sum(len(sample.files) > 1 for sample in of_class)
        lines.append(f"  {name}: {len(of_class)}, with a mask: {masks}")
    if findings:
        lines += ["", f"{len(findings)} finding(s):"]
        lines += [f"  {finding.severity}: {finding}" for finding in findings[:MAX_LISTED]]
        lines += [f"  ... and {len(findings) - MAX_LISTED} more"] if len(findings) > MAX_LISTED else []
    if any(finding.severity == "error" for finding in findings):
        return "\n".join([*lines, "", f"Mend the errors, then: {_command('init', reader.root)}"])
    name = dataset_name(reader.root)
    split = ", split: manifest" if all(sample.split for sample in samples) else ""
    root = json.dumps(reader.origin, ensure_ascii=False)
    return "\n".join(
        [
            *lines,
            "",
            "Look at the pixels, too:",
            "",
            f"  {_command('audit', reader.root)}",
            "",
            f"Then write an experiment, say {name}.yaml, and run it:",
            "",
            f'  name: "{name}"',  # quoted: it may look like a number
            "  preset: tiny  # a first try; paper is the whole model",
            "  seeds: [42]",
            "  datasets:",
            f'    - {{name: "{name}", root: {root}{split}}}',
            "",
            f"  python -m flows.full_experiment {name}.yaml",
        ]
    )


def _command(verb: str, root: Storage) -> str:
    return f"btinet data {verb} {shlex.quote(shown(root))}"


def _write_csv(file: Storage, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.write_text(text.getvalue())


def _find_masks(entries: list[Entry], files: dict[str, Storage]) -> None:
    """Give each image the files in masks/ that have its name."""
    named = defaultdict(list)
    for path in sorted(files):
        named[_stem(path)].append(path)
    for entry in entries:
        entry.masks = named[_mask_path(_stem(entry.image))] if entry.image else []


def _mask_path(image: str) -> str:
    """Where labels.csv expects the masks of something in images/."""
    return str(PurePosixPath("masks", *PurePosixPath(image).parts[1:]))


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _is_image(file: Storage) -> bool:
    return file.name.lower().endswith(IMAGE_SUFFIXES) and not file.name.startswith(".")
