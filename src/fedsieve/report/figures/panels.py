"""What all figures share: sizes, a style for each name, panels, axes, the legend, saving.

Plain matplotlib: what seaborn would add, a mean with a band over seeds, is one call here, and a line must look alike in
every figure of a report.
"""

import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

from fedsieve.core.extras import extra
from fedsieve.report.escaping import figure as text
from fedsieve.report.names import DEFENSES, distinct, ordered
from fedsieve.report.stored import Rounds
from fedsieve.runs import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Width = Literal["column", "page"]
# Inches: a column and the text of a page in the two-column formats of conferences.
WIDTHS: Mapping[Width, float] = {"column": 3.3, "page": 6.9}
_COLUMNS = {"column": 1, "page": 3}  # panels in a row
PANELS = {"column": 4, "page": 12}  # of one figure
KINDS = ("png", "pdf", "svg")

# Eight styles that differ in colour (Okabe and Ito's, which colour-blind readers can tell apart, and a grey for their
# yellow), and, for print in grey, in dashes and marker as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", *((0, d) for d in ((8, 2), (8, 2, 2, 2), (5, 1, 1, 1, 1, 1), (1, 3))))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = len(COLOURS)
BENIGN, MALICIOUS, ROOT, UNKNOWN = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[7]

_PIXELS = 8_000_000  # most of a picture; a larger one is drawn more coarsely
_INCHES = 0.062  # width of a letter
_RC: Any = {
    **{"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "figure.titlesize": 8, "legend.fontsize": 7},
    **{"legend.title_fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.handlelength": 2.6},
    **{"lines.linewidth": 1.2, "lines.markersize": 4, "axes.linewidth": 0.6, "grid.linewidth": 0.4, "grid.alpha": 0.4},
    **{"pdf.fonttype": 42, "svg.hashsalt": "fedsieve"},  # fonts that publishers accept; the same file every time
}

# Records by panel (such as attack) and line (such as defense), one or of several seeds.
Lines = Mapping[str, Mapping[str, Sequence[Rounds]]]
_P = ParamSpec("_P")


def styled(draw: Callable[_P, None]) -> Callable[_P, None]:
    """Draw with this project's sizes of letters and lines.

    Raises:
        MissingPackageError: From the function, without matplotlib.
    """

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with extra("report", "a figure"):
            from matplotlib import rc_context
        with rc_context(_RC):
            draw(*args, **kwargs)

    return drawn


@dataclass(frozen=True)
class Styles:
    """Colour, dashes and marker of each name: by its place among all names, wherever it is drawn.

    Attributes:
        names: All names, of all panels and all figures that are read together, in the order of tables.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Styles":
        """Styles of these names."""
        return cls(tuple(ordered(names, DEFENSES)))

    @property
    def note(self) -> str:
        """Said in the legend if there are more names than styles, or ""."""
        return f"{len(self.names)} names share {STYLES} styles" if len(self.names) > STYLES else ""

    def groups(self) -> list[tuple[str, ...]]:
        """The names, in groups of which no two look alike."""
        return [self.names[k : k + STYLES] for k in range(0, len(self.names), STYLES)]

    def label(self, name: str) -> str:
        """The name as the legend shows it; names that are alike once shortened are numbered."""
        found = distinct(self.names, DEFENSES)
        alike = [other for other in self.names if text(found[other]) == text(found[name])]
        return text(found[name]) if len(alike) == 1 else f"{text(found[name])} ({alike.index(name) + 1})"

    def line(self, name: str) -> dict[str, Any]:
        """Colour, dashes and marker of a line."""
        k = self.names.index(name) % STYLES
        return {"color": COLOURS[k], "linestyle": DASHES[k], "marker": MARKERS[k]}

    def marker(self, name: str) -> dict[str, Any]:
        """Colour and marker of points."""
        k = self.names.index(name) % STYLES
        return {"color": COLOURS[k], "marker": MARKERS[k], "linestyle": "none"}


def inner(runs: Mapping[str, Mapping[str, Any]]) -> Styles:
    """Styles of all inner keys."""
    return Styles.of(name for lines in runs.values() for name in lines)


def new_figure(
    n: int,
    title: str = "",
    width: Width | None = None,
    columns: int | None = None,
    sharey: bool = False,
    height: float = 1.75,
) -> tuple["Figure", list["Axes"]]:
    """A figure and its panels.

    Args:
        n: Number of panels in use; those left over in the last row are hidden.
        title: Above all panels.
        width: Of a column or a page; by default a column for one panel, a page for more.
        columns: Panels in a row; by default as many as fit.
        sharey: Whether all panels have one y axis.
        height: Of a panel, in inches.
    """
    from matplotlib.figure import Figure  # an optional dependency

    width = width or ("column" if n <= 1 else "page")
    columns = columns or min(_COLUMNS[width] if n != 4 else 2, max(1, n))
    if width == "column":
        columns = min(columns, max(1, n))
    rows = max(1, -(-n // columns))
    lines = textwrap.wrap(text(title, 160), int(WIDTHS[width] / _INCHES)) if title else []
    size = (WIDTHS[width], 0.25 + 0.15 * len(lines) + (height + 0.3) * rows)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("\n".join(lines))
    panels = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for panel in panels[n:]:
        panel.set_visible(False)
    return figure, panels


def separate(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The x and the y coordinates of points."""
    return [x for x, _ in points], [y for _, y in points]


def label_left(panels: Sequence["Axes"], label: str) -> None:
    """Label the y axis of the first panel in each row."""
    for panel in panels:
        subplot = panel.get_subplotspec()
        if subplot is not None and subplot.is_first_col():
            panel.set_ylabel(label)


def add_legend(figure: "Figure", panels: Sequence["Axes"], title: str = "", names: Sequence[str] = ()) -> None:
    """One legend below all panels, with each label once; a label must look alike wherever it is drawn.

    Args:
        figure: The figure.
        panels: Its panels.
        title: Of the legend.
        names: The order of labels; others come last, sorted.
    """
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(str(label), handle)
    if found:
        labels = [name for name in names if name in found] + sorted(set(found) - set(names))
        widest = 0.55 + _INCHES * 0.9 * max(map(len, labels))  # inches
        columns = max(1, min(len(labels), int(figure.get_figwidth() / widest)))
        titles = textwrap.wrap(title, int(figure.get_figwidth() / _INCHES))
        figure.set_figheight(figure.get_figheight() + 0.15 * (-(-len(labels) // columns) + len(titles)))
        handles = [found[label] for label in labels]
        head = "\n".join(titles) or None
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=head, frameon=False)


def save(figure: "Figure", path: Path) -> None:
    """Write the picture as PNG, and as PDF and SVG beside it; the same figure gives the same files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = figure.get_size_inches()
    dpi = min(200.0, (_PIXELS / (width * height)) ** 0.5, 60_000 / max(width, height))
    for kind in KINDS:
        drawn = BytesIO()
        date = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}[kind]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks: boxes
            figure.savefig(drawn, dpi=dpi, format=kind, metadata={date: None})
        figure.set_layout_engine("none")  # it stays as it is, and takes the longest
        files.write(path.with_name(f"{path.name.removesuffix('.png')}.{kind}"), drawn.getvalue())
