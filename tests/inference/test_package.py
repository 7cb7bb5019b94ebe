"""What is exported, and what is refused when it is loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from btinet.catalog import find_run
from btinet.config import PRESETS, ModelSettings
from btinet.errors import InputError
from btinet.evaluation.evaluate import evaluate
from btinet.evaluation.outputs import predictions_file
from btinet.inference.images import Opened, find_images, open_image
from btinet.inference.onnx_file import write_onnx
from btinet.inference.package import export, load_package, open_package
from btinet.inference.predictor import Predictor, Prepared
from btinet.inference.single_pass import SinglePass
from btinet.models.registry import build
from btinet.storage import Storage
from tests.training.micro import KEY, Bench, bench

CPU = torch.device("cpu")


def loaded(folder: Path) -> object:
    return load_package(Storage(str(folder)))


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy"))


def sign(folder: Path) -> None:
    """Write the checksums anew, as somebody would who changed a file on purpose."""
    names = sorted(file.name for file in folder.iterdir() if file.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def test_what_is_in_it(package: Path, micro: Bench) -> None:
    names = {"model.safetensors", "package.json", "calibration.json", "MODEL_CARD.md", "SHA256SUMS"}
    assert {file.name for file in package.iterdir()} == names
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=package, check=True, capture_output=True)
    info = load_package(Storage(str(package))).info
    assert info.run_id == micro.bound.run_id
    assert (info.classes, info.image_size, info.stage) == (("benign", "malignant", "normal"), 32, 2)
    card = (package / "MODEL_CARD.md").read_text()
    for said in ("Not a medical device", "95% intervals", "Known failures", "Meant for", "stated risk", info.prepared):
        assert said in card


def test_measured_as_the_evaluation_measures(package: Path, micro: Bench) -> None:
    """Test IoU and accuracy are those of the evaluation, which goes another way."""
    test = load_package(Storage(str(package))).calibrated.test
    metrics = find_run(KEY, micro.root).evaluation.metrics  # type: ignore[union-attr]
    assert test.iou is not None and test.accuracy is not None
    assert test.iou.value == pytest.approx(metrics["test_iou"], rel=1e-5)
    assert test.accuracy.value == pytest.approx(metrics["test_accuracy"])
    assert test.iou.low <= test.iou.value <= test.iou.high


def test_same_again(package: Path, micro: Bench, tmp_path: Path) -> None:
    """Exported again it is the same, to the byte, and nothing is calibrated again."""
    export(find_run(KEY, micro.root), tmp_path / "again", CPU)
    for name in ("model.safetensors", "package.json", "calibration.json", "MODEL_CARD.md"):
        assert (tmp_path / "again" / name).read_bytes() == (package / name).read_bytes()


def test_a_run_by_reference(micro: Bench, package: Path) -> None:
    """By key, by id, by folder: its package is made in the cache."""
    folder = f"{micro.root.url}/runs/{micro.bound.run_id}"
    found = [open_package(name, micro.root, CPU) for name in (KEY, micro.bound.run_id, folder, str(package))]
    assert all(each.info == found[0].info for each in found)
    assert len({each.folder for each in found}) == 2
    with pytest.raises(InputError, match="neither a run's folder nor a run in"):
        open_package("busi/btinet/full/1", micro.root, CPU)


@pytest.mark.parametrize("name", ["model.safetensors", "calibration.json", "package.json"])
def test_changed_file(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: missing, or not what SHA256SUMS says: export the run again"):
        loaded(copy)


def test_missing_file(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model.safetensors: missing"):
        loaded(copy)


def test_newer_format(copy: Path) -> None:
    info = json.loads((copy / "package.json").read_text())
    (copy / "package.json").write_text(json.dumps(info | {"format": 2, "something": "new"}))
    sign(copy)
    with pytest.raises(InputError, match="a package of format 2, this version reads up to 1: upgrade btinet"):
        loaded(copy)


def test_path_in_checksums(copy: Path) -> None:
    with (copy / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  ../outside\n")
    with pytest.raises(InputError, match="does not list"):
        loaded(copy)


def test_without_checksums(copy: Path, micro: Bench) -> None:
    """Half of it was copied."""
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="a package without its SHA256SUMS: copy it again"):
        open_package(str(copy), micro.root, CPU)


def fail(*_: object) -> None:
    raise KeyboardInterrupt


def test_interrupted_export(micro: Bench, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves nothing, a package that was there as it was, and the cache ready for the next try."""
    monkeypatch.setenv("BTINET_CACHE", str(tmp_path / "cache"))
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("btinet.inference.package.model_card", fail)
        for target in (copy, tmp_path / "new"):
            with pytest.raises(KeyboardInterrupt):
                export(find_run(KEY, micro.root), target, CPU)
        with pytest.raises(KeyboardInterrupt):
            open_package(KEY, micro.root, CPU)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert {file.name for file in tmp_path.iterdir()} == {"cache", "copy"}
    assert open_package(KEY, micro.root, CPU).info == export(find_run(KEY, micro.root), copy, CPU)
    loaded(copy)


def test_target_that_is_a_file(micro: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before anything is computed."""
    monkeypatch.setattr("btinet.inference.package.calibrate", fail)
    (tmp_path / "p").touch()
    with pytest.raises(InputError, match="p: is a file or a disk, which a folder cannot replace: name a new folder"):
        export(find_run(KEY, micro.root), tmp_path / "p", CPU)


def test_onnx_is_not_installed(micro: Bench, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="--onnx needs onnx and onnxscript"):
        export(find_run(KEY, micro.root), copy, CPU, onnx=True)
    loaded(copy)


def test_target_that_holds_something_else(micro: Bench, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty and holds no package"):
        export(find_run(KEY, micro.root), tmp_path, CPU)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def with_onnx(micro: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "p"
    export(find_run(KEY, micro.root), folder, CPU, onnx=True)
    return folder


def written(method: str, file: Path) -> SinglePass:
    """An untrained model, and its ONNX file."""
    model = build(method, ModelSettings.model_validate(PRESETS["tiny"]["model"]), 3).eval()
    write_onnx(model, 64, file)
    return SinglePass(model)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["invpt", "mtanet", "taskprompter"])
def test_onnx_of_any_number_of_images(tmp_path: Path, method: str) -> None:
    """In these methods attention makes it easy to write down the number that is exported with."""
    network = written(method, tmp_path / "model.onnx")
    check_session(network, tmp_path / "model.onnx", torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dynashare", "missformer"])
def test_method_without_onnx(tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="cannot be exported to ONNX"):
        written(method, tmp_path / "model.onnx")
    assert len(capfd.readouterr().err.splitlines()) < 10


@pytest.mark.slow
def test_a_run_in_bfloat16(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It predicts as it was evaluated; its ONNX file, which is in float32, nearly so."""
    made = bench(tmp_path, tmp_path_factory.getbasetemp(), model={"precision": "bfloat16"})
    made.train(1, 2)
    evaluate(made.bound, made.root, CPU)
    export(find_run(KEY, made.root), tmp_path / "p", CPU, onnx=True)
    table = predictions_file(made.root, made.bound).read_table().to_pylist()
    evaluated = next(row for row in table if row["stage"] == 2 and row["split"] == "test")
    package = load_package(Storage(str(tmp_path / "p")))
    prepared = made.prepared()
    row = prepared.samples["sample_id"].to_pylist().index(evaluated["sample_id"])
    image = Prepared(prepared.images(np.array([row]))[0], 32, 32)
    (prediction,) = Predictor(package.model, package.info.classes, CPU).predict([image])
    session = onnxruntime.InferenceSession(str(tmp_path / "p" / "model.onnx"), providers=["CPUExecutionProvider"])
    (in_float32,) = session.run(["class_probability"], {"images": image.pixels[None]})
    probabilities = [value for name, value in prediction.numbers.items() if name.startswith("p_")]
    assert probabilities == pytest.approx(evaluated["probs"], abs=0.02)
    assert probabilities == pytest.approx(in_float32[0].tolist(), abs=0.02)
    assert probabilities != in_float32[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
def test_onnx_parity(with_onnx: Path, micro: Bench, batch: int) -> None:
    """onnxruntime gives what torch gives, for every output; and the file is among those that are checked."""
    assert "  model.onnx\n" in (with_onnx / "SHA256SUMS").read_text()
    check_parity(with_onnx, torch.from_numpy(micro.prepared().images(np.arange(batch))))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("batch", [1, 8])
def test_onnx_parity_on_real_images(with_onnx: Path, shared: Path, tmp_path: Path, batch: int) -> None:
    archive = shared / "data" / "busi.tar"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar:
        images = [member for member in tar if member.name.endswith(").png")][::90][:8]  # of all three classes
        tar.extractall(tmp_path, images, filter="data")
    opened = [open_image(source, 32) for source in find_images([str(tmp_path)])]
    pixels = np.stack([image.prepared.pixels for image in opened if isinstance(image, Opened)])
    assert len(pixels) == 8
    for start in range(0, 8, batch):
        check_parity(with_onnx, torch.from_numpy(pixels[start : start + batch]))


def check_parity(package: Path, images: torch.Tensor) -> None:
    names = check_session(SinglePass(load_package(Storage(str(package))).model), package / "model.onnx", images)
    assert {"mask_probability", "class_probability", "w_seg", "w_clf", "align"} <= names


def check_session(network: SinglePass, file: Path, images: torch.Tensor) -> set[str]:
    with torch.no_grad():
        expected = network(images)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == list(expected)
    for name, found in zip(names, session.run(names, {"images": images.numpy()}), strict=True):
        assert found.shape == tuple(expected[name].shape)
        np.testing.assert_allclose(found, expected[name].numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    return set(names)
