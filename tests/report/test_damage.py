"""Damage in a report: which run is the reference, and every number of the tables."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from fedsieve.config.experiment import Experiment
from fedsieve.config.settings import RootData
from fedsieve.core.damage import Damage
from fedsieve.core.records import RoundRecord
from fedsieve.federation.simulation import Simulation
from fedsieve.report import damage
from fedsieve.report.load import load
from fedsieve.report.page import write_page
from tests.report.conftest import record
from tests.report.test_page import browser, content, opened  # noqa: F401 (a fixture)

MakeRun = Callable[..., Path]
DASH = "–"  # noqa: RUF001
QUIET: dict[str, Any] = {"rejected": None, "false_positive_rate": None, "false_negative_rate": None}


def compared(*paths: Path) -> dict[str, damage.Against]:
    """By the run directory's name."""
    return {path.name: found for path, found in damage.compare(load(paths)).items()}


class TestReference:
    def test_the_mean_without_attack_of_the_same_seed(self, make_run: MakeRun) -> None:
        make_run("r0", [0.5, 1.0], attack="none", defense="mean")
        make_run("r1", [0.5, 0.75], attack="none", defense="mean", seed=1)
        make_run("a", [0.5, 0.25], attack="min-max", defense="median", seed=1)
        make_run("clean", [0.5, 0.5], attack="none", defense="median")
        path = make_run("own", [0.25, 0.25], attack="min-max", defense="mean")
        found = compared(path.parent)
        assert found == {
            "a": damage.Against(Damage(2, 0.25, 0.5, 1, 0.5, 0.5), "mean", True),
            "clean": damage.Against(Damage(2, 0.25, 0.5, 1, 0.5, 0.5), "mean", True),
            "own": damage.Against(Damage(2, 0.5, 0.75, 1, 1.0, 0.75), "mean", True),
        }

    @pytest.mark.parametrize(
        "more",
        [
            {"malicious": 3},
            {"assumed_malicious": 0},
            {"knowledge": "partial"},
            {"knows_defense": True},
            {"rounds": 3},
            {"evaluate_every": 2},
        ],
        ids=lambda more: next(iter(more)),
    )
    def test_settings_of_the_attack_may_differ(self, make_run: MakeRun, more: dict[str, Any]) -> None:
        make_run("r", [0.5, 1.0], attack="none", defense="mean")
        path = make_run("a", [0.5, 0.5], attack="min-max", defense="median", **more)
        settings = yaml.safe_load((path / "experiment.yaml").read_text())
        assert settings[next(iter(more))] == next(iter(more.values()))
        assert compared(path.parent)["a"].damage.worst == 0.5

    @pytest.mark.parametrize(
        "more",
        [
            {"seed": 2},
            {"clients": 5},
            {"clients_per_round": 3},
            {"model": "logistic-regression"},
            {"partition": {"name": "groups", "q": 0.25}},
            {"local": {"learning_rate": 0.1}},
            {"server": {"learning_rate": 0.1}},
            {"root": {"size": 20}},
            {"dataset": {"name": "har"}},
        ],
        ids=lambda more: next(iter(more)),
    )
    def test_settings_of_the_training_may_not(self, make_run: MakeRun, more: dict[str, Any]) -> None:
        make_run("r", [0.5, 1.0], attack="none", defense="mean")
        path = make_run("a", [0.5, 0.5], attack="min-max", defense="median", **more)
        assert compared(path.parent) == {}

    def test_defects_of_the_root_data_may_differ_from_the_means(self, make_run: MakeRun) -> None:
        make_run("r", [0.5, 1.0], attack="none", defense="mean")
        defects = {"root": {"shift": 1, "wrong_labels": 0.1, "noise": 0.2}}
        path = make_run("a", [0.5, 0.5], attack="min-max", defense="fltrust", **defects)
        assert compared(path.parent)["a"] == damage.Against(Damage(2, 0.25, 0.5, 1, 0.5, 0.5), "mean", True)

    def test_but_not_from_the_same_defenses(self, make_run: MakeRun) -> None:
        make_run("r", [0.5, 1.0], attack="none", defense="fltrust")
        path = make_run("a", [0.5, 0.5], attack="min-max", defense="fltrust", root={"shift": 1})
        assert compared(path.parent) == {}
        make_run("shifted", [0.5, 0.75], attack="none", defense="fltrust", root={"shift": 1})
        assert compared(path.parent)["a"].damage.worst == 0.25

    def test_odd_clients_are_the_same(self, make_run: MakeRun) -> None:
        make_run("r", [0.5, 1.0], attack="none", defense="mean")
        make_run("two", [0.5, 1.0], attack="none", defense="mean", odd={"kind": "noise", "clients": 2})
        path = make_run("a", [0.5, 0.5], attack="min-max", defense="median", odd={"kind": "noise", "clients": 1})
        assert compared(path.parent) == {}
        make_run("one", [0.5, 0.75], attack="none", defense="mean", odd={"kind": "noise", "clients": 1})
        assert compared(path.parent)["a"].damage.worst == 0.25

    def test_the_same_defense_where_there_is_no_mean(self, make_run: MakeRun) -> None:
        make_run("r", [0.75, 0.75], attack="none", defense="median")
        make_run("other", [1.0, 1.0], attack="none", defense="skymask")
        path = make_run("a", [0.5, 0.5], attack="min-max", defense="median")
        assert compared(path.parent) == {"a": damage.Against(Damage(2, 0.25, 0.25, 0, 0.5, 0.25), "same defense", True)}
        make_run("mean", [1.0, 1.0], attack="none", defense="mean")
        assert compared(path.parent)["a"].against == "mean"
        assert compared(path.parent)["a"].damage.mean == 0.5

    def test_parameters_make_another_defense(self, make_run: MakeRun) -> None:
        make_run("r", [0.75], attack="none", defense={"name": "trimmed-mean", "trim": 1})
        path = make_run("a", [0.5], attack="min-max", defense="trimmed-mean")
        assert compared(path.parent) == {}

    def test_lengths(self, make_run: MakeRun) -> None:
        make_run("short", [0.5, 0.75], attack="none", defense="mean")
        path = make_run("a", [0.5, 0.5, 0.0], attack="min-max", defense="median")
        assert compared(path.parent)["a"] == damage.Against(Damage(2, 0.125, 0.25, 1, 0.25, 0.25), "mean", False)
        make_run("longer", [0.5, 0.75, 1.0, 1.0, 1.0], attack="none", defense="mean")
        assert compared(path.parent)["a"].damage == Damage(3, 1.25 / 3, 1.0, 2, 1.25, 1.0)
        make_run("alike", [0.5, 0.75, 0.5], attack="none", defense="mean")
        found = compared(path.parent)["a"]
        assert (found.whole, found.damage.worst) == (True, 0.5)

    def test_an_unfinished_run_has_damage_but_is_no_reference(self, make_run: MakeRun) -> None:
        make_run("r", [0.5, 1.0, 1.0], attack="none", defense="mean", rounds=9)
        path = make_run("a", [0.5, 0.5], attack="min-max", defense="median", rounds=9)
        assert compared(path.parent) == {}
        make_run("whole", [0.5, *[0.75] * 8], attack="none", defense="mean")
        assert compared(path.parent)["a"] == damage.Against(Damage(2, 0.125, 0.25, 1, 0.25, 0.25), "mean", True)

    def test_few_evaluations(self, make_run: MakeRun) -> None:
        make_run("r", [None, 0.5, None, None, None, 1.0], attack="none", defense="mean")
        path = make_run("a", [None, 0.5, None, 0.5, None, 0.5], attack="min-max", defense="median")
        # rounds 1 and 5 are evaluated in both, for 2 and 4 rounds
        assert compared(path.parent)["a"].damage == Damage(6, 0.25, 0.5, 5, 2.0, 0.5)

    def test_never_evaluated(self, make_run: MakeRun) -> None:
        make_run("r", [0.5, 0.5], attack="none", defense="mean")
        path = make_run("a", [None, None], attack="min-max", defense="median")
        assert compared(path.parent) == {}


class TestFree:
    """What may differ from the reference changes nothing where nobody attacks."""

    BASE: ClassVar[dict[str, Any]] = {"dataset": "digits", "clients": 6, "malicious": 2, "rounds": 3, "defense": "mean"}
    OTHERS: ClassVar[dict[str, Any]] = {
        "malicious": 4,
        "assumed_malicious": 0,
        "knowledge": "partial",
        "knows_defense": True,
        "rounds": 4,
        "evaluate_every": 2,
    }
    DEFECTS: ClassVar[dict[str, Any]] = {"shift": 1, "wrong_labels": 0.1, "noise": 0.2}

    def played(self, more: dict[str, Any]) -> list[RoundRecord]:
        simulation = Simulation.of(Experiment.of({**self.BASE, **more}), Path("nowhere"), torch.device("cpu"))
        return [replace(record, seconds={}) for _, record in simulation.rounds()]

    def test_defects_of_the_root_data_change_nothing_for_the_mean(self) -> None:
        assert set(self.DEFECTS) == set(RootData.off)
        assert self.played({}) == self.played({"root": self.DEFECTS})

    @pytest.mark.parametrize("setting", OTHERS)
    def test_it_changes_no_model(self, setting: str) -> None:
        reference, other = self.played({}), self.played({setting: self.OTHERS[setting]})
        assert [record.update_norm for record in reference] == [record.update_norm for record in other[:3]]
        seen = [(a.test_accuracy, b.test_accuracy) for a, b in zip(reference, other, strict=False)]
        both = [(a, b) for a, b in seen if b is not None]
        assert len(both) >= 2
        assert all(a == b for a, b in both)

    def test_all_are_tried(self) -> None:
        assert set(damage.FREE) == {"attack", "defense", *self.OTHERS}


def folder(make_run: MakeRun) -> Path:
    """Two seeds of one attack on a detector, one on the mean, and the references; rounds of four clients."""
    for seed, last in ((0, 1.0), (1, 0.5)):
        make_run(f"r{seed}", [0.5, last], attack="none", defense="mean", seed=seed)
        caught = [record(0, 0.5, rejected=(1,)), record(1, 0.25, rejected=(0,), attack_success_rate=0.75)]
        caught = caught if seed == 0 else [record(k, 0.5, attack_success_rate=0.25) for k in range(2)]
        make_run(f"s{seed}", [], caught, attack="scaling", defense="skymask", rounds=2, seed=seed)
    undefended = [record(k, 0.25, attack_success_rate=1.0, **QUIET) for k in range(2)]
    path = make_run("m", [], undefended, attack="scaling", defense="mean", rounds=2)
    make_run("unfinished", [0.1], attack="min-max", defense="mean", rounds=2)
    return path.parent


def made(folder: Path) -> list[damage.DamageRow]:
    runs = load([folder])
    return damage.rows(runs, damage.compare(runs))


class TestTable:
    def test_by_hand(self, make_run: MakeRun) -> None:
        mean_none, mean, skymask = made(folder(make_run))
        assert (mean_none.defense, mean_none.attack) == ("mean", "none")
        assert mean_none.values["reference"] is None
        assert (skymask.defense, skymask.attack, skymask.title) == ("skymask", "scaling", "digits")
        # seed 0 loses 0 and .75, seed 1 nothing
        assert skymask.values == {
            "reference": "mean",
            "rounds": 2,
            "of_rounds": 2,
            "lost_per_round": 0.1875,
            "lost_per_round_deviation": pytest.approx(0.375 / 2**0.5),
            "worst_loss": 0.75,
            "worst_loss_round": 2,
            "late_loss": 0.375,
            "late_loss_deviation": pytest.approx(0.75 / 2**0.5),
            "area": 0.375,
            "area_deviation": pytest.approx(0.75 / 2**0.5),
            "rounds_until_detection": 1,
            "detected": 2,
            "undetected": 0,
            "benign_client_rounds_lost": 0.5,
            "benign_share_lost": pytest.approx(1 / 12),
            "worst_attack_success_rate": 0.75,
            "worst_attack_success_round": 2,
            "late_attack_success_rate": 0.5,
            "runs": 2,
        }
        assert list(skymask.fields().values()) == [
            *("skymask", "scaling", "mean", "2", "18.8 ± 26.5", "75.0 (round 2)", "37.5 ± 53.0", "0.38", "1", "8.3"),
            *("75.0 (round 2)", "50.0"),
        ]
        assert list(mean.fields().values()) == [
            *("mean", "scaling", "mean", "2", "50.0", "75.0 (round 2)", "75.0", "1.00", DASH, DASH),
            *("100.0 (round 1)", "100.0"),
        ]

    def test_never_detected(self, make_run: MakeRun) -> None:
        missed = [record(k, 0.5, rejected=(), false_negative_rate=1.0) for k in range(2)]
        make_run("a", [], missed, attack="min-max", rounds=2)
        path = make_run("b", [], missed, attack="min-max", rounds=2, seed=1)
        (row,) = made(path.parent)
        assert row.fields()["first detection"] == "never"
        make_run("c", [0.5, 0.5], attack="min-max", seed=2)
        (row,) = made(path.parent)
        assert row.fields()["first detection"] == "never in 2 of 3"
        assert (row.values["rounds_until_detection"], row.values["detected"], row.values["undetected"]) == (None, 1, 2)

    def test_part_of_the_rounds(self, make_run: MakeRun) -> None:
        make_run("r", [0.5], attack="none", defense="mean")
        path = make_run("a", [0.5, 0.25], attack="min-max", defense="mean")
        (row,) = (row for row in made(path.parent) if row.attack == "min-max" and row.title.endswith("2"))
        assert row.fields()["rounds"] == "1 of 2"
        assert row.fields()["worst round"] == "0.0 (round 1)"

    def test_references_of_one_kind(self, make_run: MakeRun) -> None:
        """Of two seeds, one has the mean without attack beside it and the other only its own defense."""
        make_run("r0", [1.0], attack="none", defense="mean")
        make_run("r1", [0.5], attack="none", defense="median", seed=1)
        for seed in (0, 1):
            path = make_run(f"a{seed}", [0.25], attack="min-max", defense="median", seed=seed)
        row = made(path.parent)[-1]
        assert row.values["lost_per_round"] == 0.75
        assert (row.values["reference"], row.values["lost_per_round_deviation"], row.values["runs"]) == (
            "mean",
            None,
            2,
        )

    def test_nothing_to_tell(self, make_run: MakeRun) -> None:
        runs = [record(k, 0.5, **QUIET) for k in range(2)]
        path = make_run("a", [], runs, attack="none", defense="mean", rounds=2)
        assert made(path.parent) == []
        assert damage.markdown([]) == ""

    def test_gains_are_not_minus_zero(self, make_run: MakeRun) -> None:
        make_run("r", [0.5, 0.5], attack="none", defense="mean")
        path = make_run("a", [0.5001, 0.5001], attack="min-max", defense="mean")
        fields = made(path.parent)[-1].fields()
        shown = [fields[key] for key in ("lost per round", "worst round", "area, rounds")]
        assert shown == ["0.0", "0.0 (round 1)", "0.00"]

    def test_settings_apart(self, make_run: MakeRun) -> None:
        for clients in (4, 5):
            make_run(f"r{clients}", [0.5], attack="none", defense="mean", clients=clients)
            path = make_run(f"a{clients}", [0.25], attack="min-max", defense="mean", clients=clients)
        tables = damage.tables(made(path.parent))
        assert [name for name, _ in tables] == [
            "digits, clients 4, clients per round 4",
            "digits, clients 5, clients per round 5",
        ]

    def test_empty_columns_are_left_out(self, make_run: MakeRun) -> None:
        make_run("r", [0.5], [record(0, 0.5, **QUIET)], attack="none", defense="mean")
        path = make_run("a", [0.25], [record(0, 0.25, **QUIET)], attack="min-max", defense="mean")
        ((_, (head, line)),) = damage.tables(made(path.parent))
        assert head == [
            *("defense", "attack", "against", "rounds", "lost per round", "worst round", "last tenth", "area, rounds")
        ]
        assert line == ["mean", "min-max", "mean", "1", "25.0", "25.0 (round 1)", "25.0", "0.25"]

    def test_markdown(self, make_run: MakeRun) -> None:
        text = damage.markdown(made(folder(make_run)))
        assert text.startswith("## digits: damage\n\nDamage. Accuracy lost against")
        assert "| skymask | scaling | mean | 2 | 18.8 ± 26.5 | 75.0 (round 2) | 37.5 ± 53.0 | 0.38 | 1 | 8.3 |" in text

    def test_csv(self, make_run: MakeRun, tmp_path: Path) -> None:
        damage.write_csv(made(folder(make_run)), tmp_path / "d.csv")
        lines = list(csv.DictReader((tmp_path / "d.csv").read_text().splitlines()))
        one = next(line for line in lines if line["defense"] == "skymask")
        assert {key: one[key] for key in ("setting", "attack", "reference", "rounds", "lost_per_round", "runs")} == {
            "setting": "digits",
            "attack": "scaling",
            "reference": "mean",
            "rounds": "2",
            "lost_per_round": "0.1875",
            "runs": "2",
        }
        undefended = next(line for line in lines if (line["defense"], line["attack"]) == ("mean", "scaling"))
        assert (undefended["detected"], undefended["rounds_until_detection"]) == ("0", "")
        assert (undefended["benign_share_lost"], undefended["worst_attack_success_round"]) == ("", "1")


class TestWords:
    def test_of_one_run(self, make_run: MakeRun) -> None:
        runs = load([folder(make_run)])
        found = damage.compare(runs)
        by_name = {run.path.name: damage.said(run, found.get(run.path)) for run in runs}
        assert by_name["s0"] == (
            "Against the mean without attack it lost 37.5 % of accuracy per round, 75.0 % in the worst (round 2), "
            "75.0 % in the last tenth, 0.75 accuracy-rounds together. First malicious client rejected: after 1 round. "
            "Benign client-rounds lost: 1 (16.7 %). The attack's success was 75.0 % at worst (round 2), 75.0 % in the "
            "last tenth."
        )
        assert by_name["r0"] == (
            "First malicious client rejected: in the first round with one. Benign client-rounds lost: 0 (0.0 %)."
        )

    def test_against_a_shorter_run(self, make_run: MakeRun) -> None:
        make_run("r", [0.5], attack="none", defense="median")
        make_run("a", [0.5, 0.25], [record(k, 0.25, **QUIET) for k in range(2)], attack="min-max", defense="median")
        (a, *_) = runs = load([make_run("b", [0.5], attack="none", defense="geometric-median").parent])
        assert damage.said(a, damage.compare(runs)[a.path]) == (
            "Against this defense without attack it lost 25.0 % of accuracy per round over the first 1 rounds, 25.0 % "
            "in the worst (round 1), 25.0 % in the last tenth, 0.25 accuracy-rounds together."
        )

    def test_nothing_known(self, make_run: MakeRun) -> None:
        (run,) = load([make_run("a", [], [record(0, None, **QUIET)], rounds=1)])
        assert damage.said(run, None) == ""


class TestPage:
    def test_content(self, make_run: MakeRun, tmp_path: Path) -> None:
        write_page(load([folder(make_run)]), tmp_path / "index.html")
        found = content(tmp_path / "index.html")
        assert [row["fields"]["lost per round"] for row in found["damage"]] == [DASH, "50.0", "18.8 ± 26.5"]
        assert all(row["in"] == 0 for row in found["damage"])
        by_cell = {(run["defense"], run["attack"], run["seed"]): run for run in found["runs"]}
        one = by_cell["skymask", "scaling", 0]
        assert (one["damage"]["lost"], one["damage"]["worst_lost"]) == (0.375, 0.75)
        assert one["summary"]["worst_success"] == 0.75
        assert one["damage"]["text"].startswith("Against the mean without attack it lost 37.5 %")
        assert by_cell["mean", "none", 0]["damage"]["lost"] is None

    def test_in_a_browser(self, make_run: MakeRun, tmp_path: Path, browser: Any) -> None:  # noqa: F811
        path = folder(make_run)
        make_run("wide", [0.25, 0.25], attack="scaling", defense="mean", malicious=2)
        write_page(load([path]), tmp_path / "index.html")
        tab, said = opened(browser, tmp_path / "index.html")
        flags = tab.locator("#flag-list li").all_inner_texts()
        assert any("cells have one seed" in text for text in flags)
        tab.select_option("#setting", label="digits, malicious 1 (6 runs)")
        cell = tab.locator("#matrix tbody button[aria-label^='skymask against scaling']")
        cell.click()
        assert tab.locator("#damage-table thead th").all_inner_texts() == [
            *("defense", "seeds", "accuracy", "benign clients rejected", "malicious clients missed", "lost per round"),
            *("worst round", "last tenth", "area, rounds", "first detection", "success at worst"),
            *("success, last tenth", "against"),
        ]
        lines = {
            line.locator("th").inner_text(): line.locator("td") for line in tab.locator("#damage-table tbody tr").all()
        }
        line = lines["skymask"].all_inner_texts()
        assert line[4:8] == ["18.8 ± 26.5", "75.0 (round 2)", "37.5 ± 53.0", "0.38"]
        assert "75.0 % in the worst (round 2)" in tab.inner_text("#damage-text")
        tab.select_option("#measure", "lost")
        assert tab.inner_text("#matrix caption") == "Accuracy lost per round, %"
        assert cell.inner_text() == "18.8 ± 26.5"
        tab.select_option("#measure", "worst_success")
        assert tab.locator("#matrix tbody button[aria-label^='mean against scaling']").inner_text() == "100.0"
        tab.select_option("#setting", label="digits, malicious 2 (1 run)")
        assert tab.locator("#damage-table tbody tr").count() == 1
        assert "50.0" in tab.locator("#damage-table tbody td").all_inner_texts()  # against the same run
        assert "success" not in tab.inner_text("#damage-table thead")  # there is no backdoor
        assert said == []
