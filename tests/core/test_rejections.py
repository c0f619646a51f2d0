"""Who was rejected how often, and what is told of rejections where nobody knows who is malicious."""

from typing import Any

import pytest

from fedsieve.core import metrics
from fedsieve.core.records import client_name, decided
from fedsieve.core.rejections import Rejections
from tests.core.test_metrics import record

NONE: Any = None
TRUTHS = ("malicious_client_rounds", "rounds_until_detection", "benign_client_rounds_lost", "benign_share_lost")


def found(*rounds: dict[str, Any]) -> dict[str, Any]:
    own = Rejections()
    for k, fields in enumerate(rounds):
        own.add(record(k, **{"clients": (0, 1, 2, 3), "malicious": NONE, **fields}))
    return own.result()


class TestRejections:
    def test_by_hand(self) -> None:
        result = found(
            {"rejected": (3, 1)}, {"rejected": (3,)}, {"rejected": NONE}, {"clients": (1, 5), "rejected": ()}
        )
        assert result == {
            "client_rounds_rejected": 3,
            "share_rejected": 3 / 14,
            "most_rejected": [
                {"client": 3, "rounds_rejected": 2, "rounds": 3},
                {"client": 1, "rounds_rejected": 1, "rounds": 4},
            ],
        }

    def test_never_a_decision(self) -> None:
        nothing = {"client_rounds_rejected": None, "share_rejected": None, "most_rejected": []}
        assert found() == found({"rejected": NONE}, {"rejected": NONE}) == nothing
        # every update was dropped before the defense
        assert found({"rejected": (0, 1, 2, 3), "screened": (0, 1, 2, 3)}) == nothing

    def test_decided_and_rejected_nobody(self) -> None:
        assert found({"rejected": ()}) == {"client_rounds_rejected": 0, "share_rejected": 0.0, "most_rejected": []}

    def test_twenty_are_named(self) -> None:
        clients = tuple(range(30))
        rounds = [{"clients": clients, "rejected": clients[:k]} for k in (30, 12)]
        named = [one["client"] for one in found(*rounds)["most_rejected"]]
        assert named == [*range(12), *range(12, 20)]

    def test_memory_is_bounded(self) -> None:
        def cohort(k: int) -> tuple[int, ...]:
            return tuple(range(1000 * k, 1000 * (k + 1)))

        rounds = [{"clients": cohort(k), "rejected": cohort(k)[:2]} for k in range(11)]
        assert len(found(*rounds[:10])["most_rejected"]) == 20
        assert found(*rounds) == {"client_rounds_rejected": 22, "share_rejected": 0.002, "most_rejected": []}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rejected": NONE}, False),
        ({"rejected": ()}, True),
        ({"rejected": (0,), "screened": (0,)}, False),
        ({"clients": (), "rejected": ()}, False),
        ({"clients": (0, 1), "rejected": (0,), "screened": (0,)}, True),
    ],
)
def test_decided(fields: dict[str, Any], expected: bool) -> None:
    assert decided(record(0, **fields)) is expected


@pytest.mark.parametrize(
    ("client", "name"), [(0, "St. Anna"), (1, "client 1"), (2, "client 2"), (-1, "client -1"), (33, "client 33")]
)
def test_client_name(client: int, name: str) -> None:
    assert client_name(("St. Anna", ""), client) == name


class TestTruthUnknown:
    def test_rates(self) -> None:
        assert metrics.false_positive_rate([0, 1], None, [0]) is None
        assert metrics.false_negative_rate([0, 1], None, [0]) is None

    def test_nobody_is_counted_as_benign_or_malicious(self) -> None:
        rounds = [record(k, clients=(0, 1, 2), malicious=None, rejected=(0,)) for k in range(4)]
        summary = metrics.summarize(rounds)
        assert [summary[key] for key in TRUTHS] == [None] * 4
        assert [summary[f"{late}false_{kind}_rate"] for late in ("", "late_") for kind in ("positive", "negative")] == (
            [None] * 4
        )
        assert (summary["rounds_decided"], summary["client_rounds_rejected"]) == (4, 4)
        assert summary["share_rejected"] == pytest.approx(1 / 3)

    def test_one_record_without_is_enough(self) -> None:
        # such as a run that an earlier version began: what was known of some rounds is not that of the run
        known = record(0, clients=(0, 1), malicious=(0,), rejected=(0,))
        unknown = record(1, clients=(0, 1), malicious=None, rejected=(0,))
        for rounds in ([known, unknown], [unknown, known]):
            assert [metrics.summarize(rounds)[key] for key in TRUTHS] == [None] * 4
        assert [metrics.summarize([known])[key] for key in TRUTHS] == [1, 0, 0, 0.0]
