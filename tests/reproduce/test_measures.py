"""Measures against a reference run, by hand, and the goals that are counted from it."""

from collections.abc import Sequence
from typing import Any

import pytest

from fedsieve.core.records import RoundRecord
from fedsieve.report.digest import POINTS, Digest
from fedsieve.reproduce import tables
from fedsieve.reproduce.comparison import Compared, compare
from fedsieve.reproduce.measures import ALL, acceptable, measured, wronged
from fedsieve.reproduce.plan import Plan, Row, Suite
from tests.report.conftest import record


def run(accuracies: Sequence[float | None], success: Sequence[float | None] = (), **more: Any) -> list[RoundRecord]:
    rates = [*success, *[None] * (len(accuracies) - len(success))]
    return [record(k, a, attack_success_rate=s, **more) for k, (a, s) in enumerate(zip(accuracies, rates, strict=True))]


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("late_loss", 0.1),
        ("worst_loss", 0.4),  # before the last round
        ("area", 0.1 + 0.4 + 0.1),
        ("late_success", 0.2),
        ("worst_success", 0.7),  # 0.9 is in the first tenth
        ("benign_lost", 0.0),
        ("accuracy", 0.7),
    ],
)
def test_measures_by_hand(measure: str, value: float) -> None:
    ours = run([0.1, 0.4, 0.8, *[0.8] * 6, 0.7], [0.9, 0.7, 0.1, *[0.1] * 6, 0.2])
    clean = run([0.2, 0.8, 0.8, *[0.8] * 6, 0.8])
    assert measured(measure, Digest.of(ours), Digest.of(clean)) == pytest.approx(value)


@pytest.mark.parametrize("measure", ["late_loss", "worst_loss", "area"])
def test_no_loss_without_a_reference(measure: str) -> None:
    assert measured(measure, Digest.of(run([0.5])), None) is None
    assert measured(measure, Digest.of(run([0.5, None])), Digest.of(run([None, 0.5]))) is None


def test_worst_success_is_undefined_without_a_backdoor() -> None:
    assert measured("worst_success", Digest.of(run([0.5, 0.6])), None) is None


def test_a_copied_client_that_is_rejected_more_often() -> None:
    """Client 1 in both runs in the first round; client 2 once without the attack, and twice with it."""
    quiet = [
        record(0, 0.5, malicious=(), rejected=(1,)),
        record(1, 0.5, malicious=(), rejected=(2,)),
        record(2, 0.5, malicious=(), rejected=(0,)),
        record(3, 0.5, malicious=(), rejected=()),
    ]
    attacked = [record(0, 0.5, rejected=(0, 1)), *[record(k, 0.5, rejected=(0, 2)) for k in (1, 2)], record(3, 0.5)]
    assert wronged(attacked, quiet) == pytest.approx(2 / 4 - 1 / 4)
    assert wronged(quiet, quiet) == 0
    undecided = [record(k, 0.5, rejected=None) for k in range(4)]
    assert wronged(attacked, undecided) is None
    assert wronged(undecided, quiet) is None
    sampled = [record(0, 0.5, clients=(0, 1), rejected=(1,)), record(1, 0.5, clients=(0, 2), rejected=())]
    assert wronged(sampled, quiet) == pytest.approx(1 - 1 / 4)  # of the rounds in which it took part


@pytest.mark.parametrize(
    ("measure", "goal", "bound"),
    [
        ("accuracy", 0.01, 0.79),
        ("late_success", 0.1, 0.15),
        ("worst_success", 0.3, 0.4),  # the clean model's own
        ("worst_success", 0.5, 0.5),
        ("late_loss", 0.03, 0.03),
        ("benign_lost", 0.01, 0.01),
    ],
)
def test_goals_are_counted_from_the_reference(measure: str, goal: float, bound: float) -> None:
    clean = Digest.of(run([0.1, *[0.8] * 9], [1.0, 0.4, 0.0, *[0.0] * 6, 0.05]))
    assert acceptable(measure, goal, [clean, None]) == pytest.approx(bound)
    if measure in ("accuracy", "late_success", "worst_success"):
        assert acceptable(measure, goal, [None]) is None


MEASURES = ("late_loss", "worst_loss", "area", "late_success", "worst_success", "benign_lost", "wronged")


def compared(runs: dict[tuple[str, str, int], list[RoundRecord]]) -> tuple[dict[tuple[str, str, str], Compared], str]:
    """Cells and page of a small suite, from records by (row, column, seed)."""
    settings = {"dataset": "digits", "clients": 4, "malicious": 1, "rounds": 2}
    goals = {"late_loss": 0.03, "worst_loss": 0.1, "late_success": 0.1, "worst_success": 0.3, "benign_lost": 0.01}
    rows = (
        Row("g", "none", {**settings, "attack": "none"}),
        Row("g", "shown", {**settings, "attack": "scaling", "malicious": 0}, columns=("mean",)),
        Row("g", "scaling", {**settings, "attack": "scaling"}, goals=goals, reference="shown"),
        Row("g", "copycat", {**settings, "attack": "copycat"}, goals={"wronged": 0.0}),
    )
    columns = {"sieve": {"defense": "sieve"}, "mean": {"defense": "mean"}}
    plan = Plan(rows, columns, (0, 1), "sieve", note="A note.")
    suite = Suite("tiny", "Tiny", lambda scale: plan, MEASURES)
    cells = plan.cells()
    found = compare(suite, plan, {cells["g", *label].key: records for label, records in runs.items()}, {})
    return {(c.row, c.column, c.measure): c for c in found}, tables.markdown(suite, plan, found, "how")


def test_each_seed_has_its_own_reference() -> None:
    found, page = compared(
        {
            ("shown", "mean", 0): run([0.2, 0.8], [0.9, 0.05]),
            ("shown", "mean", 1): run([0.2, 0.9], [0.0, 0.15]),
            ("none", "sieve", 0): run([0.2, 0.8]),
            ("scaling", "sieve", 0): run([0.2, 0.7], [0.2, 0.15], rejected=(0, 1)),
            ("scaling", "sieve", 1): run([0.2, 0.9], [0.1, 0.25]),
            ("copycat", "sieve", 0): run([0.2, 0.8], rejected=(0, 1)),
            ("scaling", "mean", 0): run([0.2, 0.5], [0.2, 1.0]),
        }
    )
    late = found["scaling", "sieve", "late_loss"]
    assert (late.ours, late.goal, late.short) == (pytest.approx(0.05), 0.03, True)  # of 0.1 and 0
    worst = found["scaling", "sieve", "worst_loss"]
    assert (worst.ours, worst.deviation, worst.short) == (pytest.approx(0.1), None, False)  # the larger of two seeds
    success = found["scaling", "sieve", "late_success"]
    assert (success.ours, success.goal, success.short) == (pytest.approx(0.2), pytest.approx(0.1 + 0.1), False)
    assert found["scaling", "sieve", "worst_success"].goal == pytest.approx(0.9)
    assert found["scaling", "sieve", "benign_lost"].ours == pytest.approx(1 / 6)  # of two seeds, two clients in six
    wrong = found["copycat", "sieve", "wronged"]
    assert (wrong.ours, wrong.goal, wrong.short) == (1.0, 0.0, True)
    assert found["scaling", "sieve", "wronged"].ours is None  # only where there is a goal
    alone = found["scaling", "mean", "late_loss"]
    assert (alone.ours, alone.goal, alone.seeds) == (pytest.approx(0.3), None, 1)
    assert "| scaling | 5.0 / 10.0 ✗ | 30.0 / 30.0 [1 of 2 seeds] | ≤ 3.0, ≤ 10.0 |" in page
    assert "| scaling | 0.05 ± 0.07 | 0.30 [1 of 2 seeds] |" in page
    assert "| copycat | 100.0 ✗ [1 of 2 seeds] | not run | ≤ 0.0 |" in page
    assert "Accuracy lost: to the undefended mean" in page


def test_no_loss_is_told_without_a_reference() -> None:
    """Neither a finished reference of another seed nor a zero stands in."""
    found, _ = compared({("scaling", "sieve", 0): run([0.2, 0.7]), ("shown", "mean", 1): run([0.2, 0.9])})
    cell = found["scaling", "sieve", "late_loss"]
    assert (cell.ours, cell.short, cell.seeds) == (None, False, 1)


def test_every_measure_has_a_heading() -> None:
    assert {measure for measures in tables._HEADINGS for measure in measures} == set(ALL)
    assert POINTS >= 300  # the longest suites' evaluations: curves of success are not thinned
