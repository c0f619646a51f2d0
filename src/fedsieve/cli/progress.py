"""Progress bars for a run and for a grid of runs."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=hidden,
        )
        self._task = self._bar.add_task("", total=rounds)
        self._loading = console.status(f"loading {dataset}")
        self._hidden = hidden
        self._accuracy: float | None = None

    def __enter__(self) -> "RunProgress":
        if not self._hidden:
            self._loading.start()
        return self

    def __exit__(self, *_: object) -> None:
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
            line += f"  ({record.note})"
        self._bar.update(self._task, completed=record.round + 1, description=line)


class SweepProgress:
    """A progress bar over all rounds of a grid, and one for each running cell."""

    def __init__(self, console: Console, rounds: Mapping[str, int], names: Mapping[str, str], hidden: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=hidden,
        )
        self._rounds, self._names = rounds, names
        self._counts = dict.fromkeys(("done", "skipped", "failed", "elsewhere"), 0)
        self._rounds_done = dict.fromkeys(rounds, 0)
        self._tasks: dict[str, TaskID] = {}
        self._console = console
        self._all = self._bar.add_task("grid", total=sum(rounds.values()), text="")

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Show one more event."""
        key, name, total = event.key, self._names[event.key], self._rounds[event.key]
        if event.kind in self._counts:
            self._counts[event.kind] += 1
        if event.kind == "started":
            self._tasks[key] = self._bar.add_task(f"  {name}", total=total, text="")
        if event.kind == "round" and key in self._tasks:
            self._bar.update(self._tasks[key], completed=event.round, text=event.text)
        before, now = self._rounds_done[key], event.round if event.kind in ("round", "done", "skipped") else total
        if event.kind != "started":
            self._rounds_done[key] = now
            # rounds of cells that are not run here do not count, or the time left would be too short
            if event.kind in ("skipped", "elsewhere"):
                whole = self._bar.tasks[0].total or 0
                self._bar.update(self._all, total=whole - total)
            else:
                self._bar.advance(self._all, now - before)
        if event.kind in ("done", "failed") and key in self._tasks:
            self._bar.remove_task(self._tasks.pop(key))
        if event.kind == "failed":
            last = event.text.strip().splitlines()[-1]
            self._bar.console.print(f"[red]failed[/] {name}: {escape(last)}", soft_wrap=True)
        c, cells = self._counts, len(self._rounds)
        text = f"{c['done'] + c['skipped']} of {cells} done, {len(self._tasks)} running, {c['failed']} failed"
        self._bar.update(self._all, text=text + (f", {c['elsewhere']} elsewhere" if c["elsewhere"] else ""))
