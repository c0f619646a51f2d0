"""What all figures share: a style for each name, panels, axes, the legend, saving."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsieve.report.escaping import figure as text
from fedsieve.report.stored import Rounds, digest
from fedsieve.runs import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles and markers for those who see no
# colour. The numbers of colours and of line styles have no common divisor, so that as many lines as their product
# differ in one of the two.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ((1, 3), (8, 2), (8, 2, 2, 2), (8, 2, 1, 2, 1, 2), (4, 4), (2, 1))
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", *((0, dashes) for dashes in _DASHES))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_PIXELS = 8_000_000  # most of a picture; a larger one is drawn more coarsely
BENIGN, MALICIOUS, ROOT = COLOURS[0], COLOURS[1], COLOURS[2]

# Records by panel (such as attack) and line (such as defense).
Lines = Mapping[str, Mapping[str, Rounds]]


@dataclass(frozen=True)
class Styles:
    """Colour, line style and marker of each name: by its place among all names, sorted, wherever it is drawn.

    Attributes:
        names: All names, of all panels and all figures that are read together; sorted.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Styles":
        """Styles of these names."""
        return cls(tuple(sorted(set(names))))

    @property
    def note(self) -> str:
        """Said in the legend if there are more names than styles, or ""."""
        most = len(COLOURS) * len(STYLES)
        return f"{len(self.names)} names share {most} styles" if len(self.names) > most else ""

    def label(self, name: str) -> str:
        """The name as the legend shows it; names that are alike once shortened are numbered."""
        alike = [other for other in self.names if text(other) == text(name)]
        return text(name) if len(alike) == 1 else f"{text(name)} ({alike.index(name) + 1})"

    def line(self, name: str) -> dict[str, Any]:
        """Colour and style of a line."""
        k = self.names.index(name)
        return {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k % len(STYLES)]}

    def marker(self, name: str) -> dict[str, Any]:
        """Colour and marker of points."""
        k = self.names.index(name)
        return {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[(k + k // len(COLOURS)) % len(MARKERS)]}


def inner(runs: Mapping[str, Mapping[str, Any]]) -> Styles:
    """Styles of all inner keys."""
    return Styles.of(name for lines in runs.values() for name in lines)


def new_figure(
    n: int, columns: int | None = None, sharey: bool = False, size: tuple[float, float] | None = None
) -> tuple["Figure", list["Axes"]]:
    """A figure and its panels.

    Args:
        n: Number of panels in use; those left over in the last row are hidden.
        columns: Panels in a row; by default four, or three if that fills all rows.
        sharey: Whether all panels have one y axis.
        size: Width and height in inches; by default from the number of panels.
    """
    from matplotlib.figure import Figure  # an optional dependency

    columns = columns or (3 if n > 4 and n % 4 and n % 3 == 0 else min(4, max(1, n)))
    rows = max(1, -(-n // columns))
    figure = Figure(figsize=size or (3.2 * columns, 0.3 + 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for panel in panels[n:]:
        panel.set_visible(False)
    return figure, panels


def separate(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The x and the y coordinates of points."""
    return [x for x, _ in points], [y for _, y in points]


def over_rounds(records: Rounds, field: str) -> tuple[list[Any], list[Any]]:
    """Rounds, counted from 1, and the values of a curve (:attr:`fedsieve.report.digest.Digest.curves`)."""
    rounds, values = digest(records).curves[field]
    return [k + 1 for k in rounds], list(values)


def label_left(panels: Sequence["Axes"], label: str) -> None:
    """Label the y axis of the first panel in each row."""
    for panel in panels:
        subplot = panel.get_subplotspec()
        if subplot is not None and subplot.is_first_col():
            panel.set_ylabel(label)


def add_legend(figure: "Figure", panels: Sequence["Axes"], title: str = "") -> None:
    """One legend below all panels, with each label once; a label must look alike wherever it is drawn."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(str(label), handle)
    if found:
        names = sorted(found)
        widest = max(2.3, 0.8 + 0.075 * max(map(len, names)))  # inches
        figure.set_figwidth(max(figure.get_figwidth(), widest))
        columns = max(1, min(len(names), int(figure.get_figwidth() / widest)))
        figure.set_figheight(figure.get_figheight() + 0.22 * max(0, -(-len(names) // columns) - 4))
        handles = [found[name] for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=columns, title=title or None)


def save(figure: "Figure", path: Path) -> None:
    """Write the picture; the same figure gives the same PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = figure.get_size_inches()
    dpi = min(150.0, (_PIXELS / (width * height)) ** 0.5, 60_000 / max(width, height))
    drawn, kind = BytesIO(), path.suffix.removeprefix(".") or "png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks: boxes
        figure.savefig(drawn, dpi=dpi, format=kind, metadata={"Software": None} if kind == "png" else None)
    files.write(path, drawn.getvalue())
