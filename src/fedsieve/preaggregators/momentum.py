"""Client momentum: replaces every client's update by the exponential average of its updates.

Karimireddy, He, Jaggi. Learning from History for Byzantine Robust Optimization. ICML 2021.

A small attack that is within one round's noise has to be repeated every round; averaged over rounds, the noise shrinks
and the attack does not.

Variant: m <- beta m + (1 - beta) update, which the robust aggregator behind it sees. A client starts from its first
update, as in the paper, so that the updates of new clients are as long as the others'.
Departs: the paper's clients each keep their own momentum; here the server does, from the updates it received. A client
that is not in the round keeps its momentum as it was, for ``forget_after`` rounds; those away longest lose it earlier
where the server would otherwise keep more than 20 vectors for each client of its largest round. A client that was
forgotten starts again from its update. Running statistics pass unchanged.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.core.defense import PreAggregated, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import column_blocks
from fedsieve.core.memory import blank
from fedsieve.core.traits import Traits

_MOST = 20  # vectors kept for each client of the largest round


@direct("momentum")
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
    return x.clone() if past is None else blended(x, past, beta)


def blended(x: Float[Tensor, "n d"], past: Float[Tensor, "n d"], beta: float) -> Float[Tensor, "n d"]:
    """``beta past + (1 - beta) x``, a new tensor."""
    result = torch.mul(past, beta, out=blank(past.shape, past))
    return result.add_(x, alpha=1 - beta)  # not lerp, which takes differences: they may overflow


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
    if torch.equal(ids, past_ids):
        return blended(x, past, beta)
    known, result = torch.isin(ids, past_ids), x.clone()
    rows = known.nonzero().squeeze(1)
    ranked, order = past_ids.sort()
    places = order[torch.searchsorted(ranked, ids[rows])]
    for block in column_blocks(x):
        result[rows, block] = blended(x[rows, block], past[places, block], beta)
    return result


def remembered(absent: Int[Tensor, " k"], forget_after: int, most: int) -> Bool[Tensor, " k"]:
    """Which clients are still remembered: away for fewer than ``forget_after`` rounds, and of these the last seen.

    Args:
        absent: Rounds since each client was last seen, by ascending id, [k]; of two alike, the higher id stays.
        forget_after: Rounds after which a client is forgotten.
        most: Most clients that are remembered.

    >>> remembered(torch.tensor([7, 0, 3, 2, 0]), forget_after=5, most=3)
    tensor([False,  True, False,  True,  True])
    """
    stay = absent < forget_after
    stay[absent.argsort(descending=True, stable=True)[: max(0, len(absent) - most)]] = False
    return stay


def check_beta(beta: float) -> None:
    """Raise :class:`ParameterError` where ``beta`` is out of range."""
    if not 0 <= beta < 1:
        raise ParameterError(f"momentum: beta must be in [0, 1), got {beta}")


@dataclass(frozen=True)
class Momentum:
    """Replaces every client's update by the exponential average of its updates.

    Attributes:
        beta: Weight of the past; in [0, 1).
        forget_after: Rounds after which a client that does not come back is forgotten; at least 1.
    """

    beta: float = 0.9
    forget_after: int = 100
    traits: ClassVar[Traits] = Traits(
        summary="Averages each client's updates over rounds, for the robust aggregator that follows",
        paper="Karimireddy et al., Learning from History, ICML 2021",
        needs=("state",),
        breaks_at="one malicious client, unless a robust aggregator follows",
        cost="O(nd), memory O(kd) for the k clients of the last 100 rounds, at most 20 nd",
    )

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.forget_after < 1:
            raise ParameterError(f"momentum: forget_after must be at least 1, got {self.forget_after}")

    def preaggregate(self, updates: Updates, view: ServerView, /) -> PreAggregated:
        """See :class:`fedsieve.core.defense.PreAggregator`."""
        x, ids = updates.parameters, updates.client_ids
        past = view.state or {"ids": ids[:0], "momentum": x[:0], "absent": ids[:0], "most": 0}
        now, most = averaged(x, ids, past["momentum"], past["ids"], self.beta), max(past["most"], _MOST * len(x))
        away = ~torch.isin(past["ids"], ids)
        away[away.clone()] = remembered(past["absent"][away] + 1, self.forget_after, most - len(x))
        known, order = torch.cat([past["ids"][away], ids]).sort()
        kept = torch.cat([past["momentum"][away], now]) if away.any() else now
        state = {
            "ids": known,
            "momentum": kept if torch.equal(order, torch.arange(len(order), device=order.device)) else kept[order],
            "absent": torch.cat([past["absent"][away] + 1, torch.zeros_like(ids)])[order],
            "most": most,
        }
        statistics = updates.statistics
        matrix = torch.cat([now, statistics], dim=1) if statistics.shape[1] else now
        return PreAggregated(updates.with_matrix(matrix), state)
