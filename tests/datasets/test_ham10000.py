from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from btinet.config import DatasetSettings
from btinet.datasets.ham10000 import Ham10000Reader, open_ham10000
from btinet.datasets.sample import Check, Finding, SampleError
from btinet.errors import InputError
from btinet.storage import Storage

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
ROWS = [
    # lesion, image, dx; two photographs of lesion 2
    ("HAM_0000001", "ISIC_0024306", "nv"),
    ("HAM_0000002", "ISIC_0024308", "mel"),
    ("HAM_0000002", "ISIC_0029306", "mel"),
    ("HAM_0000003", "ISIC_0029307", "vasc"),
]
HEIGHT, WIDTH = 30, 40


def image_path(root: Path, image_id: str) -> Path:
    part = 1 if image_id < "ISIC_0029306" else 2
    return root / f"HAM10000_images_part_{part}" / f"{image_id}.jpg"


def mask_path(root: Path, image_id: str) -> Path:
    return root / "HAM10000_segmentations_lesion_tschandl" / f"{image_id}_segmentation.png"


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 10:20] = 255
    return mask


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_metadata(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    """As the official one: lines end in CR LF."""
    file = root / "HAM10000_metadata.csv"
    file.write_text("\r\n".join([HEADER, *(",".join(row) + ",histo,80,male,scalp" for row in rows)]) + "\r\n")
    return file


def make_tree(root: Path, rows: list[tuple[str, str, str]] = ROWS) -> Path:
    for number, (_, image_id, _) in enumerate(rows):
        write(image_path(root, image_id), np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8))
        write(mask_path(root, image_id), square())
    write_metadata(root, rows)
    return root


def read(root: Path) -> Ham10000Reader:
    return Ham10000Reader(Storage(str(root)))


def only_finding(root: Path) -> Finding:
    (finding,) = read(root).findings()
    return finding


def ids(root: Path) -> list[str]:
    return [sample.sample_id for sample in read(root).samples()]


def test_samples(tmp_path: Path) -> None:
    reader = read(make_tree(tmp_path, ROWS[::-1]))
    samples = reader.samples()
    assert [s.sample_id for s in samples] == ["ISIC_0024306", "ISIC_0024308", "ISIC_0029306", "ISIC_0029307"]
    assert [reader.classes[s.label] for s in samples] == ["nv", "mel", "mel", "vasc"]
    assert [s.group_id for s in samples] == ["HAM_0000001", "HAM_0000002", "HAM_0000002", "HAM_0000003"]
    assert samples[2].source == "HAM10000_images_part_2/ISIC_0029306.jpg"
    assert {s.split for s in samples} == {None}
    assert reader.classes == ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")
    assert reader.healthy == frozenset()
    assert reader.findings() == []


@pytest.mark.parametrize("name", ["HAM10000_metadata", "HAM10000_metadata.tab"])
def test_metadata_as_the_dataverse_exports_it(tmp_path: Path, name: str) -> None:
    text = write_metadata(make_tree(tmp_path), ROWS).read_text()
    (tmp_path / "HAM10000_metadata.csv").unlink()
    quoted = "\n".join("\t".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines())
    (tmp_path / name).write_text(quoted)
    assert len(ids(tmp_path)) == len(ROWS)
    assert read(tmp_path).findings() == []


def test_a_palette_mask_is_read_by_its_colours(tmp_path: Path) -> None:
    """402 of the official masks number their colours the other way: 0 is white, 255 is black."""
    make_tree(tmp_path)
    mask = Image.fromarray(255 - square()).convert("P")
    mask.putpalette([255 - level for level in range(256) for _ in "RGB"])
    mask.save(mask_path(tmp_path, "ISIC_0024306"))
    reader = read(tmp_path)
    np.testing.assert_array_equal(reader.load(reader.samples()[0]).mask, square() // 255)


def test_a_mask_may_have_another_size_but_not_another_shape(tmp_path: Path) -> None:
    make_tree(tmp_path)
    write(mask_path(tmp_path, "ISIC_0024306"), np.kron(square(), np.ones((3, 3), np.uint8)))
    write(mask_path(tmp_path, "ISIC_0024308"), square()[:, :30])
    reader = read(tmp_path)
    image, mask = reader.load(reader.samples()[0])
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert mask.shape == (3 * HEIGHT, 3 * WIDTH)
    with pytest.raises(SampleError, match="mask is 30x30 but its image is 40x30"):
        reader.load(reader.samples()[1])


@pytest.mark.parametrize(("path", "kind"), [(image_path, "image"), (mask_path, "mask")])
def test_a_row_without_its_file(tmp_path: Path, path: Callable[[Path, str], Path], kind: str) -> None:
    path(make_tree(tmp_path), "ISIC_0024308").unlink()
    finding = only_finding(tmp_path)
    assert finding.check == Check.MISSING_FILE
    assert finding.severity == "error"
    assert finding.where.endswith("HAM10000_metadata.csv row 3")
    assert finding.samples == ("ISIC_0024308",)
    assert f"ISIC_0024308 has no {kind} file" in finding.message
    assert ids(tmp_path) == ["ISIC_0024306", "ISIC_0029306", "ISIC_0029307"]


def test_a_row_without_both_files_is_one_finding(tmp_path: Path) -> None:
    make_tree(tmp_path)
    image_path(tmp_path, "ISIC_0024308").unlink()
    mask_path(tmp_path, "ISIC_0024308").unlink()
    assert "no image and no mask file" in only_finding(tmp_path).message


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (("HAM_0000002", "ISIC_0024308", "melanoma"), r"dx: 'melanoma' of ISIC_0024308 is not one of mel, nv, bcc"),
        (("", "ISIC_0024308", "mel"), "lesion_id of ISIC_0024308 is empty"),
        (("HAM_0000001", "ISIC_0024306", "nv"), "image_id: ISIC_0024306 is in row 2 already"),
        (("HAM_0000002", "", "mel"), "image_id is empty"),
    ],
)
def test_a_row_that_cannot_be_used(tmp_path: Path, row: tuple[str, str, str], fault: str) -> None:
    make_tree(tmp_path)
    if row[1] != "ISIC_0024308":  # else its files would be reported, too
        image_path(tmp_path, "ISIC_0024308").unlink()
        mask_path(tmp_path, "ISIC_0024308").unlink()
    write_metadata(tmp_path, [ROWS[0], row, *ROWS[2:]])
    finding = only_finding(tmp_path)
    assert finding.check == Check.METADATA
    assert finding.where.endswith("row 3")
    assert fault in finding.message
    assert ids(tmp_path) == ["ISIC_0024306", "ISIC_0029306", "ISIC_0029307"]


def test_a_lesion_of_two_classes(tmp_path: Path) -> None:
    make_tree(tmp_path, [*ROWS[:2], ("HAM_0000002", "ISIC_0029306", "nv"), ROWS[3]])
    finding = only_finding(tmp_path)
    assert (finding.check, finding.severity, finding.where) == (Check.METADATA, "error", "lesion HAM_0000002")
    assert "labelled mel and nv" in finding.message
    assert finding.samples == ("ISIC_0024308", "ISIC_0029306")


def test_files_without_row_are_warned_of(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "HAM10000_images_part_1" / "._ISIC_0024306.jpg").write_bytes(b"macOS leaves these")
    write_metadata(tmp_path, ROWS[1:])
    findings = read(tmp_path).findings()
    assert {(f.check, f.severity) for f in findings} == {(Check.ORPHAN_FILE, "warning")}
    assert [Path(f.where).name for f in findings] == ["ISIC_0024306.jpg", "ISIC_0024306_segmentation.png"]


def test_an_image_in_both_parts(tmp_path: Path) -> None:
    make_tree(tmp_path)
    write(tmp_path / "HAM10000_images_part_2" / "ISIC_0024306.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    finding = only_finding(tmp_path)
    assert finding.check == Check.LAYOUT
    assert "HAM10000_images_part_1/ISIC_0024306.jpg as well" in finding.message


@pytest.mark.parametrize(
    "name", ["HAM10000_images_part_1", "HAM10000_images_part_2", "HAM10000_segmentations_lesion_tschandl"]
)
def test_a_missing_folder_is_one_finding(tmp_path: Path, name: str) -> None:
    folder = make_tree(tmp_path) / name
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    finding = only_finding(tmp_path)
    assert finding.check == Check.LAYOUT
    assert finding.where == str(folder)
    assert "folder is missing" in finding.message


def test_missing_metadata(tmp_path: Path) -> None:
    (make_tree(tmp_path) / "HAM10000_metadata.csv").unlink()
    finding = only_finding(tmp_path)
    assert finding.check == Check.LAYOUT
    assert finding.where.endswith("HAM10000_metadata.csv")
    assert ids(tmp_path) == []


def test_missing_columns(tmp_path: Path) -> None:
    (make_tree(tmp_path) / "HAM10000_metadata.csv").write_text("image_id,diagnosis\nISIC_0024306,nv\n")
    finding = only_finding(tmp_path)
    assert finding.check == Check.LAYOUT
    assert "no column lesion_id, dx" in finding.message


def test_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BTINET_DATA_ROOT", raising=False)
    with pytest.raises(InputError, match=r"holds nothing of HAM10000; download HAM10000"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"datasets\.root, data_root, BTINET_DATA_ROOT.*download HAM10000"):
        open_ham10000(DatasetSettings(name="ham10000"), None)


@pytest.mark.real_data
def test_real_ham10000(tmp_path: Path, shared: Path) -> None:
    with tarfile.open(shared / "data" / "ham10000.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    reader = open_ham10000(DatasetSettings(name="ham10000"), str(tmp_path))
    samples = reader.samples()
    assert reader.findings() == []
    assert Counter(reader.classes[s.label] for s in samples) == {
        "mel": 1113,
        "nv": 6705,
        "bcc": 514,
        "akiec": 327,
        "bkl": 1099,
        "df": 115,
        "vasc": 142,
    }
    assert len({s.group_id for s in samples}) == 7470

    palette = next(s for s in samples if Image.open(s.files[1].path).mode == "P")
    image, mask = reader.load(palette)
    assert image.shape == (150, 200, 3)
    assert mask.shape == (450, 600)
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert 0.01 < mask.mean() < 0.9
    assert not corners.any()
