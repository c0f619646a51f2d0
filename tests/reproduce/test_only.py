"""A part of a suite: what a text means, how several combine, and what the chosen cells are compared with."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.core.errors import ParameterError
from fedsieve.reproduce import SUITES
from fedsieve.reproduce.only import only
from fedsieve.reproduce.plan import Plan, Row, Suite
from tests.reproduce.test_suites import plan_of, tiny

SETTINGS = {"dataset": "digits", "clients": 4, "malicious": 1, "rounds": 2}
COLUMNS = {name: {"defense": name} for name in ("sieve", "skymask", "skymask-nr", "mean")}


def suite_of(*measures: str, **more: Any) -> tuple[Suite, Plan]:
    """Two groups; rows without attack and with two; the second group lacks two columns."""
    rows = [
        Row(group, label, {**SETTINGS, "attack": attack, "server": {"learning_rate": rate}}, columns=columns, **more)
        for group, rate, columns in (("images, iid", 0.5, None), ("har", 0.25, ("skymask", "mean")))
        for label, attack in (("none", "none"), ("min-max", "min-max"), ("min-max, jittered", {"name": "jitter"}))
    ]
    plan = Plan(tuple(rows), COLUMNS, (0, 1), "sieve")
    return Suite("tiny", "Tiny", lambda scale: plan, measures or ("accuracy",)), plan


def labels(plan: Plan) -> set[tuple[str, str, str]]:
    return {(row.group, row.label, column) for row in plan.rows for column in plan.columns_of(row)}


def kept(texts: Sequence[str], *measures: str) -> set[tuple[str, str, str]]:
    return labels(only(*suite_of(*measures), texts)[0])


class TestMeaning:
    def test_a_group(self) -> None:
        assert {found[0] for found in kept(["HAR"])} == {"har"}
        assert len(kept(["har"])) == 6

    def test_a_row(self) -> None:
        assert {found[1] for found in kept(["min"])} == {"min-max", "min-max, jittered"}
        assert {found[0] for found in kept(["min"])} == {"images, iid", "har"}
        assert {found[1] for found in kept(["=min-max"])} == {"min-max"}

    def test_a_column(self) -> None:
        assert {found[2] for found in kept(["skymask"])} == {"skymask", "skymask-nr"}
        assert {found[2] for found in kept(["=skymask"])} == {"skymask"}
        assert {found[2] for found in kept(["-nr"])} == {"skymask-nr"}

    def test_a_whole_label_of_one_kind_comes_before_a_part_of_another(self) -> None:
        rows = (Row("g", "adaptive-skymask", SETTINGS), Row("g", "none", SETTINGS))
        plan = Plan(rows, COLUMNS)
        suite = Suite("tiny", "Tiny", lambda scale: plan, ("accuracy",))
        assert {row.label for row in only(suite, plan, ["skymask"])[0].rows} == {"adaptive-skymask", "none"}
        assert {row.label for row in only(suite, plan, ["sky"])[0].rows} == {"adaptive-skymask"}

    def test_of_one_kind_they_add_up_and_kinds_narrow_each_other(self) -> None:
        assert kept(["=skymask", "mean"]) == {
            found for found in labels(suite_of()[1]) if found[2] in ("skymask", "mean")
        }
        assert kept(["har", "=skymask", "=none"]) == {("har", "none", "skymask")}
        assert kept(["har", "images", "none", "-nr"]) == {("images, iid", "none", "skymask-nr")}

    def test_it_is_said(self) -> None:
        part, said = only(*suite_of(), ["har", "skymask"])
        assert said == "Only group har; columns skymask | skymask-nr: 6 of 36 runs; the others are left out here."
        assert part.size == 6


class TestMistakes:
    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            (
                ["cifar"],
                "--only 'cifar' is in no label of a group, row or column of tiny; there are groups (images, iid | "
                "har), rows (none | min-max | min-max, jittered), columns (sieve | skymask | skymask-nr | mean)",
            ),
            (["skymsk"], "did you mean skymask | skymask-nr? "),
            (["=min"], "--only '=min' is the label of no group, row or column of tiny"),
            ([""], "--only '' names nothing"),
            (["="], "--only '=' names nothing"),
            (["har", "sieve"], "tiny has no cell of group har with column sieve; the columns there are skymask | mean"),
        ],
    )
    def test_one_line_with_the_alternatives(self, texts: list[str], said: str) -> None:
        with pytest.raises(ParameterError) as error:
            only(*suite_of(), texts)
        assert said in str(error.value)
        assert "\n" not in str(error.value)

    def test_long_lists_are_cut(self) -> None:
        with pytest.raises(ParameterError, match=r"\| and \d+ more"):
            only(SUITES["time"], plan_of("time", "paper"), ["no such thing"])

    def test_rows_that_a_group_lacks(self) -> None:
        rows = (Row("a", "none", SETTINGS), Row("b", "min-max", SETTINGS))
        plan = Plan(rows, COLUMNS)
        with pytest.raises(ParameterError, match="no cell of group b with row none; the rows there are min-max"):
            only(Suite("tiny", "Tiny", lambda scale: plan, ("accuracy",)), plan, ["=b", "none"])


class TestComparedWith:
    def test_nothing_where_nothing_is_compared(self) -> None:
        assert only(*suite_of("accuracy", "fpr"), ["har", "skymask"])[0].beside == ()

    def test_losses_need_the_reference(self) -> None:
        part, said = only(*suite_of("late_loss"), ["har", "=min-max", "skymask"])
        assert labels(part) == {("har", "min-max", "skymask")}
        assert [(row.group, row.label, row.columns) for row in part.beside] == [("har", "none", ("mean",))]
        assert said.endswith(" 2 more, from which losses and goals are counted, are run and not shown.")
        assert {label[:3] for label in part.cells()} == {("har", "min-max", "skymask"), ("har", "none", "mean")}
        assert part.size == len(part.cells()) == 4

    def test_one_that_is_chosen_is_shown(self) -> None:
        assert only(*suite_of("late_loss"), ["har", "mean"])[0].beside == ()

    def test_goals_need_it_too_and_only_with_their_column(self) -> None:
        suite, plan = suite_of("accuracy", goals={"accuracy": 0.01})
        part = only(suite, plan, ["images", "=min-max", "sieve"])[0]
        assert [(row.label, row.columns) for row in part.beside] == [("none", ("mean",))]
        assert part.goals_for == "sieve"
        part = only(suite, plan, ["images", "=min-max", "=skymask"])[0]
        assert (part.beside, part.goals_for) == ((), "")

    def test_who_was_wronged_needs_the_same_defense_without_attack(self) -> None:
        suite, plan = suite_of("late_loss", "wronged", goals={"wronged": 0.0})
        part = only(suite, plan, ["images", "=min-max", "sieve"])[0]
        assert [(row.label, row.columns) for row in part.beside] == [("none", ("sieve", "mean"))]


class TestPaperScale:
    """What the paper's own tables need of it."""

    @pytest.mark.parametrize("name", ["table1", "table2", "table3"])
    def test_har(self, name: str) -> None:
        part = only(SUITES[name], plan_of(name, "paper"), ["har"])[0]
        cells = part.cells()
        assert {(e.dataset.name, e.rounds, e.clients) for e in cells.values()} == {("har", 1000, 30)}
        assert {label[3] for label in cells} == {0, 1, 2}
        assert {label[1] for label in cells} == {
            "none", "label-flip", "min-max", "min-sum", "fang-trim", "fang-krum", "scaling",
        }  # fmt: skip

    def test_images(self) -> None:
        columns = ("mean", "fltrust", "trimmed-mean", "krum", "multi-krum", "bulyan", "skymask-nr", "skymask", "sieve")
        part = only(SUITES["table1"], plan_of("table1", "paper"), ["fashion", *(f"={name}" for name in columns)])[0]
        assert {(e.rounds, e.seed) for e in part.cells().values()} == {(2500, 0)}
        assert {label[2] for label in part.cells()} == set(columns)
        part = only(SUITES["table2"], plan_of("table2", "paper"), ["fashion"])[0]
        assert {label[2] for label in part.cells()} == {"skymask", "tolpegin", "fldetector", "sieve"}
        assert {label[3] for label in part.cells()} == {0}
        part = only(SUITES["figure4"], plan_of("figure4", "paper"), ["skymask"])[0]
        assert {e.malicious for e in part.cells().values()} == {40, 60, 80}
        assert {e.rounds for e in part.cells().values()} == {2500}

    def test_cifar(self) -> None:
        texts = ["cifar10", "=mean", "fltrust", "=skymask", "sieve", "none", "label-flip", "min-max", "fang-trim"]
        part = only(SUITES["table1"], plan_of("table1", "paper"), texts)[0]
        assert {e.rounds for e in part.cells().values()} == {500}
        assert part.size == 2 * 4 * 4

    def test_notes_say_how_many_seeds(self) -> None:
        assert "three seeds on HAR and one on images" in plan_of("table1", "paper").note
        for name in ("table4", "figure4", "figure8"):
            assert "one seed" in plan_of(name, "paper").note
            assert {label[3] for label in plan_of(name, "paper").cells()} == {0}

    def test_the_invariant_aggregator_at_its_length(self) -> None:
        cells = plan_of("invariant", "paper").cells()
        found = {label[0]: e for label, e in cells.items() if label[1] != "none"}
        assert set(found) == {"cifar10, Dirichlet 0.5", "tweets by author", "har"}
        cifar, tweets, har = found.values()
        assert (cifar.model.name, cifar.attack.name, cifar.rounds) == ("resnet20", "edge-case", 300)
        assert cifar.partition.model_dump(include={"name", "alpha"}) == {"name": "dirichlet", "alpha": 0.5}
        assert (tweets.model.name, tweets.attack.name, tweets.rounds) == ("lstm", "phrase", 500)
        for e in (cifar, tweets):
            assert (e.clients, e.clients_per_round, e.malicious, e.assumed_malicious) == (100, 20, 20, 4)
        assert (har.dataset.name, har.attack.name, har.malicious) == ("har", "scaling", 6)
        assert {label[2] for label in cells} == {
            "invariant", "invariant, preset code", "mask alone", "trim alone", "mean", "median", "trimmed-mean", "krum",
            "multi-krum", "sign-majority", "weak-dp", "geometric-median", "sparsefed",
        }  # fmt: skip
        assert {label[1] for label in cells} == {"none", "edge-case", "phrase", "trigger"}
        assert {label[3] for label in cells} == {0, 1, 2}
        steps = {label: e.key for label, e in plan_of("invariant-ablation", "paper").cells().items()}
        assert {label[2] for label in steps} == {"invariant", "mask alone", "trim alone", "invariant, preset code"}
        assert all(cells[label].key == key for label, key in steps.items())  # no run is made twice


class TestCommand:
    def test_tables_show_the_part_alone_and_say_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        suite, _ = tiny()
        monkeypatch.setitem(SUITES, "tiny", suite)
        monkeypatch.chdir(tmp_path)
        part = ["--only", "min-max", "--only", "=mean"]
        done = CliRunner().invoke(app, ["reproduce", "tiny", *part, "--quiet"])
        assert done.exit_code == 0, done.output
        said = "Only row min-max; column mean: 2 of 12 runs; the others are left out here."
        assert said in done.output.replace("\n", " ")
        assert len(list((tmp_path / "runs").glob("*/records.jsonl"))) == 2
        folder = tmp_path / "reproduced" / "tiny-small-min-max-mean"  # not that of the whole table
        head, _, rest = (folder / "tiny.md").read_text().partition("## g")
        assert "`fedsieve reproduce tiny --scale small --only min-max --only =mean`" in head
        assert said in head
        assert "|  | mean |\n" in rest
        assert "skymask" not in rest
        assert "not run" not in rest
        lines = list(csv.DictReader((folder / "tiny.csv").read_text().splitlines()))
        assert {(line["row"], line["column"]) for line in lines} == {("min-max", "mean")}

    def test_what_is_missing_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        suite, plan = tiny()
        monkeypatch.setitem(SUITES, "tiny", suite)
        monkeypatch.chdir(tmp_path)
        assert CliRunner().invoke(app, ["reproduce", "tiny", "--only", "=mean", "--quiet"]).exit_code == 0
        shorter = plan.cells()["g", "none", "sieve", 0]  # a run of another length has another name, and does not count
        begun = tmp_path / "runs" / shorter.key
        begun.mkdir()
        (begun / "experiment.yaml").write_text(shorter.to_yaml())
        lines = next((tmp_path / "runs").glob("*/records.jsonl")).read_text().splitlines(keepends=True)
        (begun / "records.jsonl").write_text(lines[0])
        done = CliRunner().invoke(app, ["reproduce", "tiny", "--tables-only"])
        assert done.exit_code == 1
        page = (tmp_path / "reproduced" / "tiny-small" / "tiny.md").read_text()
        assert "Missing: 8 of 12 runs. Their fields say so; no shorter run stands in their place." in page
        assert "not run" in page
        assert "not finished: round 1 of 2" in page

    def test_a_mistake(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(app, ["reproduce", "table1", "--only", "imagenet"])
        assert "--only 'imagenet' is in no label" in str(done.exception)
        assert list(tmp_path.iterdir()) == []
