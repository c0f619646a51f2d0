"""What is left to run, and about how long it takes, for ``sweep --dry-run`` and ``reproduce --dry-run``."""

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fedsieve.cli.options import out
from fedsieve.core.escaping import printable

if TYPE_CHECKING:
    from fedsieve.reproduce.forecast import Outlook

ESTIMATING = "estimating; where no rounds on disk tell how long they take, a few are run, for about a minute at most"


def as_json(cells: "list[Outlook]") -> dict[str, Any]:
    """What ``sweep --dry-run --json`` prints: the estimate of each cell, and their sum; None for what is not known."""
    rows = [
        {
            "settings": cell.group,
            "attack": cell.row,
            "defense": cell.column,
            "keys": [e.key for e in cell.experiments],
            "state": cell.state,
            "rounds_left": cell.left,
            "seconds_left": cell.left * cell.seconds if cell.seconds is not None else None if cell.left else 0.0,
            "memory": cell.memory,
        }
        for cell in cells
    ]
    known = [row["seconds_left"] for row in rows]
    return {"cells": rows, "seconds_left": None if None in known else sum(known)}


def show(cells: "list[Outlook]", labels: tuple[str, str, str], device: str, jobs: int, threads: int) -> None:
    """Print a table of the cells, and their sum.

    Args:
        cells: What is left of each.
        labels: What their group, row and column are.
        device: Where they would be run.
        jobs: How many of them at a time.
        threads: Number of threads of each.
    """
    from fedsieve.report.text import duration
    from fedsieve.reproduce.forecast import PROCESS

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (*labels, "seeds", "rounds", "clients", "state", "time left", "from", "memory"):
        table.add_column(column, overflow="fold", justify="right" if column in ("rounds", "clients") else "left")
    for cell in cells:
        e = cell.experiments[0]
        seeds = ", ".join(str(other.seed) for other in cell.experiments)
        left = "" if not cell.left else "?" if cell.seconds is None else duration(cell.left * cell.seconds)
        memory = "" if not cell.left else "?" if cell.memory is None else f"{cell.memory / 1e9:.1f} GB"
        source = cell.source.partition(":")[0]  # why it is not known is said below
        words = [cell.group, cell.row if cell.shown else f"{cell.row} (not shown)", cell.column]
        numbers = [seeds, f"{e.rounds:,}", f"{e.clients_per_round:,}", cell.state, left, source, memory]
        table.add_row(*(Text(printable(text)) for text in (*words, *numbers)))
    out.print(table)
    waiting = [cell for cell in cells if cell.left]
    known = [cell.left * cell.seconds for cell in waiting if cell.seconds is not None]
    runs = [n < e.rounds for cell in cells for e, n in zip(cell.experiments, cell.done, strict=True)]
    said = [f"{sum(runs):,} of {len(runs):,} runs are not finished"]
    if known:
        threaded = f"{threads} thread{'s' if threads > 1 else ''} each"
        said += [
            f"about {duration(sum(known))} on {device}, {threaded}, one after another; --jobs {jobs} shares it out"
        ]
    if unknown := [cell.source for cell in waiting if cell.seconds is None]:
        said += [f"{len(unknown)} cells without an estimate are not counted ({unknown[0]})"]
    if waiting:
        said += [f"memory is what a run needs at least: {PROCESS / 1e9:.1f} GB, the data twice, model and updates"]
    out.print(Text(printable(". ".join(text[0].upper() + text[1:] for text in said) + ".")), soft_wrap=True)
