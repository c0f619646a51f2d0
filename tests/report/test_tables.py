"""Tables from runs whose numbers are known by hand: finished, unfinished, failed and broken ones."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.core.errors import ParameterError
from fedsieve.report import tables
from fedsieve.report.grid import one_of_each_seed, seeds
from fedsieve.report.load import load
from fedsieve.report.text import terminal_parts, terminal_table
from tests.report.conftest import record

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


def seeded(make_run: MakeRun, cells: dict[tuple[str, str], tuple[float, ...]], **settings: object) -> Path:
    """Runs of one round with the accuracies of each (defense, attack), one seed each."""
    for (defense, attack), values in cells.items():
        for seed, value in enumerate(values):
            name = f"{settings.get('dataset', 'digits')}-{defense}-{attack}-{seed}"
            path = make_run(name, [value], attack=attack, defense=defense, seed=seed, **settings)
    return path.parent


class TestGrids:
    def test_by_hand(self, make_run: MakeRun) -> None:
        found = tables.grids(load([folder(make_run)]))
        accuracy = found[0]
        assert (accuracy.title, accuracy.measure) == ("digits", "late_test_accuracy")
        assert (accuracy.printed, accuracy.about) == ("Digits", "4 clients, 1 of them malicious, 2 rounds")
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
        assert accuracy.best == {}  # the median has one seed, so that nobody knows how far it may be off
        assert accuracy.worst == {}  # no defense has met every attack
        assert seeds([accuracy]) == "1 to 2 seeds"

    def test_worst_case(self, make_run: MakeRun) -> None:
        for defense, values in (("mean", (0.9, 0.2)), ("median", (0.8, 0.7))):
            for attack, value in zip(("none", "min-max"), values, strict=True):
                for seed in (0, 1):
                    make_run(f"{defense}-{attack}-{seed}", [value], attack=attack, defense=defense, seed=seed)
        path = make_run("x", [0.5], defense="geometric-median", attack="none")
        make_run("y", [0.5], defense="geometric-median", attack="none", seed=1)
        (accuracy, *_) = tables.grids(load([path.parent]))
        assert {defense: cell.mean for defense, cell in accuracy.worst.items()} == {"mean": 0.2, "median": 0.7}
        assert accuracy.best == {"none": "mean", "min-max": "median", tables.WORST: "median"}
        text = tables.markdown([accuracy], [])
        assert "| median | 80.0 ± 0.0 | **70.0 ± 0.0** | **70.0 ± 0.0** |" in text
        assert "| mean | **90.0 ± 0.0** | 20.0 ± 0.0 | 20.0 ± 0.0 |" in text
        assert "| geometric-median | 50.0 ± 0.0 | not run | – |" in text  # noqa: RUF001

    def test_bold_only_beyond_both_deviations(self, make_run: MakeRun) -> None:
        """Mean 80 ± 2.83 against 74 ± 2.83 differ by more than 5.66, against 74.5 by less."""
        cells = {
            ("mean", "none"): (0.78, 0.82),
            ("median", "none"): (0.72, 0.76),
            ("mean", "min-max"): (0.78, 0.82),
            ("median", "min-max"): (0.725, 0.765),
            ("mean", "label-flip"): (0.9, 0.9),
            ("median", "label-flip"): (0.9, 0.9),
        }
        (accuracy, *_) = tables.grids(load([seeded(make_run, cells)]))
        assert accuracy.best == {"none": "mean", tables.WORST: "mean"}

    def test_one_seed_is_never_bold(self, make_run: MakeRun) -> None:
        path = seeded(make_run, {("mean", "none"): (0.9,), ("median", "none"): (0.1,)})
        (accuracy, *_) = tables.grids(load([path]))
        assert accuracy.best == {}
        assert "Bold" not in tables.markdown([accuracy], []) + tables.latex([accuracy])

    def test_low_rates_are_better(self, make_run: MakeRun) -> None:
        for name, rate in (("multi-krum", 0.5), ("skymask", 0.25)):
            for seed in (0, 1):
                rounds = [record(0, 0.5, false_positive_rate=rate)]
                path = make_run(
                    f"{name}-{seed}", [], rounds, defense=name, attack="none", seed=seed, rounds=1, clients=9
                )
        found = {grid.measure: grid for grid in tables.grids(load([path.parent]))}
        assert found["false_positive_rate"].best == {"none": "skymask"}

    def test_a_copy_of_a_run_is_no_second_measurement(self, make_run: MakeRun) -> None:
        path = seeded(make_run, {("mean", "none"): (0.5, 0.7)})
        shutil.copytree(path / "digits-mean-none-1", path / "copy")
        make_run("shorter", [], defense="mean", attack="none", seed=0, rounds=1)
        runs = load([path])
        assert len(runs) == 4
        assert [run.path.name for run in one_of_each_seed(runs)] == ["digits-mean-none-0", "copy"]
        cell = tables.grids(runs)[0].cells["mean", "none"]
        assert (cell.text(), cell.seeds, cell.runs) == ("60.0 ± 14.1", 2, 2)
        assert cell.note == "4 runs of 2 seeds: one of each seed counts"

    def test_settings_are_tables_of_their_own(self, make_run: MakeRun) -> None:
        make_run("a", [0.5], seed=0, attack="min-max")
        make_run("b", [0.6], clients=6, seed=0, attack="min-max")
        path = make_run("c", [0.7], local={"learning_rate": 0.1}, attack="min-max")
        found = [grid for grid in tables.grids(load([path.parent])) if grid.measure == "late_test_accuracy"]
        assert [grid.title for grid in found] == [
            "digits, clients 4, clients per round 4, local learning_rate default",
            "digits, clients 6, clients per round 6, local learning_rate default",
            "digits, clients 4, clients per round 4, local learning_rate 0.1",
        ]
        assert [f"{grid.printed}, {grid.about}" for grid in found] == [
            "Digits, 4 clients, 1 of them malicious, 1 round",
            "Digits, 6 clients, 1 of them malicious, 1 round",
            "Digits, local learning_rate 0.1, 4 clients, 1 of them malicious, 1 round",
        ]

    def test_what_differs_between_datasets_alone_is_in_no_title(self, make_run: MakeRun) -> None:
        make_run("a", [0.5])
        path = make_run("b", [0.6], dataset="har", clients=30, malicious=9)
        found = [grid for grid in tables.grids(load([path.parent])) if grid.measure == "late_test_accuracy"]
        assert [(grid.title, grid.printed) for grid in found] == [("digits", "Digits"), ("har", "HAR")]
        assert [cell.mean for grid in found for cell in grid.cells.values()] == [0.5, 0.6]  # never over datasets

    def test_parameters_tell_variants_apart(self, make_run: MakeRun) -> None:
        make_run("a", [0.5], defense="skymask")
        path = make_run("b", [0.6], defense={"name": "skymask", "preset": "code"})
        assert tables.grids(load([path.parent]))[0].defenses == ("skymask", "skymask (preset=code)")

    def test_rows_are_in_the_order_of_papers(self, make_run: MakeRun) -> None:
        for name in ("skymask", "fltrust", "mean", "sieve", "krum"):
            path = make_run(name, [0.5], defense=name, attack="none", clients=9)
        assert tables.grids(load([path.parent]))[0].defenses == ("mean", "fltrust", "krum", "skymask", "sieve")


class TestWritten:
    def test_csv(self, make_run: MakeRun, tmp_path: Path) -> None:
        tables.write_csv(tables.grids(load([folder(make_run)])), tmp_path / "t.csv")
        lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
        cell = {(r["defense"], r["attack"], r["measure"]): r for r in lines}
        assert cell["mean", "none", "late_test_accuracy"]["mean"] == "0.85"
        assert cell["mean", "none", "late_test_accuracy"]["deviation"] == "0.07071"
        assert cell["mean", "none", "late_test_accuracy"]["seeds"] == "2"
        failed = cell["median", "min-max", "late_test_accuracy"]
        assert (failed["mean"], failed["finished"], failed["runs"]) == ("", "0", "1")
        assert failed["problem"] == "failed: MemoryError: out of memory"

    def test_one_markdown_table_over_datasets(self, make_run: MakeRun) -> None:
        seeded(make_run, {("mean", "none"): (0.5,), ("mean", "min-max"): (0.25,)})
        path = seeded(make_run, {("mean", "none"): (0.75,), ("krum", "none"): (1.0,)}, dataset="har", clients=30)
        text = tables.markdown([g for g in tables.grids(load([path])) if "test" in g.measure], [], together=True)
        assert text.splitlines()[-6:] == [
            "",
            "|  |  | none | min-max | worst |",
            "|---|---|---|---|---|",
            "| digits | mean | 50.0 | 25.0 | 25.0 |",
            "| har | mean | 75.0 | – | – |",  # noqa: RUF001
            "|  | krum | 100.0 | – | – |",  # noqa: RUF001
        ]

    def test_terminal(self, make_run: MakeRun) -> None:
        console = Console(width=120, record=True)
        for table in tables.terminal(tables.grids(load([folder(make_run)])), 120):
            console.print(table)
        text = console.export_text()
        assert "85.0 ± 7.1" in text
        assert "not run" in text

    def test_narrow_terminal(self) -> None:
        console = Console(width=20, record=True)
        console.print(terminal_table("t", [["", "skymask", "skymask-nr"], ["label-flip", "1.0", "2.0"]]))
        assert "…" not in console.export_text()

    def test_columns_that_do_not_fit_stand_below(self) -> None:
        console = Console(width=24, record=True)
        lines = [["", "none", "min-max", "scaling"], ["skymask", "1.0", "2.0", "3.0"]]
        console.print(terminal_parts("a title that is longer than the table", lines, 1, 24))
        shown = [line.rstrip() for line in console.export_text().splitlines()]
        assert shown == [
            "a title that is longer",
            "than the table",
            "         none  min-max",
            "skymask   1.0      2.0",
            "",
            "         scaling",
            "skymask      3.0",
        ]

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
