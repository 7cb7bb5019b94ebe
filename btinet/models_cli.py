"""``btinet models ...``: the methods that an experiment can compare."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from btinet.config import PRESETS, Settings
from btinet.console import bar
from btinet.models.registry import METHODS, method_class

app = typer.Typer(
    no_args_is_help=True,
    help="The methods that an experiment can compare: what each is, and what it costs (list).\n\n"
    "An experiment names them in `methods: [btinet, unet, ...]`; docs/methods.md says what makes each of them that "
    "method and what is adapted.",
)

CLASSES = 3
"""BUSI's: a class more or less is a few hundred parameters."""


@app.command("list")
def list_methods(
    preset: Annotated[Literal["paper", "tiny"], typer.Option(help="Settings to count at.")] = "paper",
) -> None:
    """List every method: name, tasks, parameters, multiply-adds, title and citation.

    The name is what an experiment's `methods` takes.

    params, M: millions of parameters. own, M: without the EfficientNet that the methods share,
    which Swin-UNet and MISSFormer, with encoders of their own, do not use.

    GMAC: billions (10^9) of multiply-adds to predict one image, in convolutions, linear layers
    and attention.

    Counting takes a second or two a method and needs no weights.
    """
    from btinet.models.cost import cost  # loads torch

    settings = Settings.model_validate(PRESETS[preset])
    table = Table(
        title=f"preset {preset}: {settings.image_size}x{settings.image_size} pixels, {CLASSES} classes",
        caption="own: parameters without the shared encoder; GMAC: 10^9 multiply-adds an image",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("method", "tasks"):
        table.add_column(column, no_wrap=True)
    for column in ("params, M", "own, M", "GMAC"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("title and citation")
    digits = 1 if preset == "paper" else 3
    with bar("counting") as show:
        for done, name in enumerate(METHODS, start=1):
            about = method_class(name).about
            counted = cost(name, settings, CLASSES)
            numbers = (counted.parameters / 1e6, counted.own_parameters / 1e6, counted.multiply_adds / 1e9)
            table.add_row(
                name,
                ", ".join(about.tasks),
                *(f"{number:.{digits}f}" for number in numbers),
                f"[bold]{about.title}[/bold]\n{about.citation}",
            )
            show(done, len(METHODS))
    Console().print(table)
