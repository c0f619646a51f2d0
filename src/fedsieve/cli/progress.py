"""Progress of a run and of a grid of runs: bars in a terminal; in a file, a line now and then."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from fedsieve.core.escaping import printable
from fedsieve.core.records import RoundRecord, client_name
from fedsieve.report.text import duration, percent, some
from fedsieve.runs.events import Event

# Seconds from one line to the next where there is no terminal: of a run, and of a grid in which no cell ends.
_RUN_LINE, _GRID_LINE = 60.0, 600.0


def _wrapped(text: str) -> TextColumn:
    """A column that is wrapped, and not cut off, where the terminal is too narrow."""
    return TextColumn(text, markup=False, table_column=Column(overflow="fold"))


def described(record: RoundRecord, accuracy: float | None, names: Callable[[], Sequence[str]]) -> str:
    """A round in one line.

    Args:
        record: The round.
        accuracy: The last test accuracy, which may be of an earlier round.
        names: Gives the clients' names.
    """
    line = f"accuracy {percent(accuracy)}"
    if record.false_positive_rate is not None:
        line += f"  FPR {percent(record.false_positive_rate)}"
    if record.false_negative_rate is not None:
        line += f"  FNR {percent(record.false_negative_rate)}"
    if record.malicious is None and record.rejected:
        line += f"  rejected {some([client_name(names(), client) for client in record.rejected])}"
    if record.attack_success_rate is not None:
        line += f"  ASR {percent(record.attack_success_rate)}"
    if not record.applied:
        line += f"  ({printable(record.note)})"
    return line


def _bar(console: Console) -> list[BarColumn]:
    """A bar as long as there is room for beside the numbers."""
    width = min(20, console.width - 82)
    return [BarColumn(width)] if width > 3 else []


class RunProgress:
    """A progress bar with round, accuracy, detection and time left; before the first round, a spinner.

    Args:
        console: Where to print.
        rounds: Number of rounds.
        dataset: Its name.
        names: Gives the clients' names once a round has been played.
        hidden: Print nothing.
    """

    def __init__(
        self, console: Console, rounds: int, dataset: str, names: Callable[[], Sequence[str]], hidden: bool
    ) -> None:
        self._bar = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            *_bar(console),
            _wrapped("{task.description}"),
            TextColumn("{task.fields[time]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=hidden,
        )
        self._task = self._bar.add_task("", total=rounds, time="left")
        self._loading = console.status(Text(f"loading {printable(dataset)}"))
        self._console, self._rounds = console, rounds
        self._live = console.is_terminal and not hidden
        self._lines = not (console.is_terminal or hidden)
        self._accuracy: float | None = None
        self._names = cache(names)
        self._first, self._start, self._last = 0, time.monotonic(), time.monotonic()

    def __enter__(self) -> "RunProgress":
        if self._live:
            self._loading.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that is gone
            self._loading.stop()
            if self._bar.live.is_started:
                self._bar.stop()

    def show(self, record: RoundRecord) -> None:
        """Show one more round."""
        if self._live and not self._bar.live.is_started:
            self._loading.stop()
            self._bar.start()
        if record.test_accuracy is not None:
            self._accuracy = record.test_accuracy
        line = described(record, self._accuracy, self._names)
        done = record.round + 1
        word = "took" if done == self._rounds else "left"
        self._bar.update(self._task, completed=done, description=line, time=word)
        if self._lines:
            self._print(done, line)

    def _print(self, done: int, line: str) -> None:
        """A line, if it is time for one."""
        now = time.monotonic()
        if not self._first:  # the run may have been resumed
            self._first, self._start = done, now
        if done == self._rounds or now - self._last > _RUN_LINE:
            self._last = now
            left = _left(now - self._start, done - self._first, self._rounds - done)
            text = f"round {done:,} of {self._rounds:,}: {line}{left}"
            self._console.print(Text(text), soft_wrap=True)


class SweepProgress:
    """A progress bar over all rounds of a grid, and one for each running cell; in a file, a line for each that ended.

    Args:
        console: Where to print.
        rounds: Number of rounds of each cell, by key.
        names: Names of the cells, by key.
        hidden: Print nothing but what is wrong.
    """

    def __init__(self, console: Console, rounds: Mapping[str, int], names: Mapping[str, str], hidden: bool) -> None:
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True))
        self._grid = Progress(TextColumn("grid"), *_bar(console), _wrapped("{task.fields[text]}"), *times)
        self._cells = Progress(
            _wrapped("{task.description}"), *_bar(console), TextColumn("{task.fields[text]}", markup=False), *times
        )
        self._live = Live(Group(self._grid, self._cells), console=console)
        self._console, self._hidden = console, hidden
        self._lines = not (console.is_terminal or hidden)
        self._rounds, self._names = rounds, {key: printable(name) for key, name in names.items()}
        self._kinds: dict[str, str] = {}
        self._counts = Counter[str]()
        self._rounds_done = dict.fromkeys(rounds, 0)
        self._completed, self._total = 0, sum(rounds.values())
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._start = self._last = time.monotonic()
        self._all = self._grid.add_task("", total=self._total, text="")

    def __enter__(self) -> "SweepProgress":
        if self._console.is_terminal and not self._hidden:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that is gone
            self._live.stop()

    def show(self, event: Event) -> None:
        """Show one more event."""
        key, name, total = event.key, self._names[event.key], self._rounds[event.key]
        if event.kind == "note":
            self._print(f"{name}: {printable(event.text)}")
            return
        if event.kind == "round":
            if key in self._tasks:
                self._cells.update(self._tasks[key], completed=event.round, text=event.text)
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
                self._tasks[key] = self._cells.add_task(name, total=total, text="")
                self._began[key] = time.monotonic()
            elif event.kind != "started" and key in self._tasks:
                self._cells.remove_task(self._tasks.pop(key))
        self._completed += now - self._rounds_done[key]
        self._rounds_done[key] = now
        c, cells = self._counts, len(self._rounds)
        text = f"{c['done'] + c['skipped']} of {cells} done, {len(self._tasks)} running, {c['failed']} failed"
        text += f", {c['elsewhere']} elsewhere" if c["elsewhere"] else ""
        self._grid.update(self._all, total=self._total, completed=self._completed, text=text)
        if event.kind == "failed":
            self._print(f" {name}: {printable(event.text.strip().splitlines()[-1])}", failed=True)
        if self._lines:
            self._line(event, name, text)

    def _line(self, event: Event, name: str, text: str) -> None:
        """A line about a cell that is done, or about all where none has been for long."""
        now = time.monotonic()
        left = _left(now - self._start, self._completed, self._total - self._completed)
        if event.kind == "done":
            took = f", {duration(now - self._began[event.key])}" if event.key in self._began else ""
            self._print(f"{name}: {event.text or 'done'}{took}; {text}{left}")
        elif event.kind == "round" and now - self._last > _GRID_LINE:
            self._print(f"{self._completed:,} of {self._total:,} rounds; {text}{left}")

    def _print(self, text: str, failed: bool = False) -> None:
        self._last = time.monotonic()
        self._console.print(Text.assemble(("failed", "red") if failed else "", text), soft_wrap=True)


def _left(seconds: float, done: int, left: int) -> str:
    """About how long so many rounds take, if ``done`` of them took these seconds, as the end of a line."""
    return f"; about {duration(seconds / done * left)} left" if done > 0 and left > 0 else ""
