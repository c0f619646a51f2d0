"""Figures from records. Needs matplotlib (``pip install fedsieve[report]``)."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsieve.metrics import summarize
from fedsieve.report.load import Run, differing, title
from fedsieve.report.tables import MEASURES, Grid
from fedsieve.types import FedSieveError, RoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; styles and marks for those who see no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
BENIGN, MALICIOUS, ROOT = COLOURS[0], COLOURS[1], COLOURS[2]

Lines = Mapping[str, Mapping[str, Sequence[RoundRecord]]]


def accuracy_over_rounds(runs: Lines, path: Path, failures: bool = False) -> None:
    """One panel per outer key (say, attack), one line per inner key (say, defense).

    Args:
        runs: Records by panel and line.
        path: Where the picture goes.
        failures: Mark the rounds in which a malicious client passed.
    """
    figure, panels = _panels(len(runs), sharey=True)
    for panel, (heading, lines) in zip(panels, runs.items(), strict=False):
        for k, (name, records) in enumerate(lines.items()):
            panel.plot(*_over_rounds(records, "test_accuracy"), label=name, **_line(k))
            if failures:
                missed = [r for r in records if (r.false_negative_rate or 0) > 0]
                points = _over_rounds(missed, "test_accuracy")
                panel.plot(*points, MARKS[k % len(MARKS)], color=_line(k)["color"], markersize=4)
        panel.set(title=heading, xlabel="round", ylim=(0, 1))
        panel.grid(alpha=0.3)
    _left(panels, "test accuracy")
    _legend(figure, panels, "marked: a malicious client passed" if failures else "")
    _save(figure, path)


def rates_over_rounds(runs: Lines, path: Path) -> None:
    """Benign clients rejected (above) and malicious clients missed (below), one column of panels per outer key."""
    figure, panels = _panels(2 * len(runs), columns=len(runs), sharey=True)
    n = len(runs)
    for column, (heading, lines) in enumerate(runs.items()):
        for k, (name, records) in enumerate(lines.items()):
            for panel, field in ((panels[column], "false_positive_rate"), (panels[n + column], "false_negative_rate")):
                x, y = _over_rounds(records, field)
                if x:
                    panel.plot(x, y, label=name, **_line(k))
        panels[column].set(title=heading, ylim=(-0.03, 1.03))
        panels[n + column].set(xlabel="round", ylim=(-0.03, 1.03))
    for panel in panels:
        panel.grid(alpha=0.3)
    if n:
        panels[0].set_ylabel("benign rejected")
        panels[n].set_ylabel("malicious missed")
    _legend(figure, panels)
    _save(figure, path)


def rates_against(runs: Lines, path: Path) -> None:
    """Accuracy and detection rates against a number in the inner keys (``p = 0.8``), one panel per outer key."""
    figure, panels = _panels(len(runs), sharey=True)
    lines = (
        ("test accuracy", "late_test_accuracy"),
        ("benign rejected", "late_false_positive_rate"),
        ("malicious missed", "late_false_negative_rate"),
    )
    for panel, (heading, columns) in zip(panels, runs.items(), strict=False):
        summaries = {_number(name): summarize(records) for name, records in columns.items()}
        for k, (label, measure) in enumerate(lines):
            points = [(x, s[measure]) for x, s in sorted(summaries.items()) if s[measure] is not None]
            if points:
                panel.plot(*_apart(points), label=label, marker=MARKS[k], **_line(k))
        panel.set(title=heading, xlabel=next(iter(columns)).partition("=")[0].strip(), ylim=(-0.03, 1.03))
        panel.set_xticks(sorted(summaries), [f"{x:g}" for x in sorted(summaries)])
        panel.grid(alpha=0.3)
    _legend(figure, panels)
    _save(figure, path)


def heat_map(cells: Mapping[tuple[str, str], float | None], path: Path, title: str, low_is_good: bool = False) -> None:
    """A number for each (row, column), as a shade and in figures; what is missing stays empty.

    Args:
        cells: Rates in [0, 1].
        path: Where the picture goes.
        title: What they are.
        low_is_good: Which end of the scale is light.
    """
    import numpy as np

    rows, columns = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    figure, panels = _panels(1, size=(3.4 + 0.75 * len(columns), 1.9 + 0.36 * len(rows)))
    table = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in cells.items():
        if value is not None:
            table[rows.index(row), columns.index(column)] = value
    panels[0].imshow(table, cmap="cividis_r" if low_is_good else "cividis", vmin=0, vmax=1, aspect="auto")
    for i in range(len(rows)):
        for k in range(len(columns)):
            if table[i, k] == table[i, k]:
                light = (table[i, k] > 0.55) != low_is_good
                colour = "black" if light else "white"
                panels[0].text(k, i, f"{100 * table[i, k]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    panels[0].set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
    panels[0].set_yticks(range(len(rows)), rows, fontsize=8)
    panels[0].set_title(title, fontsize=10)
    _save(figure, path)


def mask_scatter(runs: Lines, path: Path) -> None:
    """Where each client's mask lies in the last round, along two principal components; one panel per pair of keys.

    Before them, where the updates themselves lie that the first defense of the row saw, if its records tell.
    """
    columns = list(dict.fromkeys(name for lines in runs.values() for name in lines))
    last = {heading: {name: records[-1] for name, records in lines.items()} for heading, lines in runs.items()}
    firsts = {heading: next(iter(lines.values())) for heading, lines in last.items()}
    raw = any(record.diagnosis and record.diagnosis.updates for record in firsts.values())
    figure, panels = _panels(len(runs) * (len(columns) + raw), columns=len(columns) + raw)
    for panel, (heading, name) in zip(panels, product(runs, [*([None] if raw else []), *columns]), strict=False):
        panel.set(title=f"{heading}\n{name or 'updates'}", xlabel="component 1", ylabel="component 2")
        if name is None:
            seen = firsts[heading].diagnosis
            if seen and seen.updates:
                _cloud(panel, firsts[heading], seen.updates, judged=False)
        elif name in last[heading]:
            seen = last[heading][name].diagnosis
            if seen is None:
                raise FedSieveError(f"{path.name}: the defense of {heading}, {name} tells no coordinates")
            _cloud(panel, last[heading][name], seen.coordinates)
            if seen.root is not None:
                panel.scatter(*seen.root, s=90, marker="*", color=ROOT, label="root model")
        panel.ticklabel_format(style="sci", scilimits=(-3, 4))
    _legend(figure, panels)
    _save(figure, path)


def _cloud(
    panel: "Axes", record: RoundRecord, points: Sequence[tuple[float | None, float | None]], judged: bool = True
) -> None:
    """Clients as points: colour says what they are and, if ``judged``, the mark what the defense said; else a dot."""
    rejected = set(record.rejected or ()) if judged else set()
    for bad, out in product((False, True), repeat=2):
        here = [
            points[i]
            for i, client in enumerate(record.clients)
            if (client in record.malicious) == bad and (client in rejected) == out
        ]
        here = [point for point in here if point[0] is not None]
        label = f"{'malicious' if bad else 'benign'}, {'rejected' if out else 'accepted'}"
        colour = MALICIOUS if bad else BENIGN
        panel.scatter(
            *_apart(here), s=22, marker="X" if out else "o" if judged else ".", label=label if judged else None,
            facecolors=colour if out or not judged else "none", edgecolors=colour,
        )  # fmt: skip


def layers_kept(runs: Mapping[str, Sequence[RoundRecord]], path: Path) -> None:
    """What masks keep of each layer, of benign and of malicious clients: means over the second half of the rounds.

    One panel per key; bars from the least to the largest client.
    """
    figure, panels = _panels(len(runs), sharey=True)
    for panel, (heading, records) in zip(panels, runs.items(), strict=False):
        half = [r for r in records[len(records) // 2 :] if r.diagnosis is not None]
        if not half:
            raise FedSieveError(f"{path.name}: the defense of {heading} tells no layers")
        layers = half[-1].diagnosis.layers if half[-1].diagnosis else ()
        for bad, name, offset, colour, mark in (
            (False, "benign", -0.12, BENIGN, "o"),
            (True, "malicious", 0.12, MALICIOUS, "s"),
        ):
            for layer in range(len(layers)):
                means = _kept(half, layer, bad)
                if means:
                    x = layer + offset
                    panel.plot([x, x], [min(means), max(means)], color=colour, linewidth=2)
                    label = name if layer == 0 else None
                    panel.plot(x, sum(means) / len(means), mark, color=colour, label=label)
        panel.set(title=heading, ylabel="share of the layer that masks keep" if panel is panels[0] else "")
        panel.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
        panel.grid(alpha=0.3, axis="y")
    _legend(figure, panels)
    _save(figure, path)


def _kept(records: Sequence[RoundRecord], layer: int, malicious: bool) -> list[float]:
    """The mean share of a layer that each such client's mask keeps."""
    shares: dict[int, list[float]] = {}
    for record in records:
        for client, kept in zip(record.clients, record.diagnosis.kept if record.diagnosis else (), strict=True):
            value = kept[layer]
            if (client in record.malicious) == malicious and value is not None:
                shares.setdefault(client, []).append(value)
    return [sum(values) / len(values) for values in shares.values()]


# --- All that a report shows --------------------------------------------------------------------------------


def draw_all(runs: Sequence[Run], grids: Sequence[Grid], folder: Path) -> int:
    """Accuracy and rates over rounds, accuracy against the share of malicious clients, and a heat map a table.

    Args:
        runs: All runs; curves are those of the first seed.
        grids: Their tables.
        folder: Where the pictures go.

    Returns:
        How many pictures there are.
    """
    drawn = 0
    settings: dict[str, dict[str, dict[str, Run]]] = {}
    shares: dict[str, dict[str, dict[str, dict[str, Run]]]] = {}
    known = [(run, run.experiment) for run in runs if run.experiment is not None and run.records]
    keys = differing([run.setting for run, _ in known])
    for run, e in sorted(known, key=lambda pair: pair[1].seed):
        settings.setdefault(title(run.setting, keys), {}).setdefault(run.attack, {}).setdefault(run.defense, run)
        if e.n_malicious:
            rest = title(run.setting, [key for key in keys if key != "malicious"])
            share = f"{e.n_malicious / e.clients:.3g}"
            shares.setdefault(rest, {}).setdefault(run.attack, {}).setdefault(run.defense, {}).setdefault(share, run)
    for name, attacks in settings.items():
        lines = {a: {d: run.records for d, run in defenses.items()} for a, defenses in attacks.items()}
        accuracy_over_rounds(lines, folder / _file("accuracy", name))
        drawn += 1
        if any(r.false_positive_rate is not None for d in lines.values() for records in d.values() for r in records):
            rates_over_rounds(lines, folder / _file("rates", name))
            drawn += 1
    for name, by_attack in shares.items():
        several = {a: d for a, d in by_attack.items() if any(len(by_share) > 1 for by_share in d.values())}
        if several:
            _against_share(several, folder / _file("malicious", name))
            drawn += 1
    for grid in grids:
        cells = {
            (d, a): None if (c := grid.cells.get((d, a))) is None else c.mean
            for d in grid.defenses
            for a in grid.attacks
        }
        more_is_better = MEASURES[grid.measure][1]
        path = folder / _file(grid.measure, grid.title)
        heat_map(cells, path, f"{grid.title}\n{grid.heading}", low_is_good=not more_is_better)
        drawn += 1
    return drawn


def _against_share(runs: Mapping[str, Mapping[str, Mapping[str, Run]]], path: Path) -> None:
    """Accuracy against the share of malicious clients; one panel per attack, one line per defense."""
    figure, panels = _panels(len(runs), sharey=True)
    for panel, (attack, defenses) in zip(panels, runs.items(), strict=False):
        for k, (defense, by_share) in enumerate(sorted(defenses.items())):
            points = sorted((float(share), run.summary["late_test_accuracy"]) for share, run in by_share.items())
            points = [(100 * x, y) for x, y in points if y is not None]
            if points:
                panel.plot(*_apart(points), label=defense, marker=MARKS[k % len(MARKS)], **_line(k))
        panel.set(title=attack, xlabel="malicious clients, %", ylim=(0, 1))
        panel.grid(alpha=0.3)
    _left(panels, "test accuracy")
    _legend(figure, panels)
    _save(figure, path)


def _file(kind: str, title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", f"{kind}-{title}".lower()).strip("-")[:120] + ".png"


# --- Helpers ------------------------------------------------------------------------------------------------


def _panels(
    n: int, columns: int | None = None, sharey: bool = False, size: tuple[float, float] | None = None
) -> tuple["Figure", list["Axes"]]:
    """A figure with n panels, four in a row if not said otherwise (three, if that fills rows); those left over hide."""
    from matplotlib.figure import Figure  # an extra: only who draws needs it

    columns = columns or (3 if n > 4 and n % 4 and n % 3 == 0 else min(4, max(1, n)))
    rows = max(1, -(-n // columns))
    figure = Figure(figsize=size or (3.2 * columns, 0.3 + 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for panel in panels[n:]:
        panel.set_visible(False)
    return figure, panels


def _apart(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Points as two coordinates."""
    return [x for x, _ in points], [y for _, y in points]


def _over_rounds(records: Sequence[RoundRecord], field: str) -> tuple[list[Any], list[Any]]:
    """Rounds, counted from 1, and a number, where there is one."""
    return _apart([(r.round + 1, value) for r in records if (value := getattr(r, field)) is not None])


def _line(k: int) -> dict[str, Any]:
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k % len(STYLES)]}


def _left(panels: Sequence["Axes"], label: str) -> None:
    for panel in panels:
        subplot = panel.get_subplotspec()
        if subplot is not None and subplot.is_first_col():
            panel.set_ylabel(label)


def _legend(figure: "Figure", panels: Sequence["Axes"], title: str = "") -> None:
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


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)


def _number(name: str) -> float:
    found = re.search(r"-?\d+(\.\d+)?", name)
    if not found:
        raise FedSieveError(f"{name!r} holds no number to draw against")
    return float(found[0])
