"""Bulyan: updates selected by Krum one after another, then per coordinate the mean of the values around their median.

El Mhamdi, Guerraoui, Rouault. The Hidden Vulnerability of Distributed Learning in Byzantium. ICML 2018. Section 4.

Variant: Bulyan of Krum. Krum selects theta = n - 2f updates one by one, each from those that remain and with the same
f; then every coordinate is the mean of the beta = theta - 2f values that are closest to the median of the theta.
Departs: of an even number of values, the median is the mean of the two in the middle (the paper's is either). Of two
values equally close the lower is kept; of updates with the same score that of the lowest client id is selected (the
paper does not say). Krum's n - f - 2 neighbours may be none among the last that remain; one is counted. For f = 0 it is
the mean.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import BoundError, ParameterError
from fedsieve.core.linalg import column_blocks, krum_scores, lowest, pairwise_sq_distances, room_for_blocks
from fedsieve.core.ranks import sorted_columns, within
from fedsieve.core.traits import Traits


@direct("bulyan")
def bulyan(x: Float[Tensor, "n d"], f: int) -> Float[Tensor, " d"]:
    """Mean around the median of the n - 2f updates that Krum selects; El Mhamdi et al. 2018, section 4.

    Args:
        x: Client updates, [n, d]. Of rows with the same Krum score, the first is selected.
        f: Assumed number of malicious clients.

    Returns:
        The aggregate, [d].

    Raises:
        BoundError: If f > 0 and n < 4f + 3.
        ParameterError: If ``f`` is negative.

    >>> x = torch.tensor([[1.0, 2.0], [1.5, 2.0], [2.0, 2.0], [2.5, 2.0], [3.0, 2.0], [3.5, 2.0], [93.0, 2.0]])
    >>> bulyan(x, f=1)
    tensor([2., 2.])
    """
    check_bound(len(x), f)
    taken = take_by_krum(pairwise_sq_distances(x), torch.arange(len(x)), f, len(x) - 2 * f)
    return mean_around_median(x, len(x) - 4 * f, taken)[0]


def take_by_krum(
    sq_distances: Float[Tensor, "n n"], client_ids: Int[Tensor, " n"], f: int, theta: int
) -> Bool[Tensor, " n"]:
    """Which ``theta`` rows Krum selects one after another, [n]; of rows tied to rounding, that of the lowest id."""
    taken = torch.zeros(len(sq_distances), dtype=torch.bool)
    distances, ids = sq_distances.cpu(), client_ids.cpu()
    for _ in range(theta if theta < len(taken) else 0):
        left = (~taken).nonzero().squeeze(1)
        tied = left[lowest(krum_scores(distances[left][:, left], f), 1)]
        taken[tied[ids[tied].argmin()]] = True
    return (taken if theta < len(taken) else ~taken).to(sq_distances.device)


def mean_around_median(
    x: Float[Tensor, "n d"], beta: int, taken: Bool[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, " d"], Float[Tensor, " n"]]:
    """Mean of the ``beta`` values of each column that are closest to its median; of two equally close, the lower.

    Also each row's weight in it, summing to 1: every column's weight is spread evenly over the values within the range
    of those that are kept, ties included.

    Args:
        x: Values, [n, d].
        beta: Number of values of a column that are averaged.
        taken: The rows that count; None is all.
    """
    rows = torch.arange(len(x), device=x.device) if taken is None else taken.nonzero().squeeze(1)
    n, ones = len(rows), x.new_ones(len(rows))
    mean, parts, weights = torch.empty_like(x[0]), torch.zeros_like(ones), x.new_zeros(len(x))
    kept = torch.arange(beta, device=x.device)[:, None]
    room = room_for_blocks(x, 4)[:, :n]
    for block in column_blocks(x):
        columns = torch.index_select(x[:, block], 0, rows, out=room[0, :, : block.stop - block.start])
        ranked = sorted_columns(columns, room[1])
        median = ranked[(n - 1) // 2 : n // 2 + 1].mean(dim=0)
        # The closest are beta consecutive ranks. Their first rank is the number of values that are farther from the
        # median than the value beta ranks above them.
        start = (median - ranked[: n - beta] > ranked[beta:] - median).sum(dim=0, keepdim=True)
        closest = ranked.gather(0, start + kept)
        mean[block] = closest.sum(dim=0) / beta
        inside = within(columns, closest[0], closest[-1], room[2:])
        parts += inside @ (1 / (ones @ inside))
    weights[rows] = parts / parts.sum()
    return mean, weights


def check_bound(n: int, f: int) -> None:
    """Raise :class:`BoundError` where n < 4f + 3; f = 0 has no bound."""
    if f < 0:
        raise ParameterError(f"bulyan: f must be at least 0, got {f}")
    if f > 0 and n < 4 * f + 3:
        raise BoundError(f"bulyan needs n >= 4f + 3, got n={n} clients and f={f} assumed malicious")


@dataclass(frozen=True)
class Bulyan:
    """Mean around the median of the updates that Krum selects."""

    traits: ClassVar[Traits] = Traits(
        summary="Krum selects n - 2f updates; per coordinate, the mean of their n - 4f values closest to the median",
        paper="El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018",
        needs=("f",),
        bound="n >= 4f + 3",
        breaks_at="more than f malicious clients",
        cost="O(n^2 d + nd log n)",
    )

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """See :class:`fedsieve.core.defense.Bounded`."""
        check_bound(n_clients, n_malicious)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x, n, f = updates.parameters, len(updates.matrix), view.n_malicious
        self.check(n, f)
        taken = take_by_krum(pairwise_sq_distances(x), updates.client_ids, f, n - 2 * f)
        return Aggregate(*mean_around_median(x, n - 4 * f, taken))
