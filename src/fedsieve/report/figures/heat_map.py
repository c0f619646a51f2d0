"""A table of rates as shades and numbers."""

from collections.abc import Mapping
from pathlib import Path

from fedsieve.report.escaping import figure as text
from fedsieve.report.figures.panels import new_figure, save


def heat_map(cells: Mapping[tuple[str, str], float | None], path: Path, title: str, low_is_good: bool = False) -> None:
    """A shade and a number for each (row, column); missing ones stay empty.

    Args:
        cells: Rates in [0, 1].
        path: Where the picture is written.
        title: What the numbers are.
        low_is_good: Whether low rates are light; else high ones are.
    """
    import numpy as np

    rows, columns = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    longer = [max(0, max((len(text(name)) for name in names), default=0) - 20) for names in (rows, columns)]
    size = (3.4 + 0.75 * len(columns) + 0.07 * sum(longer), 1.9 + 0.36 * len(rows) + 0.05 * longer[1])
    figure, panels = new_figure(1, size=size)
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
                panels[0].text(k, i, f"{100 * table[i, k]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    panels[0].set_xticks(range(len(columns)), map(text, columns), rotation=35, ha="right", fontsize=8)
    panels[0].set_yticks(range(len(rows)), map(text, rows), fontsize=8)
    panels[0].set_title("\n".join(text(line, 120) for line in title.split("\n")), fontsize=10)
    save(figure, path)
