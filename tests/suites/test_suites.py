"""Suites: that every plan is runnable, published numbers land in the right cells, and goals are judged."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.suites import SCALES, SUITES, tables
from fedsieve.suites.plan import Compared, Plan, Row, Suite, compare, published
from tests.report.conftest import record

SKYMASK = {f"table{k}" for k in range(1, 5)} | {f"figure{k}" for k in (1, 3, 4, 5, 6, 7, 8)}


def test_all_that_was_published_is_there() -> None:
    assert set(SUITES) == SKYMASK | {"detection", "invariant", "invariant-ablation"}


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_an_experiment(name: str, scale: str) -> None:
    plan = SUITES[name].plan(scale)  # type: ignore[arg-type]
    cells = plan.cells()
    assert len(cells) == plan.size >= 2
    assert plan.note
    if scale == "smoke":
        assert {e.dataset.name for e in cells.values()} == {"digits"}


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4", "invariant-ablation"])
def test_published_numbers_find_their_cells(name: str) -> None:
    suite = SUITES[name]
    plan = suite.plan("paper")
    theirs = {key[1:] for key in published() if key[0] == name}
    here = {
        (row.published, row.label, column, measure)
        for row in plan.rows
        for column in plan.columns
        for measure in suite.measures
    }
    assert theirs
    assert theirs <= here


def test_published_numbers_by_hand() -> None:
    found = published()
    assert found["table2", "fashion-mnist, q = 0.5", "min-sum", "tolpegin", "fnr"] == 0.848
    assert found["table1", "har", "scaling", "mean", "success"] == 0.20
    assert found["table3", "har", "fang-krum", "tau = 0.3", "fpr"] == 0.007
    assert found["table4", "cifar10, q = 0.5", "label-flip", "500 clients", "fnr"] == 0.0836
    assert all(0 <= value <= 1 for value in found.values())


SETTINGS = {"dataset": "digits", "clients": 4, "malicious": 1, "rounds": 2}


def tiny() -> tuple[Suite, Plan]:
    rows = (
        Row("g", "none", {**SETTINGS, "attack": "none"}, "har", {"fpr": 0.03}),
        Row("g", "min-max", {**SETTINGS, "attack": "min-max"}, "har", {"fpr": 0.03, "fnr": 0.03, "accuracy": 0.01}),
    )
    columns = {"skymask": {"defense": "skymask"}, "mean": {"defense": "mean"}}
    plan = Plan(rows, columns, (0, 1), ("none", "mean"), "A note.")
    return Suite("tiny", "Tiny", lambda scale: plan, ("accuracy", "fpr", "fnr"), "table2"), plan


def test_compare_by_hand() -> None:
    suite, plan = tiny()
    cells = plan.cells()
    runs = {
        cells["g", "none", "mean", 0].key: [record(0, 0.5), record(1, 0.8)],
        cells["g", "none", "mean", 1].key: [record(0, 0.5), record(1, 0.9)],
        cells["g", "min-max", "skymask", 0].key: [record(0, 0.5), record(1, 0.83, false_negative_rate=0.5)],
        cells["g", "min-max", "skymask", 1].key: [record(0, 0.5), record(1, 0.85, false_negative_rate=0.0)],
    }
    found = {(c.row, c.column, c.measure): c for c in compare(suite, plan, runs, {})}
    fnr = found["min-max", "skymask", "fnr"]
    assert (fnr.ours, fnr.goal, fnr.short) == (pytest.approx(0.25), 0.03, True)
    assert fnr.published == 0
    accuracy = found["min-max", "skymask", "accuracy"]
    assert accuracy.ours == pytest.approx(0.84)
    assert accuracy.goal == pytest.approx(0.85 - 0.01)  # of the reference's 0.85
    assert not accuracy.short
    missing = found["min-max", "mean", "accuracy"]
    assert (missing.ours, missing.error, missing.goal) == (None, "not run", None)
    lines = tables.markdown(suite, plan, list(found.values()), "how")
    assert "| min-max | 84.0 ± 1.4 (96.0) |" in lines
    assert "25.0 (0.8 / 0.0) ✗" in lines.replace("0.0 / 25.0", "25.0")
    assert "not run" in lines
    assert "A note." in lines


def test_what_is_missing_is_told() -> None:
    suite, plan = tiny()
    key = plan.cells()["g", "min-max", "skymask", 1].key
    runs = {plan.cells()["g", "min-max", "skymask", 0].key: [record(0, 0.5), record(1, 0.83)]}
    found = compare(suite, plan, runs, {key: "MemoryError: no"})
    text = tables.markdown(suite, plan, found, "how")
    assert "[1 of 2 seeds]" in text
    cell = next(c for c in found if (c.row, c.column, c.measure) == ("min-max", "skymask", "fpr"))
    assert (cell.seeds, cell.wanted, cell.error) == (1, 2, "MemoryError: no")


@pytest.mark.parametrize(
    ("measure", "ours", "goal", "short"),
    [("fpr", 0.01, 0.01, False), ("fpr", 0.011, 0.01, True), ("accuracy", 0.8, 0.8, False),
     ("accuracy", 0.79, 0.8, True), ("fnr", None, 0.01, False), ("fnr", 0.5, None, False)],
)  # fmt: skip
def test_short(measure: str, ours: float | None, goal: float | None, short: bool) -> None:
    assert Compared("g", "r", "c", measure, ours, None, 1, 1, None, goal, "").short == short


class TestCommand:
    def test_reproduces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        suite, _ = tiny()
        monkeypatch.setitem(SUITES, "tiny", suite)
        where = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--quiet"]
        done = CliRunner().invoke(app, ["reproduce", "tiny", "--scale", "smoke", *where])
        assert done.exit_code == 0, done.output
        lines = list(csv.DictReader((tmp_path / "out" / "tiny.csv").read_text().splitlines()))
        assert {line["column"] for line in lines} == {"skymask", "mean"}
        accuracy = next(r for r in lines if (r["row"], r["column"], r["measure"]) == ("min-max", "skymask", "accuracy"))
        assert float(accuracy["difference"]) == pytest.approx(float(accuracy["ours"]) - 0.96, abs=1e-5)
        assert "goals are met" in done.output
        page = (tmp_path / "out" / "tiny.md").read_text()
        assert "`fedsieve reproduce tiny --scale smoke`" in page
        assert CliRunner().invoke(app, ["reproduce", "tiny", *where, "--tables-only"]).exit_code == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [(["tabel1"], "there is no suite 'tabel1'"), (["table1", "--scale", "huge"], "there is no scale 'huge'")],
    )
    def test_wrong_ones(self, arguments: list[str], said: str) -> None:
        done = CliRunner().invoke(app, ["reproduce", *arguments])
        assert said in str(done.exception)

    def test_list(self) -> None:
        done = CliRunner().invoke(app, ["reproduce", "list"])
        assert done.exit_code == 0
        assert all(name in done.output for name in SUITES)
