"""Prediction shared out over a Ray cluster: what one process predicts, whatever dies, and nothing runs on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from btinet.cluster.predict import BATCHES, _shards
from btinet.cluster.worker import predict_worker
from btinet.datasets.phantom import draw
from btinet.errors import InputError
from btinet.storage import Storage
from tests.integration.cluster import Nodes, ray_cluster, wait_for

PROGRAM = str(Path(sys.executable).with_name("btinet"))


@pytest.mark.parametrize(("count", "batch_size", "workers"), [(1, 16, 8), (0, 16, 2), (1000, 16, 2), (99_999, 7, 40)])
def test_shards(count: int, batch_size: int, workers: int) -> None:
    """Every image once, in order, in whole batches of a bounded number."""
    shards = list(_shards(count, batch_size, workers))
    assert [number for start, size in shards for number in range(start, min(count, start + size))] == list(range(count))
    assert all(start % batch_size == 0 and 0 < size <= BATCHES * batch_size for start, size in shards)


def test_another_folder_of_the_same_name(tmp_path: Path) -> None:
    """A node that does not share the results' folder does not write there: they would be lost."""
    with pytest.raises(InputError, match="that is another folder than here: name a disk that all nodes share"):
        predict_worker([None], [], Storage(str(tmp_path)), None, 0, Storage(str(tmp_path / "probe")))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 phantoms and one file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(60):
        Image.fromarray(draw(number)[0]).save(folder / f"{number:03}.png")
    (folder / "017-bad.png").write_bytes(b"text")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with ray_cluster() as nodes:
        nodes.workers.append(nodes.add())
        yield nodes


def start(cluster: Nodes, package: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [PROGRAM, "predict", *arguments, "--run", str(package), "--out", str(out), "--batch-size", "2"]
    environment = os.environ | cluster.auth | {"RAY_ADDRESS": f"127.0.0.1:{cluster.port}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def written(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def workers(cluster: Nodes) -> list[psutil.Process]:
    return cluster._processes("ray::predict")


@pytest.mark.slow
def test_as_in_one_process(cluster: Nodes, package: Path, images: Path, tmp_path: Path) -> None:
    """The same bytes in every file, in the same order, with dropout's own draws."""
    said = {}
    for name, option in {"shared out": "--overlays", "alone": "--in-process"}.items():
        process = start(cluster, package, tmp_path / name, str(images), "--mc", "3", option)
        said[name] = process.communicate(timeout=240)[1]
        assert process.returncode == 3, said[name]
    assert "60 images in" in said["shared out"]
    alone = written(tmp_path / "alone")
    assert written(tmp_path / "shared out") == alone
    assert len(alone) == 2 * 60 + 3
    assert pq.read_table(tmp_path / "alone/predictions.parquet").num_rows == 60


@pytest.mark.slow
def test_a_process_dies(cluster: Nodes, package: Path, images: Path, tmp_path: Path) -> None:
    """Its shard is done again, and every row is there once."""
    process = start(cluster, package, tmp_path / "out", *[str(images)] * 20, "--mc", "30")
    wait_for(lambda: len(list((tmp_path / "out").rglob("*.png"))) > 20, "some masks are there", 120)
    workers(cluster)[0].kill()
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 3, said
    masks = pq.read_table(tmp_path / "out/predictions.parquet")["mask"].to_pylist()
    assert len(masks) == len(set(masks)) == 20 * 60
    assert all((tmp_path / "out" / mask).is_file() for mask in masks)


@pytest.mark.slow
def test_interrupted(cluster: Nodes, package: Path, images: Path, tmp_path: Path) -> None:
    """Ctrl-C: status 130, no table, and nothing goes on on the cluster."""
    process = start(cluster, package, tmp_path / "out", *[str(images)] * 50, "--mc", "30")
    wait_for(lambda: len(list((tmp_path / "out").rglob("*.png"))) > 20, "some masks are there", 120)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    wait_for(lambda: not workers(cluster), "its processes are gone", 30)
    assert not list((tmp_path / "out").glob("predictions.*")) and not list((tmp_path / "out").glob(".probe-*"))
