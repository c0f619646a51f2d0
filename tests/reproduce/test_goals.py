"""The suites of goals: who is in them, with which goals, and apart from what the detector was designed on."""

from typing import Any

import pytest

from fedsieve.config import registry
from fedsieve.report.digest import POINTS
from fedsieve.reproduce import SCALES, SUITES, development, honest, tables, time
from fedsieve.reproduce.comparison import compare
from tests.reproduce.test_suites import WITH_GOALS, plan_of

CLAIMED = ("sieve", "skymask", "fltrust", "trimmed-mean", "multi-krum", "flame", "skymask,norm-clipping", "mean")
# What root data alone reach: stands beside them where nobody attacks.
BASELINE = "root-only"


def names(attack: Any) -> list[str]:
    """The attack and those that it is around, from the outside in."""
    if isinstance(attack, str):
        return [attack]
    return [attack["name"], *(names(attack["attack"]) if "attack" in attack else [])]


class TestTime:
    def test_rivals_stand_in_the_same_tables(self) -> None:
        assert tuple(time.COLUMNS) == (*CLAIMED[:-1], BASELINE, "mean")
        for scale in SCALES:
            for row in plan_of("time", scale).rows:
                if row.settings["attack"] == "none":
                    assert row.columns is None
                else:
                    assert row.columns == CLAIMED or "adaptive" in row.label or row.columns == ("mean",)

    def test_attackers_of_the_small_scale(self) -> None:
        for data in ("digits", "har"):
            used = [names(row.settings["attack"]) for row in plan_of("time", "small").rows if row.group == data]
            assert {"sleeper", "on-off", "fresh-identity", "jitter"} <= {found[0] for found in used}
            assert {"scaling", "label-flip", "min-max", "sign-flip"} <= {found[-1] for found in used}
        everywhere = {name for row in plan_of("time", "small").rows for name in names(row.settings["attack"])}
        assert {"norm-bounded-backdoor", "dba", "mimic", "targeted-flip", "free-rider", "min-sum"} <= everywhere
        for name in ("adaptive-sieve", "adaptive-skymask"):  # as soon as they are registered
            assert (name in everywhere) == (name in registry.names("attacks"))

    def test_when_they_attack(self) -> None:
        found = {(row.group, row.label): row for row in plan_of("time", "small").rows}
        half = found["digits", "scaling, after 50 % of the run"].settings["attack"]
        assert (half["start"], half["off"]) == (30, "honest")
        assert found["digits", "scaling, after 25 % of the run"].settings["attack"]["start"] == 15
        once = found["digits", "scaling, zeros once, then always"].settings["attack"]
        assert (once["start"], once["off"]) == (1, "zeros")
        pauses = found["har", "scaling, zeros 19 rounds of 20"].settings["attack"]
        assert (pauses["period"], pauses["duty"], pauses["off"]) == (20, 1, "zeros")
        single = found["digits", "-1,000 times its update, once, one client"]
        attack = single.settings["attack"]
        assert single.settings["malicious"] == 1
        assert [k for k in range(60) if k % attack["period"] >= attack["period"] - attack["duty"]] == [30]

    def test_goals(self) -> None:
        for scale in SCALES:
            for row in plan_of("time", scale).rows:
                attack = row.settings["attack"]
                if row.columns == ("mean",):
                    assert not row.goals
                elif attack == "none":
                    assert row.goals == {"late_loss": 0.01, "benign_lost": 0.01}
                elif "adaptive" in row.label:
                    assert row.goals == {"late_loss": 0.10, "worst_success": 0.30}
                elif time.is_backdoor(attack):
                    expected = {"late_loss": 0.03, "worst_loss": 0.10, "late_success": 0.10, "worst_success": 0.30}
                    assert row.goals == expected
                else:
                    assert row.goals == {"late_loss": 0.03, "worst_loss": 0.10}

    def test_a_backdoor_is_one_that_has_a_success(self) -> None:
        from fedsieve.core.attack import Backdoor

        plan = plan_of("time", "small")
        for (group, label, _, _), e in plan.cells().items():
            inner = names(e.attack.model_dump())[-1]
            row = next(r for r in plan.rows if (r.group, r.label) == (group, label))
            assert time.is_backdoor(row.settings["attack"]) == issubclass(registry.load("attacks", inner), Backdoor)

    def test_few_clients_a_round(self) -> None:
        for scale, group, sampled, clients in (
            ("small", "digits, 10 of 100 clients a round", 10, 100),
            ("paper", "fashion-mnist, 10 of 1,000 clients a round", 10, 1000),
        ):
            found = [e for label, e in plan_of("time", scale).cells().items() if label[0] == group]
            assert {(e.clients_per_round, e.clients) for e in found} == {(sampled, clients)}
            attacks = {names(e.attack.model_dump())[-1] for e in found}
            assert {"scaling", "label-flip", "sign-flip", "min-max"} <= attacks


class TestHonest:
    def test_nobody_attacks_and_nobody_may_be_lost(self) -> None:
        plan = plan_of("honest", "small")
        quiet = [row for row in plan.rows if row.settings["attack"] == "none" and "root" not in row.settings]
        assert all(row.goals == {"late_loss": 0.01, "benign_lost": 0.01} for row in quiet)
        cells = [e for e in plan.cells().values() if e.attack.name == "none"]
        assert {e.odd.kind for e in cells} == {"none", "noise", "brightness", "one-class", "more-data"}
        assert {e.model.name for e in cells} >= {"mlp", "cnn", "logistic-regression", "resnet20"}
        assert {e.local.steps for e in cells} == {1, 5, None}
        assert {e.local.epochs for e in cells} == {1, 3, None}
        assert {e.partition.parameters.get("q") for e in cells} >= {0.5, 1.0}
        assert {e.partition.parameters.get("alpha") for e in cells} >= {0.05, 0.1, 1.0}

    def test_root_data(self) -> None:
        rows = [row for row in plan_of("honest", "small").rows if "root" in row.settings]
        for row in rows:
            attack = row.settings["attack"]
            assert row.goals == {"late_loss": 0.03 if attack == "none" else 0.05, "benign_lost": 0.02}
        for data, defects in (("digits", ({"shift": 1}, {"size": 20})), ("har", ({"size": 20},))):
            for defect in (*defects, {"wrong_labels": 0.15}, {"bias": 0.95}):
                here = [r for r in rows if r.settings["root"] == defect and r.settings["dataset"] == data]
                assert [r.settings["attack"] for r in here] == ["none", "scaling", "label-flip"]

    def test_copied_clients(self) -> None:
        rows = [r for r in plan_of("honest", "small").rows if "wronged" in r.goals]
        on_digits = {(r.settings["malicious"], r.settings["attack"]["victims"]) for r in rows if "digits" in r.group}
        assert on_digits == {(6, "distinct"), (10, "distinct"), (15, "distinct"), (15, "one")}
        assert all(row.goals["wronged"] == 0 for row in rows)


class TestReferences:
    @pytest.mark.parametrize("name", sorted(WITH_GOALS))
    @pytest.mark.parametrize("scale", SCALES)
    def test_every_goal_has_what_it_is_counted_from(self, name: str, scale: str) -> None:
        """The mean without malicious clients, on the same data and with the same training; with the same trigger."""
        free = {"attack", "defense", "malicious", "assumed_malicious", "knows_defense"}
        free |= {"root"} if name == "detection" else set()
        plan = plan_of(name, scale)
        cells = plan.cells()
        for row in plan.rows:
            if not row.goals:
                continue
            label, column = plan.reference_of(row)
            for seed in plan.seeds_of(row):
                run = cells[row.group, row.label, "sieve", seed]
                beside = cells[row.group, label, column, seed]
                assert beside.defense.name == "mean"
                assert beside.attack.name == "none" or beside.malicious == 0
                assert run.model_dump(exclude=free) == beside.model_dump(exclude=free)
                if "late_success" in row.goals:
                    inner = names(run.attack.model_dump())[-1]
                    assert beside.attack.name == ("targeted-flip" if inner == "targeted-flip" else "scaling")
                if "wronged" in row.goals:
                    assert cells[row.group, label, "sieve", seed].attack.name == "none"

    @pytest.mark.parametrize("scale", SCALES)
    def test_no_curve_of_success_is_thinned(self, scale: str) -> None:
        for e in plan_of("time", scale).cells().values():
            assert -(-e.rounds // e.evaluate_every) <= POINTS

    @pytest.mark.parametrize("scale", SCALES)
    def test_measures_are_those_with_goals(self, scale: str) -> None:
        for name in WITH_GOALS:
            goals = {measure for row in plan_of(name, scale).rows for measure in row.goals}
            assert goals <= set(SUITES[name].measures)


class TestDevelopment:
    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("name", SUITES)
    def test_nothing_that_it_was_designed_on_is_reported(self, name: str, scale: str) -> None:
        here = development.reported(plan_of(name, scale).cells().values())
        assert here.pairs
        assert not here.pairs & development.development().pairs

    def test_some_reported_data_were_never_used(self) -> None:
        assert "fashion-mnist" not in development.development().data
        for name in ("detection", "honest"):
            assert "fashion-mnist" in development.reported(plan_of(name, "small").cells().values()).data

    def test_what_was_used(self) -> None:
        used = development.development()
        assert used.data == {
            "blurred digits": (101, 102),
            "digits": (101, 102, 103, 104, 105, 106),
            "har": (101, 102, 103),
            "noisy digits": (101, 102),
        }
        assert list(used.seen) == ["fashion-mnist"]
        assert used.partitions == ("dirichlet (alpha=0.05)", "groups (q=0.5)", "groups (q=1.0)", "iid")
        assert used.training == ("1 step", "5 steps", "1 epoch", "3 epochs")

    def test_the_page_gives_both(self) -> None:
        plan, suite = plan_of("honest", "small"), SUITES["honest"]
        page = tables.markdown(suite, plan, compare(suite, plan, {}, {}), "how")
        section = page.partition("## Development and reported settings")[2]
        assert (
            "| data (seeds) | blurred digits (101, 102), digits (101, 102, 103, 104, 105, 106), har (101, 102, 103), "
            "noisy digits (101, 102) "
            "| digits (0, 1, 2), fashion-mnist (0), har" in section
        )
        assert "Nothing was chosen on: fashion-mnist (four rounds timed with seed 101; that long runs" in section
        bare = SUITES["table3"]
        assert "Development" not in tables.markdown(bare, plan_of("table3", "smoke"), [], "how")


class TestRootAlone:
    """No client changes its model, so that rows with an attack would repeat those without."""

    @pytest.mark.parametrize("name", ["time", "honest"])
    @pytest.mark.parametrize("scale", SCALES)
    def test_stands_where_nobody_attacks(self, name: str, scale: str) -> None:
        plan = plan_of(name, scale)
        beside = [row for row in plan.rows if BASELINE in plan.columns_of(row)]
        assert {row.settings["attack"] for row in beside} == {"none"}
        quiet = [row for row in plan.rows if row.settings["attack"] == "none" and row not in beside]
        assert all(row.columns == ("sieve", "mean") for row in quiet)  # slow rows with few columns
        assert scale == "smoke" or time.ROOT_ONLY in plan.note

    def test_root_data_with_defects(self) -> None:
        for row in plan_of("honest", "small").rows:
            if "root" in row.settings:
                rest = ("sieve", "skymask", "fltrust")
                quiet = row.settings["attack"] == "none"
                assert row.columns == ((*rest, BASELINE, "mean") if quiet else (*rest, "mean"))


def test_no_row_is_there_twice() -> None:
    for name in WITH_GOALS:
        for scale in SCALES:
            labels = [(row.group, row.label) for row in plan_of(name, scale).rows]
            assert len(labels) == len(set(labels)), (name, scale)
    assert honest.HONEST.name == "honest"
