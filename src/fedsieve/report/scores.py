"""The scores of a final model as tables for a terminal: the worst classes and clients first."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TypeVar

from rich.table import Table

from fedsieve.core.records import client_name
from fedsieve.core.scores import FinalScores, Scored
from fedsieve.report.text import DASH, number, terminal_table

_SHOWN = 8  # lines of a table
_HEAD = ("samples", "accuracy", "balanced", "AUROC", "macro F1", "calibration error")

T = TypeVar("T")


def as_row(s: Scored) -> list[str]:
    """Scores under :data:`_HEAD`, in per cent but for AUROC and F1."""
    return [
        str(s.n),
        number(s.accuracy),
        number(s.balanced_accuracy),
        _share(s.auroc),
        _share(s.macro_f1),
        number(s.calibration_error),
    ]


def tables(scores: FinalScores) -> list[Table]:
    """Of the whole test set and, below it, of the clients with the least accuracy; of the classes with the least F1."""
    head = "Final model on the test data, % (AUROC and F1: shares)"
    clients, more = _worst(scores.clients, attrgetter("scores.accuracy"))
    lines = [["", *_HEAD], ["all", *as_row(scores.test)]]
    lines += [[client_name((), c.client) if not c.name else c.name, *as_row(c.scores)] for c in clients]
    found = [terminal_table(head, lines + _rest(more, "client", len(lines[0])))]
    classes, more = _worst([c for c in scores.classes if c.n], attrgetter("f1"))
    lines = [["class", "samples", "recall", "precision", "F1", "AUROC"]]
    lines += [[c.name, str(c.n), number(c.recall), number(c.precision), _share(c.f1), _share(c.auroc)] for c in classes]
    return [*found, terminal_table("", lines + _rest(more, "class", len(lines[0])))]


def _worst(items: Sequence[T], score: Callable[[T], float | None]) -> tuple[list[T], int]:
    """The items with the least scores, in their order where there are few, and how many are left out."""
    if len(items) <= _SHOWN:
        return list(items), 0

    def least(item: T) -> float:
        value = score(item)
        return 2.0 if value is None else value

    return sorted(items, key=least)[:_SHOWN], len(items) - _SHOWN


def _rest(n: int, what: str, columns: int) -> list[list[str]]:
    """A line that says how many are not shown."""
    plural = what + ("es" if what.endswith("s") else "s") * (n != 1)
    return [[f"and {n} {plural} with better scores", *[""] * (columns - 1)]] if n else []


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
