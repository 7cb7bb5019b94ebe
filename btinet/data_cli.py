"""``btinet data ...``: datasets before an experiment: get them, look at them, pack them for DVC, split them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich import box
from rich.table import Table

from btinet.binding import open_storage, prepare_dataset
from btinet.config import DatasetSettings, SplitPolicy, load_experiment
from btinet.console import bar, console
from btinet.datasets import audit as audits
from btinet.datasets.archive import pack as pack_folder
from btinet.datasets.fetch import RELEASES
from btinet.datasets.fetch import fetch as fetch_release
from btinet.datasets.folder import init as init_folder
from btinet.datasets.prepared import open_prepared
from btinet.datasets.registry import READERS, open_reader
from btinet.datasets.splits import SPLITS, load_split, moved, torn
from btinet.errors import InputError
from btinet.report import audit_page
from btinet.storage import Storage

app = typer.Typer(
    no_args_is_help=True,
    help="Datasets before an experiment: fetch an official release or start a folder of your own (init), find what is "
    "wrong with it (audit), and see how it is split.",
)

DataRoot = Annotated[
    str | None,
    typer.Option(help="Folder or s3:// URL that holds the datasets; else BTINET_DATA_ROOT."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the split.")]
POLICIES: tuple[SplitPolicy, ...] = get_args(SplitPolicy)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(RELEASES)}.")],
    to: Annotated[Path, typer.Option(help="Folder to lay it out in.")] = Path("data/raw"),
    archive: Annotated[
        list[Path] | None,
        typer.Option(help="A file of the release that you downloaded yourself; repeat it for several."),
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="Base URL of a mirror of the publisher's server.")] = None,
) -> None:
    """Get a dataset's official release: download, verify, unpack; or how to get it by hand.

    An interrupted download goes on where it stopped. What is there already is not fetched again.
    """
    with bar(f"fetching {name}", in_bytes=True) as show:
        fetched = fetch_release(
            name, to, archives=archive or (), mirror=mirror, progress=lambda done, total, file: show(done, total)
        )
    console.print(f"{name}: {'laid out in' if fetched else 'was there already:'} {to}")
    console.print(f"next: btinet data audit {name} --data-root {to}", markup=False)


@app.command()
def init(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder or s3:// URL for images of your own.")],
) -> None:
    """Start a dataset of your own in a folder, or check the one that is there; explains the convention."""
    typer.echo(init_folder(Storage(folder)))


@app.command()
def audit(
    dataset: Annotated[
        str, typer.Argument(metavar="NAME|DIR", help=f"{', '.join(READERS)}, or a folder of your own images.")
    ],
    data_root: DataRoot = None,
    output: Annotated[
        str | None, typer.Option(help="Where the tables and the page go; by default audit/NAME below this folder.")
    ] = None,
    split: Annotated[
        SplitPolicy, typer.Option(help="The split to look at for groups and duplicates that cross it.")
    ] = "paper",
    seed: Seed = 42,
) -> None:
    """List everything that is wrong with a dataset: as a table, as Parquet, and as a page to look at.

    Ends with status 1 if there is an error, that is something that keeps the dataset from being prepared.
    """
    if dataset in READERS:
        settings = DatasetSettings(name=dataset)
    else:
        folder = Storage(dataset)
        if not folder.exists():
            raise InputError(f"{dataset}: neither a dataset ({', '.join(READERS)}) nor a folder")
        settings = DatasetSettings.model_construct(name=folder.name, root=dataset, max_samples=None, split=split)
    reader = open_reader(settings, data_root)
    with bar(f"auditing {settings.name}") as show:
        audited = audits.audit(settings.name, reader, split, seed, show)
    target = Storage(output or f"audit/{settings.name}")
    audits.write(audited, reader, target)
    page = audit_page.write(target)
    console.print(audits.summary(audited))
    console.print(f"page {page}\nParquet {target}", markup=False)
    if audited.has_errors:
        raise typer.Exit(1)


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a dataset in its layout.")],
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar", help="For example data/raw/busi.tar.")],
) -> None:
    """Pack a dataset's folder into one file for `dvc add`; the same content gives the same bytes anywhere.

    An experiment finds the dataset NAME in `data_root` as a folder or as NAME.tar.
    """
    with bar(f"packing {folder}") as show:
        pack_folder(folder, archive, show)
    console.print(
        f"{archive}: {archive.stat().st_size / 1e6:.1f} MB; next: dvc add {archive} && dvc push", markup=False
    )


@app.command()
def split(
    dataset: Annotated[str, typer.Argument(help="A dataset of the experiment.")],
    experiment: Annotated[Path, typer.Option("--experiment", "-e", help="Experiment file (YAML).")] = Path(
        "params.yaml"
    ),
    policy: Annotated[SplitPolicy | None, typer.Option(help="Only this policy.")] = None,
    seed: Seed = 42,
    storage: Annotated[str | None, typer.Option(envvar="BTINET_STORAGE", help="Where results live.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of an S3-compatible server.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Draw a prepared dataset's splits by every policy that fits it, and say what each tears apart.

    A group or a cluster of duplicates that is torn apart is trained on and tested on.
    """
    settings = load_experiment(experiment, data_root=data_root).with_storage(storage, endpoint)
    root = open_storage(settings)
    with bar(f"preparing {dataset}") as show:
        manifest = prepare_dataset(settings, settings.dataset(dataset), root, show).manifest
    prepared = open_prepared(root, dataset, manifest.hash)
    table = Table(title=f"{dataset} {manifest.hash}, seed {seed}", box=box.SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    for column in (*SPLITS, "groups torn", "duplicate clusters torn", "moved against paper"):
        table.add_column(column, justify="right")
    for name in POLICIES if policy is None else (policy,):
        try:
            drawn = load_split(root, prepared, name, seed)
        except InputError as error:
            console.print(f"{name}: {error}", markup=False)
            continue
        counts = [f"{len(drawn.rows(part)):,}" for part in SPLITS]
        groups, clusters = torn(prepared.samples, prepared.duplicates, drawn.table["split"].to_pylist())
        shift = f"{moved(prepared.samples, prepared.duplicates, seed):,}" if name == "clean" else "–"
        table.add_row(name, *counts, "–" if groups is None else f"{groups:,}", f"{clusters:,}", shift)
    console.print(table)
