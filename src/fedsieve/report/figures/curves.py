"""Accuracy and rates over rounds, or against a number: means with a band of one standard deviation over seeds."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsieve.core.errors import FedSieveError
from fedsieve.report.digest import MISSED
from fedsieve.report.escaping import figure as text
from fedsieve.report.figures.panels import (
    Lines,
    Styles,
    Width,
    add_legend,
    inner,
    label_left,
    new_figure,
    save,
    styled,
)
from fedsieve.report.load import Run
from fedsieve.report.names import ATTACKS, named
from fedsieve.report.stored import Rounds, digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_TITLE = 36  # characters above a panel
_POINTS = 50  # of a line; with more, noise hides the course
_MARKS = 6  # of a line
# By field of a round's record: what the y axis says.
FIELDS = {
    "test_accuracy": "test accuracy, %",
    "attack_success_rate": "ASR (other classes), %",
    "false_positive_rate": "benign rejected, %",
    "false_negative_rate": "malicious missed, %",
}


def over_seeds(seeds: Sequence[Rounds], field: str, span: int = 1) -> "DataFrame":
    """Mean and standard deviation over seeds of a curve (:attr:`fedsieve.report.digest.Digest.curves`), in per cent.

    Args:
        seeds: Records of each seed.
        field: Of a round's record.
        span: Number of rounds that one point stands for: of every seed, it has the mean over them.

    Returns:
        Columns ``round`` (counted from 1), ``mean`` and ``std``, which is missing where only one seed has a value.
    """
    from pandas import DataFrame, concat

    curves = [digest(records).curves[field] for records in seeds]
    frames = [
        DataFrame({"seed": k, "round": list(rounds), "value": list(values)}, dtype=float)
        for k, (rounds, values) in enumerate(curves)
    ]
    points = concat(frames, ignore_index=True)
    points["part"] = points["round"] // span
    means = points.groupby(["part", "seed"], as_index=False)[["round", "value"]].mean().groupby("part")
    value = 100 * means["value"].agg(["mean", "std"])
    return value.assign(round=means["round"].mean() + 1).reset_index(drop=True)


def _span(runs: Lines, field: str) -> int:
    """How many rounds one point of a figure has to stand for: as many as leave about :data:`_POINTS` of a line."""
    found = [digest(r).curves[field][0] for lines in runs.values() for seeds in lines.values() for r in seeds]
    most, last = max(map(len, found), default=0), max((rounds[-1] + 1 for rounds in found if rounds), default=1)
    return -(-last // _POINTS) if most > _POINTS else 1


@styled
def over_rounds(
    runs: Lines,
    field: str,
    path: Path,
    styles: Styles | None = None,
    title: str = "",
    width: Width | None = None,
    failures: bool = False,
) -> None:
    """A field over rounds, one panel per outer key and one line per inner key; panels without a line are left out.

    Args:
        runs: Records by panel and line, those of several seeds together.
        field: Of :data:`FIELDS`.
        path: Where the picture is written; PDF and SVG go beside it.
        styles: Of the inner keys, where other figures show them too; by default, those of this figure alone.
        title: Above all panels.
        width: See :func:`fedsieve.report.figures.panels.new_figure`.
        failures: Whether to mark the rounds in which a malicious client was accepted.
    """
    from matplotlib.ticker import MaxNLocator

    styles = styles or inner(runs)
    span = _span(runs, field)
    curves = {
        heading: {name: found for name, seeds in lines.items() if len(found := over_seeds(seeds, field, span))}
        for heading, lines in runs.items()
    }
    curves = {heading: lines for heading, lines in curves.items() if lines}
    figure, panels = new_figure(len(curves), title, width, sharey=True)
    for panel, (heading, lines) in zip(panels, curves.items(), strict=False):
        for name, found in lines.items():
            _band(panel, found, name, styles)
            if failures:
                missed = over_seeds(runs[heading][name], MISSED, span)
                panel.plot(missed["round"], missed["mean"], markersize=3, **styles.marker(name))
        panel.set(title=text(named(heading, ATTACKS), _TITLE), xlabel="round", ylim=(-3, 103))
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid()
    label_left(panels, FIELDS[field])
    n = {len(each) for heading in curves for each in runs[heading].values()}
    seeds = f"{min(n)} to {max(n)}" if len(n) > 1 else str(max(n, default=1))
    said = (
        "marked: a malicious client was accepted" if failures else "",
        f"mean and standard deviation over {seeds} seeds" if seeds != "1" else "",
        f"each point is a mean over {span} rounds" if span > 1 else "",
        styles.note if len({name for lines in curves.values() for name in lines}) > 8 else "",
    )
    add_legend(figure, panels, "; ".join(filter(None, said)), [styles.label(name) for name in styles.names])
    save(figure, path)


def _band(panel: "Axes", found: "DataFrame", name: str, styles: Styles, x: str = "round") -> None:
    """A line of means with its band; some of its points are marked, other ones than those of the line before."""
    look, n = styles.line(name), len(found)
    step = max(1, n // _MARKS)
    start = styles.names.index(name) * 2 % step
    panel.plot(found[x], found["mean"], label=styles.label(name), markevery=(start, step), **look)
    low, high = (found["mean"] + sign * found["std"] for sign in (-1, 1))
    panel.fill_between(found[x], low.clip(0, 100), high.clip(0, 100), color=look["color"], alpha=0.15, linewidth=0)


def accuracy_over_rounds(runs: Lines, path: Path, failures: bool = False) -> None:
    """:func:`over_rounds` of the test accuracy."""
    over_rounds(runs, "test_accuracy", path, failures=failures)


@styled
def rates_against(runs: Lines, path: Path) -> None:
    """Accuracy and detection rates, means over all rounds, against the number in the inner keys (``p = 0.8``).

    Accuracy is the mean over the last tenth of the rounds; there is one panel per outer key.

    Raises:
        FedSieveError: If an inner key has no number.
    """
    from pandas import DataFrame

    figure, panels = new_figure(len(runs), sharey=True)
    lines = {
        "test accuracy": "late_test_accuracy",
        "benign rejected": "false_positive_rate",
        "malicious missed": "false_negative_rate",
    }
    styles = Styles(tuple(lines))
    for panel, (heading, columns) in zip(panels, runs.items(), strict=False):
        summaries = {_number(name): [digest(r).summary for r in seeds] for name, seeds in columns.items()}
        for label, measure in lines.items():
            points = [
                (x, 100 * s[measure]) for x, all_ in sorted(summaries.items()) for s in all_ if s[measure] is not None
            ]
            if points:
                found = DataFrame(points, columns=["x", "value"]).groupby("x")["value"].agg(["mean", "std"])
                _band(panel, found.reset_index(), label, styles, "x")
        name = text(next(iter(columns)).partition("=")[0].strip())
        panel.set(title=text(named(heading, ATTACKS), _TITLE), xlabel=name, ylim=(-3, 103))
        panel.set_xticks(sorted(summaries), [f"{x:g}" for x in sorted(summaries)])
        panel.grid()
    label_left(panels, "%")
    add_legend(figure, panels, names=list(lines))
    save(figure, path)


@styled
def accuracy_against_share(
    runs: Mapping[str, Mapping[str, Sequence[tuple[float, Run]]]],
    path: Path,
    styles: Styles | None = None,
    title: str = "",
    width: Width | None = None,
) -> None:
    """Accuracy against the share of malicious clients; one panel per attack, one line per defense.

    Args:
        runs: Runs with their share, of several seeds, by attack and defense.
        path: Where the picture is written; PDF and SVG go beside it.
        styles: Of the defenses, where other figures show them too.
        title: Above all panels.
        width: See :func:`fedsieve.report.figures.panels.new_figure`.
    """
    from pandas import DataFrame

    styles = styles or inner(runs)
    found = {
        attack: {
            defense: DataFrame(points, columns=["share", "value"]).groupby("share")["value"].agg(["mean", "std"])
            for defense, seeds in lines.items()
            if (
                points := [
                    (100 * x, 100 * y) for x, run in seeds if (y := run.summary["late_test_accuracy"]) is not None
                ]
            )
        }
        for attack, lines in runs.items()
    }
    found = {attack: lines for attack, lines in found.items() if lines}
    figure, panels = new_figure(len(found), title, width, sharey=True)
    for panel, (attack, by_defense) in zip(panels, found.items(), strict=False):
        for defense, frame in by_defense.items():
            _band(panel, frame.reset_index(), defense, styles, "share")
        panel.set(title=text(named(attack, ATTACKS), _TITLE), xlabel="malicious clients, %", ylim=(-3, 103))
        panel.grid()
    label_left(panels, FIELDS["test_accuracy"])
    add_legend(figure, panels, names=[styles.label(name) for name in styles.names])
    save(figure, path)


def _number(name: str) -> float:
    found = re.search(r"-?\d+(\.\d+)?", name)
    if not found:
        raise FedSieveError(f"{name!r} contains no number for the x axis")
    return float(found[0])
