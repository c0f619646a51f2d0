"""Coordinate-wise trimmed mean.

Yin, Chen, Kannan, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates.
ICML 2018. Definition 2.

Variant: drops the f smallest and the f largest values of every coordinate, f being the assumed number of malicious
clients (the paper's beta is f / n), or ``trim`` where it is given.
Departs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import BoundError, ParameterError
from fedsieve.core.ranks import mean_of_ranks
from fedsieve.core.traits import Traits


@direct("trimmed-mean")
def trimmed_mean(x: Float[Tensor, "n d"], trim: int) -> Float[Tensor, " d"]:
    """Mean of each column without its ``trim`` smallest and ``trim`` largest values; Yin et al. 2018, definition 2.

    Args:
        x: Client updates, [n, d].
        trim: Number of values dropped at each end of a column; the assumed number of malicious clients, f.

    Returns:
        The aggregate, [d].

    Raises:
        BoundError: If n <= 2 ``trim``: no value would be left.
        ParameterError: If ``trim`` is negative.

    >>> import torch
    >>> trimmed_mean(torch.tensor([[1.0, 2.0], [2.0, 2.0], [4.0, 2.0], [93.0, 2.0]]), trim=1)
    tensor([3., 2.])
    """
    return trimmed_mean_and_weights(x, trim)[0]


def trimmed_mean_and_weights(x: Float[Tensor, "n d"], trim: int) -> tuple[Float[Tensor, " d"], Float[Tensor, " n"]]:
    """The trimmed mean, and each row's weight in it; see :func:`fedsieve.core.linalg.mean_of_ranks`."""
    n = len(x)
    check_bound(n, trim)
    return mean_of_ranks(x, trim, n - trim)


def check_trim(trim: int) -> None:
    """Raise :class:`ParameterError` where ``trim`` is negative."""
    if trim < 0:
        raise ParameterError(f"trimmed-mean: trim must be at least 0, got {trim}")


def check_bound(n: int, f: int) -> None:
    """Raise :class:`BoundError` where trimming ``f`` values at each end leaves none of ``n``."""
    check_trim(f)
    if n <= 2 * f:
        raise BoundError(f"trimmed-mean needs n > 2f, got n={n} clients and f={f} assumed malicious")


@dataclass(frozen=True)
class TrimmedMean:
    """Mean of each coordinate without its smallest and largest values.

    Attributes:
        trim: Number of values dropped at each end; None drops as many as malicious clients are assumed.
    """

    trim: int | None = None
    traits: ClassVar[Traits] = Traits(
        summary="Per coordinate, the mean without the f smallest and f largest values",
        paper="Yin et al., Byzantine-Robust Distributed Learning, ICML 2018",
        needs=("f",),
        bound="n > 2f",
        breaks_at="more than f malicious clients",
        cost="O(nd log n)",
    )

    def __post_init__(self) -> None:
        if self.trim is not None:
            check_trim(self.trim)

    def check(self, n_clients: int, n_malicious: int, /) -> None:
        """See :class:`fedsieve.core.defense.Bounded`."""
        check_bound(n_clients, n_malicious if self.trim is None else self.trim)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        trim = view.n_malicious if self.trim is None else self.trim
        return Aggregate(*trimmed_mean_and_weights(updates.parameters, trim))
