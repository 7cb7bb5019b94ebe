"""The model package: one folder with all that prediction needs, checked when it is loaded.

``model.safetensors``, ``package.json`` (what it is and how images are prepared), ``calibration.json``,
``MODEL_CARD.md``, perhaps ``model.onnx``; and ``SHA256SUMS`` over all of them, which ``sha256sum -c`` reads. It is made
beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from pydantic import ValidationError
from safetensors.torch import load_file

from btinet.catalog import StoredRun, find_run
from btinet.config import ModelSettings, Strict
from btinet.datasets.prepared import read_manifest, store_folder
from btinet.errors import InputError
from btinet.inference.calibrate import Calibrated, calibrate, read_calibrated
from btinet.inference.card import model_card
from btinet.inference.onnx_file import check_onnx, write_onnx
from btinet.models.method import Method
from btinet.models.registry import build
from btinet.progress import OnBatch
from btinet.receipts import fetch_output
from btinet.storage import Storage, cache_folder, file_sha256
from btinet.training.outputs import MODEL_FILE, run_folder

FORMAT = 1
"""Version of the package's layout and meaning. Raise it with any change that an older version would misread."""

INFO_FILE = "package.json"
CALIBRATION_FILE = "calibration.json"
CARD_FILE = "MODEL_CARD.md"
ONNX_FILE = "model.onnx"
SUMS_FILE = "SHA256SUMS"

PREPROCESSING = (
    "decode as 8-bit RGB (grey repeated, transparency dropped, turned as the EXIF orientation says)",
    "resize to image_size x image_size, aspect not kept, bilinear without antialiasing, half-pixel centres, rounded",
    "the model's input is uint8 RGB [B, S, S, 3]; it scales and normalises itself",
    "the lesion probability is resized to the image's own size, bilinear, and is lesion where it is at least 0.5",
)


class PackageInfo(Strict):
    """``package.json``."""

    format: int
    run_id: str
    dataset: str
    method: str
    variant: str
    preset: str
    seed: int
    stage: int
    classes: tuple[str, ...]
    image_size: int
    preprocessing: tuple[str, ...]
    model: ModelSettings
    prepared: str
    """Content hash of the prepared dataset it was trained on."""
    split: str
    trained: str
    """When, UTC."""
    environment: dict[str, str]
    """It was trained in."""


class Package(NamedTuple):
    """A loaded package."""

    info: PackageInfo
    model: Method
    calibrated: Calibrated
    folder: Path


def export(
    stored: StoredRun,
    target: Path,
    device: torch.device,
    onnx: bool = False,
    on_batch: OnBatch = lambda done, total: None,
) -> PackageInfo:
    """Write a trained run's package as ``target``, a new or empty folder or one with an earlier package.

    Raises:
        InputError: the run is not trained, ``target`` holds something else, or the method has no ONNX file.
    """
    target = target.resolve()
    if target.exists() and (not target.is_dir() or target.is_mount()):
        raise InputError(f"{target}: is a file or a disk, which a folder cannot replace: name a new folder")
    if target.exists() and any(target.iterdir()) and not (target / SUMS_FILE).exists():
        raise InputError(f"{target}: is not empty and holds no package: name a new folder")
    if onnx:
        check_onnx()
    calibrated = calibrate(stored, device, on_batch)
    bound = stored.bound
    run, stage = bound.run, bound.run.stages[-1]
    receipt = stored.stages[stage]
    manifest = read_manifest(store_folder(stored.root, run.dataset.name, bound.prepared))
    assert manifest is not None  # calibration has read it
    info = PackageInfo(
        format=FORMAT,
        run_id=bound.run_id,
        dataset=run.dataset.name,
        method=run.method,
        variant=run.variant,
        preset=run.preset,
        seed=run.seed,
        stage=stage,
        classes=manifest.classes,
        image_size=run.settings.image_size,
        preprocessing=PREPROCESSING,
        model=run.settings.model,
        prepared=bound.prepared,
        split=bound.split,
        trained=receipt.finished,
        environment=receipt.environment,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "package"
        made.mkdir()
        fetch_output(receipt, stored.root, MODEL_FILE, made)
        here = Storage(str(made))
        (here / INFO_FILE).write_json(info.model_dump(mode="json"))
        (here / CALIBRATION_FILE).write_json(calibrated.model_dump(mode="json"))
        (here / CARD_FILE).write_text(model_card(info, calibrated))
        if onnx:
            write_onnx(_model(info, made), info.image_size, made / ONNX_FILE)
        sums = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(made.iterdir())]
        (here / SUMS_FILE).write_text("".join(sums))
        if target.exists():
            target.rename(Path(scratch) / "earlier")
        made.rename(target)
    return info


def open_package(
    reference: str, root: Storage, device: torch.device, on_batch: OnBatch = lambda done, total: None
) -> Package:
    """The package in a folder or at a URL; or a run, whose package is made in the cache the first time.

    Args:
        reference: a package's folder or URL, a run's folder or URL, or a run's id or key in ``root``.

    Raises:
        InputError: there is no such thing, or it is damaged or newer than this version.
    """
    place = Storage(reference, root.endpoint)
    if _is_package(place):
        return load_package(place)
    stored = find_run(reference, root)
    weights = "".join(output.sha256 for stage in stored.stages.values() for output in stage.outputs.values())
    calibration = calibrate(stored, device, on_batch).model_dump_json()
    contents = f"{FORMAT} {PREPROCESSING} {stored.root.url} {weights} {calibration}"
    key = hashlib.sha256(contents.encode()).hexdigest()[:10]
    folder = cache_folder() / "packages" / f"{stored.bound.run_id}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            export(stored, folder, device)
    return load_package(Storage(str(folder)))


def lasting_url(reference: str, root: Storage) -> str:
    """The URL of what :func:`open_package` opens by this reference: of a package, or of a run's folder."""
    place = Storage(reference, root.endpoint)
    if _is_package(place):
        return place.url
    stored = find_run(reference, root)
    return run_folder(stored.root, stored.bound.run_id).url


def _is_package(place: Storage) -> bool:
    if (place / SUMS_FILE).exists():
        return True
    if (place / INFO_FILE).exists():
        raise InputError(
            f"{place}: a package without its {SUMS_FILE}: copy it again, all of it, or export the run again"
        )
    return False


def load_package(place: Storage) -> Package:
    """Load a package, checking every file's hash; from object storage through the cache.

    Raises:
        InputError: a file is missing or changed, or the package is of a newer format.
    """
    sums = (place / SUMS_FILE).read_bytes().decode()
    listed = {name: sha256 for line in sums.splitlines() if "  " in line for sha256, name in [line.split("  ", 1)]}
    required = {MODEL_FILE, INFO_FILE, CALIBRATION_FILE}
    if any("/" in name or name.startswith(".") for name in listed) or not required <= listed.keys():
        raise InputError(f"{place / SUMS_FILE}: does not list {', '.join(sorted(required))}: export the run again")
    folder = Path(place.path) if place.is_local else _downloaded(place, sums, listed)
    for name, sha256 in listed.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise InputError(f"{place / name}: missing, or not what {SUMS_FILE} says: export the run again")
    info = _read_info(folder / INFO_FILE)
    return Package(info, _model(info, folder), read_calibrated(Storage(str(folder / CALIBRATION_FILE))), folder)


def _downloaded(place: Storage, sums: str, listed: dict[str, str]) -> Path:
    folder = cache_folder() / "packages" / hashlib.sha256(sums.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        for name, sha256 in listed.items():
            if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
                (place / name).download(folder / name)
    return folder


def _read_info(file: Path) -> PackageInfo:
    content = json.loads(file.read_bytes())
    if (found := content.get("format", 0)) > FORMAT:
        raise InputError(f"{file}: a package of format {found}, this version reads up to {FORMAT}: upgrade btinet")
    try:
        return PackageInfo.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{file}: not a package of this version: export the run again: {error}") from error


def _model(info: PackageInfo, folder: Path) -> Method:
    model = build(info.method, info.model, len(info.classes))
    model.load_state_dict(load_file(folder / MODEL_FILE))
    return model.eval()
