"""Accuracy and detection rates over rounds, or against a number."""

import re
from collections.abc import Mapping
from pathlib import Path

from fedsieve.core.errors import FedSieveError
from fedsieve.report.digest import MISSED
from fedsieve.report.escaping import figure as text
from fedsieve.report.figures.panels import (
    Lines,
    Styles,
    add_legend,
    inner,
    label_left,
    new_figure,
    over_rounds,
    save,
    separate,
)
from fedsieve.report.load import Run
from fedsieve.report.stored import digest

_TITLE = 36  # characters above a panel


def accuracy_over_rounds(runs: Lines, path: Path, failures: bool = False, styles: Styles | None = None) -> None:
    """Test accuracy over rounds, one panel per outer key and one line per inner key.

    Args:
        runs: Records by panel and line.
        path: Where the picture is written.
        failures: Whether to mark the rounds in which a malicious client was accepted.
        styles: Of the inner keys, where other figures show them too; by default, those of this figure alone.
    """
    figure, panels = new_figure(len(runs), sharey=True)
    styles = styles or inner(runs)
    for panel, (heading, lines) in zip(panels, runs.items(), strict=False):
        for name, records in lines.items():
            panel.plot(*over_rounds(records, "test_accuracy"), label=styles.label(name), **styles.line(name))
            if failures:
                panel.plot(*over_rounds(records, MISSED), linestyle="none", markersize=4, **styles.marker(name))
        panel.set(title=text(heading, _TITLE), xlabel="round", ylim=(0, 1))
        panel.grid(alpha=0.3)
    label_left(panels, "test accuracy")
    add_legend(figure, panels, _said("marked: a malicious client was accepted" if failures else "", styles.note))
    save(figure, path)


def rates_over_rounds(runs: Lines, path: Path, styles: Styles | None = None) -> None:
    """Benign clients rejected (above) and malicious clients missed (below), one column of panels per outer key.

    Arguments as in :func:`accuracy_over_rounds`.
    """
    figure, panels = new_figure(2 * len(runs), columns=len(runs), sharey=True)
    n, styles = len(runs), styles or inner(runs)
    for column, (heading, lines) in enumerate(runs.items()):
        for panel, field in ((panels[column], "false_positive_rate"), (panels[n + column], "false_negative_rate")):
            for name, records in lines.items():
                x, y = over_rounds(records, field)
                if x:
                    panel.plot(x, y, label=styles.label(name), **styles.line(name))
            if not panel.lines:
                panel.text(0.5, 0.5, "undefined", transform=panel.transAxes, ha="center", color="0.4")
                panel.set_xticks([])
        panels[column].set(title=text(heading, _TITLE), ylim=(-0.03, 1.03))
        panels[n + column].set(xlabel="round", ylim=(-0.03, 1.03))
    for panel in panels:
        panel.grid(alpha=0.3)
    if n:
        panels[0].set_ylabel("benign rejected")
        panels[n].set_ylabel("malicious missed")
    add_legend(figure, panels, styles.note)
    save(figure, path)


def rates_against(runs: Lines, path: Path) -> None:
    """Accuracy and detection rates, means over all rounds, against the number in the inner keys (``p = 0.8``).

    Accuracy is the mean over the last tenth of the rounds; there is one panel per outer key.

    Raises:
        FedSieveError: If an inner key has no number.
    """
    figure, panels = new_figure(len(runs), sharey=True)
    lines = (
        ("test accuracy", "late_test_accuracy"),
        ("benign rejected", "false_positive_rate"),
        ("malicious missed", "false_negative_rate"),
    )
    styles = Styles(tuple(label for label, _ in lines))
    for panel, (heading, columns) in zip(panels, runs.items(), strict=False):
        summaries = {_number(name): digest(records).summary for name, records in columns.items()}
        for label, measure in lines:
            points = [(x, s[measure]) for x, s in sorted(summaries.items()) if s[measure] is not None]
            if points:
                panel.plot(*separate(points), label=label, **{**styles.marker(label), **styles.line(label)})
        name = text(next(iter(columns)).partition("=")[0].strip())
        panel.set(title=text(heading, _TITLE), xlabel=name, ylim=(-0.03, 1.03))
        panel.set_xticks(sorted(summaries), [f"{x:g}" for x in sorted(summaries)])
        panel.grid(alpha=0.3)
    add_legend(figure, panels)
    save(figure, path)


def accuracy_against_share(
    runs: Mapping[str, Mapping[str, Mapping[str, Run]]], path: Path, styles: Styles | None = None
) -> None:
    """Accuracy against the share of malicious clients; one panel per attack, one line per defense.

    Args:
        runs: Runs by attack, defense and share.
        path: Where the picture is written.
        styles: Of the defenses, where other figures show them too.
    """
    figure, panels = new_figure(len(runs), sharey=True)
    styles = styles or inner(runs)
    for panel, (attack, defenses) in zip(panels, runs.items(), strict=False):
        for defense, by_share in defenses.items():
            points = sorted((float(share), run.summary["late_test_accuracy"]) for share, run in by_share.items())
            points = [(100 * x, y) for x, y in points if y is not None]
            if points:
                look = {**styles.marker(defense), **styles.line(defense)}
                panel.plot(*separate(points), label=styles.label(defense), **look)
        panel.set(title=text(attack, _TITLE), xlabel="malicious clients, %", ylim=(0, 1))
        panel.grid(alpha=0.3)
    label_left(panels, "test accuracy")
    add_legend(figure, panels, styles.note)
    save(figure, path)


def _said(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _number(name: str) -> float:
    found = re.search(r"-?\d+(\.\d+)?", name)
    if not found:
        raise FedSieveError(f"{name!r} contains no number for the x axis")
    return float(found[0])
