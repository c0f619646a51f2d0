"""What progress looks like in a file, and in a terminal that is narrow."""

from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from fedsieve.cli import progress
from fedsieve.cli.progress import RunProgress, SweepProgress
from fedsieve.runs.events import Event
from tests.report.conftest import record


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock of the lines."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def put(seconds: float) -> None:
        now[0] = seconds

    return put


def in_a_file() -> Console:
    return Console(width=80, record=True, force_terminal=False)


class TestInAFile:
    def test_a_line_for_each_cell_that_ended(self, clock: Callable[[float], None]) -> None:
        console = in_a_file()
        names = {"a": "none / mean", "b": "min-max / mean", "c": "lie / mean", "d": "lie / skymask"}
        with SweepProgress(console, dict.fromkeys(names, 100), names, hidden=False) as shown:
            shown.show(Event("a", "skipped", 100))
            shown.show(Event("b", "started"))
            clock(50.0)
            shown.show(Event("b", "done", 100, "81.0 %"))
            shown.show(Event("c", "started"))
            shown.show(Event("c", "failed", text="no memory"))
            clock(60.0)
            shown.show(Event("d", "started"))
            shown.show(Event("d", "round", 40, "80.0 %"))
            clock(700.0)
            shown.show(Event("d", "round", 50, "80.0 %"))
            shown.show(Event("d", "round", 60, "80.0 %"))
        assert console.export_text().splitlines() == [
            "min-max / mean: 81.0 %, 50 s; 2 of 4 done, 0 running, 0 failed; about 2 min left",
            "failed lie / mean: no memory",
            "250 of 300 rounds; 2 of 4 done, 1 running, 1 failed; about 2 min left",
        ]

    def test_a_run_now_and_then(self, clock: Callable[[float], None]) -> None:
        console = in_a_file()
        with RunProgress(console, 1000, "digits", tuple, hidden=False) as shown:
            for k, now in ((100, 0.0), (200, 59.0), (300, 61.0), (400, 100.0), (999, 110.0)):  # resumed at 100
                clock(now)
                shown.show(record(k, 0.25))
        assert console.export_text().splitlines() == [
            "round 301 of 1,000: accuracy 25.0 %  FPR 0.0 %  FNR 0.0 %; about 4 min left",
            "round 1,000 of 1,000: accuracy 25.0 %  FPR 0.0 %  FNR 0.0 %",
        ]

    def test_hidden(self) -> None:
        console = in_a_file()
        with SweepProgress(console, {"a": 1}, {"a": "x"}, hidden=True) as shown:
            shown.show(Event("a", "started"))
            shown.show(Event("a", "done", 1))
        assert console.export_text() == ""


def drawn(renderable: RenderableType, width: int) -> str:
    """What is seen of it."""
    console = Console(width=width, record=True, file=StringIO())
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize("width", [40, 80, 200])
class TestInATerminal:
    def test_nothing_of_a_grid_is_cut_off(self, width: int) -> None:
        console = Console(width=width, height=60, record=True, force_terminal=True)
        names = {k: f"{k} / skymask,norm-clipping, fashion-mnist, malicious 20, seed 1" for k in ("lie", "min-max")}
        with SweepProgress(console, dict.fromkeys(names, 10), names, hidden=False) as shown:
            for key in names:
                shown.show(Event(key, "started"))
                shown.show(Event(key, "round", 5, "81.0 %"))
            said = drawn(shown._live.renderable, width)
        assert "…" not in said
        assert {"0", "of", "2", "done,", "running,", "failed", "81.0", "%", "left"} <= set(said.split())
        if width == 200:
            assert all(name in said for name in names.values())

    def test_nothing_of_a_run_is_cut_off(self, width: int) -> None:
        console = Console(width=width, height=60, record=True, force_terminal=True)
        with RunProgress(console, 2500, "digits", tuple, hidden=False) as shown:
            shown.show(record(999, 0.25, attack_success_rate=0.5))
            said = drawn(shown._bar.get_renderable(), width)
        assert "…" not in said
        joined = "".join(said.split())
        for text in ("1000/2500", "accuracy25.0%", "ASR50.0%", "left"):
            assert text in joined or width == 40
        assert len(said.splitlines()) == 1 or width == 40
        assert "took" not in said


def test_a_finished_run_has_taken_its_time() -> None:
    console = Console(width=120, record=True, force_terminal=True)
    with RunProgress(console, 2, "digits", tuple, hidden=False) as shown:
        for k in range(2):
            shown.show(record(k, 0.25))
        said = drawn(shown._bar.get_renderable(), 120)
    assert "took 00:00" in said
    assert "left" not in said
