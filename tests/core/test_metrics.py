"""Accuracy, loss and detection rates, against values computed by hand."""

import math
from typing import Any

import pytest
import torch

from fedsieve.core import metrics
from fedsieve.core.records import RoundRecord

NAN, INF = math.nan, math.inf


def record(round: int, **fields: Any) -> RoundRecord:
    none = dict.fromkeys(
        [
            "rejected",
            "scores",
            "update_norm",
            "test_accuracy",
            "test_loss",
            "attack_success_rate",
            "attack_success_rate_all",
            "false_positive_rate",
            "false_negative_rate",
        ]
    )
    base = {"clients": (0,), "malicious": (), "screened": (), "weights": (1.0,), "applied": True, "note": ""}
    return RoundRecord(**{**base, **none, "round": round, **fields})


class TestCorrect:
    def test_by_hand(self) -> None:
        logits = torch.tensor([[1.0, 2, 3], [3, 2, 1], [0, 5, 0]])
        assert metrics.correct(logits, torch.tensor([2, 1, 1])).tolist() == [True, False, True]

    @pytest.mark.parametrize("row", [[NAN, 0, 0], [0, NAN, 0], [INF, 0, 0], [-INF, 0, 1], [NAN] * 3])
    def test_rows_that_are_not_finite_are_never_correct(self, row: list[float]) -> None:
        logits = torch.tensor([row, [1, 0, 0]])
        for label in range(3):
            assert metrics.correct(logits, torch.tensor([label, 0])).tolist() == [False, True]

    def test_no_samples(self) -> None:
        assert metrics.correct(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).tolist() == []


@pytest.mark.parametrize(("hits", "n", "share"), [(0, 0, None), (1, 1, 1), (1, 4, 1 / 4)])
def test_share(hits: int, n: int, share: float | None) -> None:
    assert metrics.share(hits, n) == share


class TestTotalLoss:
    def test_by_hand(self) -> None:
        # two classes, equal logits: log 2 each; and logits 0, log 3: the odds are 1 to 3, so -log(1/4)
        logits = torch.tensor([[0.0, 0], [7, 7], [0, math.log(3)]], dtype=torch.float64)
        assert float(metrics.total_loss(logits, torch.tensor([0, 1, 0]))) == pytest.approx(
            2 * math.log(2) + math.log(4)
        )

    def test_adds_up_over_batches(self) -> None:
        logits, y = torch.randn(10, 4, dtype=torch.float64), torch.arange(10) % 4
        parts = metrics.total_loss(logits[:3], y[:3]) + metrics.total_loss(logits[3:], y[3:])
        assert float(metrics.total_loss(logits, y)) == pytest.approx(float(parts), rel=1e-12)


class TestRates:
    @pytest.mark.parametrize(
        ("clients", "malicious", "rejected", "fpr", "fnr"),
        [
            (range(10), [0, 1], [0, 1], 0, 0),  # perfect
            (range(10), [0, 1], [], 0, 1),  # all accepted
            (range(10), [0, 1], range(10), 1, 0),  # all rejected
            (range(10), [0, 1], [1, 2, 3], 2 / 8, 1 / 2),
            (range(10), [], [4], 1 / 10, None),  # no malicious client
            ([0, 1], [0, 1], [0], None, 1 / 2),  # no benign client
            ([3, 5, 7], [0, 5], [5], 0, 0),  # a malicious client that did not take part is not counted
            ([3, 5, 7], [0, 5], None, None, None),  # the defense rejects no client as such
            ([], [], [], None, None),
        ],
    )
    def test_by_hand(self, clients: Any, malicious: Any, rejected: Any, fpr: float | None, fnr: float | None) -> None:
        assert metrics.false_positive_rate(list(clients), malicious, rejected) == fpr
        assert metrics.false_negative_rate(list(clients), malicious, rejected) == fnr

    def test_order_does_not_matter(self) -> None:
        assert metrics.false_positive_rate((2, 9, 4), (4,), (9, 4)) == 1 / 2
        assert metrics.false_negative_rate({9, 4, 2}, {4, 9}, {4}) == 1 / 2


class TestMeanOf:
    @pytest.mark.parametrize(
        ("values", "expected"), [([], None), ([None], None), ([0.0], 0), ([None, 1.0, None, 3.0], 2), ([0.0, None], 0)]
    )
    def test_by_hand(self, values: list[float | None], expected: float | None) -> None:
        assert metrics.mean_of(values) == expected
        assert metrics.mean_of(iter(values)) == expected


KEYS = {
    "test_accuracy",
    "late_test_accuracy",
    "attack_success_rate",
    "attack_success_rate_all",
    "false_positive_rate",
    "false_negative_rate",
    "late_false_positive_rate",
    "late_false_negative_rate",
    "late_attack_success_rate",
    "rounds_until_detection",
    "benign_client_rounds_lost",
    "benign_share_lost",
    "worst_attack_success_rate",
    "worst_attack_success_round",
    "largest_accuracy_fall",
    "largest_accuracy_fall_round",
    "client_rounds_rejected",
    "share_rejected",
}
TOLD = {
    "rounds_not_applied": 0,
    "not_applied_reasons": {},
    "notes": {},
    "updates_screened": 0,
    "screened_reasons": {},
    "rounds_decided": 0,
    "malicious_client_rounds": 0,
    "most_rejected": [],
}


class TestSummarize:
    def test_by_hand(self) -> None:
        # 20 rounds, each evaluated: the last tenth is rounds 18 and 19, the second half rounds 10 to 19
        records = [
            record(
                r,
                test_accuracy=r / 100,
                attack_success_rate=1 - r / 100,
                attack_success_rate_all=r / 200,
                false_positive_rate=0.0 if r < 10 else 0.5,
                false_negative_rate=1.0 if r < 15 else 0.0,
            )
            for r in range(20)
        ]
        summary = metrics.summarize(records)
        assert set(summary) == KEYS | set(TOLD)
        assert summary["test_accuracy"] == 0.19
        assert summary["late_test_accuracy"] == pytest.approx((0.18 + 0.19) / 2)
        assert summary["attack_success_rate"] == 1 - 0.19
        assert summary["late_attack_success_rate"] == pytest.approx(1 - (0.18 + 0.19) / 2)
        assert (summary["worst_attack_success_rate"], summary["worst_attack_success_round"]) == (1, 0)
        assert summary["attack_success_rate_all"] == 0.095
        assert summary["false_positive_rate"] == 0.25
        assert summary["late_false_positive_rate"] == 0.5
        assert summary["false_negative_rate"] == 0.75
        assert summary["late_false_negative_rate"] == 0.5

    def test_evaluations_missing(self) -> None:
        # of 20 rounds, 4, 9, 14 and 19 are evaluated: only 19 lies in the last tenth
        records = [record(r, test_accuracy=r / 100 if r % 5 == 4 else None) for r in range(20)]
        summary = metrics.summarize(records)
        assert (summary["test_accuracy"], summary["late_test_accuracy"]) == (0.19, 0.19)

    def test_no_evaluation_in_the_last_tenth(self) -> None:
        # a run that broke off: the last evaluation stands in for those that are missing
        records = [record(r, test_accuracy=r / 100 if r in (3, 12) else None) for r in range(20)]
        summary = metrics.summarize(records)
        assert (summary["test_accuracy"], summary["late_test_accuracy"]) == (0.12, 0.12)

    def test_fewer_than_ten_rounds(self) -> None:
        summary = metrics.summarize([record(r, test_accuracy=r / 10) for r in range(5)])
        assert summary["late_test_accuracy"] == 0.4

    def test_one_record(self) -> None:
        summary = metrics.summarize(
            [record(0, test_accuracy=0.5, false_positive_rate=0.25, false_negative_rate=0.0, attack_success_rate=0.1)]
        )
        assert summary == {
            "test_accuracy": 0.5,
            "late_test_accuracy": 0.5,
            "attack_success_rate": 0.1,
            "attack_success_rate_all": None,
            "false_positive_rate": 0.25,
            "false_negative_rate": 0.0,
            "late_false_positive_rate": 0.25,
            "late_false_negative_rate": 0.0,
            "late_attack_success_rate": 0.1,
            "rounds_until_detection": None,
            "benign_client_rounds_lost": None,
            "benign_share_lost": None,
            "worst_attack_success_rate": 0.1,
            "worst_attack_success_round": 0,
            "largest_accuracy_fall": 0.0,
            "largest_accuracy_fall_round": None,
            "client_rounds_rejected": None,
            "share_rejected": None,
            **TOLD,
        }

    @pytest.mark.parametrize("n", [0, 1, 7])
    def test_nothing_known(self, n: int) -> None:
        assert metrics.summarize([record(r) for r in range(n)]) == dict.fromkeys(KEYS) | TOLD

    def test_rounds_without_a_rate_are_left_out_of_its_mean(self) -> None:
        rates = [0.0, None, 1.0, None, 0.5, None]
        summary = metrics.summarize([record(r, false_negative_rate=rate) for r, rate in enumerate(rates)])
        assert summary["false_negative_rate"] == 0.5
        assert summary["late_false_negative_rate"] == 0.5  # rounds 3 to 5: only 0.5 is known
        assert summary["false_positive_rate"] is None

    def test_middle_of_an_odd_run_is_late(self) -> None:
        summary = metrics.summarize([record(r, false_positive_rate=float(r)) for r in range(3)])
        assert summary["late_false_positive_rate"] == 1.5

    def test_success_is_of_the_last_evaluation(self) -> None:
        records = [
            record(0, test_accuracy=0.1, attack_success_rate=0.9),
            record(1, test_accuracy=0.2, attack_success_rate=None),
        ]
        assert metrics.summarize(records)["attack_success_rate"] is None
        assert metrics.summarize(records)["late_attack_success_rate"] is None  # of two rounds only the last is late
        assert metrics.summarize(records)["worst_attack_success_rate"] == 0.9

    def test_rounds_not_applied_and_updates_screened(self) -> None:
        records = [
            record(
                0, applied=False, note="all updates were screened", screened=(1, 2), screened_reasons=("NaN", "huge")
            ),
            record(1, screened=(1,), screened_reasons=("NaN",)),
            record(2, applied=False),
            record(3, screened=(2, 3)),  # of an older version: no reasons
            record(4, applied=False, note="all updates were screened", screened=(7,), screened_reasons=("NaN",)),
        ]
        summary = metrics.summarize(records)
        assert summary["rounds_not_applied"] == 3
        assert summary["not_applied_reasons"] == {"all updates were screened": 2, "no reason given": 1}
        assert summary["updates_screened"] == 6
        assert summary["screened_reasons"] == {"NaN": 3, "huge": 1, "not finite": 2}

    def test_few_reasons_are_told_apart(self) -> None:
        summary = metrics.summarize(record(r, applied=False, note=f"reason {r}") for r in range(100))
        assert len(summary["not_applied_reasons"]) == 21
        assert summary["not_applied_reasons"]["other reasons"] == 80
        assert summary["rounds_not_applied"] == 100

    @pytest.mark.parametrize("n", [1, 2, 9, 10, 37])
    def test_one_at_a_time(self, n: int) -> None:
        def some(k: int, of: int) -> float | None:
            return None if (k * 7 + of) % 3 == 0 else (k * 13 + of) % 11 / 11

        records = [
            record(
                k,
                test_accuracy=some(k, 1),
                attack_success_rate=some(k, 2),
                false_positive_rate=some(k, 3),
                false_negative_rate=some(k, 4),
            )
            for k in range(n)
        ]
        found = metrics.Summary()
        for k, each in enumerate(records):
            found.add(each)
            assert found.rounds == k + 1
            assert found.result() == metrics.summarize(records[: k + 1])
        half = records[n // 2 :]
        assert found.result()["late_false_positive_rate"] == metrics.mean_of(r.false_positive_rate for r in half)
        assert found.result()["false_negative_rate"] == metrics.mean_of(r.false_negative_rate for r in records)
        late = [r.test_accuracy for r in records if r.round >= n - max(1, n // 10) and r.test_accuracy is not None]
        if late:
            assert found.result()["late_test_accuracy"] == metrics.mean_of(late)
