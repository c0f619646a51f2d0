"""What is shown while runs go on: the terminal and TensorBoard."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.report.progress import SweepProgress
from fedsieve.report.tensorboard import TensorBoard
from fedsieve.report.watch import sparkline, watch
from fedsieve.runs import RunDirectory
from fedsieve.sweep import Event
from fedsieve.types import FedSieveError, ParameterError
from tests.report.conftest import diagnosis, record


class TestWatch:
    def test_as_it_stands(self, make_run: Callable[..., Path]) -> None:
        seen = [record(k, 0.25, diagnosis=diagnosis(), seconds={"train": 2.0}) for k in range(3)]
        path = make_run("a", [], seen, attack="min-max", rounds=10)
        done = CliRunner().invoke(app, ["watch", str(path), "--once"])
        assert done.exit_code == 0, done.output
        for said in ("round 3 of 10, about 14 s left", "25.0 %", "malicious", "harm"):
            assert said in done.output

    def test_ends_with_the_run(self, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        path = make_run("a", [0.1, 0.2], rounds=4)
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            RunDirectory(path).append(record(1 + len(slept), 0.5))

        monkeypatch.setattr("fedsieve.report.watch.time.sleep", sleep)
        console = Console(width=100, record=True, force_terminal=True)
        watch(path, console, interval=0.5)
        assert slept == [0.5, 0.5]
        assert "round 4 of 4, finished" in console.export_text()

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="no run in"):
            watch(tmp_path, Console())

    def test_sparkline(self) -> None:
        assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
        assert len(sparkline([0.1] * 1000)) == 60
        assert sparkline([0.0] * 999 + [1.0])[-1] == "█"
        assert sparkline([]) == ""


class TestTensorBoard:
    @pytest.mark.filterwarnings("ignore")
    def test_scalars(self, tmp_path: Path) -> None:
        loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        settings = ["--rounds", "4", "--attack", "scaling", "--out", str(tmp_path), "--tensorboard", "--quiet"]
        done = CliRunner().invoke(app, ["run", *settings])
        assert done.exit_code == 0, done.output
        found = loader.EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        kept = RunDirectory(tmp_path).records()
        assert len(kept) == 4
        for name, field in (
            ("accuracy/test", "test_accuracy"),
            ("detection/false_negative_rate", "false_negative_rate"),
        ):
            assert [e.step for e in found.Scalars(name)] == [0, 1, 2, 3]
            assert [e.value for e in found.Scalars(name)] == pytest.approx([getattr(r, field) for r in kept])
        assert "attack/success" in found.Tags()["scalars"]

    @pytest.mark.filterwarnings("ignore")
    def test_a_sweep_and_a_run_that_goes_on(self, tmp_path: Path) -> None:
        loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        grid = tmp_path / "grid.yaml"
        grid.write_text("{dataset: digits, clients: 6, rounds: 3, defense: [mean, median]}")
        done = CliRunner().invoke(
            app, ["sweep", str(grid), "--out", str(tmp_path / "runs"), "--tensorboard", "--quiet"]
        )
        assert done.exit_code == 0, done.output
        cells = [path.parent for path in (tmp_path / "runs").glob("*/records.jsonl")]
        assert len(cells) == 2
        records = RunDirectory(cells[0]).records()
        display = TensorBoard(cells[0])  # a run that goes on at round 1 plays what comes then again
        for again in records[1:]:
            display.show(replace(again, test_accuracy=0.5))
        display.close()
        found = loader.EventAccumulator(str(cells[0] / "tensorboard"))
        found.Reload()
        events = found.Scalars("accuracy/test")
        assert [e.step for e in events] == [0, 1, 2]
        assert [e.value for e in events] == pytest.approx([records[0].test_accuracy, 0.5, 0.5])

    def test_without_tensorboard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(FedSieveError, match=r"pip install fedsieve\[tensorboard\]"):
            TensorBoard(tmp_path)


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
        task = shown._bar.tasks[0]
        assert (task.completed, task.total) == (25, 30)
        assert task.fields["text"] == "2 of 4 done, 1 running, 1 failed"
    assert "ValueError: [no]" in console.export_text()
