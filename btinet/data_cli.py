"""``btinet data ...``: datasets before an experiment: get them, look at them, pack them for DVC, split them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from btinet.binding import open_storage
from btinet.config import DatasetSettings, SplitPolicy, load_experiment
from btinet.console import bar, console
from btinet.datasets import audit as audits
from btinet.datasets.archive import pack as pack_folder
from btinet.datasets.fetch import RELEASES
from btinet.datasets.fetch import fetch as fetch_release
from btinet.datasets.folder import TABLES, FolderReader, dataset_name
from btinet.datasets.folder import init as init_folder
from btinet.datasets.prepare import prepare
from btinet.datasets.prepared import open_prepared, read_manifest, store_folder
from btinet.datasets.registry import READERS, open_reader
from btinet.datasets.splits import SPLITS, load_split, moved, torn
from btinet.errors import InputError
from btinet.storage import Storage

app = typer.Typer(
    no_args_is_help=True,
    help="Datasets before an experiment: get an official release (fetch) or start a folder of your own (init), find "
    "what is wrong with it (audit), make one file of it for DVC (pack), see how it is split (split), and what "
    "is prepared (list).\n\n"
    "For example: `btinet data fetch brisc2025`, then `btinet data audit brisc2025 --data-root data/raw`; or "
    "`btinet data init my-images`, then `btinet data audit my-images`.",
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
    console.print(f"{name}: {'laid out in' if fetched else 'was there already:'} {to}", markup=False)
    console.print(f"next: btinet data audit {name} --data-root {shlex.quote(str(to))}", markup=False)


@app.command()
def init(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder or s3:// URL for images of your own.")],
) -> None:
    """Start a dataset of your own in a folder, or check the one that is there; explains the convention.

    A table has a row an image: manifest.csv with the columns image, label, mask, group and split, the first and third
    of them paths within the folder; or labels.csv with image and label, the images in images/ and their masks, of the
    same names, in masks/. Nothing that is there is changed.

    Ends with status 1 if the table or the files it names have an error.
    """
    root = Storage(folder)
    if (name := dataset_name(root)) in READERS:
        raise InputError(
            f"{folder}: {name!r} is the name of a dataset whose official layout is read, not that of a folder of your "
            "own: rename the folder"
        )
    is_started = any((root / table).exists() for table in TABLES)
    typer.echo(init_folder(root))
    if is_started and any(finding.severity == "error" for finding in FolderReader(root, root.name).findings()):
        raise typer.Exit(1)


@app.command()
def audit(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="NAME|DIR", help=f"{', '.join(READERS)}, a folder of your own images, or its name below DATA_ROOT."
        ),
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
    from btinet.report import audit_page

    settings = _audited(dataset, data_root)
    reader = open_reader(settings, data_root)
    target = Storage(output or f"audit/{settings.name}")
    target.check_writable()
    with bar(f"auditing {settings.name}") as show:
        audited = audits.audit(settings.name, reader, split, seed, show)
    audits.write(audited, reader, target)
    page = audit_page.write(target)
    console.print(audits.summary(audited))
    console.print(f"page {page}\nParquet {target}", markup=False)
    if audited.has_errors:
        console.print("next: mend the errors, as an experiment would be refused, and audit again", markup=False)
        raise typer.Exit(1)
    if isinstance(reader, FolderReader) and settings.root:
        how = f"an experiment on it, as `btinet data init {shlex.quote(reader.origin)}` writes it"
    else:
        how = f"an experiment with datasets: [{{name: {settings.name}}}], for `btinet prepare -e FILE`"
    console.print(f"next: look at the page, then {how}", markup=False)


def _audited(dataset: str, data_root: str | None) -> DatasetSettings:
    """The dataset that an argument names: a known one, a folder, or a folder or archive below the data root."""
    if dataset in READERS:
        return DatasetSettings(name=dataset)
    given = data_root or os.environ.get("BTINET_DATA_ROOT")
    is_below = bool(given) and any((Storage(str(given)) / file).exists() for file in (dataset, f"{dataset}.tar"))
    folder = Storage(dataset)
    if folder.exists() and not (data_root and is_below):
        return DatasetSettings.model_construct(name=folder.name, root=dataset)
    if is_below:
        return DatasetSettings.model_construct(name=dataset)
    known = ", ".join(READERS)
    raise InputError(f"{dataset}: neither a dataset ({known}) nor a folder{f', nor is it in {given}' if given else ''}")


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a dataset in its layout.")],
    archive: Annotated[Path, typer.Argument(metavar="FILE.tar", help="For example data/raw/busi.tar.")],
) -> None:
    """Pack a dataset's folder into one file for `dvc add`; the same content gives the same bytes anywhere.

    An experiment finds the dataset NAME in `data_root` as a folder or as NAME.tar.
    """
    if archive.suffix != ".tar":
        raise InputError(f"{archive}: an experiment looks for NAME.tar: give the file a name that ends in .tar")
    with bar(f"packing {folder}") as show:
        pack_folder(folder, archive, show)
    console.print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB", markup=False)
    console.print(f"next: dvc add {shlex.quote(str(archive))} && dvc push", markup=False)


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
    chosen, image_size = settings.dataset(dataset), settings.prepared_size(dataset)
    root = open_storage(settings)
    with bar(f"preparing {dataset}") as show:  # not by the experiment's own policy, which may not fit
        manifest = prepare(chosen, image_size, root, settings.data_root, show).manifest
    prepared = open_prepared(root, dataset, manifest.hash)
    table = Table(title=f"{dataset} {manifest.hash}, seed {seed}", box=box.SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    for column in (*SPLITS, "groups torn", "duplicate clusters torn", "moved against paper"):
        table.add_column(column, justify="right")
    for name in POLICIES if policy is None else (policy,):
        try:
            drawn = load_split(root, prepared, name, seed)
        except InputError as error:
            if policy is not None:
                raise
            console.print(f"{name}: {error}", markup=False)
            continue
        counts = [f"{len(drawn.rows(part)):,}" for part in SPLITS]
        groups, clusters = torn(prepared.samples, prepared.duplicates, drawn.table["split"].to_pylist())
        shift = f"{moved(prepared.samples, prepared.duplicates, seed):,}" if name == "clean" else "–"
        table.add_row(name, *counts, "–" if groups is None else f"{groups:,}", f"{clusters:,}", shift)
    console.print(table)


@app.command("list")
def list_(
    storage: Annotated[
        str, typer.Option("--storage", envvar="BTINET_STORAGE", help="Where results live: a folder or s3:// URL.")
    ] = "results",
    endpoint: Annotated[str | None, typer.Option(help="URL of an S3-compatible server, for s3:// storage.")] = None,
) -> None:
    """List the datasets that can be read, and those that are prepared in a storage."""
    console.print(f"readers: {', '.join(READERS)}; and a folder of your own (btinet data init)", markup=False)
    root = Storage(storage, endpoint)
    stores = [store for dataset in (root / "datasets").children() for store in dataset.children()]
    prepared = []
    for store in stores:
        if store.name.endswith(".json"):
            continue
        try:
            manifest = read_manifest(store)
        except InputError as error:
            console.print(f"not listed: {error}", markup=False)
            continue
        if manifest is not None:
            prepared.append(manifest)
    if not prepared:
        console.print(f"{root}: nothing is prepared there; --storage names another place", markup=False)
        return
    table = Table(title=root.url, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("dataset", "hash"):
        table.add_column(column, no_wrap=True)
    for column in ("size", "samples", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("classes", "splits"):
        table.add_column(column)
    for manifest in prepared:
        drawn = (store_folder(root, manifest.name, manifest.hash) / "splits").children()
        table.add_row(
            manifest.name,
            manifest.hash,
            str(manifest.image_size),
            f"{manifest.count:,}",
            f"{sum(entry.bytes for entry in manifest.files.values()) / 1e6:.1f}",
            ", ".join(f"{name} {count:,}" for name, count in manifest.class_counts.items()),
            ", ".join(file.name.removesuffix(".parquet") for file in drawn),
        )
    Console().print(table)
