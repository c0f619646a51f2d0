"""What is left to run, how long it takes and where that comes from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.cli.options import out
from fedsieve.config.experiment import Experiment
from fedsieve.federation.server import Server
from fedsieve.federation.simulation import Simulation
from fedsieve.report.text import duration
from fedsieve.reproduce import SUITES
from fedsieve.reproduce.forecast import PROCESS, Outlook, forecast, rounds_done
from fedsieve.reproduce.pace import MEASURED, RECORDS, SIMILAR, of_round
from fedsieve.reproduce.plan import Plan, Row
from fedsieve.runs.directory import environment
from fedsieve.runs.lines import line_of
from tests.report.conftest import record
from tests.reproduce.test_suites import tiny

CPU = torch.device("cpu")
HERE = environment(CPU)
SETTINGS = {"dataset": "digits", "clients": 4, "malicious": 1, "rounds": 10, "evaluate_every": 5}


def plan_of(*attacks: str, seeds: tuple[int, ...] = (0, 1), **more: Any) -> Plan:
    rows = tuple(Row("g", attack, {**SETTINGS, **more, "attack": attack}) for attack in attacks)
    return Plan(rows, {"mean": {"defense": "mean"}}, seeds)


def put(runs: Path, e: Experiment, n: int, seconds: float = 2.0, there: dict[str, Any] | None = None) -> None:
    """A run directory with ``n`` rounds, of which the first took 100 s; every fifth is evaluated, which took 1 s."""
    path = runs / e.key
    path.mkdir(parents=True)
    (path / "experiment.yaml").write_text(e.to_yaml())
    (path / "environment.json").write_text(json.dumps({**HERE, **(there or {})}))
    lines = []
    for k in range(n):
        due = (k + 1) % 5 == 0
        spent = {"train": 100.0 if k == 0 else seconds, **({"evaluate": 1.0} if due else {})}
        lines.append(line_of(record(k, 0.5 if due else None, seconds=spent)))
    (path / "records.jsonl").write_bytes(b"".join(lines))


@pytest.fixture
def looked(tmp_path: Path) -> Callable[..., list[Outlook]]:
    """The forecast of a plan, without time to run anything."""

    def look(plan: Plan, seconds: float = -1.0) -> list[Outlook]:
        return forecast(plan, tmp_path / "runs", tmp_path / "data", CPU, seconds=seconds)

    return look


def test_evaluations_count_as_often_as_they_are_due() -> None:
    records = [record(0, None, seconds={"train": 2.0}), record(1, 0.5, seconds={"train": 4.0, "evaluate": 10.0})]
    assert of_round(records, evaluate_every=5) == pytest.approx(3.0 + 10.0 / 5)
    assert of_round(records[:1], evaluate_every=5) == pytest.approx(2.0)
    assert of_round([record(0, 0.5)], evaluate_every=5) is None  # times were not kept


class TestState:
    def test_rounds_done(self, tmp_path: Path, looked: Callable[..., list[Outlook]]) -> None:
        plan = plan_of("none", seeds=(0, 1, 2))
        zero, one, two = plan.cells().values()
        put(tmp_path / "runs", zero, 10)
        put(tmp_path / "runs", one, 7)
        assert [rounds_done(tmp_path / "runs" / e.key, e) for e in (zero, one, two)] == [10, 7, 0]
        (cell,) = looked(plan)
        assert (cell.done, cell.left, cell.state) == ((10, 7, 0), 13, "1 finished, 1 round 7, 1 not begun")

    def test_all_rounds_of_other_settings_are_not_finished(self, tmp_path: Path) -> None:
        (e,) = plan_of("none", seeds=(0,)).cells().values()
        put(tmp_path, e, 10)
        (tmp_path / e.key / "experiment.yaml").write_text(e.model_copy(update={"seed": 5}).to_yaml())
        assert rounds_done(tmp_path / e.key, e) == 9

    def test_finished(self, tmp_path: Path, looked: Callable[..., list[Outlook]]) -> None:
        plan = plan_of("none")
        for e in plan.cells().values():
            put(tmp_path / "runs", e, 10)
        (cell,) = looked(plan)
        assert (cell.state, cell.left, cell.seconds, cell.memory) == ("finished", 0, None, None)


class TestPace:
    def test_of_its_own_records(self, tmp_path: Path, looked: Callable[..., list[Outlook]]) -> None:
        plan = plan_of("none")
        put(tmp_path / "runs", next(iter(plan.cells().values())), 6)
        (cell,) = looked(plan)
        assert (cell.seconds, cell.source) == (pytest.approx(2.0 + 1.0 / 5), RECORDS)
        assert cell.left * cell.seconds == pytest.approx(14 * 2.2)

    def test_of_another_attack(self, tmp_path: Path, looked: Callable[..., list[Outlook]]) -> None:
        plan = plan_of("none", "min-max")
        put(tmp_path / "runs", plan.cells()["g", "none", "mean", 0], 10)
        quiet, attacked = looked(plan)
        assert (quiet.source, attacked.source) == (RECORDS, SIMILAR)
        assert attacked.seconds == pytest.approx(2.2)

    def test_of_another_length_and_with_other_evaluations(
        self, tmp_path: Path, looked: Callable[..., list[Outlook]]
    ) -> None:
        put(tmp_path / "runs", next(iter(plan_of("none", seeds=(7,)).cells().values())), 10)
        (cell,) = looked(plan_of("none", rounds=1000, evaluate_every=10))
        assert (cell.seconds, cell.source) == (pytest.approx(2.1), RECORDS)

    @pytest.mark.parametrize(
        "other", [{"model": "logistic-regression"}, {"clients_per_round": 2}, {"local": {"steps": 2}}], ids=str
    )
    def test_not_of_other_training(
        self, tmp_path: Path, looked: Callable[..., list[Outlook]], other: dict[str, Any]
    ) -> None:
        put(tmp_path / "runs", next(iter(plan_of("none", **other).cells().values())), 10)
        (cell,) = looked(plan_of("none"))
        assert (cell.seconds, cell.source) == (None, "not measured: the time for it was over")

    def test_not_of_another_device(self, tmp_path: Path, looked: Callable[..., list[Outlook]]) -> None:
        plan = plan_of("none")
        put(tmp_path / "runs", next(iter(plan.cells().values())), 6, there={"device": "cuda", "device_name": "H100"})
        (cell,) = looked(plan)
        assert (cell.done, cell.seconds) == ((6, 0), None)

    def test_of_the_rounds_that_were_computed_here(self, tmp_path: Path, looked: Callable[..., list[Outlook]]) -> None:
        plan = plan_of("none")
        e = next(iter(plan.cells().values()))
        put(tmp_path / "runs", e, 9, there={"earlier": [{"until_round": 6, "device_name": "H100"}]})
        path = tmp_path / "runs" / e.key / "records.jsonl"
        lines = [
            line_of(record(k, None, seconds={"train": 0.01 if k < 6 else 50.0 if k == 6 else 3.0})) for k in range(9)
        ]
        path.write_bytes(b"".join(lines))
        (cell,) = looked(plan)
        assert cell.seconds == pytest.approx(3.0)

    @pytest.mark.parametrize(
        "found", ["", "[]", '{"earlier": 3}', '{"earlier": [3, {"until_round": "x"}]}'], ids=range(4)
    )
    def test_damaged_files(self, tmp_path: Path, looked: Callable[..., list[Outlook]], found: str) -> None:
        plan = plan_of("none")
        put(tmp_path / "runs", next(iter(plan.cells().values())), 6)
        path = next((tmp_path / "runs").glob("*/environment.json"))
        path.write_text(found)
        assert looked(plan)[0].done == (6, 0)
        path.with_name("records.jsonl").write_text("no record\n" * 4)
        assert looked(plan)[0].seconds is None

    def test_measured(self, tmp_path: Path, looked: Callable[..., list[Outlook]]) -> None:
        plan = plan_of("none", "label-flip")
        quiet, attacked = looked(plan, seconds=30.0)
        assert (quiet.source, attacked.source) == (MEASURED, MEASURED)
        assert quiet.seconds is not None
        assert 0 < quiet.seconds < 5
        assert attacked.seconds == quiet.seconds  # measured once for both attacks
        assert not (tmp_path / "runs").exists()

    def test_measured_with_each_defense(
        self, looked: Callable[..., list[Outlook]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Data and model are made once; the rounds are those of the defense."""
        made, real = [], Simulation.of

        def watched(e: Experiment, folder: Path, device: torch.device) -> Simulation:
            made.append(real(e, folder, device))
            return made[-1]

        steps: list[str] = []
        step = Server.step
        monkeypatch.setattr(Simulation, "of", watched)
        monkeypatch.setattr(
            Server, "step", lambda self, *given: (steps.append(type(self.defense).__name__), step(self, *given))[1]
        )
        columns = {name: {"defense": name} for name in ("mean", "krum")}
        plan = Plan((Row("g", "none", {**SETTINGS, "clients": 5, "attack": "none"}),), columns)
        assert [cell.source for cell in looked(plan, seconds=60.0)] == [MEASURED, MEASURED]
        assert steps == ["Mean"] * 4 + ["Krum"] * 4
        assert len(made) == 1

    def test_missing_data_are_not_fetched(
        self, looked: Callable[..., list[Outlook]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedsieve.data.store.fetch", None)
        (cell,) = looked(plan_of("none", dataset="har", clients=30), seconds=30.0)
        assert (cell.seconds, cell.memory) == (None, None)
        assert cell.source.startswith("not measured: ")
        assert "missing" in cell.source


def test_memory_by_hand(looked: Callable[..., list[Outlook]]) -> None:
    (cell,) = looked(plan_of("none", model="logistic-regression"))
    d = 64 * 10 + 10
    data = 1797 * (64 * 4 + 8)
    assert cell.memory == PROCESS + 2 * data + 4 * d * (1 + 3 * 4)


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 99.0, 101.0, 3600.0 * 3, 86400.0 * 3)] == [
        "0 s", "99 s", "2 min", "3.0 h", "3.0 days",
    ]  # fmt: skip


class TestCommand:
    def test_prints_cells_and_writes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        suite, plan = tiny()
        monkeypatch.setitem(SUITES, "tiny", suite)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(out, "_width", 200)
        done_ = plan.cells()["g", "min-max", "mean", 0]
        put(tmp_path / "runs", done_, 2)
        files = sorted(tmp_path.rglob("*"))
        done = CliRunner().invoke(app, ["reproduce", "tiny", "--only", "=mean", "--dry-run", "--device", "cpu"])
        assert done.exit_code == 0, done.output
        assert sorted(tmp_path.rglob("*")) == files
        lines = {tuple(line.split()[:3]): line for line in done.output.splitlines()}
        assert "1 finished, 1 not begun" in lines["g", "min-max", "mean"]
        assert "0, 1" in lines["g", "min-max", "mean"]
        assert "not begun" in lines["g", "none", "mean"]
        assert "0.4 GB" in lines["g", "none", "mean"]
        assert "3 of 4 runs are not finished. About" in done.output
        assert "on cpu, 1 thread each, one after another" in done.output
