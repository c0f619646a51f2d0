"""Chains of stages with known answers."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedsieve.aggregators.bulyan import Bulyan
from fedsieve.aggregators.chain import Chain, tolerable
from fedsieve.aggregators.krum import Krum
from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.core.defense import (
    Aggregate,
    Aggregator,
    Detection,
    Detector,
    Diagnosis,
    PreAggregated,
    ServerView,
    Updates,
)
from fedsieve.core.errors import BoundError


@dataclass(frozen=True)
class Rejects:
    """Rejects the clients ``ids``; scores are the first coordinate times ``scale``; its state counts rounds."""

    ids: tuple[int, ...] = ()
    scale: float | None = None
    seen: list[Any] = field(default_factory=list)

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        self.seen.append((updates.client_ids.tolist(), view.state))
        accepted = ~torch.isin(updates.client_ids, torch.tensor(self.ids, dtype=torch.long))
        scores = None if self.scale is None else self.scale * updates.matrix[:, 0]
        return Detection(accepted, scores, state=(view.state or 0) + 1)


@dataclass(frozen=True)
class Undecided:
    """Cannot decide; keeps what it saw."""

    seen: list[Updates] = field(default_factory=list)

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        self.seen.append(updates)
        return Detection(None)


@dataclass(frozen=True)
class Last:
    """Gives all weight to the last row; may reject the first; its state has the number of rows of each round."""

    rejects_first: bool = False
    seen: list[Any] = field(default_factory=list)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        self.seen.append((updates.client_ids.tolist(), view.state))
        n = len(updates.matrix)
        weights = updates.matrix.new_tensor([0.0] * (n - 1) + [1.0])
        accepted = torch.tensor([False] + [True] * (n - 1)) if self.rejects_first else None
        return Aggregate(updates.matrix[-1], weights, accepted, state=[*(view.state or []), n])


ROWS = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]  # ids 100 to 103


@dataclass(frozen=True)
class Judges(Last):
    """Rejects the first row, with a reason; scores are minus the second coordinate."""

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        x, n = updates.matrix, len(updates.matrix)
        reasons = ("first", *[""] * (n - 1))
        seen = Diagnosis(x, None, (), x.new_zeros(n, 0), reasons)
        return replace(Last(True)(updates, view), scores=-x[:, 1], diagnosis=seen, note="judged")


def call(make: SimpleNamespace, chain: Chain, state: Any = None) -> Aggregate:
    u = make.updates(ROWS)
    return chain(u, make.view(u, state=state))


def test_kinds() -> None:
    assert isinstance(Rejects(), Detector)
    assert isinstance(Last(), Aggregator)
    assert isinstance(Chain((Rejects(),), Last()), Aggregator)


def test_without_a_rejection_it_is_the_aggregator(make: SimpleNamespace) -> None:
    u = make.updates(ROWS)
    alone, chained = Mean()(u, make.view(u)), Chain((Rejects(),), Mean())(u, make.view(u))
    assert torch.equal(chained.update, alone.update)
    assert torch.equal(chained.weights, alone.weights)
    assert chained.accepted is not None
    assert chained.accepted.all()
    assert chained.scores is None


def test_weights_are_scattered(make: SimpleNamespace) -> None:
    result = call(make, Chain((Rejects((100, 102)),), Mean()))
    assert result.update.tolist() == [3, 30]
    assert result.weights.tolist() == [0, 0.5, 0, 0.5]
    assert result.accepted is not None
    assert result.accepted.tolist() == [False, True, False, True]


def test_rejected_rows_are_left_out_of_the_sum(make: SimpleNamespace) -> None:
    u = make.updates([[1.0, 2.0], [3e38, 3e38], [3e38, 3e38]])
    result = Chain((Rejects((101, 102)),), Mean())(u, make.view(u))
    assert result.update.tolist() == [1, 2]


def test_second_detector_sees_the_accepted_clients_only(make: SimpleNamespace) -> None:
    first, second, aggregator = Rejects((101,)), Rejects((103,)), Last()
    result = call(make, Chain((first, second), aggregator))
    assert [ids for ids, _ in first.seen] == [[100, 101, 102, 103]]
    assert [ids for ids, _ in second.seen] == [[100, 102, 103]]
    assert [ids for ids, _ in aggregator.seen] == [[100, 102]]
    assert result.update.tolist() == [3, 30]
    assert result.weights.tolist() == [0, 0, 1, 0]
    assert result.accepted is not None
    assert result.accepted.tolist() == [True, False, True, False]


def test_scores_are_scattered(make: SimpleNamespace) -> None:
    # scores of the first detector: minus the first coordinate; of the last, for the clients that remain: times 100
    result = call(make, Chain((Rejects((101,), -1), Rejects((), None), Rejects((), 100)), Mean()))
    assert result.scores is not None
    assert result.scores.tolist() == [100, -2, 300, 400]


def test_an_aggregator_may_reject_too(make: SimpleNamespace) -> None:
    result = call(make, Chain((Rejects((100,)),), Last(rejects_first=True)))
    assert result.accepted is not None
    assert result.accepted.tolist() == [False, False, True, True]


@pytest.mark.parametrize("scale", [None, 1000])
def test_an_aggregator_may_be_a_detector_too(make: SimpleNamespace, scale: float | None) -> None:
    result = call(make, Chain((Rejects((101,), scale),), Judges()))
    assert result.accepted is not None
    assert result.accepted.tolist() == [False, False, True, True]
    assert result.scores is not None
    assert result.scores.tolist() == [-10, torch.inf if scale is None else 2000, -30, -40]
    assert result.diagnosis is not None
    assert result.diagnosis.reasons == ("first", "", "", "")
    assert result.note == "judged"


def test_states_are_kept_per_stage(make: SimpleNamespace) -> None:
    first, second, aggregator = Rejects((101,)), Rejects((103,)), Last()
    chain = Chain((first, second), aggregator)
    state = None
    for _ in range(3):
        state = call(make, chain, state).state
    assert state == (3, 3, [2, 2, 2])
    assert [s for _, s in first.seen] == [None, 1, 2]
    assert [s for _, s in second.seen] == [None, 1, 2]
    assert [s for _, s in aggregator.seen] == [None, [2], [2, 2]]


class TestNoClientAccepted:
    all_ids = (100, 101, 102, 103)

    def test_result(self, make: SimpleNamespace) -> None:
        result = call(make, Chain((Rejects((100,)), Rejects(self.all_ids, 1)), Mean()))
        assert result.update.tolist() == [0, 0]
        assert result.weights.tolist() == [0, 0, 0, 0]
        assert result.accepted is not None
        assert not result.accepted.any()
        assert result.scores is not None
        assert result.scores.tolist() == [0, 2, 3, 4]

    def test_later_stages_are_not_called_and_keep_their_state(self, make: SimpleNamespace) -> None:
        first, second, aggregator = Rejects(self.all_ids), Rejects(), Last()
        result = call(make, Chain((first, second), aggregator), state=(4, 7, [9]))
        assert (len(first.seen), second.seen, aggregator.seen) == (1, [], [])
        assert result.state == (5, 7, [9])


def test_state_that_was_handed_in_is_unchanged(make: SimpleNamespace) -> None:
    state = (1, [5])
    call(make, Chain((Rejects(),), Last()), state)
    assert state == (1, [5])


def test_check_covers_every_stage() -> None:
    Chain((Rejects(),), TrimmedMean()).check(5, 2)
    with pytest.raises(BoundError, match="n=4 clients and f=2"):
        Chain((Rejects(),), TrimmedMean()).check(4, 2)
    with pytest.raises(BoundError, match="n=4 clients and f=2"):
        Chain((Rejects(),), Chain((Rejects(),), TrimmedMean())).check(4, 2)
    Chain((Rejects(),), Mean()).check(1, 1)


def test_chains_nest(make: SimpleNamespace) -> None:
    inner = Chain((Rejects((103,)),), Mean())
    result = call(make, Chain((Rejects((101,)),), inner))
    assert result.update.tolist() == [2, 20]
    assert result.weights.tolist() == [0.5, 0, 0.5, 0]
    assert result.accepted is not None
    assert result.accepted.tolist() == [True, False, True, False]
    assert result.state == (1, (1, None))


@dataclass(frozen=True)
class Doubles:
    """Doubles every update; its state counts rounds."""

    seen: list[ServerView] = field(default_factory=list)

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:
        self.seen.append(view)
        doubled = Updates(2 * updates.matrix, updates.client_ids, updates.layout)
        return PreAggregated(doubled, (view.state or 0) + 1)


class TestPreAggregators:
    def test_change_what_later_stages_see(self, make: SimpleNamespace) -> None:
        u = make.updates([[1.0], [2.0], [3.0], [4.0]])
        chain = Chain((Doubles(), Rejects((100,)), Doubles()), Mean())
        result = chain(u, make.view(u))
        assert result.update.tolist() == [12]  # 4 * (2 + 3 + 4) / 3
        assert result.weights.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
        assert result.accepted is not None
        assert result.accepted.tolist() == [False, True, True, True]
        assert result.state == (1, 1, 1, None)

    def test_reject_no_client(self, make: SimpleNamespace) -> None:
        u = make.updates([[1.0], [2.0]])
        result = Chain((Doubles(),), Mean())(u, make.view(u))
        assert (result.update.tolist(), result.accepted, result.scores) == ([3], None, None)


@pytest.mark.parametrize(
    ("stage", "n", "f", "assumed"),
    [
        (Mean(), 3, 5, 5),  # no bound
        (TrimmedMean(), 7, 3, 3),
        (TrimmedMean(), 6, 3, 2),
        (TrimmedMean(), 1, 3, 0),
        (Krum(), 9, 3, 3),
        (Krum(), 8, 3, 2),
        (Krum(), 2, 3, 0),
        (Bulyan(), 10, 3, 1),
    ],
)
def test_f_is_lowered_to_the_bound_and_no_further(stage: Any, n: int, f: int, assumed: int) -> None:
    assert tolerable(stage, n, f) == assumed


def test_a_bound_that_never_holds_assumes_nobody() -> None:
    class Never:
        def check(self, n_clients: int, n_malicious: int, /) -> None:
            raise BoundError("never")

        def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
            raise AssertionError

    assert [tolerable(Never(), 5, f) for f in (0, 1, 3)] == [0, 0, 0]


def test_nobody_is_left_of_a_model_of_one_parameter(make: SimpleNamespace) -> None:
    u = make.updates([[1.0], [2.0]])
    result = Chain((Rejects((100, 101)),), Mean())(u, make.view(u))
    assert (result.update.tolist(), result.weights.tolist()) == ([0], [0, 0])


def test_f_behind_a_detector(make: SimpleNamespace) -> None:
    u = make.updates([[1.0]] * 6)
    first, second = Doubles(), Doubles()
    stages = (first, Rejects((100,)), second, Rejects((101, 102)))
    Chain(stages, Last())(u, make.view(u, f=2))
    assert [stage.seen[0].n_malicious for stage in (first, second)] == [2, 2]
    # three clients remain, of which one can be trimmed at either end
    rows = make.updates([[1.0]] * 3 + [[0.0], [5.0], [9.0]])
    assert Chain((Rejects((100, 101, 102)),), TrimmedMean())(rows, make.view(rows, f=2)).update.tolist() == [5]


def test_a_bound_that_holds_before_a_detector_holds_behind_it(make: SimpleNamespace) -> None:
    u = make.updates([[float(k)] for k in range(7)])
    for rejected in range(6):
        chain = Chain((Rejects(tuple(range(100, 100 + rejected))),), TrimmedMean())
        assert chain(u, make.view(u, f=3)).update.isfinite().all()


class TestStatistics:
    ROWS = ([1.0, 3.0, 4.0], [2.0, 6.0, 8.0], [3.0, 3.0, 4.0], [4.0, 0.0, 1e6], [5.0, 3.0, 4.0])

    def test_reach_the_detector_as_they_were_sent(self, make: SimpleNamespace) -> None:
        seen: list[Updates] = []
        u = make.updates(torch.tensor(self.ROWS), statistics=2)
        Chain((Undecided(seen), Undecided(seen)), Mean())(u, make.view(u))
        assert [u.statistics.tolist() for u in seen] == [[row[1:] for row in self.ROWS]] * 2
