"""Shows a running experiment in a terminal, from the records in its run directory, which may be a stranger's."""

import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.core.records import RoundRecord
from fedsieve.report.escaping import shortened, terminal
from fedsieve.report.text import duration, heading, percent
from fedsieve.runs.directory import RunDirectory

_BARS = "▁▂▃▄▅▆▇█"
_RATES = {
    "test_accuracy": "test accuracy",
    "false_positive_rate": "benign rejected",
    "false_negative_rate": "malicious missed",
    "attack_success_rate": "attack success",
}


def watch(path: Path, console: Console, interval: float = 1.0, once: bool = False) -> None:
    """Show a run until it is finished.

    Args:
        path: Its run directory.
        console: Where to print.
        interval: Seconds between updates.
        once: Print the current state and return.

    Raises:
        FedSieveError: If ``path`` is not a run directory, or its files are damaged.
    """
    if not (path / "experiment.yaml").exists():
        raise ParameterError(
            f"{path} is not a run directory: it has no experiment.yaml; fedsieve run --out {path} makes one"
        )
    experiment, seen = Experiment.recorded(path / "experiment.yaml"), _Seen(path)
    seen.read()
    width = max(10, min(60, console.width - 30))  # beside a rate and its name
    if once:
        console.print(_shown(experiment, seen, width))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_shown(experiment, seen, width), refresh=True)
            if seen.rounds >= experiment.rounds:
                return
            time.sleep(interval)
            seen.read()


class _Seen:
    """What is shown of the records that have been read. Mutable: each reading goes on where the last one ended."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, 0
        self._names: tuple[str, ...] = ()
        self._clear()

    def name(self, client: int) -> str:
        """A client's name, or its number."""
        return self._names[client] if 0 <= client < len(self._names) else str(client)

    def _clear(self) -> None:
        self.rounds = 0
        self.last: RoundRecord | None = None
        self.pace: deque[float] = deque(maxlen=20)
        self.rates: dict[str, list[float]] = {name: [] for name in _RATES}
        self.rejected: list[float] = []  # share of the clients, where nobody knows who is malicious

    def read(self) -> None:
        """Read the new records; all of them if the run has been started anew."""
        records = self._path / "records.jsonl"
        size = records.stat().st_size if records.is_file() else 0
        if size < self._size:
            self._clear()
        if size == self._size:
            return
        self._size, self._names = size, RunDirectory(self._path).read_names()
        for record in RunDirectory(self._path).iter_records(range(self.rounds, sys.maxsize)):
            self.rounds, self.last = self.rounds + 1, record
            self.pace.append(sum(record.seconds.values()))
            for name, values in self.rates.items():
                rate = getattr(record, name)
                if rate is not None and 0 <= rate <= 1:
                    values.append(rate)
            if record.malicious is None and record.rejected is not None and record.clients:
                self.rejected.append(len(record.rejected) / len(record.clients))


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Rates in [0, 1] as a line of bars, the latest last; ``width`` evenly spaced ones if there are more.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    step = max(1.0, len(values) / width)
    chosen = [values[-1 - int(k * step)] for k in range(int(min(width, len(values))))][::-1]
    return "".join(_BARS[round(min(max(v, 0), 1) * (len(_BARS) - 1))] for v in chosen)


def _shown(e: Experiment, seen: _Seen, width: int) -> RenderableType:
    """The state of a run: progress, time left, rates by round in ``width`` bars, clients rejected in the last round."""
    head = Text.from_markup(f"{heading(e)}, seed {e.seed}", emoji=False)
    rounds, pace = seen.rounds, seen.pace
    state = f"round {rounds} of {e.rounds}"
    if rounds >= e.rounds:
        state += ", finished"
    elif pace and (left := (e.rounds - rounds) * sum(pace) / len(pace)) < 1e9:  # a record may say anything
        state += f", about {duration(left)} left"
    done = min(width, width * rounds // e.rounds)
    parts: list[RenderableType] = [
        head,
        Text(state),
        Text.assemble(("━" * done, "bold"), ("━" * (width - done), "dim")),
    ]
    lines = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for field, name in _RATES.items():
        if values := seen.rates[field]:
            lines.add_row(name, percent(values[-1]), sparkline(values, width))
    if seen.rejected:
        lines.add_row("clients rejected", percent(seen.rejected[-1]), sparkline(seen.rejected, width))
    parts.append(lines)
    last = seen.last
    if last is not None and last.rejected:
        reasons = dict(zip(last.clients, last.diagnosis.reasons, strict=False)) if last.diagnosis else {}
        rejected = Table(box=None, padding=(0, 2, 0, 0), title="rejected in the last round", title_justify="left")
        known = last.malicious is not None
        for column in ("client", *(["ground truth"] if known else []), "reason"):
            rejected.add_column(column, justify="left", overflow="fold")
        for client in last.rejected[:12]:
            truth = ["malicious" if client in (last.malicious or ()) else "benign"] if known else []
            why = terminal(shortened(reasons.get(client, ""), 200))
            rejected.add_row(terminal(seen.name(client)), *truth, why)
        if len(last.rejected) > 12:
            rejected.add_row(f"and {len(last.rejected) - 12} more")
        parts.append(rejected)
    if last is not None and not last.applied:
        parts.append(terminal(f"the model was not changed: {shortened(last.note, 200)}"))
    return Group(*parts)
