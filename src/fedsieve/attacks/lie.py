"""A little is enough (LIE): shift the mean by less than the benign updates' own spread.

Baruch, Baruch, Goldberg. A Little Is Enough: Circumventing Defenses For Distributed Learning. NeurIPS 2019.
The attack against convergence (``LIE``) and the backdoor (``LIEBackdoor``).

Variant: mu and sigma (ddof 0, as in the published code) over the honest updates the attacker knows: with partial
knowledge, those of the malicious clients. LIE sends mu - z sigma from every malicious client. The backdoor is trained
from the global model plus mu, with a proximal term, and its update is clamped to mu +- z sigma in every coordinate; all
malicious clients send the same. z_max is the largest z for which, with normally distributed values, s =
floor(n / 2 + 1) - m benign clients are farther from the mean: PhiInv((n - m - s) / (n - m)). The published code has
z = 1.5.
Departs: z_max is at least 0; the formula is negative where m is small. Where the malicious clients are a majority, the
argument of PhiInv is at most 1 - 1 / (2 (n - m) + 2), so that z stays finite. The paper trains one backdoor model for 5
epochs; here the malicious clients train it together in ``rounds`` local trainings, each from the average of the last,
on their clean samples and poisoned copies of them. The proximal term is half the squared distance to the start of each
of these trainings, times ``alpha`` (0.2 in the paper; its code has 4). The published code subtracts mu from what it
clamps; here it is added, since the update is relative to the global model. Data without pixels have another trigger:
every ``stride``-th feature becomes 0.
"""

from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.attacks.columns import deviations
from fedsieve.attacks.triggers import (
    check_effect,
    check_pattern,
    check_target,
    check_visible,
    mark,
    with_poisoned_copies,
)
from fedsieve.core.attack import AttackView, PoisonView, Task, Triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits


def z_max(n: int, m: int) -> float:
    """Standard deviations by which m of n clients can deviate so that floor(n / 2 + 1) - m benign ones are beyond.

    >>> round(z_max(50, 24), 3)  # the paper's example
    1.426
    """
    benign = max(n - m, 1)
    supporters = n // 2 + 1 - m
    share = min((benign - supporters) / benign, 1 - 1 / (2 * benign + 2))
    return NormalDist().inv_cdf(max(share, 0.5))


def mean_and_deviation(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and standard deviation (ddof 0) of each coordinate.

    >>> mean_and_deviation(torch.tensor([[1.0], [3.0]]))
    (tensor([2.]), tensor([1.]))
    """
    return x.mean(dim=0), deviations(x)


def lie(x: Float[Tensor, "n d"], z: float) -> Float[Tensor, " d"]:
    """The mean of the honest updates ``x`` minus ``z`` standard deviations.

    >>> lie(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), z=1.5)
    tensor([0.5000, 5.0000])
    """
    mean, deviation = mean_and_deviation(x)
    return mean - z * deviation


def check_z(attack: str, z: float | None) -> None:
    """Raise :class:`ParameterError`, with the name of ``attack``, unless z is None, or positive and in float32."""
    if z is not None and not z > 0:
        raise ParameterError(f"{attack}: z must be positive, got {z}")
    check_fits_float32(attack, z=z)


@dataclass(frozen=True)
class LIE:
    """All malicious clients send the honest mean minus z standard deviations.

    Attributes:
        z: Number of standard deviations; None: :func:`z_max` of the round's clients.
    """

    z: float | None = None
    traits: ClassVar[Traits] = Traits(
        summary="The benign mean, shifted within the benign standard deviation",
        paper="Baruch et al., A Little Is Enough, NeurIPS 2019",
        breaks_at="few malicious clients: z is 0 by default, and the honest mean is sent; one known update",
    )

    def __post_init__(self) -> None:
        check_z("lie", self.z)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        m = len(view.malicious_updates)
        z = z_max(view.n_clients, m) if self.z is None else self.z
        return lie(view.known_updates, z).expand(m, -1).clone()


@dataclass(frozen=True)
class LIEBackdoor:
    """Train a backdoor and send it, clamped to the benign updates' spread.

    Attributes:
        target: Class that inputs with the trigger are to be classified as.
        share: Poisoned copies per clean sample, in (0, 1].
        alpha: Weight of half the squared distance to the start of each of the backdoor's local trainings.
        rounds: Number of local trainings of the backdoor, one after the other.
        z: Standard deviations from the honest mean that are allowed; None: :func:`z_max` of the round's clients.
        size: Images only: side of the square trigger in the top left corner, in pixels.
        value: Images only: pixel value of the trigger, on the dataset's own scale; None: the largest in the training
            data.
        stride: Other data only: every ``stride``-th feature becomes 0.
    """

    target: int = 0
    share: float = 0.5
    alpha: float = 0.2
    rounds: int = 5
    z: float | None = None
    size: int = 5
    value: float | None = None
    stride: int = 20
    traits: ClassVar[Traits] = Traits(
        summary="Backdoor: a trigger, the update clamped to the benign standard deviation",
        paper="Baruch et al., A Little Is Enough, NeurIPS 2019",
        breaks_at="few malicious clients: z is 0 by default, and the honest mean is sent; one known update",
    )

    def __post_init__(self) -> None:
        check_pattern("lie-backdoor", self.share, self.size, self.stride, self.target, self.value)
        check_z("lie-backdoor", self.z)
        if not self.alpha >= 0 or self.rounds < 1:
            raise ParameterError(
                f"lie-backdoor: alpha must be at least 0 and rounds at least 1, got {self.alpha} and {self.rounds}"
            )
        check_fits_float32("lie-backdoor", alpha=self.alpha)

    def trigger(self, x: Tensor, largest: float = 1.0) -> Tensor:
        """A copy of ``x`` with the trigger. Images are [k, channels, height, width]; the rest [k, features].

        Args:
            x: Samples.
            largest: Largest value in the training data, :attr:`fedsieve.core.attack.Task.largest`.
        """
        return mark(x, self.size, largest if self.value is None else self.value, self.stride)

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered:
        """See :class:`fedsieve.core.attack.Backdoor`; the test data with the trigger."""
        marked = self.trigger(x, task.largest)
        check_visible("lie-backdoor", x, marked)
        return Triggered(marked, torch.full_like(y, self.target), y == self.target)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        check_target("lie-backdoor", self.target, view.task.n_classes)
        check_effect("lie-backdoor", self, x)
        trigger = partial(self.trigger, largest=view.task.largest)
        return with_poisoned_copies(x, y, self.share, self.target, trigger, view.generator)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        m = len(view.malicious_updates)
        z = z_max(view.n_clients, m) if self.z is None else self.z
        # malicious_updates were trained on poisoned data and don't show the benign updates' spread
        honest = view.train(view.global_params, poisoned=False)
        mean, deviation = mean_and_deviation(
            honest if view.benign_updates is None else torch.cat([honest, view.benign_updates])
        )
        start = view.global_params + mean
        moved = torch.zeros_like(mean)
        for _ in range(self.rounds):
            moved = moved + view.train(start + moved, poisoned=True, proximal=self.alpha).mean(dim=0)
        return (mean + moved.clamp(-z * deviation, z * deviation)).expand(m, -1).clone()
