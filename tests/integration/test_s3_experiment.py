"""The experiment with everything in object storage: checkpoints, a resume from one, results as Parquet."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from btinet.evaluation.schema import PREDICTIONS
from btinet.storage import Storage
from tests.conftest import S3Server
from tests.integration.conftest import run_flow


def test_experiment_on_s3(s3_env: S3Server, write_experiment: Callable[..., Path]) -> None:
    stage1 = {"epochs": 8, "patience": 8}
    experiment = write_experiment(
        storage={"url": f"s3://{s3_env.bucket}/experiment", "endpoint": s3_env.endpoint},
        train={"batch_size": 8, "stage1": stage1, "stage2": {"epochs": 1}},
    )
    root = Storage(f"s3://{s3_env.bucket}/experiment", s3_env.endpoint)

    # a training in a plain process, killed after its second checkpoint has arrived
    btinet = str(Path(sys.executable).with_name("btinet"))
    command = [btinet, "train", "phantom/btinet/full/42", "--stage", "1", "--in-process", "-e", str(experiment)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while not root.find("epoch-0002.json"):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"no second checkpoint: {process.communicate()[0].decode()}")
        time.sleep(0.1)
    process.kill()
    process.wait()
    (history,) = root.find("-stage1.parquet")
    before = history.read_table().to_pylist()
    assert 1 <= len(before) < stage1["epochs"], "the process was killed too late to show anything"

    # the flow goes on from there, in a Ray worker
    printed = run_flow(experiment)
    assert "stage 2  epoch 1/1" in printed
    after = history.read_table().to_pylist()
    assert len(after) == stage1["epochs"]
    assert after[: len(before)] == before, "epochs that had a checkpoint were trained again"

    # what a reader on the object store finds
    predictions = ds.dataset(
        f"{root.path}/results/predictions", filesystem=root.arrow_filesystem(), format="parquet", partitioning="hive"
    ).to_table()
    assert set(predictions.column_names) == set(PREDICTIONS.names)
    assert set(predictions["stage"].to_pylist()) == {1, 2}
    assert (root / "report" / "micro" / "index.html").size() > 10_000
    assert (root / "analysis" / "micro" / "table2.parquet").read_table().num_rows == 5
    assert not root.find(".pt"), "checkpoints have served when a stage is finished"

    # neither what was printed nor what was stored holds the secret
    secret = s3_env.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in printed
    for file in [*root.find(".json"), *root.find(".html"), *root.find(".yaml")]:
        assert secret.encode() not in file.read_bytes(), file
