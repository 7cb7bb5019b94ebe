"""``btinet export`` and ``btinet predict`` as a user runs them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from btinet import cli
from btinet.datasets.phantom import draw
from btinet.storage import Storage
from tests.conftest import S3Server
from tests.inference.test_images import write_dicom
from tests.inference.test_package import sign
from tests.training.micro import KEY, Bench

Run = Callable[..., tuple[int, str]]
SIZE = (50, 40)


@pytest.fixture
def btinet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process; gives exit status and what it said, on one line."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["btinet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom in every format, of 50x40 pixels; not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    pixels = [np.asarray(Image.fromarray(draw(number)[0]).resize(SIZE)) for number in range(5)]
    for number, name in enumerate(("a.png", "b.jpg", "deep/c.tiff", "deep/d.bmp")):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / name)
    write_dicom(folder / "deep/e.dcm", pixels[4])
    return folder


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "predictions.parquet").to_pylist()
    return rows


def test_every_format(btinet: Run, package: Path, images: Path, tmp_path: Path) -> None:
    """A folder with PNG, JPEG, TIFF, BMP and DICOM: masks at their own size, overlays, the same table twice."""
    out = tmp_path / "out"
    status, said = btinet("predict", images, "--run", package, "--out", out)
    assert status == 0 and "5 images in" in said and "images/s" in said
    rows = table(out)
    assert [row["mask"] for row in rows] == [f"masks/{name}.png" for name in ("a", "b", "deep/c", "deep/d", "deep/e")]
    for row in rows:
        with Image.open(out / row["mask"]) as mask, Image.open(out / row["overlay"]) as overlay:
            assert (mask.mode, mask.size) == ("1", SIZE)
            assert np.count_nonzero(np.asarray(mask)) == row["lesion_area"]
            assert overlay.format == "JPEG"
        assert row["lesion_share"] == pytest.approx(row["lesion_area"] / (50 * 40))
        probabilities = {name: row[f"p_{name}"] for name in ("benign", "malignant", "normal")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(probabilities, key=lambda name: probabilities[name])
        assert row["reliable"] in ("check", "no") and row["reason"]
        assert {f"{signal}_D{level}" for signal in ("w_seg", "w_clf", "align") for level in range(1, 5)} <= row.keys()
    with (out / "predictions.csv").open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["image"] for row in written] == [row["image"] for row in rows]
    assert list(written[0]) == list(rows[0])
    assert not (out / "failed.csv").exists()


def test_nothing_can_be_promised(btinet: Run, package: Path, images: Path, tmp_path: Path) -> None:
    """Six validation samples certify no risk of 0.1: it says so, and no prediction is called reliable."""
    _, said = btinet("predict", images, "--run", package, "--out", tmp_path, "--no-overlays")
    assert "no guarantee for a risk of 0.1 at confidence 0.9: 22 accepted validation samples" in said
    assert "reliable yes 0" in said
    assert not (tmp_path / "overlays").exists() and "overlay" not in table(tmp_path)[0]


def test_bad_images(btinet: Run, package: Path, images: Path, tmp_path: Path) -> None:
    """They are told, listed and skipped, the rest is predicted; the next run without them leaves no list."""
    mixed, out = tmp_path / "mixed", tmp_path / "out"
    shutil.copytree(images, mixed)
    (mixed / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:200])
    (mixed / "empty.png").write_bytes(b"")
    missing = mixed / "not-there.png"
    status, said = btinet("predict", mixed, missing, "--run", package, "--out", out)
    assert status == 3
    assert "3 could not be read and were skipped" in said and f"skipped: {mixed / 'empty.png'}: is not an image" in said
    assert [Path(row["image"]).name for row in table(out)] == ["a.png", "c.tiff", "d.bmp", "e.dcm"]
    with (out / "failed.csv").open(newline="") as stream:
        failed = {Path(row["image"]).name: row["reason"] for row in csv.DictReader(stream)}
    assert failed.keys() == {"b.jpg", "empty.png", "not-there.png"} and all(failed.values())
    assert btinet("predict", mixed / "a.png", "--run", package, "--out", out)[0] == 0
    assert not (out / "failed.csv").exists() and len(table(out)) == 1


def test_only_bad_images(btinet: Run, package: Path, tmp_path: Path) -> None:
    (tmp_path / "i.png").write_bytes(b"text")
    status, said = btinet("predict", tmp_path / "i.png", "--run", package, "--out", tmp_path / "out")
    assert status == 3 and "table " not in said
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["failed.csv"]


def test_results_inside_the_input(btinet: Run, package: Path, images: Path, tmp_path: Path) -> None:
    """They are not predicted the next time."""
    shutil.copytree(images, tmp_path / "images")
    for _ in range(2):
        status, said = btinet("predict", tmp_path / "images", "--run", package, "--out", tmp_path / "images")
        assert status == 0 and "5 images in" in said


def test_random_gate(btinet: Run, package: Path, images: Path, tmp_path: Path) -> None:
    """It draws the same when run again."""
    info = json.loads((package / "package.json").read_text())
    info["model"]["gate"] = "random"
    weights = load_file(package / "model.safetensors")
    changed = Path(shutil.copytree(package, tmp_path / "p"))
    (changed / "package.json").write_text(json.dumps(info))
    save_file({name: w for name, w in weights.items() if ".mlp." not in name}, changed / "model.safetensors")
    sign(changed)
    for out in ("first", "again"):
        assert btinet("predict", images, "--run", changed, "--out", tmp_path / out)[0] == 0
    assert table(tmp_path / "first") == table(tmp_path / "again")


def test_glob_and_run_key(btinet: Run, micro: Bench, images: Path, tmp_path: Path) -> None:
    arguments = ("--run", KEY, "--storage", micro.root.url, "--out", tmp_path)
    assert btinet("predict", f"{images}/*.png", f"{images}/deep/*", *arguments)[0] == 0
    assert [Path(row["image"]).name for row in table(tmp_path)] == ["a.png", "c.tiff", "d.bmp", "e.dcm"]
    status, said = btinet("predict", f"{images}/*.gif", *arguments)
    assert status == 2 and "no image there; looked for .png" in said


def test_monte_carlo(btinet: Run, package: Path, images: Path, tmp_path: Path) -> None:
    """More columns, the same again when run again, and nothing else changes."""
    for name, options in {"plain": (), "mc": ("--mc", 3), "again": ("--mc", 3)}.items():
        arguments = (images, "--run", package, "--batch-size", 2, "--out", tmp_path / name)
        assert btinet("predict", *arguments, *options)[0] == 0
    plain, mc, again = (table(tmp_path / name) for name in ("plain", "mc", "again"))
    assert mc == again
    added = mc[0].keys() - plain[0].keys()
    assert {"mc_seg_var", "mc_clf_mi", "mc_p_benign"} <= added and all(name.startswith("mc_") for name in added)
    assert [{name: row[name] for name in plain[0]} for row in mc] == plain
    assert any(row["mc_seg_var"] > 0 for row in mc)


def test_object_storage(btinet: Run, package: Path, images: Path, tmp_path: Path, s3_env: S3Server) -> None:
    """Images, package and results on an S3 server: the bytes that a disk gets."""
    bucket = Storage(f"s3://{s3_env.bucket}/predict")
    for folder in (images, package):
        for file in (file for file in folder.rglob("*") if file.is_file()):
            (bucket / folder.name / str(file.relative_to(folder))).upload(file)
    there, here = bucket / "out", tmp_path / "out"
    arguments = (f"{bucket}/{images.name}", "--run", f"{bucket}/{package.name}", "--out", there)
    status, said = btinet("predict", *arguments)
    assert status == 0, said
    assert btinet("predict", images, "--run", package, "--out", here)[0] == 0
    for file in (file for file in here.rglob("*") if file.suffix in (".png", ".jpg")):
        assert (there / str(file.relative_to(here))).read_bytes() == file.read_bytes()
    rows = (there / "predictions.parquet").read_table().to_pylist()
    assert rows[0]["image"] == f"{bucket}/{images.name}/a.png"
    assert [row | {"image": ""} for row in rows] == [row | {"image": ""} for row in table(here)]


def test_export(btinet: Run, micro: Bench, images: Path, tmp_path: Path) -> None:
    """What it makes predicts after the storage is gone from sight, and is refused once a bit is changed."""
    target = tmp_path / "p"
    status, said = btinet("export", "--run", KEY, "--storage", micro.root.url, "--to", target)
    assert status == 0 and f"next: btinet predict IMAGES --run {target}" in said
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=target, check=True, capture_output=True)
    predict = ("predict", images, "--run", target, "--storage", tmp_path / "none", "--out", tmp_path / "out")
    assert btinet(*predict)[0] == 0
    weights = bytearray((target / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (target / "model.safetensors").write_bytes(weights)
    status, said = btinet(*predict)
    assert status == 2 and "model.safetensors: missing, or not what SHA256SUMS says: export the run again" in said


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("--run", "phantom/btinet/full/99"), "neither a run's folder nor a run in"),
        (("--run", KEY, "--device", "abacus"), "--device abacus: "),
        (("--run", KEY, "--device", "cuda:99"), "--device cuda:99: "),
    ],
)
def test_faults(btinet: Run, micro: Bench, images: Path, tmp_path: Path, arguments: Any, remedy: str) -> None:
    status, said = btinet("predict", images, *arguments, "--storage", micro.root.url, "--out", tmp_path / "out")
    assert status == 2 and remedy in said
