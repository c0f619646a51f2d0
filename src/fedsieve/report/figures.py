"""Figures from records. Needs matplotlib (``pip install fedsieve[report]``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsieve.types import RoundRecord

# Okabe and Ito's colours, which colour-blind readers can tell apart; styles for those who see no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")


def accuracy_over_rounds(runs: Mapping[str, Mapping[str, Sequence[RoundRecord]]], path: Path) -> None:
    """One panel per outer key (say, attack), one line per inner key (say, defense), as a PNG.

    Args:
        runs: Records by panel and line.
        path: Where the picture goes.
    """
    from matplotlib.figure import Figure  # an extra: only who draws needs it

    figure = Figure(figsize=(3.2 * len(runs), 3.2), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for panel, (title, lines) in zip(panels, runs.items(), strict=True):
        for k, (name, records) in enumerate(lines.items()):
            points = [(r.round + 1, r.test_accuracy) for r in records if r.test_accuracy is not None]
            x, y = zip(*points, strict=True) if points else ((), ())
            panel.plot(x, y, label=name, color=COLOURS[k % len(COLOURS)], linestyle=STYLES[k % len(STYLES)])
        panel.set(title=title, xlabel="round", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
