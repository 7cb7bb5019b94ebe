"""What the commands print with: one console on standard error, and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: object, status: int) -> NoReturn:
    """End the program with a message for people and an exit status."""
    console.print(f"btinet: {message}", style="bold red", markup=False, soft_wrap=True)
    sys.exit(status)


@contextmanager
def bar(title: str, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, on a terminal; gives the function to tell it how much is done, and of how much."""
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show
