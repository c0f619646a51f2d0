"""`fedsieve watch`: a running experiment, read from its run directory."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.cli.live import sparkline, watch
from fedsieve.core.errors import ParameterError
from fedsieve.runs.directory import RunDirectory
from tests.report.conftest import diagnosis, record


class TestWatch:
    def test_as_it_stands(self, make_run: Callable[..., Path]) -> None:
        seen = [record(k, 0.25, diagnosis=diagnosis(), seconds={"train": 2.0}) for k in range(3)]
        path = make_run("a", [], seen, attack="min-max", rounds=10)
        done = CliRunner().invoke(app, ["watch", str(path), "--once"])
        assert done.exit_code == 0, done.output
        for said in ("round 3 of 10, about 14 s left", "25.0 %", "malicious", "residual norm"):
            assert said in done.output

    def test_new_ids(self, make_run: Callable[..., Path]) -> None:
        seen = [
            record(k, 0.25, clients=(4 * k, 1, 2, 3), malicious=(4 * k,), rejected=(4 * k, 2), diagnosis=diagnosis())
            for k in range(3)
        ]
        path = make_run("a", [], seen, attack="fresh-identity", rounds=10)
        done = CliRunner().invoke(app, ["watch", str(path), "--once"])
        assert done.exit_code == 0, done.output
        rows = [line.split() for line in done.output.splitlines()]
        assert ["8", "malicious", "residual", "norm"] in rows
        assert ["2", "benign"] in rows

    def test_ends_with_the_run(self, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        path = make_run("a", [0.1, 0.2], rounds=4)
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            RunDirectory(path).append(record(1 + len(slept), 0.5))

        monkeypatch.setattr("fedsieve.cli.live.time.sleep", sleep)
        console = Console(width=100, record=True, force_terminal=True)
        watch(path, console, interval=0.5)
        assert slept == [0.5, 0.5]
        assert "round 4 of 4, finished" in console.export_text()

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match=r"is not a run directory: it has no experiment\.yaml"):
            watch(tmp_path, Console())

    def test_sparkline(self) -> None:
        assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
        assert len(sparkline([0.1] * 1000)) == 60
        assert sparkline([0.0] * 999 + [1.0])[-1] == "█"
        assert sparkline([]) == ""


def test_a_model_that_was_not_changed(make_run: Callable[..., Path]) -> None:
    path = make_run("a", [], [record(0, 0.25, applied=False, note="no client was accepted")], rounds=4)
    done = CliRunner().invoke(app, ["watch", str(path), "--once"])
    assert "the model was not changed: no client was accepted" in done.output


def test_ctrl_c_stops_watching_only(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsieve.cli.live.time.sleep", interrupted)
    done = CliRunner().invoke(app, ["watch", str(make_run("a", [0.1], rounds=4))])
    assert done.exit_code == 0
    assert "the experiment continues" in done.output


def test_a_run_that_is_started_anew(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run("a", [0.1, 0.2, 0.3], rounds=4)
    steps = iter([[0.9], [0.9, 0.8], [0.9, 0.8, 0.7, 0.6]])

    def sleep(seconds: float) -> None:
        (path / "records.jsonl").write_bytes(b"")
        for k, accuracy in enumerate(next(steps)):
            RunDirectory(path).append(record(k, accuracy))

    monkeypatch.setattr("fedsieve.cli.live.time.sleep", sleep)
    console = Console(width=100, record=True, force_terminal=True)
    watch(path, console)
    text = console.export_text()
    assert [text.count(f"round {k} of 4") > 0 for k in (3, 1, 2, 4)] == [True] * 4
    assert text.rfind("60.0 %") > text.rfind("70.0 %")


def test_records_that_make_no_sense(make_run: Callable[..., Path]) -> None:
    """Rates that are none are left out; reasons of other clients too."""
    odd = record(1, 7.0, rejected=tuple(range(99)), diagnosis=diagnosis(9), seconds={"train": 1e300})
    path = make_run("a", [], [record(0, 0.25), odd], rounds=9)
    done = CliRunner().invoke(app, ["watch", str(path), "--once"])
    assert done.exit_code == 0, done.output
    assert "25.0 %" in done.output
    assert "700" not in done.output
    assert "and 87 more" in done.output
