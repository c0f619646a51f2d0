"""Shows a running experiment in a terminal, from the records in its run directory."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.core.records import RoundRecord
from fedsieve.report.text import heading, percent
from fedsieve.runs.directory import RunDirectory

_BARS = "▁▂▃▄▅▆▇█"


def watch(path: Path, console: Console, interval: float = 1.0, once: bool = False) -> None:
    """Show a run until it is finished.

    Args:
        path: Its run directory.
        console: Where to print.
        interval: Seconds between updates.
        once: Print the current state and return.

    Raises:
        FedSieveError: If ``path`` is not a run directory.
    """
    if not (path / "experiment.yaml").exists():
        raise ParameterError(
            f"{path} is not a run directory: it has no experiment.yaml; fedsieve run --out {path} makes one"
        )
    experiment, directory = Experiment.read(path / "experiment.yaml"), RunDirectory(path)
    if once:
        console.print(_shown(experiment, directory.records()))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            records = directory.records()
            live.update(_shown(experiment, records), refresh=True)
            if len(records) >= experiment.rounds:
                return
            time.sleep(interval)


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Rates in [0, 1] as a line of bars, the latest last; ``width`` evenly spaced ones if there are more.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    step = max(1.0, len(values) / width)
    chosen = [values[-1 - int(k * step)] for k in range(int(min(width, len(values))))][::-1]
    return "".join(_BARS[round(min(max(v, 0), 1) * (len(_BARS) - 1))] for v in chosen)


def _shown(e: Experiment, records: Sequence[RoundRecord]) -> RenderableType:
    """The state of a run: progress, time left, rates by round, clients rejected in the last round."""
    head = Text.from_markup(f"{heading(e)}, seed {e.seed}")
    pace = [sum(r.seconds.values()) for r in records[-20:]]
    left = (e.rounds - len(records)) * sum(pace) / len(pace) if pace else None
    state = f"round {len(records)} of {e.rounds}"
    state += ", finished" if len(records) >= e.rounds else f", about {left:.0f} s left" if left is not None else ""
    done = 60 * len(records) // e.rounds
    parts: list[RenderableType] = [head, Text(state), Text.assemble(("━" * done, "bold"), ("━" * (60 - done), "dim"))]
    lines = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, field in (
        ("test accuracy", "test_accuracy"),
        ("benign rejected", "false_positive_rate"),
        ("malicious missed", "false_negative_rate"),
        ("attack success", "attack_success_rate"),
    ):
        values = [v for r in records if (v := getattr(r, field)) is not None]
        if values:
            lines.add_row(name, percent(values[-1]), sparkline(values))
    parts.append(lines)
    if records and records[-1].rejected:
        diagnosis = records[-1].diagnosis
        reasons = dict(zip(records[-1].clients, diagnosis.reasons, strict=True)) if diagnosis else {}
        rejected = Table(box=None, padding=(0, 2, 0, 0), title="rejected in the last round", title_justify="left")
        for column in ("client", "ground truth", "reason"):
            rejected.add_column(column, justify="left")
        for client in records[-1].rejected[:12]:
            truth = "malicious" if client in records[-1].malicious else "benign"
            rejected.add_row(str(client), truth, reasons.get(client, ""))
        if len(records[-1].rejected) > 12:
            rejected.add_row("", f"and {len(records[-1].rejected) - 12} more", "")
        parts.append(rejected)
    if records and not records[-1].applied:
        parts.append(Text(f"the model was not changed: {records[-1].note}"))
    return Group(*parts)
