from __future__ import annotations

import re
import shutil
import tarfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from btinet.config import DatasetSettings, Experiment
from btinet.datasets.folder import CONVENTION, FolderReader, init, open_folder
from btinet.datasets.sample import Check, Finding
from btinet.errors import InputError
from btinet.storage import Storage
from tests.conftest import S3Server

HEIGHT, WIDTH = 30, 40
IMAGES = ("p1 left.png", "p2.png", "größe 3.png")
LABELS = ("benign", "normal", "malignant")


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 10:20] = 255
    return mask


def draw(root: Path, *paths: str) -> None:
    """Images, and masks where the path begins with masks/."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        is_mask = path.startswith("masks/")
        pixels = square() if is_mask else np.full((HEIGHT, WIDTH, 3), number, np.uint8)
        Image.fromarray(pixels).save(root / path)


def write(root: Path, name: str, *lines: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_manifest(root: Path) -> Path:
    """Three images, of which p2 has no lesion."""
    draw(root, *(f"images/{name}" for name in IMAGES), f"masks/{IMAGES[0]}", f"masks/{IMAGES[2]}")
    masks = (f"masks/{IMAGES[0]}", "", f"masks/{IMAGES[2]}")
    rows = [f"images/{image},{label},{mask}" for image, label, mask in zip(IMAGES, LABELS, masks, strict=True)]
    write(root, "manifest.csv", "image,label,mask", *rows)
    return root


def make_labels(root: Path) -> Path:
    """The same without mask paths."""
    make_manifest(root)
    (root / "manifest.csv").unlink()
    write(root, "labels.csv", "image,label", *(f"{row[0]},{row[1]}" for row in zip(IMAGES, LABELS, strict=True)))
    return root


def read(root: Path) -> FolderReader:
    return FolderReader(Storage(str(root)), "mine")


def findings_of(root: Path, *lines: str, table: str = "manifest.csv") -> list[Finding]:
    """What is found when the table consists of ``lines``."""
    write(root, table, *lines)
    return read(root).findings()


def assert_fault(findings: Sequence[Finding], check: Check, where: str, message: str) -> None:
    """There is this one fault among the errors and nothing else."""
    errors = [finding for finding in findings if finding.severity == "error"]
    assert [finding.check for finding in errors] == [check], errors
    assert errors[0].where.endswith(where)
    assert message in errors[0].message


def test_samples(tmp_path: Path) -> None:
    reader = read(make_manifest(tmp_path))
    samples = reader.samples()
    assert reader.findings() == []
    assert reader.classes == ("benign", "malignant", "normal")
    assert reader.healthy is None
    assert [(s.sample_id, reader.classes[s.label], s.source, len(s.files)) for s in samples] == [
        ("images/größe 3", "malignant", "images/größe 3.png", 2),
        ("images/p1 left", "benign", "images/p1 left.png", 2),
        ("images/p2", "normal", "images/p2.png", 1),
    ]
    assert {(s.group_id, s.split) for s in samples} == {(None, None)}
    image, mask = reader.load(samples[1])
    assert image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(mask, square() // 255)
    assert not reader.load(samples[2]).mask.any()


def test_both_spellings_give_the_same_samples(tmp_path: Path) -> None:
    by_path, by_name = read(make_manifest(tmp_path / "a")), read(make_labels(tmp_path / "b"))
    assert by_name.findings() == []
    assert by_name.classes == by_path.classes
    assert [s.sample_id for s in by_name.samples()] == ["größe 3", "p1 left", "p2"]
    for a, b in zip(by_path.samples(), by_name.samples(), strict=True):
        assert (a.label, a.source) == (b.label, b.source)
        assert [file.name for file in a.files] == [file.name for file in b.files]
        np.testing.assert_array_equal(by_path.load(a).mask, by_name.load(b).mask)


def test_parquet_is_as_good_as_csv(tmp_path: Path) -> None:
    draw(tmp_path, "images/a.png", "images/b.png", "masks/a.png")
    table = pa.table(
        {
            "image": ["images/a.png", "images/b.png"],
            "label": pa.array([0, 1]),
            "mask": ["masks/a.png", None],
            "group": pa.array(["x", "y"]).dictionary_encode(),
            "scanner": [["a", "list"], []],
        }
    )
    Storage(str(tmp_path / "manifest.parquet")).write_table(table)
    reader = read(tmp_path)
    assert reader.classes == ("0", "1")
    assert [(s.sample_id, s.label, s.group_id) for s in reader.samples()] == [
        ("images/a", 0, "x"),
        ("images/b", 1, "y"),
    ]
    assert [len(s.files) for s in reader.samples()] == [2, 1]
    assert [finding.severity for finding in reader.findings()] == ["warning"]  # the column scanner


@pytest.mark.parametrize("labels", [("0", "1"), ("001", "01"), ("ja", "ña")])
def test_labels_are_taken_literally(tmp_path: Path, labels: tuple[str, str]) -> None:
    draw(tmp_path, "images/a.png", "images/b.png", "masks/a.png")
    rows = [f"{name}.png,{label}" for name, label in zip("ab", labels, strict=True)]
    assert findings_of(tmp_path, "image,label", *rows, table="labels.csv") == []
    assert read(tmp_path).classes == labels


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_spreadsheets_save_them(tmp_path: Path, separator: str) -> None:
    """A byte order mark, CR LF, quotes, space around values, capital letters in the header, blank lines."""
    draw(tmp_path, "images/a, b; c.png", "images/d.png", "masks/d.png")
    lines = ["Image,LABEL", '"a, b; c.png",  x', "d.png,y ", "", ","]
    text = "\r\n".join(line if line[:1] == '"' else line.replace(",", separator) for line in lines)
    text = text.replace('",', f'"{separator}')
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8-sig"))
    reader = read(tmp_path)
    assert reader.findings() == []
    assert reader.classes == ("x", "y")
    assert [s.sample_id for s in reader.samples()] == ["a, b; c", "d"]


def test_accents_may_be_composed_or_not(tmp_path: Path) -> None:
    """An archive made on macOS may unpack as 'o' and a combining diaeresis, and a table hold 'ö'."""
    draw(tmp_path, "images/a.png", unicodedata.normalize("NFD", "images/ö.png"), "masks/a.png")
    rows = ["a.png,x", unicodedata.normalize("NFC", "ö.png,y")]
    assert findings_of(tmp_path, "image,label", *rows, table="labels.csv") == []
    assert read(tmp_path).load(read(tmp_path).samples()[1]).image.shape == (HEIGHT, WIDTH, 3)


def test_accents_in_the_names_of_folders(tmp_path: Path) -> None:
    draw(tmp_path, "images/a.png", unicodedata.normalize("NFD", "images/bösartig/ö.png"), "masks/a.png")
    draw(tmp_path, unicodedata.normalize("NFD", "masks/bösartig/ö.png"))
    rows = ["a.png,x", unicodedata.normalize("NFC", "bösartig/ö.png,y")]
    assert findings_of(tmp_path, "image,label", *rows, table="labels.csv") == []
    assert [len(sample.files) for sample in read(tmp_path).samples()] == [2, 2]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    draw(tmp_path, "images/a\udce4.png")
    with pytest.raises(InputError, match=r"images/a\\xe4.png: its name is not UTF-8.*: rename it"):
        init(Storage(str(tmp_path)))
    make_labels(tmp_path)
    (finding,) = read(tmp_path).findings()
    assert (finding.check, finding.severity) == (Check.ORPHAN_FILE, "warning")
    assert finding.where.endswith("images/a\\xe4.png")


def test_group_and_split(tmp_path: Path) -> None:
    draw(tmp_path, *(f"images/{name}.png" for name in "abc"), "masks/a.png")
    rows = ["a.png,x,patient 1,train", "b.png,y,,val", "c.png,y,007,test"]
    assert findings_of(tmp_path, "image,label,group,split", *rows, table="labels.csv") == []
    assert [(s.group_id, s.split) for s in read(tmp_path).samples()] == [
        ("patient 1", "train"),
        (None, "val"),
        ("007", "test"),
    ]


def test_images_in_folders_of_their_own(tmp_path: Path) -> None:
    draw(tmp_path, "images/p1/a.png", "images/p2/a.png", "masks/p2/a.tif")
    assert findings_of(tmp_path, "image,label", "p1/a.png,x", "p2/a.png,y", table="labels.csv") == []
    assert [(s.sample_id, len(s.files)) for s in read(tmp_path).samples()] == [("p1/a", 1), ("p2/a", 2)]


def test_files_beside_the_table(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "b.png", "masks/a.png")
    assert findings_of(tmp_path, "image,label,mask", "a.png,x,masks/a.png", "./b.png,y,") == []
    assert [s.sample_id for s in read(tmp_path).samples()] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "check", "message"),
    [
        (",benign,", Check.METADATA, "image is empty: name the file, or remove the row"),
        ("images/p2.png,,", Check.METADATA, "label is empty: write the image's class"),
        ("images/p9.png,x,", Check.MISSING_FILE, "image: no such file: images/p9.png"),
        ("nowhere/p2.png,x,", Check.MISSING_FILE, "image: no such file: nowhere/p2.png"),
        ("images/p2.png,x,masks/p2.png", Check.MISSING_FILE, "mask: no such file: masks/p2.png"),
        ("../p2.png,x,", Check.METADATA, "image: '../p2.png' is not a path within the folder"),
        ("/images/p2.png,x,", Check.METADATA, "image: '/images/p2.png' is not a path within the folder"),
        ("images\\p2.png,x,", Check.METADATA, "image: 'images\\\\p2.png' is not a path within the folder"),
        ("images/p2.png,x,../p2.png", Check.METADATA, "mask: '../p2.png' is not a path within the folder"),
        ("images/p2,x,", Check.METADATA, "image: 'images/p2' does not end in .png, .jpg"),
        ("images/p2.dcm,x,", Check.METADATA, "image: 'images/p2.dcm' does not end in .png, .jpg"),
        ("images/p1 left.png,x,", Check.METADATA, "image: row 2 has 'images/p1 left' already"),
        ("images/p2.png,x", Check.METADATA, "has 2 cells but the header has 3"),
        ("images/p2.png,x,y,z", Check.METADATA, "has 4 cells but the header has 3: quote cells that contain ','"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path: Path, row: str, check: Check, message: str) -> None:
    lines = (make_manifest(tmp_path) / "manifest.csv").read_text().splitlines()
    findings = findings_of(tmp_path, *lines[:2], "", row, lines[3])  # a blank line counts, as in a spreadsheet
    assert_fault(findings, check, "manifest.csv row 4", message)
    assert [s.sample_id for s in read(tmp_path).samples()] == ["images/größe 3", "images/p1 left"]


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    make_manifest(tmp_path)
    findings = findings_of(tmp_path, "image,label,mask,split", "images/p9.png,,masks/p9.png,Train", "../a.png,x,,test")
    assert [(f.where.rpartition(" ")[2], f.message.partition(":")[0]) for f in findings if f.severity == "error"] == [
        (str(tmp_path / "manifest.csv"), "the only label is 'x'"),
        ("2", "label is empty"),
        ("2", "split"),
        ("2", "image"),
        ("2", "mask"),
        ("3", "image"),
    ]
    assert read(tmp_path).samples() == []


def test_images_that_differ_only_in_their_ending(tmp_path: Path) -> None:
    draw(tmp_path, "images/a.png", "images/a.jpg", "images/b.png", "masks/b.png")
    findings = findings_of(tmp_path, "image,label", "a.png,x", "b.png,y", "a.jpg,x", table="labels.csv")
    assert_fault(findings, Check.METADATA, "row 4", "names that differ in more than the ending")


def test_two_masks_of_one_image(tmp_path: Path) -> None:
    draw(make_labels(tmp_path), "masks/p2.png", "masks/p2.bmp")
    findings = read(tmp_path).findings()
    assert_fault(findings, Check.METADATA, "row 3", "image has several masks: masks/p2.bmp, masks/p2.png: keep one")


def test_split_in_some_rows_only(tmp_path: Path) -> None:
    make_labels(tmp_path)
    rows = ["p1 left.png,x,train", "p2.png,x,", "größe 3.png,y,test"]
    findings = findings_of(tmp_path, "image,label,split", *rows, table="labels.csv")
    assert_fault(findings, Check.METADATA, "labels.csv", "split is empty in 1 of 3 rows, first in row 3")


def test_one_class(tmp_path: Path) -> None:
    make_labels(tmp_path)
    findings = findings_of(tmp_path, "image,label", *(f"{name},x" for name in IMAGES), table="labels.csv")
    assert_fault(findings, Check.CLASS_SIZE, "labels.csv", "the only label is 'x'")


def test_a_label_that_is_none(tmp_path: Path) -> None:
    draw(tmp_path, *(f"images/{number}.png" for number in range(128)), "masks/1.png")
    rows = [f"{number}.png,{number / 128}" for number in range(128)]
    findings = findings_of(tmp_path, "image,label", *rows, table="labels.csv")
    assert_fault(findings, Check.METADATA, "labels.csv", "label has 128 different values")


def test_an_empty_table(tmp_path: Path) -> None:
    assert_fault(findings_of(tmp_path, "image,label"), Check.METADATA, "manifest.csv", "holds no rows")
    assert read(tmp_path).classes == ()


def test_two_tables(tmp_path: Path) -> None:
    make_labels(tmp_path)
    make_manifest(tmp_path)
    assert_fault(read(tmp_path).findings(), Check.LAYOUT, "labels.csv", "manifest.csv is there as well")


def test_a_column_that_is_not_used(tmp_path: Path) -> None:
    make_labels(tmp_path)
    rows = [f"{name},{label},50" for name, label in zip(IMAGES, LABELS, strict=True)]
    (finding,) = findings_of(tmp_path, "image,label,age", *rows, table="labels.csv")
    assert (finding.check, finding.severity) == (Check.METADATA, "warning")
    assert "column 'age' is not used; used are image, label, group, split" in finding.message


def test_a_misspelt_mask_column_is_noticed(tmp_path: Path) -> None:
    lines = (make_manifest(tmp_path) / "manifest.csv").read_text().splitlines()
    unused, *_, no_mask = findings_of(tmp_path, "image,label,masks", *lines[1:])
    assert "column 'masks' is not used" in unused.message
    assert (no_mask.check, no_mask.severity) == (Check.EMPTY_MASK, "warning")


def test_files_without_row(tmp_path: Path) -> None:
    draw(make_manifest(tmp_path), "images/new.jpg", "masks/new.png", "elsewhere/x.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "._p2.png").write_bytes(b"macOS leaves these")
    findings = read(tmp_path).findings()
    assert {(f.check, f.severity) for f in findings} == {(Check.ORPHAN_FILE, "warning")}
    assert [f.where for f in findings] == [str(tmp_path / "images/new.jpg"), str(tmp_path / "masks/new.png")]


def test_a_mask_without_image_is_an_error_where_names_decide(tmp_path: Path) -> None:
    """p1's mask under another name would make p1 an image without lesion."""
    masks = make_labels(tmp_path) / "masks"
    (masks / "p1 left.png").rename(masks / "p1 left_mask.png")
    findings = read(tmp_path).findings()
    assert_fault(findings, Check.ORPHAN_FILE, "masks/p1 left_mask.png", "rename it as its image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column image and no column label, but none"),
        (b"file,class\na.png,x\n", "has no column image and no column label, but file, class"),
        (b"image,class\na.png,x\n", "has no column label, but image, class"),
    ],
)
def test_a_table_without_the_columns_explains_the_convention(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert message in str(caught.value)
    assert CONVENTION in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\na.png,\xe9\n", "is not UTF-8.*: save it as 'CSV UTF-8'"),
        (b'image,label\na.png,"x\n', "is not valid CSV.*: check its quotes"),
        (b"image,label,Label\na.png,x,y\n", "column 'label' is there twice"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(InputError, match=f"manifest.csv: {message}"):
        read(tmp_path)


def test_parquet_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"image,label\n")
    with pytest.raises(InputError, match=r"manifest\.parquet: cannot be read"):
        read(tmp_path)


def test_no_table_explains_the_convention(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert f"dataset 'mine': {tmp_path} holds no manifest.csv or manifest.parquet or labels.csv" in str(caught.value)
    assert f"`btinet data init {tmp_path}` starts one" in str(caught.value)
    assert CONVENTION in str(caught.value)


def test_where_the_folder_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("settings", "argument/mine", "environment/mine"):
        make_manifest(tmp_path / place)
    monkeypatch.setenv("BTINET_DATA_ROOT", str(tmp_path / "environment"))
    argument = str(tmp_path / "argument")
    rooted = DatasetSettings(name="mine", root=str(tmp_path / "settings"))
    assert open_folder(rooted, argument).origin == str(tmp_path / "settings")
    assert open_folder(DatasetSettings(name="mine"), argument).origin == str(tmp_path / "argument" / "mine")
    assert open_folder(DatasetSettings(name="mine"), None).origin == str(tmp_path / "environment" / "mine")
    assert open_folder(DatasetSettings(name="mine"), rooted.root).origin == rooted.root
    with pytest.raises(InputError, match=r"datasets\.root: no such folder: .*nowhere; give the folder that holds"):
        open_folder(DatasetSettings(name="mine", root=str(tmp_path / "nowhere")), None)


def test_one_file_in_place_of_the_folder(tmp_path: Path) -> None:
    make_manifest(tmp_path / "mine")
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.add(tmp_path / "mine", ".")
    shutil.rmtree(tmp_path / "mine")
    reader = open_folder(DatasetSettings(name="mine"), str(tmp_path))
    assert reader.findings() == []
    assert [s.sample_id for s in reader.samples()] == ["images/größe 3", "images/p1 left", "images/p2"]


def test_object_storage(tmp_path: Path, s3_env: S3Server) -> None:
    local = make_labels(tmp_path)
    root = Storage(f"s3://{s3_env.bucket}/folder reader/größe")
    for name in ("images/" + IMAGES[0], "images/" + IMAGES[1], "images/" + IMAGES[2], "masks/" + IMAGES[0]):
        (root / name).upload(local / name)
    assert "a row for each of the 3 images" in init(root)
    rows = (root / "labels.csv").read_bytes().decode().splitlines()
    labelled = [f"{row}{label}" if row.endswith(",") else row for row, label in zip(rows, ("", *LABELS), strict=True)]
    (root / "labels.csv").write_text("\n".join(labelled))

    reader = open_folder(DatasetSettings(name="mine", root=root.url), None)
    assert reader.findings() == []
    assert reader.origin == root.url
    assert [(s.sample_id, len(s.files)) for s in reader.samples()] == [("größe 3", 1), ("p1 left", 2), ("p2", 1)]
    np.testing.assert_array_equal(reader.load(reader.samples()[1]).mask, square() // 255)
    assert root.url in init(root)


def test_init_starts_a_dataset(tmp_path: Path) -> None:
    text = init(Storage(str(tmp_path / "new")))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["images", "manifest.csv", "masks"]
    assert (tmp_path / "new" / "manifest.csv").read_text() == "image,label,mask,group,split\n"
    assert f"btinet data init {tmp_path / 'new'}" in text
    assert CONVENTION in text
    assert "holds no rows" in init(Storage(str(tmp_path / "new")))


def test_init_lists_the_images(tmp_path: Path) -> None:
    draw(tmp_path, *(f"images/{name}" for name in IMAGES), "images/a, b.png", "masks/p2.png")
    text = init(Storage(str(tmp_path)))
    assert "a row for each of the 4 images" in text
    assert "Fill in the column label" in text
    table = tmp_path / "labels.csv"
    assert table.read_text() == 'image,label\n"a, b.png",\ngröße 3.png,\np1 left.png,\np2.png,\n'
    assert "row 2: label is empty" in init(Storage(str(tmp_path)))
    table.write_text(table.read_text().replace(",\n", ",x\n", 1).replace(",\n", ",y\n"))
    assert "usable images: 4\n  x: 1, with a mask: 0\n  y: 3, with a mask: 1\n" in init(Storage(str(tmp_path)))


def test_init_shows_what_is_there_and_what_comes_next(tmp_path: Path) -> None:
    folder = make_labels(tmp_path / "Bilder 2")
    before = (folder / "labels.csv").read_bytes()
    text = init(Storage(str(folder)))
    assert (folder / "labels.csv").read_bytes() == before
    assert "usable images: 3\n  benign: 1, with a mask: 1\n" in text
    assert "normal: 1, with a mask: 0\n" in text
    assert f"btinet data audit '{folder}'" in text
    assert "python -m flows.full_experiment bilder-2.yaml" in text
    snippet = re.search(r"  name: .*?\n\n", text, re.DOTALL)
    assert snippet is not None
    experiment = Experiment.model_validate(yaml.safe_load(snippet[0]))
    assert experiment.datasets == (DatasetSettings(name="bilder-2", root=str(folder)),)


def test_init_keeps_a_given_split(tmp_path: Path) -> None:
    make_labels(tmp_path)
    rows = zip(IMAGES, LABELS, ("train", "val", "test"), strict=True)
    write(tmp_path, "labels.csv", "image,label,split", *(",".join(row) for row in rows))
    assert "split: manifest}" in init(Storage(str(tmp_path)))


def test_init_shows_what_is_wrong(tmp_path: Path) -> None:
    make_labels(tmp_path)
    write(tmp_path, "labels.csv", "image,label", *(f"{number}.png,x" for number in range(30)))
    text = init(Storage(str(tmp_path)))
    assert "error: " in text
    assert "row 2: image: no such file: images/0.png" in text
    assert "... and 16 more" in text  # 30 missing, one class, 3 and 2 files without row
    assert "Mend the errors, then: btinet data init" in text
    assert "full_experiment" not in text


def test_init_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("image,label")
    with pytest.raises(InputError, match=r"my\.csv: is a file: name the folder"):
        init(Storage(str(tmp_path / "my.csv")))


def test_init_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    write(tmp_path, "thesis.tex", "important")
    with pytest.raises(InputError, match="no images in images/"):
        init(Storage(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
