"""Krum and Multi-Krum: the updates with the smallest distances to their nearest neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent.
NeurIPS 2017. Section 4.

Variant: the score is the sum of squared distances to the n - f - 2 nearest others. Krum takes the update of lowest
score; Multi-Krum averages the ``keep`` of lowest score, scored once. The paper leaves their number open; published
codes have n - f, which is the default here, or n - f - 2. Another Multi-Krum, which SkyMask's paper describes, selects
updates one by one, with new scores each time, while n - c > 2m + 2, c being the number selected so far.
Departs: updates tied for a place are averaged, where the paper takes any one (Krum) or does not say (Multi-Krum). For
f = 0 there is no bound on n, and a score counts at least one neighbour.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import BoundError, ParameterError
from fedsieve.core.linalg import krum_scores, lowest, pairwise_sq_distances, uniform_weights, weighted_sum
from fedsieve.core.traits import Traits

_PAPER = "Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017"
_BREAKS_AT = "more than f malicious clients; with many coordinates, one of them may be far off in the selected update"


@direct("krum")
def krum(x: Float[Tensor, "n d"], f: int) -> Float[Tensor, " d"]:
    """The update with the lowest sum of squared distances to its n - f - 2 nearest others; Blanchard et al. 2017.

    Args:
        x: Client updates, [n, d].
        f: Assumed number of malicious clients.

    Returns:
        The aggregate, [d]: a row of ``x``, or the mean of rows with the same lowest score.

    Raises:
        BoundError: If f > 0 and n < 2f + 3.
        ParameterError: If ``f`` is negative.

    >>> krum(torch.tensor([[1.0, 2.0], [1.5, 2.0], [3.0, 2.0], [4.0, 2.0], [93.0, 2.0]]), f=1)
    tensor([1.5000, 2.0000])
    """
    check_bound("krum", len(x), f)
    return x[select(x, f, 1)[0]].mean(dim=0)


@direct("multi-krum")
def multi_krum(x: Float[Tensor, "n d"], f: int, keep: int | None = None) -> Float[Tensor, " d"]:
    """Mean of the ``keep`` updates of lowest Krum score; Blanchard et al. 2017, section 4.

    Args:
        x: Client updates, [n, d].
        f: Assumed number of malicious clients.
        keep: Number of updates to average, those tied with the last of them as well; None keeps n - f.

    Returns:
        The aggregate, [d].

    Raises:
        BoundError: If f > 0 and n < 2f + 3.
        ParameterError: If ``f`` is negative or ``keep`` is below 1.

    >>> multi_krum(torch.tensor([[1.0, 2.0], [1.5, 2.0], [3.0, 2.0], [4.0, 2.0], [93.0, 2.0]]), f=1)
    tensor([2.3750, 2.0000])
    """
    check_bound("multi-krum", len(x), f)
    check_keep(keep)
    return mean_of(x, select(x, f, len(x) - f if keep is None else keep)[0])


def select(x: Float[Tensor, "n d"], f: int, keep: int) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Which rows have the ``keep`` lowest scores, ties with the last of them included; and all scores, finite, [n]."""
    scores = krum_scores(pairwise_sq_distances(x), f)
    return lowest(scores, keep), scores.clamp(max=torch.finfo(x.dtype).max).to(x.dtype)


def mean_of(x: Float[Tensor, "n d"], rows: Bool[Tensor, " n"]) -> Float[Tensor, " d"]:
    """Mean of the chosen rows, of which there are many: none is copied."""
    return weighted_sum(x, rows.double()) / rows.sum()


def check_bound(name: str, n: int, f: int) -> None:
    """Raise :class:`BoundError` in the name of ``name`` where n < 2f + 3; f = 0 has no bound."""
    if f < 0:
        raise ParameterError(f"{name}: f must be at least 0, got {f}")
    if f > 0 and n < 2 * f + 3:
        raise BoundError(f"{name} needs n >= 2f + 3, got n={n} clients and f={f} assumed malicious")


def check_keep(keep: int | None) -> None:
    """Raise :class:`ParameterError` where ``keep`` is below 1."""
    if keep is not None and keep < 1:
        raise ParameterError(f"multi-krum: keep must be at least 1, got {keep}")


@dataclass(frozen=True)
class Krum:
    """The update of lowest score."""

    traits: ClassVar[Traits] = Traits(
        summary="The one update that is nearest to its n - f - 2 nearest neighbours",
        paper=_PAPER,
        needs=("f",),
        bound="n >= 2f + 3",
        breaks_at=_BREAKS_AT,
        cost="O(n^2 d)",
    )

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """See :class:`fedsieve.core.defense.Bounded`."""
        check_bound("krum", n_clients, n_malicious)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x, f = updates.parameters, view.n_malicious
        self.check(len(x), f)
        rows, scores = select(x, f, 1)
        return Aggregate(x[rows].mean(dim=0), uniform_weights(rows, x.dtype), scores=scores)


@dataclass(frozen=True)
class MultiKrum:
    """Mean of the updates of lowest score.

    Attributes:
        keep: Number of updates that are averaged; None keeps n - f. A round of fewer clients keeps all.
    """

    keep: int | None = None
    traits: ClassVar[Traits] = Traits(
        summary="Mean of the n - f updates that are nearest to their n - f - 2 nearest neighbours",
        paper=_PAPER,
        needs=("f",),
        bound="n >= 2f + 3",
        breaks_at=_BREAKS_AT,
        cost="O(n^2 d)",
    )

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """See :class:`fedsieve.core.defense.Bounded`."""
        check_bound("multi-krum", n_clients, n_malicious)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        x, f = updates.parameters, view.n_malicious
        self.check(len(x), f)
        rows, scores = select(x, f, len(x) - f if self.keep is None else self.keep)
        return Aggregate(mean_of(x, rows), uniform_weights(rows, x.dtype), rows, scores)
