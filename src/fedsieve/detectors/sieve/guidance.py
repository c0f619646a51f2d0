"""What the server makes of the sum: a step after which no class is worse off than after a step of its own."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.core.defense import Root
from fedsieve.core.linalg import row_norms
from fedsieve.detectors.sieve.margin import cross_entropy_of, margin_of
from fedsieve.detectors.sieve.reference import ReferenceUpdates

_SHARE = 0.5  # of the server's own progress that the step has to make in every class, where root data fit
_MOST_CLASSES = 20  # whose gradients the server computes in a round
_LEAST_STEP = 1 / 8
_TINY = 1e-300


def guide(
    update: Float64[Tensor, " p"],
    references: ReferenceUpdates,
    root: Root,
    params: Float[Tensor, " d"],
    generator: torch.Generator,
    fit: float = 1.0,
) -> tuple[Float64[Tensor, " p"], float]:
    """The aggregate after what root data have to say about it.

    To first order the step may lower no class's margin and raise no class's cross-entropy; or it has to do half as well
    for each as the server's own mean held-out update, less where root data fit less. Of the nearest such steps it is
    the one that leaves the lower root loss. The first stops what harms a class; the second also makes up for updates
    that slow the training.

    The chosen step is halved until the root loss is no higher than before, or than it is on average after the server's
    own held-out updates, at most three times: root data are few, and must not stop the training. The root loss is a
    cross-entropy in which all classes have the same weight.

    Args:
        update: The aggregate.
        references: Reference updates of the round.
        root: Root data with every class.
        params: The global model, [d].
        generator: Draws twenty classes if there are more.
        fit: How well root data fit the clients, in [0, 1].

    Returns:
        The step, no longer than ``update`` and the mean held-out update together, and the factor it was shortened by,
        1 to 1/8.
    """
    held = references.held_out[: references.n_balanced].double()
    own = held.mean(dim=0) if len(held) else torch.zeros_like(update)
    slopes = slopes_of_classes(root, params, len(update), generator)

    def loss(step: Tensor) -> float:
        moved = params.clone()
        moved[: len(step)] += step.to(params)
        return float(root.gradient(moved, balanced_loss)[0])

    steps = [nearest(update, slopes, share * (slopes @ own)) for share in (0.0, _SHARE * fit)]
    losses = [loss(step) for step in steps]
    best = min(range(len(steps)), key=lambda k: losses[k] if losses[k] == losses[k] else float("inf"))
    after = [loss(step) for step in held]
    limit = max([loss(torch.zeros_like(update)), *([sum(after) / len(after)] if after else [])])
    return halved(steps[best], losses[best], limit, loss)


def halved(
    step: Float64[Tensor, " p"], after: float, limit: float, loss: Callable[[Tensor], float]
) -> tuple[Float64[Tensor, " p"], float]:
    """The step, halved until the loss after it is at most ``limit``, but at most three times, and the factor.

    >>> halved(torch.tensor([4.0, 0.0]).double(), 4.0, 1.5, lambda step: float(step.norm()))
    (tensor([1., 0.], dtype=torch.float64), 0.25)
    """
    factor = 1.0
    while factor > _LEAST_STEP and not after <= limit:
        factor /= 2
        after = loss(step * factor)
    return step * factor, factor


def slopes_of_classes(
    root: Root, params: Float[Tensor, " d"], p: int, generator: torch.Generator
) -> Float64[Tensor, "s p"]:
    """Gradients of each class's margin loss and cross-entropy on the root data, of length 1 (or 0), two per class.

    Margins are centred over the classes, so that a pull of all inputs to one class leaves them as they are; it raises
    the cross-entropy of every other class.

    Args:
        root: Root data.
        params: Where, [d].
        p: How many of the coordinates are parameters.
        generator: Draws twenty classes if there are more.
    """
    classes = torch.unique(root.data[1])
    if len(classes) > _MOST_CLASSES:
        chosen = torch.randperm(len(classes), generator=generator)[:_MOST_CLASSES]
        classes = classes[chosen.to(classes.device)]
    losses = [loss for c in classes.tolist() for loss in (margin_of(c), cross_entropy_of(c))]
    slopes = torch.stack([root.gradient(params, loss)[1][:p] for loss in losses]).double()
    return slopes / row_norms(slopes).clamp(min=_TINY)[:, None]


def nearest(
    update: Float64[Tensor, " p"], slopes: Float64[Tensor, "s p"], limits: Float64[Tensor, " s"]
) -> Float64[Tensor, " p"]:
    """The nearest vector whose products with the slopes are at most the limits, if there is such a vector.

    The projection onto an intersection of half-spaces: in terms of its s multipliers a small non-negative least-squares
    problem.

    Args:
        update: What to project.
        slopes: Rows of length 1 or 0.
        limits: One for each slope.

    >>> one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    >>> nearest(torch.tensor([3.0, 4.0]).double(), one, torch.tensor([-2.0]).double())
    tensor([-2.,  4.], dtype=torch.float64)
    """
    over = slopes @ update - limits
    if not (over > 0).any():
        return update
    size = over.abs().max()  # of length 1: small numbers would be within the solver's tolerance
    gram = (slopes @ slopes.T).cpu().numpy()
    values, vectors = np.linalg.eigh(gram)
    # |update - slopes^T l|² in terms of l >= 0, up to a constant: |R l - R^-T over|² with R^T R the Gram matrix
    factor = (vectors * np.sqrt(np.maximum(values, 1e-9 * values[-1]))).T
    weights, _ = nnls(factor, np.linalg.lstsq(factor.T, (over / size).cpu().numpy(), rcond=None)[0])
    result: Tensor = update - size * (torch.from_numpy(weights).to(update) @ slopes)
    return result


def balanced_loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Cross-entropy in which every class present has the same weight."""
    each = cross_entropy(logits, y, reduction="none")
    counts = torch.bincount(y, minlength=logits.shape[1])[y]
    mean: Tensor = (each / counts).sum() / len(torch.unique(y))
    return mean
