"""Client momentum: replaces every client's update by the exponential average of its updates.

Karimireddy, He, Jaggi. Learning from History for Byzantine Robust Optimization. ICML 2021.

A small attack that is within one round's noise has to be repeated every round; averaged over rounds, the noise shrinks
and the attack does not.

Variant: m <- beta m + (1 - beta) update, which the robust aggregator behind it sees. A client starts from its first
update, as in the paper, so that the updates of new clients are as long as the others'.
Departs: the paper's clients each keep their own momentum; here the server does, from the updates it received. A client
that is not in the round keeps its momentum as it was. Running statistics pass unchanged.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.core.defense import PreAggregated, ServerView, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits


def momentum(
    x: Float[Tensor, "n d"], past: Float[Tensor, "n d"] | None = None, beta: float = 0.9
) -> Float[Tensor, "n d"]:
    """Exponential average of each client's updates; Karimireddy et al. 2021.

    Args:
        x: Client updates of this round, [n, d].
        past: What this function returned in the last round, of the same clients in the same order; None in the first.
        beta: Weight of ``past``; in [0, 1).

    Returns:
        ``beta past + (1 - beta) x``, [n, d]; ``x`` in the first round.

    Raises:
        ParameterError: If ``beta`` is out of range.

    >>> first = momentum(torch.tensor([[4.0], [8.0]]), beta=0.5)
    >>> momentum(torch.tensor([[0.0], [8.0]]), first, beta=0.5)
    tensor([[2.],
            [8.]])
    """
    check_beta(beta)
    return x if past is None else beta * past + (1 - beta) * x


def averaged(
    x: Float[Tensor, "n d"],
    ids: Int[Tensor, " n"],
    past: Float[Tensor, "k d"],
    past_ids: Int[Tensor, " k"],
    beta: float,
) -> Float[Tensor, "n d"]:
    """:func:`momentum` for clients that come and go.

    Args:
        x: Client updates of this round, [n, d].
        ids: Client id of each row, [n].
        past: Momentum of every client seen so far, [k, d].
        past_ids: Client id of each row of ``past``, [k].
        beta: Weight of ``past``; in [0, 1).

    Returns:
        The momentum of this round's clients, [n, d]; the update itself for a client without a past.

    >>> averaged(torch.tensor([[0.0], [8.0]]), torch.tensor([3, 7]), torch.tensor([[4.0]]), torch.tensor([3]), 0.5)
    tensor([[2.],
            [8.]])
    """
    same = ids[:, None] == past_ids[None, :]
    rows, places = same.nonzero(as_tuple=True)
    result = x.clone()
    result[rows] = momentum(x[rows], past[places], beta)
    return result


def check_beta(beta: float) -> None:
    """Raise :class:`ParameterError` where ``beta`` is out of range."""
    if not 0 <= beta < 1:
        raise ParameterError(f"momentum: beta must be in [0, 1), got {beta}")


@dataclass(frozen=True)
class Momentum:
    """Replaces every client's update by the exponential average of its updates.

    Attributes:
        beta: Weight of the past; in [0, 1).
    """

    beta: float = 0.9
    traits: ClassVar[Traits] = Traits(
        summary="Averages each client's updates over rounds, for the robust aggregator that follows",
        paper="Karimireddy et al., Learning from History, ICML 2021",
        needs=("state",),
        breaks_at="one malicious client, unless a robust aggregator follows",
        cost="O(nd), memory O(kd) for the k clients seen so far",
    )

    def __post_init__(self) -> None:
        check_beta(self.beta)

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:
        """See :class:`fedsieve.core.defense.PreAggregator`."""
        x, ids = updates.parameters, updates.client_ids
        past = view.state or {"ids": ids[:0], "momentum": x[:0]}
        now = averaged(x, ids, past["momentum"], past["ids"], self.beta)
        absent = ~torch.isin(past["ids"], ids)
        known, order = torch.cat([past["ids"][absent], ids]).sort()
        state = {"ids": known, "momentum": torch.cat([past["momentum"][absent], now])[order]}
        return PreAggregated(updates.with_matrix(torch.cat([now, updates.statistics], dim=1)), state)
