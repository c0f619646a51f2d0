"""Progress bars of a run and of a grid."""

from rich.console import Console

from fedsieve.cli.progress import RunProgress, SweepProgress
from fedsieve.runs.events import Event
from tests.report.conftest import record


def test_progress_of_a_sweep() -> None:
    console = Console(width=160, record=True, force_terminal=True)
    with SweepProgress(console, {"a": 10, "b": 10, "c": 10, "d": 10}, {k: f"cell {k}" for k in "abcd"}, False) as shown:
        shown.show(Event("a", "skipped", 10))
        shown.show(Event("b", "started"))
        shown.show(Event("b", "round", 5, "81.0 %"))
        shown.show(Event("c", "started"))
        shown.show(Event("c", "failed", text="Traceback\nValueError: [no]"))
        shown.show(Event("d", "started"))
        shown.show(Event("d", "done", 10, "90 %"))
        task = shown._grid.tasks[0]
        assert (task.completed, task.total) == (25, 30)
        assert task.fields["text"] == "2 of 4 done, 1 running, 1 failed"
    assert "ValueError: [no]" in console.export_text()


def test_cells_that_other_processes_run() -> None:
    console = Console(width=160, record=True, force_terminal=True)
    with SweepProgress(console, dict.fromkeys("abc", 10), {k: f"cell {k}" for k in "abc"}, False) as shown:
        bar = shown._grid.tasks[0]

        def state() -> tuple[float, float | None, str]:
            return bar.completed, bar.total, bar.fields["text"]

        shown.show(Event("a", "started"))
        shown.show(Event("a", "elsewhere"))
        shown.show(Event("b", "started"))
        shown.show(Event("b", "elsewhere"))
        assert state() == (
            0,
            10,
            "0 of 3 done, 0 running, 0 failed, 2 elsewhere",
        )
        shown.show(Event("a", "skipped", 10))  # the other has finished it
        shown.show(Event("b", "started"))  # the other has given it up
        shown.show(Event("b", "round", 4))
        assert state() == (4, 20, "1 of 3 done, 1 running, 0 failed")
        shown.show(Event("b", "note", text="its process was ended by SIGKILL; it is tried again"))
        shown.show(Event("b", "started"))
        shown.show(Event("b", "round", 2))
        shown.show(Event("b", "done", 10))
        assert state() == (10, 20, "2 of 3 done, 0 running, 0 failed")
    assert "cell b: its process was ended by SIGKILL; it is tried again\n" in console.export_text()


def test_names_are_shown_as_they_are() -> None:
    name, shown_name = "my[/]mod:Cls[bold]\n\x1b[2J", r"my[/]mod:Cls[bold]\n\x1b[2J"
    console = Console(width=160, record=True, force_terminal=True)
    with SweepProgress(console, {"a": 10}, {"a": name}, False) as shown:
        shown.show(Event("a", "started"))
        assert shown._cells.tasks[0].description == shown_name
        shown._live.refresh()
        shown.show(Event("a", "note", text=name))
        shown.show(Event("a", "failed", text=f"Traceback\n[/]Error: {name}"[:-5]))
    said = console.export_text()
    assert f"{shown_name}: {shown_name}\n" in said
    assert f"failed {shown_name}: [/]Error: my[/]mod:Cls[bold]\n" in said
    assert "\x1b[2J" not in said
    with RunProgress(console, 3, name, tuple, hidden=False) as run:
        run.show(record(0, 0.25, applied=False, note="[/]"))
        run._bar.refresh()
    assert "([/])" in console.export_text()


def test_progress_of_a_run() -> None:
    console = Console(width=160, record=True, force_terminal=True)
    with RunProgress(console, 3, "digits", tuple, hidden=False) as shown:
        shown.show(record(0, 0.25))
        shown.show(record(1, None, attack_success_rate=0.5))
        assert (shown._bar.tasks[0].completed, shown._bar.tasks[0].total) == (2, 3)
        line = shown._bar.tasks[0].description
    assert line == "accuracy 25.0 %  FPR 0.0 %  FNR 0.0 %  ASR 50.0 %"


def test_hidden_progress_prints_nothing() -> None:
    console = Console(width=160, record=True, force_terminal=True)
    with RunProgress(console, 3, "digits", tuple, hidden=True) as shown:
        shown.show(record(0, 0.25, applied=False, note="no update was finite"))
        assert shown._bar.tasks[0].description.endswith("  (no update was finite)")
    with SweepProgress(console, {"a": 1}, {"a": "cell"}, hidden=True) as grid:
        grid.show(Event("a", "started"))
        grid.show(Event("a", "done", 1))
    assert console.export_text() == ""
