"""What all figures share: colours, panels, axes, the legend, saving."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsieve.core.records import RoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles and markers for those who see no
# colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BENIGN, MALICIOUS, ROOT = COLOURS[0], COLOURS[1], COLOURS[2]

# Records by panel (such as attack) and line (such as defense).
Lines = Mapping[str, Mapping[str, Sequence[RoundRecord]]]


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


def over_rounds(records: Sequence[RoundRecord], field: str) -> tuple[list[Any], list[Any]]:
    """Rounds, counted from 1, and the values of a field, where it is not None."""
    return separate([(r.round + 1, value) for r in records if (value := getattr(r, field)) is not None])


def line_style(k: int) -> dict[str, Any]:
    """Colour and style of the k-th line."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k % len(STYLES)]}


def label_left(panels: Sequence["Axes"], label: str) -> None:
    """Label the y axis of the first panel in each row."""
    for panel in panels:
        subplot = panel.get_subplotspec()
        if subplot is not None and subplot.is_first_col():
            panel.set_ylabel(label)


def add_legend(figure: "Figure", panels: Sequence["Axes"], title: str = "") -> None:
    """One legend below all panels, with each label once."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(str(label), handle)
    if found:
        figure.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=max(1, min(len(found), int(figure.get_figwidth() / 2.3))),
            title=title or None,
        )


def save(figure: "Figure", path: Path) -> None:
    """Write the picture; the same figure gives the same PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
