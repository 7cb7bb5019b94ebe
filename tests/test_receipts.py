"""When a step counts as done, and what happens to outputs that are not what its receipt says."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from pydantic import ValidationError

from btinet.errors import InputError
from btinet.receipts import Receipt, fetch_output, read_receipt, relative, valid_receipt, write_receipt
from btinet.storage import Storage

INPUTS = {"run_id": "r", "stage": 1, "weights": {"stage1": ["abc"]}, "split": None}
SHA256_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def file(root: Storage) -> Storage:
    return root / "runs/r/receipt.json"


@pytest.fixture
def receipt(root: Storage, file: Storage) -> Receipt:
    """A step that left two outputs."""
    (root / "runs/r/model.bin").write_bytes(b"abc")
    (root / "results/history.parquet").write_bytes(b"history")
    outputs = [root / "runs/r/model.bin", root / "results/history.parquet"]
    return write_receipt(file, root, "stage1", INPUTS, outputs, {"iou": 0.5, "note": None}, 2.5, "cpu")


def test_content(receipt: Receipt, file: Storage) -> None:
    assert read_receipt(file) == receipt
    assert receipt.outputs.keys() == {"runs/r/model.bin", "results/history.parquet"}
    assert receipt.outputs["runs/r/model.bin"].model_dump() == {"sha256": SHA256_ABC, "bytes": 3}
    assert receipt.metrics == {"iou": 0.5, "note": None}
    assert receipt.wall_seconds == 2.5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", receipt.finished)
    assert receipt.environment["device"] == "cpu"
    assert receipt.environment["torch"] == version("torch")
    assert {"python", "platform", "numpy"} <= receipt.environment.keys()


def test_valid(receipt: Receipt, root: Storage, file: Storage) -> None:
    assert valid_receipt(file, root, dict(INPUTS)) == receipt


@pytest.mark.parametrize(
    "change",
    [{"stage": 2}, {"run_id": "s"}, {"weights": {"stage1": ["abd"]}}, {"weights": {}}, {"split": "x"}, {"more": 1}],
)
def test_other_inputs(receipt: Receipt, root: Storage, file: Storage, change: dict[str, object]) -> None:
    assert valid_receipt(file, root, INPUTS | change) is None


def test_missing_input(receipt: Receipt, root: Storage, file: Storage) -> None:
    assert valid_receipt(file, root, {name: value for name, value in INPUTS.items() if name != "split"}) is None


@pytest.mark.parametrize("output", ["runs/r/model.bin", "results/history.parquet"])
def test_missing_output(receipt: Receipt, root: Storage, file: Storage, output: str) -> None:
    (root / output).remove()
    assert valid_receipt(file, root, INPUTS) is None


@pytest.mark.parametrize("content", [b"", b"ab", b"abcd"])
def test_output_of_another_size(receipt: Receipt, root: Storage, file: Storage, content: bytes) -> None:
    (root / "runs/r/model.bin").write_bytes(content)
    assert valid_receipt(file, root, INPUTS) is None


def test_no_receipt(root: Storage, file: Storage) -> None:
    assert read_receipt(file) is None
    assert valid_receipt(file, root, INPUTS) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": "stage1"}'])
def test_not_a_receipt(root: Storage, file: Storage, content: str) -> None:
    file.write_text(content)
    with pytest.raises(InputError, match=f"{file.url}: not a receipt; remove it and run again"):
        valid_receipt(file, root, INPUTS)


def test_unknown_field_is_refused(receipt: Receipt) -> None:
    with pytest.raises(ValidationError, match="colour"):
        Receipt.model_validate(receipt.model_dump() | {"colour": "red"})


def test_fetching_checks_the_content(receipt: Receipt, root: Storage, tmp_path: Path) -> None:
    local = fetch_output(receipt, root, "model.bin", tmp_path / "here")
    assert local == tmp_path / "here/model.bin"
    assert local.read_bytes() == b"abc"


def test_damage_of_the_same_size_is_found_when_reading(
    receipt: Receipt, root: Storage, file: Storage, tmp_path: Path
) -> None:
    model = root / "runs/r/model.bin"
    model.write_bytes(b"abd")
    assert valid_receipt(file, root, INPUTS) == receipt  # sizes alone are looked at
    with pytest.raises(InputError, match=f"{model.url}: its content does not match its receipt; remove it and run"):
        fetch_output(receipt, root, "model.bin", tmp_path / "here")


def test_relative(root: Storage) -> None:
    assert relative(root / "a/b.json", root) == "a/b.json"
    bucket = Storage("s3://bucket/prefix", "http://127.0.0.1:1")
    assert relative(bucket / "a/b.json", bucket) == "a/b.json"


def test_reads_well(receipt: Receipt) -> None:
    assert str(receipt.model_copy(update={"wall_seconds": 61.4})) == "stage1 done in 61 s: iou 0.500, note None"
