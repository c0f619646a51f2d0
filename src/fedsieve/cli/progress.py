"""Progress bars for a run and for a grid of runs."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fedsieve.core.escaping import printable
from fedsieve.core.records import RoundRecord
from fedsieve.report.text import percent
from fedsieve.runs.events import Event


class RunProgress:
    """A progress bar with round, accuracy, detection rates and time left; before the first round, a spinner."""

    def __init__(self, console: Console, rounds: int, dataset: str, hidden: bool) -> None:
        self._bar = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(20),
            TextColumn("{task.description}", markup=False),
            TextColumn("left"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=hidden,
        )
        self._task = self._bar.add_task("", total=rounds)
        self._loading = console.status(Text(f"loading {printable(dataset)}"))
        self._hidden = hidden
        self._accuracy: float | None = None

    def __enter__(self) -> "RunProgress":
        if not self._hidden:
            self._loading.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that is gone
            self._loading.stop()
            if self._bar.live.is_started:
                self._bar.stop()

    def show(self, record: RoundRecord) -> None:
        """Show one more round."""
        if not (self._hidden or self._bar.live.is_started):
            self._loading.stop()
            self._bar.start()
        if record.test_accuracy is not None:
            self._accuracy = record.test_accuracy
        line = f"accuracy {percent(self._accuracy)}"
        if record.false_positive_rate is not None:
            line += f"  FPR {percent(record.false_positive_rate)}"
        if record.false_negative_rate is not None:
            line += f"  FNR {percent(record.false_negative_rate)}"
        if record.attack_success_rate is not None:
            line += f"  ASR {percent(record.attack_success_rate)}"
        if not record.applied:
            line += f"  ({printable(record.note)})"
        self._bar.update(self._task, completed=record.round + 1, description=line)


class SweepProgress:
    """A progress bar over all rounds of a grid, and one for each running cell.

    Args:
        console: Where to print.
        rounds: Number of rounds of each cell, by key.
        names: Names of the cells, by key.
        hidden: Print nothing but what is wrong.
    """

    def __init__(self, console: Console, rounds: Mapping[str, int], names: Mapping[str, str], hidden: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=hidden,
        )
        self._rounds, self._names = rounds, {key: printable(name) for key, name in names.items()}
        self._kinds: dict[str, str] = {}
        self._counts = Counter[str]()
        self._rounds_done = dict.fromkeys(rounds, 0)
        self._completed, self._total = 0, sum(rounds.values())
        self._tasks: dict[str, TaskID] = {}
        self._all = self._bar.add_task("grid", total=self._total, text="")

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that is gone
            self._bar.stop()

    def show(self, event: Event) -> None:
        """Show one more event."""
        key, name, total = event.key, self._names[event.key], self._rounds[event.key]
        if event.kind == "note":
            self._bar.console.print(Text(f"{name}: {printable(event.text)}"), soft_wrap=True)
            return
        if event.kind == "round":
            if key in self._tasks:
                self._bar.update(self._tasks[key], completed=event.round, text=event.text)
            now = event.round
        else:
            before = self._kinds.get(key, "")
            self._kinds[key] = event.kind
            self._counts.update({before: -1, event.kind: 1})
            # rounds of cells that are not run here do not count, or the time left would be too short
            away = ("skipped", "elsewhere")
            self._total += total * ((before in away) - (event.kind in away))
            now = total if event.kind in ("done", "failed") else 0
            if event.kind == "started" and key not in self._tasks:
                self._tasks[key] = self._bar.add_task(f"  {name}", total=total, text="")
            elif event.kind != "started" and key in self._tasks:
                self._bar.remove_task(self._tasks.pop(key))
        self._completed += now - self._rounds_done[key]
        self._rounds_done[key] = now
        c, cells = self._counts, len(self._rounds)
        text = f"{c['done'] + c['skipped']} of {cells} done, {len(self._tasks)} running, {c['failed']} failed"
        text += f", {c['elsewhere']} elsewhere" if c["elsewhere"] else ""
        self._bar.update(self._all, total=self._total, completed=self._completed, text=text)
        if event.kind == "failed":
            last = printable(event.text.strip().splitlines()[-1])
            self._bar.console.print(Text.assemble(("failed", "red"), f" {name}: {last}"), soft_wrap=True)
