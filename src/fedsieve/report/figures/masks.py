"""What a detector's diagnosis shows: coordinates of clients, and what masks keep of each layer."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.report.escaping import figure as text
from fedsieve.report.figures.panels import (
    BENIGN,
    MALICIOUS,
    ROOT,
    UNKNOWN,
    add_legend,
    new_figure,
    save,
    separate,
    styled,
)
from fedsieve.report.stored import Rounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def mask_scatter(runs: Mapping[str, Mapping[str, Rounds]], path: Path) -> None:
    """Principal components of the clients' masks in the last round that has them, one panel per pair of keys.

    The first panel of each row shows those of the updates themselves, as the first defense of the row received them,
    if its records have them.

    Raises:
        FedSieveError: If a run's records have no coordinates.
    """
    columns = list(dict.fromkeys(name for lines in runs.values() for name in lines))
    last = {heading: {name: _last(records) for name, records in lines.items()} for heading, lines in runs.items()}
    firsts = {heading: next(iter(lines.values())) for heading, lines in last.items()}
    raw = any(record.diagnosis and record.diagnosis.updates for record in firsts.values())
    figure, panels = new_figure(len(runs) * (len(columns) + raw), columns=len(columns) + raw)
    for panel, (heading, name) in zip(panels, product(runs, [*([None] if raw else []), *columns]), strict=False):
        above = f"{text(heading, 48)}\n{text('updates' if name is None else name, 48)}"
        panel.set(title=above, xlabel="component 1", ylabel="component 2")
        if name is None:
            seen = firsts[heading].diagnosis
            if seen and seen.updates:
                _clients(panel, firsts[heading], seen.updates, decisions=False)
        elif name in last[heading]:
            seen = last[heading][name].diagnosis
            if seen is None or not seen.coordinates:
                raise FedSieveError(f"{path.name}: the records of {heading}, {name} have no coordinates of masks")
            _clients(panel, last[heading][name], seen.coordinates)
            if seen.root is not None:
                panel.scatter(*seen.root, s=50, marker="*", color=ROOT, label="root model")
        panel.ticklabel_format(style="sci", scilimits=(-3, 4))
    add_legend(figure, panels)
    save(figure, path)


def _last(records: Rounds) -> RoundRecord:
    """The last round with coordinates; without one, the first round."""
    found: RoundRecord | None = None
    for last in records:
        if found is None or (last.diagnosis and last.diagnosis.coordinates):
            found = last
    assert found is not None
    return found


def _clients(
    panel: "Axes", record: RoundRecord, points: Sequence[tuple[float | None, float | None]], decisions: bool = True
) -> None:
    """Clients as points, coloured by ground truth where it is known.

    Args:
        panel: Where to draw.
        record: The round.
        points: Coordinates of each client.
        decisions: Whether the marker shows the defense's decision; else clients are dots.
    """
    rejected = set(record.rejected or ()) if decisions else set()
    truth = record.malicious
    for bad, out in product((None,) if truth is None else (False, True), (False, True)):
        here = [
            points[i]
            for i, client in enumerate(record.clients)
            if (None if truth is None else client in truth) == bad and (client in rejected) == out
        ]
        here = [point for point in here if None not in point]
        decision = "rejected" if out else "accepted"
        label = decision if bad is None else f"{'malicious' if bad else 'benign'}, {decision}"
        colour = UNKNOWN if bad is None else MALICIOUS if bad else BENIGN
        panel.scatter(
            *separate(here),
            s=14,
            marker="X" if out else "o" if decisions else ".",
            label=label if decisions else None,
            facecolors=colour if out or not decisions else "none",
            edgecolors=colour,
            linewidths=0.8,
        )


@styled
def layers_kept(runs: Mapping[str, Rounds], path: Path) -> None:
    """The share of each layer that masks keep, of benign and of malicious clients, or of all where nobody knows.

    One panel per key; a bar from the smallest to the largest client, each a mean over those of the second half of the
    rounds that have masks, or the last round that has them, and a marker at the mean over clients. A client under a new
    id counts as another one.

    Raises:
        FedSieveError: If a run's records have no shares.
    """
    figure, panels = new_figure(len(runs), sharey=True)
    for panel, (heading, records) in zip(panels, runs.items(), strict=False):
        layers, kept = _kept(records)
        if not layers:
            raise FedSieveError(f"{path.name}: the records of {heading} have no masks")
        for bad, name, offset, colour, mark in (
            (False, "benign", -0.12, BENIGN, "o"),
            (True, "malicious", 0.12, MALICIOUS, "s"),
            (None, "clients", 0.0, UNKNOWN, "D"),
        ):
            label: str | None = name
            for layer in range(len(layers)):
                means = [total / n for client, at, total, n in kept if (client, at) == (bad, layer)]
                if means:
                    x = layer + offset
                    panel.plot([x, x], [min(means), max(means)], color=colour, linewidth=2)
                    panel.plot(x, sum(means) / len(means), mark, color=colour, label=label)
                    label = None  # one entry in the legend
        panel.set(title=text(heading, 48), ylabel="share kept by masks" if panel is panels[0] else "")
        panel.set_xticks(range(len(layers)), map(text, layers), rotation=30, ha="right")
        panel.grid(axis="y")
    add_legend(figure, panels)
    save(figure, path)


def _kept(records: Rounds) -> tuple[tuple[str, ...], list[tuple[bool | None, int, float, int]]]:
    """Names of the layers, and what the masks of each client keep of each, over the rounds of :func:`layers_kept`.

    Returns:
        The names, none without masks; and for each client and layer: whether the client is malicious, None where that
        is not known, the layer, the sum of the shares, and their number.
    """
    layers: tuple[str, ...] = ()
    shares: dict[tuple[bool | None, int, int], tuple[float, int]] = {}
    before, half = -1, len(records) // 2
    for k, record in enumerate(records):
        if (seen := record.diagnosis) is None or not seen.kept:
            continue
        if before < half:
            shares = {}
        layers, before = seen.layers, k
        for client, kept in zip(record.clients, seen.kept, strict=True):
            for layer, value in enumerate(kept):
                if value is not None:
                    bad = None if record.malicious is None else client in record.malicious
                    key = (bad, client, layer)
                    total, n = shares.get(key, (0.0, 0))
                    shares[key] = (total + value, n + 1)
    return layers, [(bad, layer, total, n) for (bad, _, layer), (total, n) in shares.items()]
