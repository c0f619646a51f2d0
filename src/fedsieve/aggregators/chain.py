"""A chain of stages: pre-aggregators change updates, detectors reject clients, an aggregator takes the rest."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from fedsieve.aggregators.mean import Mean
from fedsieve.core import contract
from fedsieve.core.defense import (
    Aggregate,
    Aggregator,
    Bounded,
    Detector,
    PreAggregator,
    ServerView,
    Stage,
    Updates,
)
from fedsieve.core.errors import BoundError


def tolerable(stage: Stage, n_clients: int, f: int) -> int:
    """The number of malicious clients that a stage is told to assume.

    Args:
        stage: A stage, with or without a bound on n and f.
        n_clients: Number of clients that the stage sees.
        f: Number of malicious clients to assume.

    Returns:
        ``f``, or the largest number below it for which the stage's bound holds.

    >>> from fedsieve.aggregators.trimmed_mean import TrimmedMean
    >>> tolerable(TrimmedMean(), n_clients=5, f=3)
    2
    """
    while f > 0 and isinstance(stage, Bounded):
        try:
            stage.check(n_clients, f)
        except BoundError:
            f -= 1
        else:
            break
    return f


@runtime_checkable
class Averaging(Protocol):
    """A pre-aggregator without a state that averages what it would hand on, without writing it."""

    def with_mean(self) -> Aggregator:
        """What computes the same as this stage with the mean behind it, to rounding."""
        ...


@dataclass(frozen=True)
class Chain:
    """Detectors and pre-aggregators in order, each on the previous stage's updates, and an aggregator.

    A stage behind a detector assumes the same f, since the detector may have rejected the wrong clients; f is lowered
    only where the stage's bound does not hold for the clients that remain.

    Attributes:
        stages: At least one detector or pre-aggregator. Each has a state of its own.
        aggregator: Aggregates the updates of the accepted clients.
    """

    stages: tuple[Detector | PreAggregator, ...]
    aggregator: Aggregator

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """Check the bounds of all stages, as if no detector rejected a client."""
        for stage in (*self.stages, self.aggregator):
            if isinstance(stage, Bounded):
                stage.check(n_clients, n_malicious)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`. If no client is accepted, update and weights are 0."""
        states: list[Any] = list(view.state or [None] * (len(self.stages) + 1))
        stay = torch.ones_like(updates.client_ids, dtype=torch.bool)
        scores, diagnosis, decided, left = None, None, False, updates
        stages, aggregator = self.stages, self.aggregator
        last = stages[-1]
        if isinstance(last, Averaging) and isinstance(aggregator, Mean):
            stages, aggregator = stages[:-1], last.with_mean()
        for k, stage in enumerate(stages):
            seen = _view(view, stage, left, states[k])
            if isinstance(stage, PreAggregator):
                changed = contract.preaggregate(stage, left, seen)
                left, states[k] = changed.updates, changed.state
                continue
            found = contract.detect(stage, left, seen)
            states[k] = found.state
            whole = found.scattered(stay)
            diagnosis = whole.diagnosis or diagnosis
            if whole.scores is not None:  # clients rejected earlier keep their score
                scores = whole.scores if scores is None else torch.where(stay, whole.scores, scores)
            if whole.accepted is None or found.accepted is None:
                continue
            stay, left, decided = whole.accepted, left.select(found.accepted), True
            if not stay.any():
                zero, weights = torch.zeros_like(updates.matrix[0]), torch.zeros_like(updates.matrix[:, 0])
                return Aggregate(zero, weights, stay, scores, tuple(states), diagnosis)
        result = contract.aggregate(aggregator, left, _view(view, aggregator, left, states[-1]))
        states[-1] = result.state
        result = result.scattered(stay, torch.inf)
        accepted = result.accepted if result.accepted is not None else stay if decided else None
        if scores is None:
            scores = result.scores
        elif result.diagnosis is not None and result.scores is not None:  # it is a detector, too
            scores = torch.where(stay, result.scores, scores)
        diagnosis = result.diagnosis or diagnosis
        return replace(result, accepted=accepted, scores=scores, state=tuple(states), diagnosis=diagnosis)


def _view(view: ServerView, stage: Stage, left: Updates, state: Any) -> ServerView:
    """The view of one stage: its own state, and an f that its bound allows."""
    return replace(view, state=state, n_malicious=tolerable(stage, len(left.matrix), view.n_malicious))
