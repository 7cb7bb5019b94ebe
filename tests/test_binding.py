"""From an experiment to runs that know their data and weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from btinet.binding import bind_all, bind_one, check_inputs, open_storage, prepare_dataset, publish_weights
from btinet.catalog import find_run
from btinet.config import PRESETS, BoundRun, Experiment, ModelSettings
from btinet.datasets.prepare import export_store, import_store
from btinet.datasets.prepared import open_prepared
from btinet.errors import InputError
from btinet.models.registry import build
from btinet.storage import Storage
from btinet.training.outputs import run_folder
from btinet.training.stage import load_model, train_stage
from tests.training.micro import CPU, KEY, MICRO, SEED, Bench, bench, files, finished_bench, one_thread  # noqa: F401


@pytest.fixture
def micro(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench(tmp_path / "micro", tmp_path_factory.getbasetemp())


@pytest.fixture
def store(micro: Bench, tmp_path: Path) -> Path:
    """The prepared dataset, exported."""
    export_store(micro.prepared().manifest, micro.root, tmp_path / "store")
    return tmp_path / "store"


def other_storage(micro: Bench, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "other"))


def pretrained(weights: str | None = None) -> Experiment:
    return Experiment.model_validate(
        MICRO | {"weights": weights, "model": MICRO["model"] | {"pretrained": True}, "storage": {"url": "unused"}}
    )


class TestWeights:
    def test_none_needed(self, micro: Bench) -> None:
        check_inputs(micro.experiment)
        assert publish_weights(micro.experiment, micro.root) == {}
        assert micro.bound.weights_sha256 is None

    def test_none_given(self) -> None:
        message = r"model.pretrained is true and no weights file is given: pass --weights FILE or set BTINET_WEIGHTS"
        with pytest.raises(InputError, match=message):
            check_inputs(pretrained())

    def test_no_such_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "none.safetensors"
        with pytest.raises(InputError, match=rf"weights: {file}: no such file \(from the experiment\)"):
            check_inputs(pretrained(str(file)))
        monkeypatch.setenv("BTINET_WEIGHTS", str(file))
        with pytest.raises(InputError, match=rf"weights: {file}: no such file \(from BTINET_WEIGHTS\)"):
            check_inputs(pretrained())

    def test_put_into_storage_once_by_content(
        self, micro: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "w.safetensors"
        file.write_bytes(b"weights")
        monkeypatch.setenv("BTINET_WEIGHTS", "/ignored/where/the/experiment/names/a/file")
        sha256 = hashlib.sha256(b"weights").hexdigest()
        assert publish_weights(pretrained(str(file)), micro.root) == {"tinynet_e": sha256}
        stored = Path(micro.root.path) / f"weights/{sha256}.safetensors"
        assert stored.read_bytes() == b"weights"
        before = files(stored.parent)
        assert publish_weights(pretrained(str(file)), micro.root) == {"tinynet_e": sha256}
        assert files(stored.parent) == before

    def test_other_weights_another_run(self, micro: Bench, tmp_path: Path) -> None:
        ids = []
        for content in (b"one", b"two"):
            file = tmp_path / "w.safetensors"
            file.write_bytes(content)
            ids.append(bind_one(pretrained(str(file)), KEY, micro.root).run_id)
        assert len({*ids, micro.bound.run_id}) == 3


class TestTransformerWeights:
    SWIN = "swin_tiny_patch4_window7_224"

    def experiment(self, files: dict[str, str], **change: Any) -> Experiment:
        methods = {"methods": ["swin-unet", "missformer"], "transformer_weights": files}
        return Experiment.model_validate(MICRO | methods | {"model": {"pretrained": True}} | change)

    def test_only_the_methods_that_start_from_them_are_other_runs(self, micro: Bench, tmp_path: Path) -> None:
        file = tmp_path / "swin.safetensors"
        file.write_bytes(b"weights")
        without, given = (bind_all(self.experiment(files), micro.root) for files in ({}, {self.SWIN: str(file)}))
        assert [bound.transformer_sha256 for bound in without] == [None, None]
        assert [bound.transformer_sha256 for bound in given] == [hashlib.sha256(b"weights").hexdigest(), None]
        assert [a.run_id == b.run_id for a, b in zip(without, given, strict=True)] == [False, True]
        assert (Path(micro.root.path) / f"weights/{given[0].transformer_sha256}.safetensors").read_bytes() == b"weights"

    def test_unused(self, micro: Bench) -> None:
        """Of a method that is not compared, or where nothing is pretrained, a file need not even be there."""
        check_inputs(self.experiment({"mit_b1": "/none"}, methods=["swin-unet"]))
        check_inputs(self.experiment({self.SWIN: "/none"}, model={"pretrained": False}))

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"swin": "w"}, "transformer_weights: no method starts from swin; choose from mit_b1, swin_tiny_"),
            ({SWIN: "/none"}, rf"transformer_weights: {SWIN}: /none: no such file \(from the experiment\)"),
        ],
    )
    def test_faults(self, files: dict[str, str], message: str) -> None:
        with pytest.raises(InputError, match=message):
            check_inputs(self.experiment(files))

    def test_training_starts_from_them(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        """A learning rate that moves no weight leaves what it started from."""
        torch.manual_seed(0)
        given = build("swin-unet", ModelSettings.model_validate(PRESETS["tiny"]["model"]), 3)
        save_file({name: tensor.detach().clone() for name, tensor in given.transformer_parts()}, tmp_path / "swin")
        made = bench(
            tmp_path / "micro",
            tmp_path_factory.getbasetemp(),
            methods=["swin-unet"],
            transformer_weights={self.SWIN: str(tmp_path / "swin")},
            model={"pretrained": True},
            train={"stage1": {"epochs": 1, "learning_rate": 1e-12}},
        )
        made.train(1)
        trained = load_model(made.bound, 1, made.root, 3)
        start = dict(given.named_parameters())
        for name, parameter in trained.named_parameters():
            if name.startswith(("embed.", "merges.")):
                torch.testing.assert_close(parameter, start[name], rtol=0, atol=1e-6)


def test_unknown_method() -> None:
    experiment = Experiment.model_validate(MICRO | {"methods": ["u-net"]})
    with pytest.raises(InputError, match="methods: 'u-net' is unknown; choose from btinet"):
        check_inputs(experiment)


def test_an_unknown_encoder_is_told_before_anything_starts() -> None:
    experiment = Experiment.model_validate(MICRO | {"model": {"encoder": "resnet50"}})
    with pytest.raises(InputError, match=r"model.encoder: 'resnet50' is not one of timm's tf_efficientnet_b\*, "):
        check_inputs(experiment)


def test_unknown_run(micro: Bench) -> None:
    with pytest.raises(InputError, match=f"has no run 'phantom/btinet/full/8'; it has: {KEY}"):
        bind_one(micro.experiment, "phantom/btinet/full/8", micro.root)


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    experiment = Experiment.model_validate(MICRO | {"storage": {"url": str(tmp_path / "file")}})
    with pytest.raises(InputError, match=f"storage file://{tmp_path}/file cannot be written: "):
        open_storage(experiment)


def test_preparing_draws_the_splits_of_all_seeds(micro: Bench) -> None:
    experiment = micro.experiment.model_copy(update={"seeds": (SEED, 8)})
    result = prepare_dataset(experiment, experiment.datasets[0], micro.root)
    assert result.reused
    folder = Path(micro.root.path) / f"datasets/phantom/{micro.bound.prepared}/splits"
    assert sorted(file.name for file in folder.iterdir()) == ["paper-s7.parquet", "paper-s8.parquet"]


def test_bound_run(micro: Bench) -> None:
    manifest = micro.prepared().manifest
    assert micro.bound.prepared == manifest.hash
    assert micro.bound.split == "paper-s7"
    assert micro.bound.run == micro.experiment.run(KEY)


def test_all_runs_are_bound_at_once(micro: Bench, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"content")
    change = {"methods": ["btinet", "unet", "swin-unet"], "seeds": [7, 8], "weights": str(weights)}
    experiment = Experiment.model_validate(MICRO | change | {"model": {"pretrained": True}})
    bounds = bind_all(experiment, micro.root)
    assert bounds == [bind_one(experiment, run.key, micro.root) for run in experiment.runs()]
    assert len({bound.run_id for bound in bounds}) == 6
    # an encoder of its own does not start from the shared one's weights
    assert [bound.weights_sha256 is None for bound in bounds] == [False] * 4 + [True] * 2


def test_training_leaves_the_bound_run_in_storage(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever finds the results can see what made them, and read it back."""
    bench = finished_bench(tmp_path, tmp_path_factory.getbasetemp())
    content = json.loads((bench.folder(1).parent / "run.json").read_text())
    assert BoundRun.model_validate(content) == bench.bound
    assert BoundRun.model_validate(content).run_id == bench.folder(1).parent.name


class TestStore:
    def test_there_and_back(self, micro: Bench, store: Path, tmp_path: Path) -> None:
        other = other_storage(micro, tmp_path)
        bound = bind_one(micro.experiment, KEY, other, store)
        assert bound == micro.bound
        folder = f"datasets/phantom/{bound.prepared}"
        here, there = Path(micro.root.path) / folder, Path(other.path) / folder
        for name in ("manifest.json", "samples.parquet", "part-00000.arrow"):
            assert (there / name).read_bytes() == (here / name).read_bytes() == (store / name).read_bytes()
        assert len(open_prepared(other, "phantom", bound.prepared)) == 40

    def test_in_storage_already(self, micro: Bench, store: Path) -> None:
        before = files(Path(micro.root.path))
        assert import_store(store, micro.root).hash == micro.bound.prepared
        assert files(Path(micro.root.path)) == before

    def test_no_store(self, micro: Bench, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=f"{tmp_path}/none: no prepared dataset: run `btinet prepare` or `dvc pull`"
        ):
            bind_one(micro.experiment, KEY, micro.root, tmp_path / "none")

    @pytest.mark.parametrize("content", [b"x", None])
    def test_damaged(self, micro: Bench, store: Path, tmp_path: Path, content: bytes | None) -> None:
        part = store / "part-00000.arrow"
        if content is None:
            part.unlink()
        else:
            part.write_bytes(part.read_bytes()[:-1] + content)
        with pytest.raises(InputError, match=f"{store}: files do not match manifest.json: run `dvc checkout`"):
            bind_one(micro.experiment, KEY, other_storage(micro, tmp_path), store)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"image_size": 64}, "image_size is 32 but the experiment needs 64: prepare it again"),
            (
                {"datasets": [{"name": "busi", "root": "/nowhere"}]},
                "name is 'phantom' but the experiment needs 'busi': prepare it again",
            ),
        ],
    )
    def test_of_another_experiment(self, micro: Bench, store: Path, change: dict[str, object], message: str) -> None:
        experiment = Experiment.model_validate(MICRO | change)
        with pytest.raises(InputError, match=f"{store}: {message}"):
            bind_one(experiment, experiment.runs()[0].key, micro.root, store)


def test_runs_of_earlier_numerics_are_found_and_used(micro: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones did not write down which numerics they are of."""
    monkeypatch.setattr("btinet.binding.NUMERICS", 1)
    old = bind_one(micro.experiment, KEY, micro.root)
    train_stage(old, 1, micro.root, CPU)
    file = run_folder(micro.root, old.run_id) / "run.json"
    file.write_json({name: value for name, value in file.read_json().items() if name != "numerics"})
    assert old.run_id != micro.bound.run_id
    found = find_run(old.run_id, micro.root)
    assert (found.bound, list(found.stages)) == (old, [1])
    load_model(found.bound, 1, micro.root, 3)
