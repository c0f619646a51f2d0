"""The losses whose gradients updates are compared with; first of all minus the mean margin, linear in the logits."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def margins(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, " c"]:
    """The margin of each class: how much higher its logit is on its own samples; 0 for a class without samples.

    M[a, b] is the mean of logit b over the samples of class a, centred over the classes a (so that the mix of labels
    that a model was trained on has no effect) and over the logits b (so that a constant added to all logits has none).
    The margin of class a is M[a, a].

    >>> margins(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor([1., 1.])
    """
    members = one_hot(y, logits.shape[1]).to(logits)
    sizes = members.sum(dim=0)
    means = (members / sizes.clamp(min=1)).T @ logits
    present = sizes > 0
    centred = means - means[present].mean(dim=0)
    centred = centred - centred.mean(dim=1, keepdim=True)
    return centred.diagonal() * present


def margin(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Minus the mean margin over the classes present.

    It is linear in the logits, like the unhinged loss of van Rooyen, Menon and Williamson (NeurIPS 2015), whose sign
    label noise cannot turn: misclassified samples have no higher weight than others, and all classes have the same
    weight, however few samples they have.

    >>> margin(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor(-1.)
    """
    return -margins(logits, y)[torch.unique(y)].mean()


@cache
def margin_of(c: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of one class: minus its margin. The same function for the same class, so that root data can cache."""

    def loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
        return -margins(logits, y)[c]

    return loss


@cache
def cross_entropy_of(c: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The cross-entropy of the samples of one class."""

    def loss(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
        return cross_entropy(logits[y == c], y[y == c])

    return loss
