"""``btinet data`` from an empty folder to a report, and what it refuses."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from btinet import cli
from btinet.config import SplitPolicy
from btinet.datasets.folder import FolderReader
from btinet.datasets.registry import READERS
from tests.training.micro import MICRO, one_thread  # noqa: F401

COMMANDS = ("fetch", "init", "audit", "pack", "split", "list")
LABELS = ("cyst", "tumour", "healthy")
PER_CLASS = 14
SIDE = 40
COLUMNS = ("image", "label", "mask", "group", "split")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def btinet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process; gives exit status, standard output, and standard error on one line."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["btinet", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.split())

    return run


def draw(file: Path, number: int) -> None:
    """A picture like no other, of blocks that survive the search for duplicates."""
    file.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file)


def draw_mask(file: Path, pixels: np.ndarray | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.zeros((SIDE, SIDE), np.uint8)
        pixels[10:30, 12:28] = 255
    Image.fromarray(pixels).save(file)


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def make_folder(folder: Path) -> list[dict[str, str]]:
    """A sound dataset: three classes, patients of two images, a split column; returns the manifest's rows."""
    rows = []
    for label in LABELS:
        for number in range(PER_CLASS):
            image, mask = f"images/{label}{number:02d}.png", f"masks/{label}{number:02d}.png"
            draw(folder / image, 1000 * LABELS.index(label) + number)
            if label != "healthy":
                draw_mask(folder / mask)
            patient = number // 2
            split = {5: "val", 6: "test"}.get(patient, "train")
            values = (image, label, mask if label != "healthy" else "", f"{label} {patient}", split)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    write_rows(folder, rows)
    return rows


def plant_faults(folder: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """Spoil five samples of a sound folder; what must be found: check -> where it is found."""
    truncated, masked_otherwise, grey_masked, emptied, missing = (folder / row["image"] for row in rows[:5])
    whole = truncated.read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    draw_mask(folder / "masks" / masked_otherwise.name, np.zeros((SIDE - 1, SIDE), np.uint8))
    draw_mask(folder / "masks" / grey_masked.name, np.full((SIDE, SIDE), 128, np.uint8))
    draw_mask(folder / "masks" / emptied.name, np.zeros((SIDE, SIDE), np.uint8))
    missing.unlink()
    return {
        "unreadable": str(truncated),
        "size-mismatch": str(folder / "masks" / masked_otherwise.name),
        "non-binary-mask": str(folder / "masks" / grey_masked.name),
        "empty-mask": rows[3]["image"],
        "missing-file": f"{folder / 'manifest.csv'} row 6",
    }


def write_experiment(tmp_path: Path, *datasets: dict[str, Any], **fields: Any) -> str:
    file = tmp_path / "experiment.yaml"
    content = MICRO | {"storage": {"url": str(tmp_path / "storage")}, "datasets": list(datasets)} | fields
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_help_teaches() -> None:
    text = CliRunner().invoke(cli.app, ["data", "--help"], env={"COLUMNS": "200"}).stdout
    assert "get an official release (fetch) or start a folder of your own (init)" in text
    group = next(group for group in cli.app.registered_groups if group.name == "data").typer_instance
    assert group is not None
    callbacks = {(command.name or command.callback.__name__): command.callback for command in group.registered_commands}
    assert tuple(callbacks) == COMMANDS
    for name, callback in callbacks.items():
        own = CliRunner().invoke(cli.app, ["data", name, "--help"], env={"COLUMNS": "200"})
        assert own.exit_code == 0
        assert callback.__doc__.splitlines()[0] in " ".join(own.stdout.split())
        assert name in text


class TestInit:
    def test_an_empty_folder_is_started(self, tmp_path: Path, btinet: Run) -> None:
        folder = tmp_path / "mine"
        status, out, err = btinet("data", "init", str(folder))
        assert (status, err) == (0, "")
        assert (folder / "manifest.csv").read_text() == "image,label,mask,group,split\n"
        assert "write one row an image" in out
        assert "scans/p1 left.png,benign,outlines/p1 left.png,patient 1,train" in out  # the convention
        status, out, _ = btinet("data", "init", str(folder))
        assert status == 1
        assert "holds no rows: add one an image" in out

    def test_images_without_a_table_are_listed(self, tmp_path: Path, btinet: Run) -> None:
        for number in range(3):
            draw(tmp_path / "mine/images" / f"{number}.png", number)
        status, out, _ = btinet("data", "init", str(tmp_path / "mine"))
        assert status == 0
        assert "a row for each of the 3 images" in out
        assert (tmp_path / "mine/labels.csv").read_text() == "image,label\n0.png,\n1.png,\n2.png,\n"
        status, out, _ = btinet("data", "init", str(tmp_path / "mine"))
        assert status == 1
        assert "row 2: label is empty: write the image's class" in out
        assert f"Mend the errors, then: btinet data init {tmp_path}/mine" in out

    def test_a_sound_folder_gets_an_experiment(self, tmp_path: Path, btinet: Run) -> None:
        make_folder(tmp_path / "mine")
        status, out, _ = btinet("data", "init", str(tmp_path / "mine"))
        assert status == 0
        assert "usable images: 42" in out
        assert "  tumour: 14, with a mask: 14\n" in out
        assert "  healthy: 14, with a mask: 0\n" in out
        assert f'- {{name: "mine", root: "{tmp_path}/mine", split: manifest}}' in out

    @pytest.mark.parametrize("name", ["busi", "HAM10000", "BUSI_"])
    def test_a_name_that_means_an_official_layout(self, tmp_path: Path, btinet: Run, name: str) -> None:
        status, out, err = btinet("data", "init", str(tmp_path / name))
        assert (status, out) == (2, "")
        assert f"'{name.lower().rstrip('_')}' is the name of a dataset whose official layout is read" in err
        assert err.endswith("rename the folder")
        assert not (tmp_path / name).exists()


class TestAudit:
    def test_a_sound_folder(self, tmp_path: Path, btinet: Run) -> None:
        make_folder(tmp_path / "mine")
        status, out, err = btinet("data", "audit", str(tmp_path / "mine"), "--output", str(tmp_path / "out"))
        assert (status, out) == (0, "")
        assert "nothing found" in err
        assert f"page file://{tmp_path}/out/index.html Parquet file://{tmp_path}/out" in err
        assert err.endswith(f"as `btinet data init {tmp_path}/mine` writes it")
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
            *("audit.parquet", "classes.parquet", "duplicates.parquet", "findings.parquet", "index.html"),
            *("previews.parquet", "samples.parquet"),
        ]
        assert "Nothing wrong was found" in (tmp_path / "out/index.html").read_text()
        assert pq.read_table(tmp_path / "out/samples.parquet").num_rows == 42

    def test_by_name_below_the_data_root(self, tmp_path: Path, btinet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        make_folder(tmp_path / "data/mine")
        monkeypatch.chdir(tmp_path)
        assert btinet("data", "audit", "mine", "--data-root", "data")[0] == 0
        assert (tmp_path / "audit/mine/index.html").is_file()
        assert btinet("data", "pack", "data/mine", "packed/mine.tar")[0] == 0
        monkeypatch.setenv("BTINET_DATA_ROOT", "packed")
        assert "nothing found" in btinet("data", "audit", "mine")[2]

    def test_a_known_dataset(self, tmp_path: Path, btinet: Run) -> None:
        folder = tmp_path / "Dataset_BUSI_with_GT"
        for label, name in enumerate(("benign", "malignant", "normal")):
            for number in range(7):
                draw(folder / name / f"{name} ({number}).png", 100 * label + number)
                mask = np.zeros((SIDE, SIDE), np.uint8) if name == "normal" else None
                draw_mask(folder / name / f"{name} ({number})_mask.png", mask)
        arguments = ("data", "audit", "busi", "--data-root", str(tmp_path), "--output", str(tmp_path / "out"))
        status, _, err = btinet(*arguments)
        assert status == 0
        assert err.endswith("an experiment with datasets: [{name: busi}], for `btinet prepare -e FILE`")

    @pytest.mark.parametrize(("images", "fault"), [(0, "holds no rows"), (3, "row 2: label is empty")])
    def test_a_folder_just_started(self, tmp_path: Path, btinet: Run, images: int, fault: str) -> None:
        for number in range(images):
            draw(tmp_path / "mine/images" / f"{number}.png", number)
        btinet("data", "init", str(tmp_path / "mine"))
        status, _, err = btinet("data", "audit", str(tmp_path / "mine"), "--output", str(tmp_path / "out"))
        assert (status, fault in err) == (1, True)
        assert (tmp_path / "out/index.html").is_file()

    def test_a_file_in_place_of_the_output(self, tmp_path: Path, btinet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """That is said before anything is decoded."""
        make_folder(tmp_path / "mine")
        (tmp_path / "out").write_text("a file")
        monkeypatch.setattr(FolderReader, "load", lambda *_: pytest.fail("decoded"))
        status, _, err = btinet("data", "audit", str(tmp_path / "mine"), "--output", str(tmp_path / "out"))
        assert (status, f"{tmp_path}/out cannot be written" in err) == (2, True)

    def test_an_unknown_name(self, tmp_path: Path, btinet: Run) -> None:
        status, out, err = btinet("data", "audit", "no-such", "--data-root", str(tmp_path))
        assert (status, out) == (2, "")
        known = ", ".join(READERS)
        assert err == f"btinet: no-such: neither a dataset ({known}) nor a folder, nor is it in {tmp_path}"


def test_five_planted_faults_are_five_findings(tmp_path: Path, btinet: Run) -> None:
    """The audit lists them and ends with status 1; preparation refuses with the same five."""
    folder = tmp_path / "mine"
    expected = plant_faults(folder, make_folder(folder))
    status, _, said = btinet("data", "audit", str(folder), "--output", str(tmp_path / "out"))
    assert status == 1
    assert "next: mend the errors" in said
    findings = pq.read_table(tmp_path / "out/findings.parquet").to_pylist()
    assert {finding["check"]: finding["where"] for finding in findings} == expected
    assert [finding["severity"] for finding in findings] == ["error"] * 5
    page = (tmp_path / "out/index.html").read_text()
    assert "5 error(s) keep this dataset from being prepared" in page

    file = write_experiment(tmp_path, {"name": "mine", "root": str(folder)})
    status, _, said = btinet("prepare", "-e", file)
    assert status == 2
    assert said.startswith(f"btinet: dataset 'mine' at {folder}: 5 problem(s) ")
    assert "Traceback" not in said
    for finding in findings:
        assert f"{finding['where']}: {finding['message']}" in said
    assert not list((tmp_path / "storage").rglob("manifest.json"))


class TestFetch:
    def test_what_a_person_has_to_download(self, tmp_path: Path, btinet: Run) -> None:
        status, out, err = btinet("data", "fetch", "busi", "--to", str(tmp_path))
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        assert err.startswith("btinet: dataset 'busi' is not downloaded automatically")
        assert "2. Download https://scholar.cu.edu.eg/Dataset_BUSI.zip." in err
        assert err.endswith(f"btinet data fetch busi --to {tmp_path} --archive Dataset_BUSI.zip")

    def test_what_a_person_downloaded(self, tmp_path: Path, btinet: Run) -> None:
        for name in ("benign", "malignant", "normal"):
            draw(tmp_path / "made/Dataset_BUSI_with_GT" / name / f"{name} (1).png", 1)
        shutil.make_archive(str(tmp_path / "Dataset_BUSI"), "zip", tmp_path / "made")
        to = tmp_path / "raw [1]"
        arguments = ("data", "fetch", "busi", "--to", str(to), "--archive", str(tmp_path / "Dataset_BUSI.zip"))
        next_ = f"next: btinet data audit busi --data-root '{to}'"
        assert btinet(*arguments) == (0, "", f"busi: laid out in {to} {next_}")
        assert btinet(*arguments) == (0, "", f"busi: was there already: {to} {next_}")
        assert (to / "Dataset_BUSI_with_GT/normal/normal (1).png").is_file()

    def test_unknown(self, btinet: Run) -> None:
        status, _, err = btinet("data", "fetch", "mine")
        assert (status, err) == (2, "btinet: no dataset 'mine' to fetch: take one of busi, ham10000, brisc2025")


class TestPack:
    def test_an_experiment_reads_the_archive(self, tmp_path: Path, btinet: Run) -> None:
        make_folder(tmp_path / "elsewhere")
        archive = tmp_path / "raw/mine.tar"
        status, _, err = btinet("data", "pack", str(tmp_path / "elsewhere"), str(archive))
        assert status == 0
        assert re.fullmatch(rf"{archive}: 0\.\d MB next: dvc add {archive} && dvc push", err)
        shutil.rmtree(tmp_path / "elsewhere")
        file = write_experiment(tmp_path, {"name": "mine"}, data_root=str(tmp_path / "raw"))
        status, _, err = btinet("prepare", "-e", file)
        assert status == 0, err
        assert err.startswith("mine: prepared: 42 samples (cyst 14, healthy 14, tumour 14) at 32 px")

    def test_links_are_followed(self, tmp_path: Path, btinet: Run) -> None:
        make_folder(tmp_path / "mine")
        (tmp_path / "linked").mkdir()
        for name in ("images", "masks", "manifest.csv"):
            (tmp_path / "linked" / name).symlink_to(tmp_path / "mine" / name)
        for name in ("mine", "linked"):
            assert btinet("data", "pack", str(tmp_path / name), str(tmp_path / f"{name}.tar"))[0] == 0
        assert (tmp_path / "linked.tar").read_bytes() == (tmp_path / "mine.tar").read_bytes()

    @pytest.mark.parametrize(("link", "fault"), [("not pulled", "x.png"), (".", "x.png/x.png")])
    def test_a_link_that_leads_nowhere(self, tmp_path: Path, btinet: Run, link: str, fault: str) -> None:
        """To a file that is not there, or to the folder that it is in."""
        make_folder(tmp_path / "mine")
        (tmp_path / "mine/images/x.png").symlink_to(link)
        status, _, err = btinet("data", "pack", str(tmp_path / "mine"), str(tmp_path / "mine.tar"))
        assert (status, f"{fault}: is no file, or a link to none" in err) == (2, True)
        assert not (tmp_path / "mine.tar").exists()

    def test_a_file_in_place_of_the_archives_folder(self, tmp_path: Path, btinet: Run) -> None:
        make_folder(tmp_path / "mine")
        (tmp_path / "raw").write_text("a file")
        status, _, err = btinet("data", "pack", str(tmp_path / "mine"), str(tmp_path / "raw/mine.tar"))
        assert (status, err) == (2, f"btinet: {tmp_path}/raw: File exists: name another path, or mend this one")

    def test_faults(self, tmp_path: Path, btinet: Run) -> None:
        status, _, err = btinet("data", "pack", str(tmp_path / "nowhere"), str(tmp_path / "mine.tar"))
        assert (status, "nowhere: cannot be packed: No such file" in err) == (2, True)
        status, _, err = btinet("data", "pack", str(tmp_path), str(tmp_path / "mine.tar"))
        assert (status, "no files to pack" in err) == (2, True)
        status, _, err = btinet("data", "pack", str(tmp_path), str(tmp_path / "mine.zip"))
        assert (status, "give the file a name that ends in .tar" in err) == (2, True)
        assert list(tmp_path.iterdir()) == []


class TestSplit:
    def rows(self, said: str) -> dict[str, list[str]]:
        """Policy -> cells of the printed table."""
        cells = said.rpartition("─")[2].split()
        starts = [number for number, cell in enumerate(cells) if cell in get_args(SplitPolicy)]
        return {cells[a]: cells[a + 1 : b] for a, b in zip(starts, [*starts[1:], None], strict=True)}

    def test_every_policy(self, tmp_path: Path, btinet: Run) -> None:
        """A copy under another patient's name is in another split, which only `clean` mends."""
        rows = make_folder(tmp_path / "mine")
        shutil.copy(tmp_path / "mine" / rows[0]["image"], tmp_path / "mine" / rows[12]["image"])
        file = write_experiment(tmp_path, {"name": "mine", "root": str(tmp_path / "mine")})
        status, _, said = btinet("data", "split", "mine", "-e", file, "--seed", "7")
        assert status == 0, said
        shown = self.rows(said)
        assert list(shown) == ["paper", "clean", "paper-n1503", "manifest"]
        # 7 patients of two images a class, of which one is in val and one in test
        assert shown["manifest"] == ["30", "6", "6", "0", "1", "–"]
        assert shown["paper"] == ["30", "6", "6", "0", "1", "–"]
        # the copy makes two patients one unit, half of which is in test: all of it goes there
        assert shown["clean"] == ["28", "6", "8", "0", "0", "2"]
        assert int(shown["paper-n1503"][3]) > 0  # tears patients apart
        store = next((tmp_path / "storage/datasets/mine").glob("*/splits"))
        assert {file.name for file in store.iterdir()} == {f"{policy}-s7.parquet" for policy in shown}

    def test_the_reason_why_a_policy_does_not_fit(self, tmp_path: Path, btinet: Run) -> None:
        """Even where it is the experiment's own."""
        rows = make_folder(tmp_path / "mine")
        write_rows(tmp_path / "mine", [row | {"group": "", "split": ""} for row in rows])
        file = write_experiment(tmp_path, {"name": "mine", "root": str(tmp_path / "mine"), "split": "manifest"})
        status, _, said = btinet("data", "split", "mine", "-e", file)
        assert status == 0
        assert "manifest: dataset 'mine': split policy 'manifest': 42 of 42 samples have no split of their own" in said
        assert "paper-n1503: dataset 'mine': split policy 'paper-n1503' ignores groups, and there are none" in said
        assert list(self.rows(said)) == ["paper", "clean"]
        status, _, said = btinet("data", "split", "mine", "-e", file, "--policy", "manifest")
        assert status == 2
        assert said.startswith("btinet: dataset 'mine': split policy 'manifest': 42 of 42")

    def test_unknown(self, tmp_path: Path, btinet: Run) -> None:
        file = write_experiment(tmp_path, {"name": "mine"})
        status, _, said = btinet("data", "split", "other", "-e", file)
        assert (status, said) == (2, "btinet: experiment 'micro' has no dataset 'other'; it has: mine")


def test_no_lesion_to_validate_on(tmp_path: Path, btinet: Run) -> None:
    rows = make_folder(tmp_path / "mine")
    others = {"val": "train", "train": "train", "test": "test"}
    for row in rows:
        row["split"] = "val" if row["label"] == "healthy" else others[row["split"]]
    write_rows(tmp_path / "mine", rows)
    dataset = {"name": "mine", "root": str(tmp_path / "mine"), "split": "manifest"}
    file = write_experiment(tmp_path, dataset, train=MICRO["train"] | {"batch_size": 10})
    assert btinet("prepare", "-e", file)[0] == 0
    key = f"mine/btinet/full/{MICRO['seeds'][0]}"
    status, _, said = btinet("train", key, "--stage", "1", "--in-process", "-e", file)
    assert status == 2
    assert "dataset 'mine': none of the 14 validation samples of split manifest-s7 has a lesion" in said


def test_list_goes_on_after_a_store_that_cannot_be_read(tmp_path: Path, btinet: Run) -> None:
    for name in ("first", "second"):
        make_folder(tmp_path / name)
        btinet("prepare", "-e", write_experiment(tmp_path, {"name": name, "root": str(tmp_path / name)}))
    (manifest,) = (tmp_path / "storage/datasets/first").glob("*/manifest.json")
    manifest.write_text("{")
    status, out, err = btinet("data", "list", "--storage", str(tmp_path / "storage"))
    assert (status, "second" in out, "first" in out) == (0, True, False)
    assert f"not listed: file://{manifest}: not a manifest: remove that folder and prepare again" in err


def test_own_images_from_folder_to_report(tmp_path: Path, btinet: Run) -> None:
    make_folder(tmp_path / "mine")
    short = MICRO["train"] | {"stage1": {"epochs": 1}, "stage2": {"epochs": 1}, "batch_size": 10}
    dataset = {"name": "mine", "root": str(tmp_path / "mine"), "split": "manifest"}
    file = write_experiment(tmp_path, dataset, train=short)
    key = f"mine/btinet/full/{MICRO['seeds'][0]}"
    for command in (
        ("prepare",),
        ("train", key, "--stage", "1", "--in-process"),
        ("train", key, "--stage", "2", "--in-process"),
        ("evaluate", key, "--in-process"),
        ("analyse",),
    ):
        status, _, said = btinet(*command, "-e", file)
        assert status == 0, said
    report = tmp_path / "storage/report/micro/index.html"
    (about,) = report.parent.glob("dataset-mine-*.html")
    assert f'href="{about.name}"' in report.read_text()
    page = about.read_text()
    for label in LABELS:
        assert label in page
    assert "<dt>manifest</dt>" in page  # the split it was trained on
