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
