"""The losses whose gradients updates are compared with; first of all minus the mean margin, linear in the logits.

None of them waits for a number from a GPU or needs a tensor whose shape depends on one, so that a GPU may record them.
"""

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.core.loss import Loss, recordable


def members(y: Int[Tensor, " k"], like: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
    """1 where the sample of the row is of the class of the column, else 0; of the type of the logits ``like``."""
    return (y[:, None] == torch.arange(like.shape[1], device=y.device)).to(like)


def margins(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, " c"]:
    """The margin of each class: how much higher its logit is on its own samples; 0 for a class without samples.

    M[a, b] is the mean of logit b over the samples of class a, centred over the classes a (so that the mix of labels
    that a model was trained on has no effect) and over the logits b (so that a constant added to all logits has none).
    The margin of class a is M[a, a].

    >>> margins(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor([1., 1.])
    """
    of_class = members(y, logits)
    sizes = of_class.sum(dim=0)
    present, shares = sizes > 0, of_class / sizes.clamp(min=1)
    centred = (shares - shares.sum(dim=1, keepdim=True) / present.sum()).T @ logits
    return (centred.diagonal() - centred.mean(dim=1)) * present


@recordable
def margin(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Minus the mean margin over the classes present.

    It is linear in the logits, like the unhinged loss of van Rooyen, Menon and Williamson (NeurIPS 2015), whose sign
    label noise cannot turn: misclassified samples have no higher weight than others, and all classes have the same
    weight, however few samples they have.

    >>> margin(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor(-1.)
    """
    present = members(y, logits).amax(dim=0).sum()
    return -margins(logits, y).sum() / present


@cache
def margin_of(c: int) -> Loss:
    """The loss of one class: minus its margin. The same function for the same class, so that root data can cache."""

    def loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
        return -margins(logits, y)[c]

    return recordable(loss)


@cache
def cross_entropy_of(c: int) -> Loss:
    """The cross-entropy of the samples of one class."""

    def loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
        own = y == c
        return torch.where(own, cross_entropy(logits, y, reduction="none"), 0).sum() / own.sum()

    return recordable(loss)


@recordable
def balanced_loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Cross-entropy in which every class present has the same weight."""
    sizes = members(y, logits).sum(dim=0)
    each = cross_entropy(logits, y, reduction="none") / sizes[y]
    return each.sum() / (sizes > 0).sum()
