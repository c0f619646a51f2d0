"""Tables from runs whose numbers are known by hand: finished, unfinished, failed and broken ones."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.core.errors import ParameterError
from fedsieve.report import tables
from fedsieve.report.load import load
from fedsieve.report.text import terminal_table

MakeRun = Callable[..., Path]


def folder(make_run: MakeRun) -> Path:
    """Two defenses, two attacks; one cell of two seeds, one missing, one with NaN, one failed, one unfinished."""
    make_run("a", [0.5, 0.8], attack="none", defense="mean")
    make_run("b", [0.5, 0.9], attack="none", defense="mean", seed=1)
    make_run("c", [0.5, 0.7], attack="none", defense="median")
    path = make_run("d", [0.6, 0.6], attack="min-max", defense="mean")
    lines = (path / "records.jsonl").read_text().splitlines()
    broken = {**json.loads(lines[0]), "test_accuracy": float("nan")}
    (path / "records.jsonl").write_text(json.dumps(broken) + "\n" + lines[1] + "\n")
    failed = make_run("e", [], attack="min-max", defense="median", rounds=2)
    (failed / "error.txt").write_text("Traceback\nMemoryError: out of memory\n")
    make_run("f", [0.4], attack="scaling", defense="mean", rounds=2)
    return path.parent


class TestGrids:
    def test_by_hand(self, make_run: MakeRun) -> None:
        found = tables.grids(load([folder(make_run)]))
        accuracy = found[0]
        assert (accuracy.title, accuracy.measure) == ("digits", "late_test_accuracy")
        assert accuracy.defenses == ("mean", "median")
        assert accuracy.attacks == ("none", "min-max", "scaling")
        cell = accuracy.cells["mean", "none"]
        assert cell.mean == pytest.approx(0.85)
        assert cell.deviation == pytest.approx(0.05 * 2**0.5)
        assert cell.text() == "85.0 ± 7.1"
        assert accuracy.cells["mean", "min-max"].text() == "60.0"  # only the earlier round is not finite
        assert accuracy.cells["median", "min-max"].text() == "failed"
        assert accuracy.cells["mean", "scaling"].text() == "unfinished"
        assert ("median", "scaling") not in accuracy.cells
        assert accuracy.best["none"] == {"mean"}
        assert accuracy.best["min-max"] == frozenset()  # a single number is not the best
        assert accuracy.worst == {}  # no defense has met every attack

    def test_worst_case(self, make_run: MakeRun) -> None:
        for defense, values in (("mean", (0.9, 0.2)), ("median", (0.8, 0.7))):
            for attack, value in zip(("none", "min-max"), values, strict=True):
                make_run(f"{defense}-{attack}", [value], attack=attack, defense=defense)
        (accuracy, *_) = tables.grids(load([make_run("x", [0.5], defense="geometric-median", attack="none").parent]))
        assert accuracy.worst == {"mean": 0.2, "median": 0.7}
        assert accuracy.best[tables.WORST] == {"median"}
        text = tables.markdown([accuracy], [])
        assert "| median | 80.0 | **70.0** | **70.0** |" in text
        assert "| mean | **90.0** | 20.0 | 20.0 |" in text
        assert "| geometric-median | 50.0 | not run | – |" in text  # noqa: RUF001

    def test_settings_are_tables_of_their_own(self, make_run: MakeRun) -> None:
        make_run("a", [0.5], seed=0)
        make_run("b", [0.6], clients=6, seed=0)
        path = make_run("c", [0.7], local={"learning_rate": 0.1})
        titles = [grid.title for grid in tables.grids(load([path.parent])) if grid.measure == "late_test_accuracy"]
        assert titles == [
            "digits, clients 4, clients per round 4, local learning_rate default",
            "digits, clients 6, clients per round 6, local learning_rate default",
            "digits, clients 4, clients per round 4, local learning_rate 0.1",
        ]

    def test_parameters_tell_variants_apart(self, make_run: MakeRun) -> None:
        make_run("a", [0.5], defense="skymask")
        path = make_run("b", [0.6], defense={"name": "skymask", "preset": "code"})
        assert tables.grids(load([path.parent]))[0].defenses == ("skymask", "skymask (preset=code)")


class TestWritten:
    def test_latex(self, make_run: MakeRun) -> None:
        text = tables.latex(tables.grids(load([folder(make_run)])))
        assert r"mean & \textbf{85.0 $\pm$ 7.1} & 60.0 & unfinished \\" in text
        assert r"Test accuracy, last tenth of the rounds, \%" in text
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") >= 3
        assert "±" not in text

    def test_csv(self, make_run: MakeRun, tmp_path: Path) -> None:
        tables.write_csv(tables.grids(load([folder(make_run)])), tmp_path / "t.csv")
        lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
        cell = {(r["defense"], r["attack"], r["measure"]): r for r in lines}
        assert cell["mean", "none", "late_test_accuracy"]["mean"] == "0.85"
        failed = cell["median", "min-max", "late_test_accuracy"]
        assert (failed["mean"], failed["finished"], failed["runs"]) == ("", "0", "1")
        assert failed["problem"] == "failed: MemoryError: out of memory"

    def test_terminal(self, make_run: MakeRun) -> None:
        console = Console(width=120, record=True)
        for table in tables.terminal(tables.grids(load([folder(make_run)]))):
            console.print(table)
        text = console.export_text()
        assert "85.0 ± 7.1" in text
        assert "not run" in text

    def test_narrow_terminal(self) -> None:
        console = Console(width=20, record=True)
        console.print(terminal_table("t", [["", "skymask", "skymask-nr"], ["label-flip", "1.0", "2.0"]]))
        assert "…" not in console.export_text()

    def test_command(self, make_run: MakeRun, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, ["report", str(folder(make_run)), "--out", str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
        text = (tmp_path / "out" / "tables.md").read_text()
        for said in (
            "failed: MemoryError: out of memory",
            "unfinished: 1 of 2 rounds",
            "1 of 2 rounds have numbers that are not finite",
        ):
            assert said in text
            assert said in done.output
        assert {p.suffix for p in (tmp_path / "out").iterdir()} >= {".md", ".tex", ".csv", ".html"}
        assert list((tmp_path / "out" / "figures").glob("*.png"))


class TestLoad:
    def test_a_run_its_records_and_a_folder_are_the_same(self, make_run: MakeRun) -> None:
        path = make_run("a", [0.5])
        for given in (path, path / "records.jsonl", path.parent):
            assert [run.path for run in load([given])] == [path]
        assert len(load([path, path.parent])) == 1

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="no run in"):
            load([tmp_path])

    @pytest.mark.parametrize(
        ("file", "text", "said"),
        [
            ("records.jsonl", "{}\n", "records: "),
            ("records.jsonl", "no json\n", "records: "),
            ("experiment.yaml", "sede: 3\n", "settings: no dataset, model, partition"),
            ("experiment.yaml", "]", "settings: can't read"),
        ],
    )
    def test_broken_files_are_told(self, make_run: MakeRun, file: str, text: str, said: str) -> None:
        path = make_run("a", [0.5, 0.6])
        (path / file).write_text(text)
        (run,) = load([path])
        assert run.problems[0].startswith(said)
        tables.markdown(tables.grids([run]), [run])

    def test_an_unknown_setting_is_told(self, make_run: MakeRun) -> None:
        path = make_run("a", [0.5])
        with (path / "experiment.yaml").open("a") as file:
            file.write("sede: 3\n")
        (run,) = load([path])
        assert run.problems[0].startswith("settings: unknown setting sede")

    def test_records_without_settings(self, make_run: MakeRun) -> None:
        path = make_run("a", [0.5])
        (path / "experiment.yaml").unlink()
        (run,) = load([path])
        assert run.experiment is None
        assert run.problems[0].startswith("settings: ")
        assert "experiment.yaml" in run.problems[0]
