"""Where nobody knows who is malicious, nobody is called benign or malicious; and clients have their names."""

import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.cli.progress import RunProgress
from fedsieve.config.experiment import Experiment
from fedsieve.core.metrics import summarize
from fedsieve.core.records import RoundRecord
from fedsieve.core.scores import ClassScores, ClientScores, FinalScores, Scored
from fedsieve.report import damage, flags, scores, text
from fedsieve.report.load import read
from fedsieve.runs.directory import RunDirectory
from tests.report.conftest import diagnosis, record
from tests.report.test_stored import written

MakeRun = Callable[..., Path]
NAMES = ("Mitte", "Nord", "Süd", "St. Anna")
JUDGED = re.compile("benign|malicious|false.positive|FPR|FNR", re.IGNORECASE)


def unknown(number: int, rejected: Any = (3,), **more: Any) -> RoundRecord:
    none: dict[str, Any] = {"malicious": None, "false_positive_rate": None, "false_negative_rate": None}
    return record(number, 0.5, rejected=rejected, **{**none, **more})


def own_data(folder: Path, **more: Any) -> Experiment:
    path = folder / "own.csv"
    path.write_text("x,site,y\n" + "".join(f"{k},{NAMES[k % 4]},{k // 4 % 2}\n" for k in range(40)))
    dataset = {"name": "csv", "file": str(path), "label": "y", "client": "site"}
    return Experiment.of({"dataset": dataset, "clients": 4, "defense": "multi-krum", "assumed_malicious": 0, **more})


def printed(*shown: Any) -> str:
    console = Console(file=StringIO(), width=200)
    for each in shown:
        console.print(each)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def words(shown: str) -> str:
    return " ".join(shown.split())


def closing(folder: Path, records: list[RoundRecord], names: tuple[str, ...] = (), **more: Any) -> str:
    e = own_data(folder, rounds=len(records), **more)
    result = text.as_json(e, records, summarize(records), "read", 1.0, "here", names)
    return words(printed(text.heading(e), text.closing(result, names)))


class TestSummary:
    def test_on_own_data(self, tmp_path: Path) -> None:
        seen = closing(tmp_path, [unknown(k, rejected=(3,) if k else (1, 3)) for k in range(20)], NAMES)
        assert "4 clients, multi-krum, csv, mlp" in seen or "4 clients, multi-krum, csv, logistic-regression" in seen
        assert "Rejected 26.2 % of all updates: St. Anna in 20 of 20 rounds, Nord in 1 of 20" in seen
        assert not JUDGED.search(seen)

    def test_without_names(self, tmp_path: Path) -> None:
        seen = closing(tmp_path, [unknown(0)])
        assert "Rejected 25.0 % of all updates: client 3 in 1 of 1 round Time" in seen

    def test_nobody_was_rejected(self, tmp_path: Path) -> None:
        assert "Rejected none Time" in closing(tmp_path, [unknown(0, rejected=())])
        assert "Detection multi-krum rejects no client" in closing(tmp_path, [unknown(0, rejected=None)])

    def test_many_were(self, tmp_path: Path) -> None:
        clients = tuple(range(9))
        one = unknown(0, clients=clients, rejected=clients, weights=(0.0,) * 9)
        seen = closing(tmp_path, [one, one])
        assert "client 0 in 2 of 2 rounds, client 1 in 2 of 2" in seen
        assert "client 4 in 2 of 2 and 4 more" in seen

    def test_json(self, tmp_path: Path) -> None:
        e = own_data(tmp_path)
        found = text.as_json(e, [unknown(0)], summarize([unknown(0)]), "read", 1.0, "here", NAMES)
        assert found["n_malicious"] is None
        assert found["most_rejected"] == [{"name": "St. Anna", "client": 3, "rounds_rejected": 1, "rounds": 1}]

    def test_named_clients_of_a_simulated_attack(self, tmp_path: Path) -> None:
        seen = closing(tmp_path, [record(0, 0.5)], NAMES, attack="sign-flip", malicious=1)
        assert "sign-flip (1 of 4 clients malicious) against multi-krum" in seen
        assert "Rejected 25.0 % of all updates: Mitte in 1 of 1 round" in seen
        assert "Benign clients rejected" in seen


class TestFlags:
    def test_rejections_are_nobodys_mistake(self, tmp_path: Path) -> None:
        records = [unknown(k) for k in range(20)]
        assert flags.of_run(own_data(tmp_path, rounds=20), summarize(records), 20, "here", NAMES) == []
        # a real federation, whose settings can't be read
        assert flags.of_run(None, summarize(records), 20, "here", NAMES) == []

    def test_names(self) -> None:
        records = [record(k, 0.5, malicious=(), rejected=(3,), false_positive_rate=0.25) for k in range(20)]
        e = Experiment.of({"clients": 4, "defense": "multi-krum", "assumed_malicious": 0})
        (flag,) = flags.of_run(e, summarize(records), 20, "here", NAMES)
        assert flag.text == (
            "without attack benign clients were rejected 20 times, 25.0 % of them in a round: "
            "St. Anna in 20 of 20 rounds"
        )


class TestRun:
    def made(self, make_run: MakeRun, records: list[RoundRecord], **more: Any) -> Path:
        path = make_run("a", [], records, defense="multi-krum", assumed_malicious=0, rounds=len(records), **more)
        RunDirectory(path).write_names(NAMES)
        return path

    def test_read(self, make_run: MakeRun) -> None:
        records = [unknown(k, diagnosis=diagnosis()) for k in range(4)]
        run = read(self.made(make_run, records))
        assert (run.problems, run.truth, run.finished) == ((), False, True)
        assert list(run.records) == records
        assert [run.name(k) for k in (0, 3, 4)] == ["Mitte", "St. Anna", "client 4"]
        assert [list(run.digest.curves[f"false_{k}_rate"][0]) for k in ("positive", "negative")] == [[], []]
        assert damage.said(run, None) == ""
        # as its own reference, which no attack is measured against
        assert damage.rows([run], damage.compare([run])) == []

    def test_older_records_are_known(self, make_run: MakeRun) -> None:
        assert read(self.made(make_run, [record(0, 0.5)])).truth

    def test_rates_that_nobody_can_know_are_left_out(self, make_run: MakeRun) -> None:
        records = [unknown(0), unknown(1, false_positive_rate=0.25, false_negative_rate=0.0)]
        run = read(self.made(make_run, records))
        assert list(run.records) == [unknown(0), unknown(1)]
        assert run.problems == (
            "1 of 2 rounds have numbers that are not finite, or rates not in [0, 1]; these are left out",
        )

    def test_ids_are_those_of_the_settings(self, make_run: MakeRun) -> None:
        path = self.made(make_run, [unknown(0), unknown(1)])
        written(path, [unknown(0), replace(unknown(1), clients=(0, 1, 2, 7), rejected=())])
        (problem,) = read(path).problems
        assert "4 clients with ids from 0 to 7, where there are ids 0 to 3" in problem
        assert not JUDGED.search(problem)

    def test_watch(self, make_run: MakeRun) -> None:
        path = self.made(make_run, [unknown(k, diagnosis=diagnosis(), rejected=(0, 3)) for k in range(3)])
        e = own_data(path, rounds=5)
        (path / "experiment.yaml").write_text(e.to_yaml())
        done = CliRunner().invoke(app, ["watch", str(path), "--once"])
        assert done.exit_code == 0, done.output
        rows = [line.split() for line in done.output.splitlines()]
        assert ["Mitte", "residual", "norm"] in rows
        assert ["St.", "Anna"] in rows
        assert ["clients", "rejected", "50.0", "%", "▄▄▄"] in rows or [
            "clients",
            "rejected",
            "50.0",
            "%",
            "▅▅▅",
        ] in rows
        assert not JUDGED.search(done.output)

    def test_progress(self) -> None:
        console = Console(file=StringIO(), width=200, force_terminal=True)
        with RunProgress(console, 2, "csv", lambda: NAMES, hidden=False) as progress:
            progress.show(unknown(0, rejected=(3, 1)))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "rejected St. Anna, Nord" in shown
        assert not JUDGED.search(shown)


def scored(accuracy: float | None, n: int = 10) -> Scored:
    return Scored(n, accuracy, accuracy, 0.75, None, 0.125)


class TestScores:
    def test_by_hand(self) -> None:
        found = FinalScores(
            3,
            scored(0.5, 20),
            (ClassScores("no", 12, 0.5, 0.25, 0.3333, 0.75), ClassScores("never", 0, None, None, None, None)),
            (ClientScores(0, "Mitte", scored(0.25)), ClientScores(1, "", scored(None))),
        )
        lines = [words(line) for line in printed(*scores.tables(found)).splitlines()]
        assert "all 20 50.0 50.0 0.750 – 12.5" in lines  # noqa: RUF001
        assert "Mitte 10 25.0 25.0 0.750 – 12.5" in lines  # noqa: RUF001
        assert "client 1 10 – – 0.750 – 12.5" in lines  # noqa: RUF001
        assert "no 12 50.0 25.0 0.333 0.750" in lines
        assert not any("never" in line for line in lines)

    def test_the_worst_of_many(self) -> None:
        clients = tuple(ClientScores(k, f"site {k}", scored((k * 7 % 10) / 10)) for k in range(10))
        classes = tuple(ClassScores(f"c{k}", 1, 1.0, 1.0, 1 - k / 20, None) for k in range(9))
        lines = [
            words(line) for line in printed(*scores.tables(FinalScores(1, scored(1.0), classes, clients))).splitlines()
        ]
        shown = [int(line.split()[1]) for line in lines if line.startswith("site")]
        assert shown == sorted(range(10), key=lambda k: k * 7 % 10)[:8]
        assert "and 2 clients with better scores" in lines
        assert "and 1 class with better scores" in lines
        assert [line.split()[0] for line in lines if re.match(r"c\d", line)] == [f"c{k}" for k in range(8, 0, -1)]

    def test_markup_in_names(self) -> None:
        found = FinalScores(1, scored(1.0), (), (ClientScores(0, "[bold]x[/] :smile:", scored(1.0)),))
        assert "[bold]x[/] :smile:" in printed(*scores.tables(found))


@pytest.mark.parametrize(("n", "said"), [(0, "0 clients"), (1, "1 client"), (2, "2 clients")])
def test_counted(n: int, said: str) -> None:
    assert text.counted(n, "client") == said
