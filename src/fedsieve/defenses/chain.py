"""Detection and aggregation are separate things: filters say who stays, transforms change, a rule aggregates."""

from dataclasses import dataclass, replace

import torch

from fedsieve.types import Aggregate, Bounded, BoundError, Defense, Filter, ServerView, Transform, Updates


def tolerable(stage: Filter | Transform | Defense, n_clients: int, f: int) -> int:
    """``f``, or the largest number below it for which the stage's bound holds."""
    while f > 0 and isinstance(stage, Bounded):
        try:
            stage.check(n_clients, f)
        except BoundError:
            f -= 1
        else:
            break
    return f


@dataclass(frozen=True)
class Chain:
    """Stages in order, each on what the one before left, and the rule that aggregates the rest.

    A stage behind a filter is told the same f, since the filter may have rejected the wrong clients; only where its
    bound does not hold for so few is f lowered, until it does.

    Attributes:
        stages: At least one filter or transform. Each keeps a state of its own.
        rule: Sees only the accepted clients.
    """

    stages: tuple[Filter | Transform, ...]
    rule: Defense

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """The bounds of every stage, as if no filter rejected anyone."""
        for stage in (*self.stages, self.rule):
            if isinstance(stage, Bounded):
                stage.check(n_clients, n_malicious)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.types.Defense`. Nobody accepted: a zero update with zero weights."""
        n = len(updates.matrix)
        states = list(view.state or [None] * (len(self.stages) + 1))
        accepted = torch.ones(n, dtype=torch.bool, device=updates.matrix.device)
        suspicion, diagnosis, judged, left = None, None, False, updates
        for k, stage in enumerate(self.stages):
            seen = replace(view, state=states[k], n_malicious=tolerable(stage, len(left.matrix), view.n_malicious))
            if isinstance(stage, Transform):
                transformed = stage.transform(left, seen)
                left, states[k] = transformed.updates, transformed.state
                continue
            rows = accepted.nonzero().squeeze(1)
            verdict = stage.judge(left, seen)
            states[k], judged = verdict.state, True
            if verdict.suspicion is not None:
                suspicion = updates.matrix.new_zeros(n) if suspicion is None else suspicion
                suspicion[rows] = verdict.suspicion
            if verdict.diagnosis is not None:
                diagnosis = verdict.diagnosis.spread(accepted)
            accepted[rows] = verdict.accepted
            if not accepted.any():
                zero = torch.zeros_like(updates.matrix[0])
                return Aggregate(zero, updates.matrix.new_zeros(n), accepted, suspicion, tuple(states), diagnosis)
            left = left.select(verdict.accepted)
        f = tolerable(self.rule, len(left.matrix), view.n_malicious)
        result = self.rule(left, replace(view, state=states[-1], n_malicious=f))
        states[-1] = result.state
        if suspicion is None and result.suspicion is not None:
            suspicion = updates.matrix.new_full((n,), torch.inf)  # whoever was filtered out
            suspicion[accepted] = result.suspicion
        weights = updates.matrix.new_zeros(n)
        weights[accepted] = result.weights
        if result.accepted is not None:
            accepted, judged = accepted.masked_scatter(accepted, result.accepted), True
        return Aggregate(result.update, weights, accepted if judged else None, suspicion, tuple(states), diagnosis)
