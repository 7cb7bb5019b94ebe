"""A trained run's predictions: what is in them, that they are right, and when they are made again."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from btinet.config import BoundRun
from btinet.errors import InputError
from btinet.evaluation.evaluate import evaluate
from btinet.evaluation.outputs import finished_evaluation, predictions_file
from btinet.evaluation.pictures import images_file, variance_png
from btinet.evaluation.schema import IMAGES, PER_LEVEL, PREDICTIONS
from btinet.partitions import read_partition
from btinet.training.stage import load_model
from tests.training.micro import COUNTS, CPU, SEED, Bench, files, finished_bench

SIZE = 32


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return finished_bench(tmp_path_factory.mktemp("finished"), tmp_path_factory.getbasetemp())


@pytest.fixture
def own(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A finished run that the test may change."""
    return finished_bench(tmp_path, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def rows(finished: Bench) -> list[dict[str, Any]]:
    return table(finished).to_pylist()


def table(bench: Bench) -> pa.Table:
    return read_partition(predictions_file(bench.root, bench.bound))


def with_evaluation(bound: BoundRun, **settings: Any) -> BoundRun:
    content = bound.model_dump()
    content["run"]["settings"]["evaluation"] |= settings
    return BoundRun.model_validate(content)


def of(rows: list[dict[str, Any]], stage: int, split: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["stage"], row["split"]) == (stage, split)]


class TestTable:
    def test_schema(self, finished: Bench) -> None:
        """Also what is not null, and a level's four values."""
        assert table(finished).schema.equals(PREDICTIONS)
        assert all(not table(finished)[field.name].null_count for field in PREDICTIONS if not field.nullable)

    def test_a_row_for_each_stage_split_and_sample(self, finished: Bench, rows: list[dict[str, Any]]) -> None:
        for stage in (1, 2):
            for split in ("val", "test"):
                found = [row["sample_id"] for row in of(rows, stage, split)]
                data = finished.data(split)
                assert found == data.sample_ids(data.rows)
                assert len(found) == COUNTS[split]
        assert len(rows) == 2 * (COUNTS["val"] + COUNTS["test"])

    def test_what_names_the_run(self, finished: Bench, rows: list[dict[str, Any]]) -> None:
        expected = {
            "run_id": finished.bound.run_id,
            "preset": "tiny",
            "dataset": "phantom",
            "method": "btinet",
            "variant": "full",
            "seed": SEED,
            "split_id": f"paper-s{SEED}",
            "mc_T": 3,
            "mc_scope": "all",
        }
        for row in rows:
            assert {name: row[name] for name in expected} == expected
            assert row["group_id"] is None

    def test_bounds(self, rows: list[dict[str, Any]]) -> None:
        bounds = {
            **dict.fromkeys(("iou", "dice", "precision", "recall", "soft_iou", "mask_conf", "conf", "mc_iou"), (0, 1)),
            **dict.fromkeys(("w_seg", "w_clf"), (0, 1)),
            "align": (-1 - 1e-6, 1 + 1e-6),
            **dict.fromkeys(("seg_energy", "clf_energy"), (0, np.inf)),
            **dict.fromkeys([f"tim_d{part}_l{norm}" for part in ("clf", "seg") for norm in (1, 2)], (0, np.inf)),
            **dict.fromkeys(("entropy", "mc_clf_entropy", "mc_clf_mi"), (0, np.log(3) + 1e-6)),
            **dict.fromkeys(("mc_seg_entropy", "mc_seg_mi"), (0, np.log(2) + 1e-6)),
            **dict.fromkeys(("mc_seg_var", "mc_seg_var_fg", "mc_clf_var"), (0, 0.25)),
            "latency_ms": (1e-6, 1e5),
        }
        for row in rows:
            for name, (low, high) in bounds.items():
                values = np.atleast_1d(row[name])
                assert len(values) == (4 if PREDICTIONS.field(name).type == PER_LEVEL else 1), name
                assert ((values >= low) & (values <= high)).all(), (name, values)
            for level in range(4):  # the mean is not above the root mean square
                assert row["tim_dclf_l1"][level] <= row["tim_dclf_l2"][level] * (1 + 1e-5)
                assert row["tim_dseg_l1"][level] <= row["tim_dseg_l2"][level] * (1 + 1e-5)

    def test_gate_training_changed_the_gates(self, rows: list[dict[str, Any]]) -> None:
        """Same samples, same features: what comes before the first gate is the same, the gates are not."""
        for one, two in zip(of(rows, 1, "test"), of(rows, 2, "test"), strict=True):
            assert one["sample_id"] == two["sample_id"]
            assert one["seg_energy"][0] == pytest.approx(two["seg_energy"][0], rel=1e-5)
            assert one["w_seg"] != two["w_seg"]

    def test_pictures_of_the_last_stages_test_only(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if (row["stage"], row["split"]) != (2, "test"):
                assert row["mask_png"] is None
                assert row["mc_var_png"] is None
                continue
            with Image.open(io.BytesIO(row["mask_png"])) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "1", (SIZE, SIZE))
                assert np.asarray(image).sum() == row["pred_area"]
            with Image.open(io.BytesIO(row["mc_var_png"])) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "L", (SIZE, SIZE))
                variance = (np.asarray(image) / 510.0) ** 2
                step = 1 / 510  # of the root; half of it is lost by rounding
                assert variance.mean() == pytest.approx(
                    row["mc_seg_var"], abs=step * np.sqrt(variance.mean()) + step**2
                )

    @pytest.mark.parametrize("stage", [1, 2])
    @pytest.mark.parametrize("split", ["val", "test"])
    def test_values_follow_from_the_raw_logits(
        self, finished: Bench, rows: list[dict[str, Any]], stage: int, split: str
    ) -> None:
        model = load_model(finished.bound, stage, finished.root, classes=3)
        prepared, found = finished.prepared(), of(rows, stage, split)
        ids = prepared.samples["sample_id"].to_pylist()
        seen = set()
        for start in (0, 4):  # the evaluation's batches, so that no pixel at the threshold differs
            numbers = np.array([ids.index(row["sample_id"]) for row in found[start : start + 4]])
            with torch.no_grad():
                output = model(torch.from_numpy(prepared.images(numbers)).permute(0, 3, 1, 2) / 255)
            for index, (number, row) in enumerate(zip(numbers, found[start : start + 4], strict=True)):
                logits = output.seg_logits[index, 0].double().numpy()
                p, truth = 1 / (1 + np.exp(-logits)), prepared.masks(np.array([number]))[0]
                mask = (p >= 0.5).astype(int)
                flat = truth.ravel(), mask.ravel()
                probs = softmax(output.clf_logits[index].double().numpy())
                overlap = (p * truth).sum()
                expected = {
                    "y_true": prepared.labels[number],
                    "has_mask": bool(truth.any()),
                    "gt_area": truth.sum(),
                    "pred_area": mask.sum(),
                    "empty_pred": not mask.any(),
                    "tp": (mask & truth).sum(),
                    "fp": (mask & (1 - truth)).sum(),
                    "fn": ((1 - mask) & truth).sum(),
                    "iou": jaccard_score(*flat, zero_division=0),
                    "dice": f1_score(*flat, zero_division=0),
                    "precision": precision_score(*flat, zero_division=0),
                    "recall": recall_score(*flat, zero_division=0),
                    "soft_iou": overlap / (p.sum() + truth.sum() - overlap),
                    "mask_conf": 2 * (p * mask).sum() / (p + mask).sum() if mask.any() else 1 - p.max(),
                    "probs": probs,
                    "conf": probs.max(),
                    "y_pred": probs.argmax(),
                    "correct": bool(probs.argmax() == prepared.labels[number]),
                    "entropy": entropy(probs),
                    "w_seg": output.signals.w_seg[index].tolist(),
                    "clf_energy": output.signals.clf_energy[index].tolist(),
                }
                for name, value in expected.items():
                    assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
                seen.add((row["has_mask"], row["tp"] > 0, row["fp"] > 0, row["fn"] > 0))
        assert len(seen) > 1  # not all alike

    def test_headline(self, finished: Bench, rows: list[dict[str, Any]]) -> None:
        receipt = finished_evaluation(finished.bound, finished.root)
        assert receipt is not None
        test = of(rows, 2, "test")
        lesions = [row for row in test if row["has_mask"]]
        assert len(lesions) < len(test) == 6
        assert receipt.metrics == pytest.approx(
            {
                "test_samples": 6,
                "test_iou": np.mean([row["iou"] for row in lesions]),
                "test_dice": np.mean([row["dice"] for row in lesions]),
                "test_accuracy": np.mean([row["correct"] for row in test]),
            },
            rel=1e-6,
        )


class TestImages:
    def test_rows_are_the_test_samples(self, finished: Bench, rows: list[dict[str, Any]]) -> None:
        images = read_partition(images_file(finished.root, finished.bound))
        assert images.schema.equals(IMAGES)
        data, prepared = finished.data("test"), finished.prepared()
        truth = {row["sample_id"]: row for row in of(rows, 2, "test")}
        for number, image in zip(data.rows, images.to_pylist(), strict=True):
            row = truth[image["sample_id"]]
            assert image["prepared"] == finished.bound.prepared
            assert (image["dataset"], image["split_id"], image["label"]) == ("phantom", row["split_id"], row["y_true"])
            assert image["class"] == prepared.manifest.classes[row["y_true"]]
            mask = np.asarray(Image.open(io.BytesIO(image["mask_png"])))
            assert np.array_equal(mask, prepared.masks(np.array([number]))[0] > 0)
            assert mask.sum() == row["gt_area"]
            jpeg = np.asarray(Image.open(io.BytesIO(image["image_jpeg"])), np.float64)
            original = prepared.images(np.array([number]))[0]
            assert jpeg.shape == original.shape
            assert np.abs(jpeg - original).mean() < 8  # of 255

    def test_another_run_on_the_split_leaves_them_as_they_are(self, own: Bench) -> None:
        file = images_file(own.root, own.bound)
        before = Path(file.path).stat().st_mtime_ns
        evaluate(with_evaluation(own.bound, mc_passes=1), own.root, CPU)
        assert Path(file.path).stat().st_mtime_ns == before

    def test_lost_they_are_written_again(self, own: Bench) -> None:
        file = images_file(own.root, own.bound)
        before = file.read_table()
        file.remove()
        assert finished_evaluation(own.bound, own.root) is None
        evaluate(own.bound, own.root, CPU)
        assert file.read_table().equals(before)


def test_variance_png_averages_and_keeps_the_scale() -> None:
    variance = torch.zeros(1, 224, 224)
    variance[:, :2, :2] = 0.25  # the largest there is
    variance[:, 2:4, 0] = 0.02  # half of a 2x2 block: 0.01 on average
    image = np.asarray(Image.open(io.BytesIO(variance_png(variance))))
    assert image.shape == (112, 112)
    assert (image[0, 0], image[1, 0]) == (255, 51)
    assert image.sum() == 255 + 51


class TestAgain:
    def test_done_is_not_done_again(self, own: Bench) -> None:
        before = files(Path(own.root.path))
        done = finished_evaluation(own.bound, own.root)
        batches: list[int] = []
        assert evaluate(own.bound, own.root, CPU, lambda number, _: batches.append(number)) == done
        assert not batches
        assert files(Path(own.root.path)) == before

    def test_repeated_it_gives_the_same_numbers(self, own: Bench) -> None:
        """Monte Carlo dropout draws from seeds of its own."""
        before = table(own).drop_columns(["latency_ms"])
        (own.root / "runs" / own.bound.run_id / "evaluation.json").remove()
        torch.manual_seed(123)
        evaluate(own.bound, own.root, CPU)
        assert table(own).drop_columns(["latency_ms"]).equals(before)

    def test_other_evaluation_settings_repeat_it_alone(self, own: Bench) -> None:
        folder = Path(own.root.path)
        neighbour = Path(predictions_file(own.root, own.bound).path).with_name("another-run.parquet")
        neighbour.write_bytes(b"another run's")
        before, rows = files(folder), table(own)
        changed = with_evaluation(own.bound, mc_passes=2)
        assert changed.run_id == own.bound.run_id
        assert finished_evaluation(changed, own.root) is None
        evaluate(changed, own.root, CPU)
        after = files(folder)
        rewritten = {name for name in after if before.get(name) != after[name]}
        written = {
            f"results/{kind}/dataset=phantom/method=btinet/{own.bound.run_id}.parquet"
            for kind in ("predictions", "runs")
        }
        own_files = {f"runs/{own.bound.run_id}/{name}.json" for name in ("evaluation", "evaluation-progress")}
        assert rewritten == written | own_files
        assert before.keys() == after.keys()
        again = table(own)
        assert again["mc_T"].unique().to_pylist() == [2]
        unchanged = [name for name in PREDICTIONS.names if not name.startswith("mc_") and name != "latency_ms"]
        assert again.select(unchanged).equals(rows.select(unchanged))
        assert not again["mc_seg_var"].equals(rows["mc_seg_var"])

    def test_other_weights_repeat_it(self, own: Bench) -> None:
        receipt = own.folder(2) / "receipt.json"
        sha256 = own.root.__truediv__("runs") / own.bound.run_id / "stage2" / "model.safetensors"
        receipt.write_text(receipt.read_text().replace(sha256.sha256(), "0" * 64))
        assert finished_evaluation(own.bound, own.root) is None

    def test_progress(self, own: Bench) -> None:
        seen: list[tuple[int, int]] = []
        evaluate(with_evaluation(own.bound, mc_passes=1), own.root, CPU, lambda done, total: seen.append((done, total)))
        assert seen == [(number, 8) for number in range(1, 9)]  # 2 stages x (2 + 2) batches of 4 and 2


class TestMonteCarloSettings:
    def test_no_passes(self, own: Bench) -> None:
        evaluate(with_evaluation(own.bound, mc_passes=0), own.root, CPU)
        rows = table(own)
        columns = [name for name in PREDICTIONS.names if name.startswith("mc_")]
        assert len(columns) == 16
        assert all(rows[name].null_count == len(rows) for name in columns)
        assert rows.schema.equals(PREDICTIONS)

    def test_head_alone_says_nothing_of_the_segmentation(self, own: Bench) -> None:
        evaluate(with_evaluation(own.bound, mc_scope="head"), own.root, CPU)
        rows = table(own)
        assert rows["mc_scope"].unique().to_pylist() == ["head"]
        for name in ("mc_seg_var", "mc_seg_entropy", "mc_seg_mi", "mc_seg_var_fg", "mc_iou", "mc_var_png"):
            assert rows[name].null_count == len(rows)
        assert min(rows["mc_clf_var"].to_pylist()) > 1e-10

    def test_head_only_scores_are_there_with_either_scope(self, finished: Bench) -> None:
        """With mc_scope all, more dropout is active in mc_clf_* than in mc_head_clf_*."""
        rows = table(finished)
        for name in ("clf_entropy", "clf_mi", "clf_var"):
            assert rows[f"mc_head_{name}"].null_count == 0
            assert not rows[f"mc_head_{name}"].equals(rows[f"mc_{name}"])
        assert min(rows["mc_head_clf_var"].to_pylist()) > 1e-10


class TestReaders:
    """What people read the folder with finds the partition columns."""

    def test_pyarrow_dataset(self, finished: Bench) -> None:
        folder = str(Path(finished.root.path) / "results/predictions")
        hive = ds.dataset(folder, format="parquet", partitioning="hive")
        chosen = hive.to_table(filter=(ds.field("dataset") == "phantom") & (ds.field("stage") == 2))
        assert len(chosen) == 12
        assert hive.to_table(filter=ds.field("method") == "unet").num_rows == 0
        assert sorted(hive.schema.names) == sorted(PREDICTIONS.names)

    def test_pyarrow_parquet(self, finished: Bench) -> None:
        found = pq.read_table(str(Path(finished.root.path) / "results/predictions"))
        assert len(found) == 24
        assert set(map(str, found["dataset"].to_pylist())) == {"phantom"}

    def test_duckdb(self, finished: Bench) -> None:
        pattern = os.path.join(finished.root.path, "results/predictions/*/*/*.parquet")  # noqa: PTH118
        query = f"select dataset, stage, count(*), avg(w_seg[1]) from '{pattern}' group by all order by stage"
        found = duckdb.sql(query).fetchall()
        assert [row[:3] for row in found] == [("phantom", 1, 12), ("phantom", 2, 12)]
        first = [row["w_seg"][0] for row in table(finished).to_pylist() if row["stage"] == 1]
        assert found[0][3] == pytest.approx(np.mean(first), rel=1e-6)


def test_untrained_run_is_refused(own: Bench) -> None:
    (own.folder(2) / "receipt.json").unlink()
    with pytest.raises(InputError, match=r"stage 2 of .* is not finished"):
        evaluate(own.bound, own.root, CPU)


def test_damaged_weights_are_refused(own: Bench) -> None:
    file = own.folder(2) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file}: its content does not match its receipt"):
        evaluate(with_evaluation(own.bound, mc_passes=1), own.root, CPU)
