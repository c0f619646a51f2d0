"""Damage against values computed by hand: against a reference, and from the records of one run."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsieve.core import metrics
from fedsieve.core.damage import Damage, RunDamage, damage, late_from
from tests.core.test_metrics import record

NONE = None


class TestDamage:
    def test_by_hand(self) -> None:
        # honest for two rounds, one strike, half recovered: losses 0, 0, .75, .25
        assert damage([0.25, 0.5, 0.0, 0.75], [0.25, 0.5, 0.75, 1.0]) == Damage(
            rounds=4, mean=0.25, worst=0.75, worst_round=2, area=1.0, late=0.25
        )

    def test_an_evaluation_stands_for_the_rounds_before_it(self) -> None:
        # rounds 1, 3 and 4 are evaluated, for 2, 2 and 1 rounds: 2 * 0 + 2 * .5 + 1 * .25
        found = damage([NONE, 0.5, NONE, 0.5, 0.75], [NONE, 0.5, NONE, 1.0, 1.0])
        assert found == Damage(rounds=5, mean=0.25, worst=0.5, worst_round=3, area=1.25, late=0.25)

    def test_the_area_does_not_depend_on_how_often_is_evaluated(self) -> None:
        often = damage([0.5] * 20, [0.75] * 20)
        seldom = damage([0.5 if k % 5 == 4 else NONE for k in range(20)], [0.75] * 20)
        assert often == Damage(20, 0.25, 0.25, 0, 5.0, 0.25)
        assert seldom == Damage(20, 0.25, 0.25, 4, 5.0, 0.25)

    def test_only_rounds_evaluated_in_both(self) -> None:
        assert damage([0.5, NONE, 0.5], [NONE, 1.0, 0.75]) == Damage(3, 0.25, 0.25, 2, 0.75, 0.25)

    @pytest.mark.parametrize(
        ("accuracy", "reference"),
        [([], []), ([0.5], []), ([NONE, 0.5], [0.5, NONE]), ([NONE], [NONE]), ([NONE, 0.5], [0.5])],
    )
    def test_nothing_in_common(self, accuracy: list[float | None], reference: list[float | None]) -> None:
        assert damage(accuracy, reference) is None

    def test_rounds_beyond_the_shorter_run_are_left_out(self) -> None:
        short, long = [0.5, 0.25], [0.5, 0.5, 0.5, 0.5]
        assert damage(short, long) == Damage(2, 0.125, 0.25, 1, 0.25, 0.25)
        assert damage(long, short) == Damage(2, -0.125, 0.0, 0, -0.25, -0.25)

    def test_gains_are_losses_below_zero(self) -> None:
        assert damage([0.75, 1.0], [0.5, 0.5]) == Damage(2, -0.375, -0.25, 0, -0.75, -0.5)

    def test_the_first_of_several_worst_rounds(self) -> None:
        found = damage([0.5, 0.25, 0.25], [0.5, 0.5, 0.5])
        assert found is not None
        assert found.worst_round == 1

    @pytest.mark.parametrize(
        ("rounds", "evaluated", "late"),
        [
            (30, range(30), 28 / 100),  # rounds 27, 28, 29
            (30, range(4, 30, 5), 29 / 100),
            (30, (3, 12), 12 / 100),  # none in the last tenth: the last evaluation
            (9, range(9), 8 / 100),
        ],
    )
    def test_the_last_tenth(self, rounds: int, evaluated: Any, late: float) -> None:
        accuracy = [-k / 100 if k in evaluated else NONE for k in range(rounds)]
        found = damage(accuracy, [0.0] * rounds)
        assert found is not None
        assert found.late == pytest.approx(late)

    @given(st.lists(st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1)), max_size=40))
    def test_against_loops(self, pairs: list[tuple[float | None, float | None]]) -> None:
        found = damage([a for a, _ in pairs], [b for _, b in pairs])
        area, waiting, losses = 0.0, 0, []
        for now, before in pairs:
            waiting += 1
            if now is not None and before is not None:
                losses.append(before - now)
                area += waiting * losses[-1]
                waiting = 0
        if not losses:
            assert found is None
            return
        assert found is not None
        assert found.mean == pytest.approx(sum(losses) / len(losses), abs=1e-12)
        assert found.area == pytest.approx(area, abs=1e-9)
        assert found.worst == max(losses)

    @given(st.lists(st.none() | st.floats(0, 1), max_size=60))
    def test_late_is_the_difference_of_late_accuracies(self, accuracy: list[float | None]) -> None:
        """As ``summarize`` has them, where both runs were evaluated in the same rounds."""
        reference = [None if a is None else (a * 7) % 1 for a in accuracy]
        found = damage(accuracy, reference)
        late = [
            metrics.summarize(record(k, test_accuracy=a) for k, a in enumerate(run))["late_test_accuracy"]
            for run in (reference, accuracy)
        ]
        assert (found is None) == (late[0] is None)
        if found is not None:
            assert found.late == pytest.approx(late[0] - late[1], abs=1e-12)


@pytest.mark.parametrize(("rounds", "first"), [(1, 0), (9, 8), (10, 9), (20, 18), (29, 27), (2500, 2250)])
def test_late_from(rounds: int, first: int) -> None:
    assert late_from(rounds) == first


def found(*rounds: dict[str, Any], start: int = 0) -> dict[str, Any]:
    """The result of records of four clients with these fields; client 0 is malicious unless said."""
    own = RunDamage()
    for k, fields in enumerate(rounds, start):
        own.add(record(k, **{"clients": (0, 1, 2, 3), "malicious": (0,), **fields}))
    return own.result()


class TestDetection:
    @pytest.mark.parametrize(
        ("rejected", "rounds"),
        [
            ([(0,)], 0),
            ([(), (1,), (0, 2)], 2),
            ([NONE, NONE, (0,)], 2),  # it could not decide yet
            ([(), (1, 2, 3)], NONE),
            ([NONE, NONE], NONE),
            ([(), (0,), ()], 1),
        ],
    )
    def test_rounds_until(self, rejected: list[Any], rounds: int | None) -> None:
        assert found(*({"rejected": each} for each in rejected))["rounds_until_detection"] == rounds

    def test_counted_from_the_first_round_with_a_malicious_client(self) -> None:
        away = {"malicious": (), "rejected": (1,)}  # another cohort was drawn
        assert found(away, away, {"rejected": ()}, away, {"rejected": (0,)})["rounds_until_detection"] == 2
        assert found(away, away)["rounds_until_detection"] is None

    def test_rounds_are_those_of_the_records(self) -> None:
        assert found({"rejected": ()}, {"rejected": (0,)}, start=7)["rounds_until_detection"] == 1


class TestClientsLost:
    def test_by_hand(self) -> None:
        result = found({"rejected": (0, 1)}, {"rejected": (1, 2, 3)}, {"rejected": ()}, {"rejected": NONE})
        assert result["benign_client_rounds_lost"] == 4
        assert result["benign_share_lost"] == 4 / 12  # the round without a decision lost nobody
        assert (result["rounds_decided"], result["malicious_client_rounds"]) == (3, 4)

    def test_cohorts_of_other_sizes(self) -> None:
        result = found({"clients": (0, 5), "rejected": (5,)}, {"clients": (1, 2, 3), "malicious": (), "rejected": ()})
        assert (result["benign_client_rounds_lost"], result["benign_share_lost"]) == (1, 1 / 4)
        assert result["malicious_client_rounds"] == 1

    def test_no_decision(self) -> None:
        result = found({"rejected": NONE}, {"rejected": NONE})
        assert (result["benign_client_rounds_lost"], result["benign_share_lost"]) == (None, None)
        assert result["rounds_decided"] == 0

    def test_nobody_benign(self) -> None:
        result = found({"malicious": (0, 1, 2, 3), "rejected": (0,)})
        assert (result["benign_client_rounds_lost"], result["benign_share_lost"]) == (0, None)

    def test_updates_that_never_reached_the_defense_are_no_decision_of_it(self) -> None:
        everybody = {"rejected": (0, 1, 2, 3), "screened": (0, 1, 2, 3)}
        assert found(everybody)["rounds_decided"] == 0
        assert found(everybody)["benign_client_rounds_lost"] is None
        assert found(everybody)["rounds_until_detection"] is None
        assert found({"rejected": (0, 1), "screened": (1,)})["benign_client_rounds_lost"] == 1

    def test_nobody_answered(self) -> None:
        result = found({"clients": (), "malicious": (), "rejected": ()})
        assert (result["rounds_decided"], result["benign_share_lost"]) == (0, None)


class TestWorst:
    def test_attack_success(self) -> None:
        rates = [NONE, 0.25, 0.75, NONE, 0.75, 0.5]
        result = found(*({"test_accuracy": 0.5, "attack_success_rate": rate} for rate in rates))
        assert (result["worst_attack_success_rate"], result["worst_attack_success_round"]) == (0.75, 2)

    def test_a_fall_is_below_the_best_so_far(self) -> None:
        accuracies = [0.25, 0.75, NONE, 0.5, 1.0, 0.625, 0.75]
        result = found(*({"test_accuracy": a} for a in accuracies))
        assert (result["largest_accuracy_fall"], result["largest_accuracy_fall_round"]) == (0.375, 5)

    @pytest.mark.parametrize(
        ("accuracies", "fall", "at"),
        [([], NONE, NONE), ([NONE], NONE, NONE), ([0.5], 0, NONE), ([0.25, 0.5], 0, NONE), ([0.5, 0.0], 0.5, 1)],
    )
    def test_no_fall(self, accuracies: list[Any], fall: float | None, at: int | None) -> None:
        result = found(*({"test_accuracy": a} for a in accuracies))
        assert (result["largest_accuracy_fall"], result["largest_accuracy_fall_round"]) == (fall, at)

    def test_nothing_at_all(self) -> None:
        assert found() == {
            "rounds_decided": 0,
            "malicious_client_rounds": 0,
            "rounds_until_detection": None,
            "benign_client_rounds_lost": None,
            "benign_share_lost": None,
            "worst_attack_success_rate": None,
            "worst_attack_success_round": None,
            "largest_accuracy_fall": None,
            "largest_accuracy_fall_round": None,
        }
