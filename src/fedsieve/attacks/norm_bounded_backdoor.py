"""Norm-bounded backdoor: a backdoor that is looked for among the updates that norm clipping would not shorten.

Sun, Kairouz, Suresh, McMahan. Can You Really Backdoor Federated Learning? 2019; arXiv 1911.07963.

Variant: the update is trained by projected gradient descent in a ball of radius M / beta around the global model
(``rounds`` local trainings, each followed by a projection to the ball) and then multiplied by beta, so that it is never
longer than M. beta is ``boost``, by default n / m, with which m colluding clients replace the mean. M is ``bound``
median lengths of the honest updates that the attacker knows: what the malicious clients would send if they trained on
their clean data, and the benign updates if granted.
Departs: the paper's backdoor is a set of the target clients' samples with a wrong label, its M the server's clipping
bound, which the attacker knows, and its attacker one client. Here the backdoor is a trigger, the bound is estimated,
and the malicious clients collude: all but the last of the trainings go on from the projected mean of their models, the
last gives each its own update. A projection follows a local training, not a step of it; the batches of a client's
trainings in one round are the same. Lengths are those of the parameters, as the server clips them; running statistics
are sent as trained.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.attacks.triggers import (
    check_effect,
    check_pattern,
    check_target,
    check_visible,
    mark,
    with_poisoned_copies,
)
from fedsieve.core.attack import AttackView, PoisonView, Task, Training, Triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.linalg import check_fits_float32, clip_rows, middle, row_norms
from fedsieve.core.traits import Traits


def projected(updates: Float[Tensor, "m d"], radius: float, n_parameters: int) -> Float[Tensor, "m d"]:
    """The updates with parameters no longer than ``radius``; running statistics stay.

    >>> projected(torch.tensor([[6.0, 8.0, 7.0]]), radius=5.0, n_parameters=2)
    tensor([[3., 4., 7.]])
    """
    return torch.cat([clip_rows(updates[:, :n_parameters], radius), updates[:, n_parameters:]], dim=1)


def train_in_ball(
    train: Training, start: Float[Tensor, " d"], radius: float, rounds: int, n_parameters: int
) -> Float[Tensor, "m d"]:
    """Updates relative to ``start`` after ``rounds`` local trainings, each followed by a projection to the ball.

    Args:
        train: Local training on poisoned data.
        start: Centre of the ball, [d].
        radius: Of the ball.
        rounds: At least 1; each but the last continues from the mean of the clients' models.
        n_parameters: Coordinates that count for the length, the first ones.
    """
    updates = projected(train(start), radius, n_parameters)
    for _ in range(rounds - 1):
        mean = updates.mean(dim=0)  # in the ball, since all of these are
        updates = projected(mean + train(start + mean), radius, n_parameters)
    return updates


@dataclass(frozen=True)
class NormBoundedBackdoor:
    """Train a backdoor near the global model and scale the update up to the length of an honest one.

    Attributes:
        target: Class that inputs with the trigger are to be classified as.
        share: Poisoned copies per clean sample, in (0, 1].
        bound: Longest update that is sent, in median lengths of the known honest updates.
        boost: What the trained update is multiplied by; None: clients of the round / malicious ones among them.
        rounds: Number of local trainings, one after the other, with a projection after each.
        size: Images only: side of the square trigger in the top left corner, in pixels.
        value: Images only: pixel value of the trigger, on the dataset's own scale; None: the largest in the training
            data.
        stride: Other data only: every ``stride``-th feature becomes 0.
    """

    target: int = 0
    share: float = 0.5
    bound: float = 1.0
    boost: float | None = None
    rounds: int = 5
    size: int = 5
    value: float | None = None
    stride: int = 20
    traits: ClassVar[Traits] = Traits(
        summary="Backdoor: a trigger, the update scaled up to the median length of honest ones",
        paper="Sun et al., Can You Really Backdoor Federated Learning?, 2019",
    )

    def __post_init__(self) -> None:
        check_pattern("norm-bounded-backdoor", self.share, self.size, self.stride, self.target, self.value)
        factors = {"bound": self.bound, "boost": 1.0 if self.boost is None else self.boost}
        for name, factor in factors.items():
            if not 0 < factor < math.inf:
                raise ParameterError(f"norm-bounded-backdoor: {name} must be positive and finite, got {factor}")
        check_fits_float32("norm-bounded-backdoor", bound=self.bound, boost=self.boost)
        if self.rounds < 1:
            raise ParameterError(f"norm-bounded-backdoor: rounds must be at least 1, got {self.rounds}")

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
        check_visible("norm-bounded-backdoor", x, marked)
        return Triggered(marked, torch.full_like(y, self.target), y == self.target)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        check_target("norm-bounded-backdoor", self.target, view.task.n_classes)
        check_effect("norm-bounded-backdoor", self, x)
        trigger = partial(self.trigger, largest=view.task.largest)
        return with_poisoned_copies(x, y, self.share, self.target, trigger, view.generator)

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        m, p = len(view.malicious_updates), view.layout.n_parameters
        boost = view.n_clients / m if self.boost is None else self.boost
        # malicious_updates were trained on poisoned data and have another length
        honest = view.train(view.global_params, poisoned=False)
        lengths = [row_norms(x[:, :p]) for x in (honest, view.benign_updates) if x is not None]
        radius = self.bound * float(middle(torch.cat(lengths))) / boost
        updates = train_in_ball(view.train, view.global_params, radius, self.rounds, p)
        updates[:, :p] *= boost
        return updates
