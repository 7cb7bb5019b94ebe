"""The report's curves and figures for TensorBoard; event files need no server to be written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from btinet.errors import InputError
from btinet.report.drawing import Drawing
from btinet.report.figures import curve_names


def write_tensorboard(folder: Path, epochs: pa.Table, drawings: Sequence[Drawing]) -> None:
    """Write a TensorBoard run for each run's curves, tagged ``stage<n>/<quantity>``, and one for the figures.

    Args:
        folder: what ``tensorboard --logdir`` is pointed at; written again, a run replaces what it had.
        epochs: a row per (run_id, stage, epoch).
        drawings: figures of the page.

    Raises:
        InputError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs tensorboardX: pip install 'btinet[tensorboard]'") from error

    def writer(name: str) -> SummaryWriter:
        for old in (folder / name).glob("events.out.tfevents.*"):
            old.unlink()
        return SummaryWriter(str(folder / name))

    for run_id in pc.unique(epochs["run_id"]).to_pylist():
        with writer(run_id) as events:
            of_run = epochs.filter(pc.field("run_id") == run_id)
            for row in of_run.to_pylist():
                for curve in curve_names(of_run):
                    if row[curve] is not None:
                        events.add_scalar(f"stage{row['stage']}/{curve}", row[curve], row["epoch"])
    with writer("figures") as events:
        for drawing in drawings:
            drawing.figure.patch.set(visible=True, facecolor="white")
            events.add_figure(drawing.name, drawing.figure, close=False)
