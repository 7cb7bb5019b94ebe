"""Raw data under DVC: packed, prepared and pushed here, pulled there, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from btinet.datasets.prepared import Manifest, read_manifest
from btinet.storage import Storage
from tests.integration.test_dvc import Project, checkout  # noqa: F401

ARCHIVE = "data/raw/busi.tar"
STAGE = "prepare@dataset0"


def make_busi(folder: Path) -> None:
    """BUSI's layout, eight images a class."""
    for label, name in enumerate(("benign", "malignant", "normal")):
        (folder / name).mkdir(parents=True)
        mask = np.zeros((40, 48), np.uint8)
        mask[10:30, 12:30] = 255 if name != "normal" else 0
        for number in range(1, 9):
            pixels = np.random.default_rng(10 * label + number).integers(0, 256, (40, 48), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name} ({number}).png")
            Image.fromarray(mask).save(folder / name / f"{name} ({number})_mask.png")


def prepared(project: Project) -> Manifest:
    manifest = read_manifest(Storage(str(project.folder / "data/prepared/busi")))
    assert manifest is not None
    return manifest


def files(project: Project) -> dict[str, bytes]:
    """What DVC keeps: the archive and the prepared dataset."""
    folder = project.folder / "data/prepared"
    kept = [project.folder / ARCHIVE, *(file for file in folder.rglob("*") if file.is_file())]
    return {str(file.relative_to(project.folder)): file.read_bytes() for file in kept}


def test_another_clone_pulls_raw_and_prepared_data(checkout: Project, tmp_path: Path) -> None:  # noqa: F811
    project = checkout
    make_busi(tmp_path / "Dataset_BUSI_with_GT")
    project("btinet", "data", "pack", str(tmp_path / "Dataset_BUSI_with_GT"), ARCHIVE)
    project("dvc", "add", ARCHIVE)
    project.change(lambda params: params.update(datasets=[{"name": "busi"}], image_size=32))
    assert f"Running stage '{STAGE}'" in project("dvc", "repro", STAGE)
    assert prepared(project).class_counts == {"benign": 8, "malignant": 8, "normal": 8}
    project("dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    project.commit()
    assert ARCHIVE not in project("git", "ls-files").split()
    project("dvc", "push")

    project("git", "clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone("dvc", "pull", "--allow-missing")  # the other stages have not run
    assert files(clone) == files(project)
    for target in (STAGE, f"{ARCHIVE}.dvc"):
        assert clone.json("status", target) == project.json("status", target) == {}
    assert f"Stage '{STAGE}' didn't change, skipping" in clone("dvc", "repro", STAGE)

    clone("dvc", "repro", "--force", STAGE)  # from the pulled archive
    assert prepared(clone).hash == prepared(project).hash
