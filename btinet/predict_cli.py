"""``btinet export`` and ``btinet predict``: a trained run as a package, and what it says about images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btinet.catalog import find_run
from btinet.console import bar, console
from btinet.datasets.files import shown
from btinet.options import Confidence, Device, Endpoint, FalseAlarms, MaxRisk, RunReference, RunStorage
from btinet.storage import Storage

if TYPE_CHECKING:
    import torch

    from btinet.inference.images import BadImage, Source
    from btinet.inference.package import Package
    from btinet.inference.predict import Options, Row

LISTED = 10
"""How many bad images are named; all are in failed.csv."""
REPORT_SECONDS = 30
"""How often progress is printed where there is no terminal."""


def export(
    run: RunReference,
    to: Annotated[Path | None, typer.Option(help="Folder to make; by default packages/RUN_ID.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx, for other runtimes.")] = False,
    storage: RunStorage = "results",
    endpoint: Endpoint = None,
    device: Device = None,
) -> None:
    """Make one folder of a trained run that predicts offline: weights, settings, calibration, model card, checksums.

    The first time the run is calibrated: it predicts its validation and test split and up to 1,000 training images.
    docs/predict.md describes the folder. `btinet predict IMAGES --run FOLDER` uses it.
    """
    from btinet.inference.package import CARD_FILE
    from btinet.inference.package import export as export_package
    from btinet.models.place import device_named

    stored = find_run(run, Storage(storage, endpoint))
    target = to or Path("packages") / stored.bound.run_id
    with bar(f"calibrating {stored.bound.run.key}") as show:
        export_package(stored, target, device_named(device), onnx, show)
    console.print(f"package {target}\nmodel card {target / CARD_FILE}", markup=False)
    console.print(f"next: btinet predict IMAGES --run {target}", markup=False)


def predict(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Files, folders, globs or s3:// URLs; PNG, JPEG, TIFF, DICOM."),
    ],
    run: RunReference,
    out: Annotated[str, typer.Option(help="Folder or s3:// URL for masks, overlays and the table.")] = "predictions",
    max_risk: MaxRisk = 0.1,
    confidence: Confidence = 0.9,
    false_alarms: FalseAlarms = 0.05,
    mc: Annotated[int, typer.Option(min=0, help="Monte Carlo dropout passes, as more columns; 30 in the paper.")] = 0,
    overlays: Annotated[bool, typer.Option(help="Draw each mask's outline on its image.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 16,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Predict in this process even if RAY_ADDRESS names a cluster.")
    ] = False,
    storage: RunStorage = "results",
    endpoint: Endpoint = None,
    device: Device = None,
) -> None:
    """Predict lesion mask and class of images, and whether to rely on them: yes, check or no, and why.

    Writes masks/ (PNG at each image's own size), overlays/, predictions.parquet and predictions.csv (a row an image).
    Where RAY_ADDRESS names a cluster the images are shared out over it; its nodes must reach IMAGES and --out under the
    same names, so these are on a shared disk or s3:// URLs.

    An image that cannot be read is reported (also in failed.csv) and skipped; the exit status is then 3.
    """
    from btinet.calibration.reliability import certify
    from btinet.inference.images import BadImage, find_images
    from btinet.inference.package import open_package
    from btinet.inference.predict import FAILED_FILE, MASKS, OVERLAYS, TABLE, Options, predict_rows, write_tables
    from btinet.models.place import device_named

    target = Storage(out, endpoint)
    sources = find_images(images, endpoint, results=[target / MASKS, target / OVERLAYS])
    target.check_writable()
    chosen = device_named(device)
    with bar("calibrating") as show:
        package = open_package(run, Storage(storage, endpoint), chosen, show)
    rule = certify(package.calibrated.calibration, max_risk, confidence, false_alarms)
    console.print(f"{package.info.run_id}: {rule}", markup=False)
    options = Options(rule, batch_size, mc, overlays)
    counts = {"yes": 0, "check": 0, "no": 0}
    bad = 0
    started = reported = time.monotonic()
    is_shared_out = bool(os.environ.get("RAY_ADDRESS")) and not in_process
    predicting = _on_cluster if is_shared_out else predict_rows
    with bar("predicting") as show:
        rows = predicting(package, sources, target, chosen, options)
        for done, row in enumerate(write_tables(rows, target), start=1):
            if isinstance(row, BadImage):
                bad += 1
                if bad <= LISTED:
                    console.print(f"skipped: {shown(row.source.file)}: {row.reason}", markup=False, style="yellow")
            else:
                counts[row["reliable"]] += 1
            show(done, len(sources))
            if not console.is_terminal and time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                console.print(f"{done:,} of {len(sources):,}, {done / (reported - started):.1f} images/s")
    seconds = time.monotonic() - started
    reliable = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    speed = f"{seconds:.1f} s ({len(sources) / seconds:.1f} images/s)"
    console.print(f"{sum(counts.values()):,} images in {speed}: reliable {reliable}")
    if any(counts.values()):
        console.print(f"table {target / f'{TABLE}.parquet'}", markup=False)
    if bad:
        console.print(f"{bad:,} could not be read and were skipped: {target / FAILED_FILE}", markup=False)
        raise typer.Exit(3)


def _on_cluster(
    package: Package, sources: list[Source], target: Storage, device: torch.device, options: Options
) -> Iterator[Row | BadImage]:
    from btinet.cluster.predict import predict_on_cluster
    from btinet.cluster.session import ray_session

    with ray_session():
        yield from predict_on_cluster(package, sources, target, options)
