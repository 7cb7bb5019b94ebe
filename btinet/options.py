"""Command line options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

StorageUrl = Annotated[
    str | None,
    typer.Option("--storage", envvar="BTINET_STORAGE", help="Where results live: a folder, file://... or s3://..."),
]
Endpoint = Annotated[str | None, typer.Option(help="URL of an S3-compatible server, for s3:// storage.")]
DataRoot = Annotated[
    str | None,
    typer.Option(help="Folder that holds the datasets in their official layouts; else BTINET_DATA_ROOT."),
]
Weights = Annotated[
    str | None, typer.Option(help="safetensors file of the encoder's ImageNet weights; else BTINET_WEIGHTS.")
]

RunReference = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="RUN",
        help="A run's key (phantom/btinet/full/42) or id in the storage, its folder or URL (.../runs/RUN_ID), or a "
        "package's folder or URL.",
    ),
]
RunStorage = Annotated[
    str, typer.Option("--storage", envvar="BTINET_STORAGE", help="Where runs are looked up: a folder or s3:// URL.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")]
MaxRisk = Annotated[
    float, typer.Option(min=0.001, max=0.999, help="At most this share of what is called reliable may be wrong.")
]
Confidence = Annotated[
    float, typer.Option(min=0.5, max=0.999, help="Of the guarantee: how sure it is that the risk is kept.")
]
FalseAlarms = Annotated[
    float, typer.Option(min=0.0, max=0.5, help="Share of ordinary images that may be called unlike the training's.")
]
