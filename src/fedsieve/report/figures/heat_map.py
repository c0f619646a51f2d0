"""A table of rates as shades and numbers."""

from collections.abc import Mapping
from pathlib import Path

from fedsieve.report.escaping import figure as text
from fedsieve.report.figures.panels import WIDTHS, Width, new_figure, save, styled
from fedsieve.report.names import ATTACKS, DEFENSES, distinct

_NAME = 26  # characters of a name beside a row or below a column
_CELL = 0.34  # inches


@styled
def heat_map(cells: Mapping[tuple[str, str], float | None], path: Path, title: str, low_is_good: bool = False) -> None:
    """A shade and a number for each (row, column); missing ones stay empty.

    Args:
        cells: Rates in [0, 1], by defense and attack.
        path: Where the picture is written; PDF and SVG go beside it.
        title: What the numbers are.
        low_is_good: Whether low rates are light; else high ones are.
    """
    import numpy as np

    rows, columns = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    beside = [text(name, _NAME) for name in distinct(rows, DEFENSES).values()]
    below = [text(name, _NAME) for name in distinct(columns, ATTACKS).values()]
    needed = 0.3 + 0.06 * max(map(len, beside), default=0) + _CELL * len(columns)
    width: Width = "column" if needed <= WIDTHS["column"] else "page"
    height = 0.3 + 0.2 * len(rows) + 0.045 * max(map(len, below), default=0)
    figure, panels = new_figure(1, title, width, height=height)
    figure.set_figwidth(max(WIDTHS[width], needed))  # so many columns fit on no page
    table = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in cells.items():
        if value is not None:
            table[rows.index(row), columns.index(column)] = value
    panels[0].imshow(table, cmap="cividis_r" if low_is_good else "cividis", vmin=0, vmax=1, aspect="auto")
    for i in range(len(rows)):
        for k in range(len(columns)):
            if not np.isnan(table[i, k]):
                light = (table[i, k] > 0.55) != low_is_good
                colour = "black" if light else "white"
                panels[0].text(k, i, f"{100 * table[i, k]:.0f}", ha="center", va="center", color=colour, fontsize=7)
    panels[0].set_xticks(range(len(columns)), below, rotation=35, ha="right")
    panels[0].set_yticks(range(len(rows)), beside)
    save(figure, path)
