"""Detection and aggregation are separate things: filters say who stays, then a rule aggregates those."""

from dataclasses import dataclass, replace

import torch

from fedsieve.types import Aggregate, Bounded, Defense, Filter, ServerView, Updates


@dataclass(frozen=True)
class Chain:
    """Filters, each judging whom the one before accepted, and the rule that aggregates the rest.

    Attributes:
        filters: At least one. Each keeps a state of its own.
        rule: Sees only the accepted clients.
    """

    filters: tuple[Filter, ...]
    rule: Defense

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """The bounds of every stage, as if no filter rejected anyone."""
        for stage in (*self.filters, self.rule):
            if isinstance(stage, Bounded):
                stage.check(n_clients, n_malicious)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.types.Defense`. Nobody accepted: a zero update with zero weights."""
        n = len(updates.matrix)
        states = list(view.state or [None] * (len(self.filters) + 1))
        accepted = torch.ones(n, dtype=torch.bool, device=updates.matrix.device)
        suspicion = None
        for k, stage in enumerate(self.filters):
            rows = accepted.nonzero().squeeze(1)
            verdict = stage.judge(updates.select(accepted), replace(view, state=states[k]))
            states[k] = verdict.state
            if verdict.suspicion is not None:
                suspicion = updates.matrix.new_zeros(n) if suspicion is None else suspicion
                suspicion[rows] = verdict.suspicion
            accepted[rows] = verdict.accepted
            if not accepted.any():
                zero = torch.zeros_like(updates.matrix[0])
                return Aggregate(zero, updates.matrix.new_zeros(n), accepted, suspicion, tuple(states))
        result = self.rule(updates.select(accepted), replace(view, state=states[-1]))
        states[-1] = result.state
        if suspicion is None and result.suspicion is not None:
            suspicion = updates.matrix.new_full((n,), torch.inf)  # whoever was filtered out
            suspicion[accepted] = result.suspicion
        weights = updates.matrix.new_zeros(n)
        weights[accepted] = result.weights
        if result.accepted is not None:
            accepted = accepted.masked_scatter(accepted, result.accepted)
        return Aggregate(result.update, weights, accepted, suspicion, tuple(states))
