"""What the server makes of the sum: a step after which no class is worse off than after a step of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fedsieve.core import several
from fedsieve.core.defense import Root
from fedsieve.core.linalg import row_norms
from fedsieve.detectors.sieve.cosines import lengths_and_cosines
from fedsieve.detectors.sieve.margin import balanced_loss, cross_entropy_of, margin_of
from fedsieve.detectors.sieve.reference import ReferenceUpdates

_SHARE = 0.5  # of the server's own progress that the step has to make in every class, where root data fit
_MOST_CLASSES = 20  # whose gradients the server computes in a round
_FACTORS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)  # of a step
_LEAST_STEP = 1 / 8  # where it only raises the root loss; the smaller ones are for steps that would end a training
_RISE = 0.1  # of the root loss, in nats, beyond which first order says nothing
_LEAP = 1.0  # of the root loss above what it has been lately, in nats, beyond which a training is about to end
_ROUNDS = 50  # of the other running means
_OFTEN = 0.3  # share of the rounds of which that is so, beyond which root data guide no step
_MOST = 0.5  # share of the rounds with a halved step, beyond which a step is judged by what the server adds of it
_MANY_ROUNDS = 200  # of the running mean of that share
_TINY = 1e-300


@dataclass(frozen=True)
class Lately:
    """What root data have said of the rounds before, as running means.

    Attributes:
        too_long: The share of rounds in which updates were too long for first order, over fifty rounds.
        loss: The root loss before the step, in nats, over fifty rounds; None before the first round.
        halved: The share of rounds in which the whole step would have been halved, over two hundred rounds.
    """

    too_long: float = 0.0
    loss: float | None = None
    halved: float = 0.0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Lately":
        """From the state of the round before."""
        return cls(*state["lately"].tolist()) if "lately" in state else cls()

    @property
    def state(self) -> dict[str, Tensor]:
        """For the next round; empty before the first."""
        if self.loss is None:
            return {}
        return {"lately": torch.tensor([self.too_long, self.loss, self.halved], dtype=torch.float64)}

    def judged(self, rate: float) -> float:
        """Which multiple of the step is judged where the server adds the share ``rate`` of it.

        The whole step, which is a margin of safety where the server adds less. A model at the edge of what is stable at
        the server's rate is far beyond it at 1: then nearly every step would be halved, the model would stay as steep
        as it is, and the training slow.
        """
        return rate if self.halved > _MOST else max(1.0, rate)

    def most(self, before: float) -> float:
        """The root loss above which no step is taken whole, whatever the server's own updates do."""
        return max(before, (before if self.loss is None else self.loss) + _LEAP)

    def then(self, before: float, halved: bool, too_long: bool | None = None) -> "Lately":
        """After a round.

        Args:
            before: The root loss before its step.
            halved: Whether the whole step would have been halved.
            too_long: Whether updates were too long for first order; None where nothing says so.
        """
        loss = before if self.loss is None else self.loss + (before - self.loss) / _ROUNDS
        share = self.too_long if too_long is None else self.too_long + (too_long - self.too_long) / _ROUNDS
        return Lately(share, loss, self.halved + (halved - self.halved) / _MANY_ROUNDS)


def guide(
    update: Float64[Tensor, " p"],
    references: ReferenceUpdates,
    root: Root,
    params: Float[Tensor, " d"],
    generator: torch.Generator,
    fit: float = 1.0,
    lately: Lately = Lately(),
    rate: float = 1.0,
) -> tuple[Float64[Tensor, " p"], float, Lately]:
    """The aggregate after what root data have to say about it.

    To first order the step may lower no class's margin and raise no class's cross-entropy; or it has to do half as well
    for each as the server's own mean held-out update, less where root data fit less. Of the nearest such steps it is
    the one that leaves the lower root loss. The first stops what harms a class; the second also makes up for updates
    that slow the training.

    The chosen step is halved until the root loss is no higher than before, or than it is on average after the server's
    own held-out updates, at most three times: root data are few, and must not stop the training. Where the model is
    steep, the server's own updates raise it as well. So a step after which it would be a nat above its mean over the
    last fifty rounds, and higher than before, is halved whatever they do, at most six times. The root loss is a
    cross-entropy in which all classes have the same weight, and the one after the whole step, or, while most steps
    would be halved, after what the server adds of it (:meth:`Lately.judged`).

    The projections are right to first order. Where the root loss rises by a tenth after the better one, and after the
    server's own updates too, updates are too long for it, as at learning rates at the edge of what is stable. While
    this was so in three of ten rounds, the step is the aggregate itself, halved in the same way: with a projection in
    every round such a training diverges.

    Args:
        update: The aggregate.
        references: Reference updates of the round.
        root: Root data with every class.
        params: The global model, [d].
        generator: Draws twenty classes if there are more.
        fit: How well root data fit the clients, in [0, 1].
        lately: Of the rounds before.
        rate: Share of the step that the server adds to the model.

    Returns:
        The step, no longer than ``update`` and the mean held-out update together; the factor it was shortened by, 1 to
        1/64; and what is known in the next round.
    """
    held = references.held_out[: references.n_balanced]
    losses, whole, share = partial(losses_after, root=root, params=params), max(1.0, rate), lately.judged(rate)
    steps = projected(update, held, slopes_of_classes(root, params, len(update), generator), fit)
    aside = lately.too_long > _OFTEN
    if aside:
        steps = torch.cat([steps, update[None].to(steps)])
    before, *after = losses(torch.cat([torch.zeros_like(steps[:1]), steps]), rate=whole)
    best = min((0, 1), key=lambda k: after[k] if after[k] == after[k] else float("inf"))
    chosen = 2 if aside else best
    step, loss, most = steps[chosen], after[chosen], lately.most(before)

    def allowed(loss: float, rate: float) -> float:
        return max(before, fmean(losses(held, rate=rate))) if len(held) and not loss <= before else before

    limit = allowed(loss, whole)
    too_long = not (after[best] <= before + _RISE or limit <= before + _RISE)
    then = lately.then(before, not loss <= min(limit, most), too_long)
    if share < whole:
        (loss,) = losses(step[None], rate=share)
        limit = allowed(loss, share)
    return *halved(step, loss, min(limit, most), most, partial(losses, rate=share)), then


def steady(
    update: Float64[Tensor, " p"],
    root: Root,
    params: Float[Tensor, " d"],
    lately: Lately = Lately(),
    rate: float = 1.0,
) -> tuple[Float64[Tensor, " p"], float, Lately]:
    """The aggregate where root data don't fit the clients: they guide no step, but so long a one ends a training.

    It is halved, six times at most, while the root loss after it, or after what the server adds of it as in
    :func:`guide`, is a nat above its mean over the last fifty rounds, and higher than before.

    Args:
        update: The aggregate.
        root: Root data.
        params: The global model, [d].
        lately: Of the rounds before.
        rate: Share of the step that the server adds to the model.

    Returns:
        The step, the factor it was shortened by, and what is known in the next round.
    """
    losses, whole, share = partial(losses_after, root=root, params=params), max(1.0, rate), lately.judged(rate)
    before, loss = losses(torch.stack([torch.zeros_like(update), update]), rate=whole)
    most = lately.most(before)
    then = lately.then(before, not loss <= most)
    if share < whole:
        (loss,) = losses(update[None], rate=share)
    return *halved(update, loss, most, most, partial(losses, rate=share)), then


def losses_after(steps: Float[Tensor, "k p"], root: Root, params: Float[Tensor, " d"], rate: float) -> list[float]:
    """The root loss after ``rate`` times each of k steps from the global model."""
    moved = params.repeat(len(steps), 1)
    moved[:, : steps.shape[1]] += rate * steps.to(params)
    return several.losses(root, moved, balanced_loss).tolist()


def projected(
    update: Float64[Tensor, " p"], held: Float[Tensor, "h p"], slopes: Float[Tensor, "s p"], fit: float
) -> Float64[Tensor, "2 p"]:
    """The nearest step that is worse in no class to first order, and the nearest that does half as well as ``held``."""
    own = held.mean(dim=0) if len(held) else torch.zeros_like(slopes[0])
    lengths, cosines = lengths_and_cosines(slopes, torch.stack([update.to(slopes), own]))
    k = len(slopes)
    of_update, of_own = (cosines[:k, k:] * lengths[k:]).T
    over = [nearest(of_update - share * of_own, cosines[:k, :k]) for share in (0.0, _SHARE * fit)]
    return update - torch.stack(over).to(slopes) @ slopes


def halved(
    step: Float64[Tensor, " p"],
    after: float,
    limit: float,
    most: float,
    losses: Callable[[Float64[Tensor, "k p"]], list[float]],
) -> tuple[Float64[Tensor, " p"], float]:
    """The step, halved until the loss after it is at most a limit, and the factor.

    Args:
        step: The step.
        after: The loss after it.
        limit: Above this it is halved, three times at most: root data are few, and must not stop the training.
        most: Above this it is halved, six times at most: a training ends with such a step.
        losses: After each of several steps; asked for three at a time, which on a GPU costs no more than one.

    >>> halved(torch.tensor([4.0, 0.0]).double(), 4.0, 1.5, 9.0, lambda steps: steps.norm(dim=1).tolist())
    (tensor([1., 0.], dtype=torch.float64), 0.25)
    """
    found = [after]
    for k, factor in enumerate(_FACTORS):
        if k == len(found):
            found += losses(torch.stack([step * f for f in _FACTORS[k : k + 3]]))
        if found[k] <= (limit if factor > _LEAST_STEP else most):
            break
    return step * factor, factor


def slopes_of_classes(
    root: Root, params: Float[Tensor, " d"], p: int, generator: torch.Generator
) -> Float[Tensor, "s p"]:
    """Gradients of each class's margin loss and cross-entropy on the root data, of length 1 (or 0), two per class.

    Margins are centred over the classes, so that a pull of all inputs to one class leaves them as they are; it raises
    the cross-entropy of every other class.

    Args:
        root: Root data.
        params: Where, [d].
        p: How many of the coordinates are parameters.
        generator: Draws twenty classes if there are more.
    """
    classes = sorted(set(root.data[1].tolist()))
    if len(classes) > _MOST_CLASSES:
        chosen = torch.randperm(len(classes), generator=generator)[:_MOST_CLASSES]
        classes = [classes[k] for k in chosen.tolist()]
    losses = [loss for c in classes for loss in (margin_of(c), cross_entropy_of(c))]
    slopes = several.gradients(root, params, losses)[1][:, :p]
    return (slopes / row_norms(slopes).clamp(min=_TINY)[:, None]).to(slopes.dtype)


def nearest(over: Float64[Tensor, " s"], gram: Float64[Tensor, "s s"]) -> Float64[Tensor, " s"]:
    """What to take away of each slope, so that a vector comes to lie where no product with a slope is above a limit.

    ``update - nearest(over, gram) @ slopes`` is the nearest such vector, if there is one: the projection onto an
    intersection of half-spaces, in terms of its s multipliers a small non-negative least-squares problem.

    Args:
        over: By how much the vector's product with each slope is above the limit.
        gram: Inner products of the slopes, each of length 1 or 0.

    >>> nearest(torch.tensor([5.0]).double(), torch.ones(1, 1).double())
    tensor([5.], dtype=torch.float64)
    """
    if not (over > 0).any():
        return torch.zeros_like(over)
    from scipy.optimize import nnls  # half a second that runs without sieve need not wait

    size = over.abs().max()  # of length 1: small numbers would be within the solver's tolerance
    values, vectors = np.linalg.eigh(gram.cpu().numpy())
    # |update - slopes^T l|² in terms of l >= 0, up to a constant: |R l - R^-T over|² with R^T R the Gram matrix
    factor = (vectors * np.sqrt(np.maximum(values, 1e-9 * values[-1]))).T
    weights, _ = nnls(factor, np.linalg.lstsq(factor.T, (over / size).cpu().numpy(), rcond=None)[0])
    result: Tensor = size * torch.from_numpy(weights)
    return result
