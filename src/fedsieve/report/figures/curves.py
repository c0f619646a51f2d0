"""Accuracy and detection rates over rounds, or against a number."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsieve.core.errors import FedSieveError
from fedsieve.core.metrics import summarize
from fedsieve.report.figures.panels import (
    MARKERS,
    Lines,
    add_legend,
    label_left,
    line_style,
    new_figure,
    over_rounds,
    save,
    separate,
)
from fedsieve.report.load import Run


def accuracy_over_rounds(runs: Lines, path: Path, failures: bool = False) -> None:
    """Test accuracy over rounds, one panel per outer key and one line per inner key.

    Args:
        runs: Records by panel and line.
        path: Where the picture is written.
        failures: Whether to mark the rounds in which a malicious client was accepted.
    """
    figure, panels = new_figure(len(runs), sharey=True)
    names = _names(runs)
    for panel, (heading, lines) in zip(panels, runs.items(), strict=False):
        for name, records in lines.items():
            k = names.index(name)
            panel.plot(*over_rounds(records, "test_accuracy"), label=name, **line_style(k))
            if failures:
                missed = [r for r in records if (r.false_negative_rate or 0) > 0]
                points = over_rounds(missed, "test_accuracy")
                panel.plot(*points, MARKERS[k % len(MARKERS)], color=line_style(k)["color"], markersize=4)
        panel.set(title=heading, xlabel="round", ylim=(0, 1))
        panel.grid(alpha=0.3)
    label_left(panels, "test accuracy")
    add_legend(figure, panels, "marked: a malicious client was accepted" if failures else "")
    save(figure, path)


def rates_over_rounds(runs: Lines, path: Path) -> None:
    """Benign clients rejected (above) and malicious clients missed (below), one column of panels per outer key."""
    figure, panels = new_figure(2 * len(runs), columns=len(runs), sharey=True)
    n, names = len(runs), _names(runs)
    for column, (heading, lines) in enumerate(runs.items()):
        for panel, field in ((panels[column], "false_positive_rate"), (panels[n + column], "false_negative_rate")):
            for name, records in lines.items():
                x, y = over_rounds(records, field)
                if x:
                    panel.plot(x, y, label=name, **line_style(names.index(name)))
            if not panel.lines:
                panel.text(0.5, 0.5, "undefined", transform=panel.transAxes, ha="center", color="0.4")
                panel.set_xticks([])
        panels[column].set(title=heading, ylim=(-0.03, 1.03))
        panels[n + column].set(xlabel="round", ylim=(-0.03, 1.03))
    for panel in panels:
        panel.grid(alpha=0.3)
    if n:
        panels[0].set_ylabel("benign rejected")
        panels[n].set_ylabel("malicious missed")
    add_legend(figure, panels)
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
    for panel, (heading, columns) in zip(panels, runs.items(), strict=False):
        summaries = {_number(name): summarize(records) for name, records in columns.items()}
        for k, (label, measure) in enumerate(lines):
            points = [(x, s[measure]) for x, s in sorted(summaries.items()) if s[measure] is not None]
            if points:
                panel.plot(*separate(points), label=label, marker=MARKERS[k], **line_style(k))
        panel.set(title=heading, xlabel=next(iter(columns)).partition("=")[0].strip(), ylim=(-0.03, 1.03))
        panel.set_xticks(sorted(summaries), [f"{x:g}" for x in sorted(summaries)])
        panel.grid(alpha=0.3)
    add_legend(figure, panels)
    save(figure, path)


def accuracy_against_share(runs: Mapping[str, Mapping[str, Mapping[str, Run]]], path: Path) -> None:
    """Accuracy against the share of malicious clients; one panel per attack, one line per defense.

    Args:
        runs: Runs by attack, defense and share.
        path: Where the picture is written.
    """
    figure, panels = new_figure(len(runs), sharey=True)
    names = _names(runs)
    for panel, (attack, defenses) in zip(panels, runs.items(), strict=False):
        for defense, by_share in defenses.items():
            k = names.index(defense)
            points = sorted((float(share), run.summary["late_test_accuracy"]) for share, run in by_share.items())
            points = [(100 * x, y) for x, y in points if y is not None]
            if points:
                panel.plot(*separate(points), label=defense, marker=MARKERS[k % len(MARKERS)], **line_style(k))
        panel.set(title=attack, xlabel="malicious clients, %", ylim=(0, 1))
        panel.grid(alpha=0.3)
    label_left(panels, "test accuracy")
    add_legend(figure, panels)
    save(figure, path)


def _names(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All inner keys; a name has the same colour in every panel."""
    return list(dict.fromkeys(name for lines in runs.values() for name in lines))


def _number(name: str) -> float:
    found = re.search(r"-?\d+(\.\d+)?", name)
    if not found:
        raise FedSieveError(f"{name!r} contains no number for the x axis")
    return float(found[0])
