"""Experiment files: what is refused and how it is said, how settings merge, what makes a run another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from btinet import config
from btinet.config import LEVELS, VARIANTS, BoundRun, DatasetSettings, Experiment, load_experiment
from btinet.errors import InputError

MINIMAL: dict[str, Any] = {"name": "quick", "datasets": [{"name": "phantom"}]}


def write(folder: Path, **fields: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | fields))
    return path


def refusal(path: Path, **replace: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_experiment(path, **replace)
    return str(caught.value)


class TestWhatIsRefused:
    def test_missing_file(self, tmp_path: Path) -> None:
        path = tmp_path / "nowhere.yaml"
        assert refusal(path) == f"{path}: no such experiment file; examples are in experiments/"

    def test_bad_yaml(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text("name: [quick\ndatasets: {")
        assert refusal(path).startswith(f"{path}: not valid YAML: ")
        assert "line 2" in refusal(path)

    @pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
    def test_no_mapping(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "list.yaml"
        path.write_text(text)
        assert refusal(path).startswith(f"{path}: expected a mapping with name, datasets, ...")

    @pytest.mark.parametrize(
        ("fields", "field", "said"),
        [
            ({"colour": "red"}, "colour", "unknown key: check its spelling"),
            ({"model": {"tua": 0.5}}, "model.tua", "unknown key: check its spelling"),
            ({"preset": "tiny", "train": {"stage1": {"epoch": 3}}}, "train.stage1.epoch", "unknown key"),
            ({"model": {"tau": 99}}, "model.tau", "less than or equal to 10 (given: 99)"),
            ({"train": {"batch_size": 1}}, "train.batch_size", "greater than or equal to 2 (given: 1)"),
            ({"image_size": 100}, "image_size", "multiple of 32, the encoder's total stride (given: 100)"),
            ({"model": {"decoder_channels": [8, 8, 8, 1]}}, "model.decoder_channels.3", "greater than or equal to 2"),
            ({"evaluation": {"mc_scope": "some"}}, "evaluation.mc_scope", "'all' or 'head' (given: 'some')"),
            ({"model": {"tim": False}}, "model", "upa gates TIM's output: it needs tim: true"),
            ({"name": "Has Spaces"}, "name", "(given: 'Has Spaces')"),
            ({"datasets": []}, "datasets", "at least 1 item"),
            ({"resources": {"workers": 0}}, "resources.workers", "greater than or equal to 1 (given: 0)"),
            ({"preset": "huge"}, "preset", "'huge' is unknown; choose from paper, tiny"),
            ({"variants": ["fool"]}, "variants", "'fool' is unknown; choose from full, no-mscf"),
            ({"variants": ["full", "full"]}, "variants", "a value is listed twice"),
            ({"seeds": [42, 42]}, "seeds", "a value is listed twice"),
            ({"methods": ["btinet", "mtan"], "variants": ["no-upa"]}, "experiment", "variants: they are BTI-Net's;"),
            ({"methods": ["unet", "unet"]}, "methods", "a value is listed twice"),
            ({"datasets": [{"name": "busi"}, {"name": "busi"}]}, "datasets", "a name is listed twice"),
        ],
    )
    def test_one_fault(self, tmp_path: Path, fields: dict[str, Any], field: str, said: str) -> None:
        path = write(tmp_path, **fields)
        heading, *lines = refusal(path).splitlines()
        assert heading == f"{path}: 1 problem(s)"
        (line,) = lines
        assert f"{field}: " in line
        assert said in line

    def test_a_fault_inside_a_list_is_one_fault(self, tmp_path: Path) -> None:
        heading, *lines = refusal(write(tmp_path, datasets=[{"name": "busi", "rot": "/data"}])).splitlines()
        assert heading.endswith(": 1 problem(s)")
        assert [line.split(":")[0] for line in lines] == ["  datasets.0.rot"]

    def test_several_faults_are_listed_together(self, tmp_path: Path) -> None:
        path = write(tmp_path, colour="red", seeds=["one"], storage={"uri": "x"}, resources={"workers": 0})
        heading, *lines = refusal(path).splitlines()
        assert heading == f"{path}: 4 problem(s)"
        fields = {line.strip().split(":")[0] for line in lines}
        assert fields == {"colour", "seeds.0", "storage.uri", "resources.workers"}

    def test_several_faults_in_the_settings_are_listed_together(self, tmp_path: Path) -> None:
        path = write(tmp_path, model={"tau": 0, "gates": 4}, train={"batch_size": 0})
        fields = {line.strip().split(":")[0] for line in refusal(path).splitlines()[1:]}
        assert fields == {"model.tau", "model.gates", "train.batch_size"}


class TestMerging:
    def test_later_layers_win(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ("tau", "dropout", "clf_dim", "gate_hidden")
        layers = {"preset": 1, "dataset": 2, "experiment": 3, "variant": 4}

        def layer(name: str) -> dict[str, Any]:
            """Sets one name fewer than the layer before it, so that each name shows its last writer."""
            place = layers[name]
            values = {"tau": place, "dropout": place / 10, "clf_dim": place * 8, "gate_hidden": place}
            return {"model": {key: values[key] for key in names[place - 1 :]}}

        monkeypatch.setitem(config.PRESETS, "layered", layer("preset"))
        monkeypatch.setitem(config.DATASET_DEFAULTS, "phantom", layer("dataset"))
        monkeypatch.setitem(config.VARIANTS, "layered", layer("variant"))
        fields = MINIMAL | {"preset": "layered", "variants": ["layered"]} | layer("experiment")
        model = Experiment.model_validate(fields).runs()[0].settings.model
        assert (model.tau, model.dropout, model.clf_dim, model.gate_hidden) == (1, 0.2, 24, 4)

    def test_what_is_not_overridden_stays(self) -> None:
        fields = MINIMAL | {"preset": "tiny", "train": {"stage1": {"epochs": 2}}}
        settings = Experiment.model_validate(fields).runs()[0].settings
        assert (settings.train.stage1.epochs, settings.train.stage1.patience) == (2, 10)
        assert settings.train.stage2.epochs == 5
        assert settings.image_size == 64

    def test_dataset_defaults_are_that_datasets_only(self) -> None:
        fields = MINIMAL | {"datasets": [{"name": "busi"}, {"name": "phantom"}], "seeds": [1]}
        runs = Experiment.model_validate(fields).runs()
        assert [run.settings.loss.gate_weight for run in runs] == [0.5, 1.0]

    def test_command_line_replaces_and_none_does_not(self, tmp_path: Path) -> None:
        path = write(tmp_path, seeds=[1, 2], preset="tiny")
        experiment = load_experiment(path, seeds=[7], preset=None)
        assert experiment.seeds == (7,)
        assert experiment.preset == "tiny"

    def test_runs_in_order_and_by_key(self) -> None:
        fields = {"variants": ["full", "no-upa"], "seeds": [2, 1], "preset": "tiny"}
        experiment = Experiment.model_validate(MINIMAL | fields)
        keys = [run.key for run in experiment.runs()]
        assert keys == [f"phantom/btinet/{variant}/{seed}" for variant in fields["variants"] for seed in (2, 1)]
        assert experiment.run(keys[2]) == experiment.runs()[2]
        with pytest.raises(InputError, match="has no run 'phantom/btinet/full/3'; it has: phantom/"):
            experiment.run("phantom/btinet/full/3")


def run_id(bound: dict[str, Any] | None = None, **fields: Any) -> str:
    """The identity of the first run of an experiment with these fields."""
    run = Experiment.model_validate(MINIMAL | {"preset": "tiny"} | fields).runs()[0]
    data: dict[str, Any] = {"prepared": "p1", "split": "paper-s42", "weights_sha256": None}
    return BoundRun(run=run, **(data | (bound or {}))).run_id


class TestStages:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_stage_2_is_where_gates_learn_from_their_loss(self, variant: str) -> None:
        fields = MINIMAL | {"preset": "tiny", "variants": [variant]}
        (run, *_) = Experiment.model_validate(fields).runs()
        without = {"no-upa", "no-mscf-no-upa", "no-tim", "plain", "no-gate-loss", "random-gate"}
        assert run.stages == ((1,) if variant in without else (1, 2))

    def test_no_level_with_a_gate(self) -> None:
        fields = MINIMAL | {"model": {"ungated": list(LEVELS)}}
        assert Experiment.model_validate(fields).runs()[0].stages == (1,)


class TestIdentity:
    def test_readable_and_the_same_every_time(self) -> None:
        assert run_id().startswith("phantom-btinet-full-42-tiny-")
        assert run_id() == run_id()

    @pytest.mark.parametrize(
        "change",
        [
            {"model": {"tau": 0.5}},
            {"loss": {"gate_weight": 0.9}},
            {"train": {"stage2": {"epochs": 6}}},
            {"image_size": 96},
            {"seeds": [43]},
            {"methods": ["unet"]},
            {"variants": ["no-upa"]},
            {"bound": {"prepared": "p2"}},
            {"bound": {"split": "paper-s43"}},
            {"bound": {"weights_sha256": "0" * 64}},
            {"bound": {"transformer_sha256": "0" * 64}},
        ],
        ids=str,
    )
    def test_changes_with_what_alters_the_numbers(self, change: dict[str, Any]) -> None:
        assert run_id(**change).rpartition("-")[2] != run_id().rpartition("-")[2]

    def test_stays_when_a_setting_is_added(self) -> None:
        """Of results made before the gate's ablations came, with that time's default weights of Tversky's loss. A fault
        here makes everyone train everything again."""
        assert run_id(loss={"tversky_fn": 0.7, "tversky_fp": 0.3}) == "phantom-btinet-full-42-tiny-5303e657d4"
        assert run_id(model={"gate": "sigmoid", "ungated": [], "precision": "float32"}) == run_id()

    @pytest.mark.parametrize("model", [{"gate": "linear"}, {"ungated": ["D2"]}, {"precision": "bfloat16"}], ids=str)
    def test_changes_with_an_added_setting(self, model: dict[str, Any]) -> None:
        assert run_id(model=model).rpartition("-")[2] != run_id().rpartition("-")[2]

    def test_changes_with_the_code(self) -> None:
        assert run_id({"numerics": 2}) != run_id()

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "another"},
            {"storage": {"url": "s3://bucket/prefix", "endpoint": "http://127.0.0.1:9", "region": "eu-west-1"}},
            {"resources": {"workers": 2, "cpus_per_worker": 4, "max_failures": 0}},
            {"evaluation": {"mc_passes": 3}},
            {"data_root": "/elsewhere"},
            {"weights": "/elsewhere/w.safetensors"},
            {"transformer_weights": {"mit_b1": "/elsewhere/w.safetensors"}},
            {"datasets": [{"name": "phantom", "root": "/elsewhere"}]},
            {"seeds": [42, 7]},
            {"model": {"tau": 0.7}},
        ],
        ids=str,
    )
    def test_does_not_change_with_anything_else(self, change: dict[str, Any]) -> None:
        assert run_id(**change) == run_id()


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DatasetSettings(name="busi").name = "other"  # type: ignore[misc]
