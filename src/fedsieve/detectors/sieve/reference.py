"""Reference updates: what benign and label-shifted clients would send, trained by the server on its root data."""

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.core.defense import Root
from fedsieve.core.layout import Layout

_MOST_SUBSETS = 100
_LEAST_NORMALISED = 4  # samples of a subset where the model has BatchNorm, for useful batch statistics
_FOLDS = 5
_SHIFTS = 3


@dataclass(frozen=True)
class ReferenceUpdates:
    """Updates that the server trained from the global model on its root data.

    Attributes:
        root: The root model's update: trained as a client trains, on all root data, [d].
        subsets: Updates trained on one root sample each, or on a few samples of one class, [r, d].
        classes: Class of each subset, [r].
        folds: Fold of each subset, from 0, [r]; each class is spread over the folds.
        held_out: One update per fold, trained on the samples of its subsets with classes balanced, [f, d].
        label_shifted: Updates trained on all root data with classes balanced and every label moved by the same number
            of classes, a different number for each update, [k, d].
        complete: Whether the root data have every class of the task.
    """

    root: Float[Tensor, " d"]
    subsets: Float[Tensor, "r d"]
    classes: Int[Tensor, " r"]
    folds: Int[Tensor, " r"]
    held_out: Float[Tensor, "f d"]
    label_shifted: Float[Tensor, "k d"]
    complete: bool

    @property
    def by_class(self) -> Float[Tensor, "c d"]:
        """Mean of the subsets' updates of each class present, in ascending order of classes."""
        return torch.stack([self.subsets[self.classes == c].mean(dim=0) for c in torch.unique(self.classes)])


def train_references(root: Root, layout: Layout, generator: torch.Generator) -> ReferenceUpdates:
    """Train all reference updates, as one cohort of clients.

    Args:
        root: The root data.
        layout: The model's layout; a model with running statistics has BatchNorm and gets subsets of at least four
            samples, where the class has so many.
        generator: Draws folds and label shifts, which an attacker must not be able to predict.
    """
    x, y = root.data
    present, sizes = torch.unique(y, return_counts=True)
    least = _LEAST_NORMALISED if layout.size > layout.n_parameters else 1
    size = max(least, ceil(len(y) / _MOST_SUBSETS))
    subsets: list[Tensor] = []
    folds: list[int] = []
    for c, count in zip(present.tolist(), sizes.tolist(), strict=True):
        rows = (y == c).nonzero().squeeze(1)
        cut = torch.tensor_split(rows, max(1, count // size))
        # in random order to the folds in turn, starting where the class before stopped
        folds += (torch.randperm(len(cut), generator=generator) + len(folds)).remainder(_FOLDS).tolist()
        subsets += cut
    dealt = [[s for s, f in zip(subsets, folds, strict=True) if f == fold] for fold in sorted(set(folds))]
    held_out = [balanced(y, torch.cat(fold)) for fold in dealt]
    shifts = torch.randperm(root.n_classes - 1, generator=generator)[:_SHIFTS] + 1
    everything = balanced(y, torch.arange(len(y), device=y.device))
    datasets = [(x, y), *((x[rows], y[rows]) for rows in (*subsets, *held_out))]
    datasets += [(x[everything], (y[everything] + shift) % root.n_classes) for shift in shifts.tolist()]
    updates = root.train(datasets)
    trained = torch.split(updates, [1, len(subsets), len(held_out), len(shifts)])
    return ReferenceUpdates(
        root=trained[0][0],
        subsets=trained[1],
        classes=torch.stack([y[rows[0]] for rows in subsets]),
        folds=torch.tensor(folds).to(y.device),
        held_out=trained[2],
        label_shifted=trained[3],
        complete=len(present) == root.n_classes,
    )


def balanced(y: Int[Tensor, " k"], rows: Int[Tensor, " r"]) -> Int[Tensor, " s"]:
    """The rows, sorted by class; rows of rarer classes are repeated so that all classes are equally frequent.

    Args:
        y: Classes of all samples.
        rows: Samples to choose from, as indices into ``y``.

    >>> balanced(torch.tensor([0, 1, 0, 0]), torch.tensor([0, 1, 2]))
    tensor([0, 2, 1, 1])
    """
    groups = [rows[y[rows] == c] for c in torch.unique(y[rows])]
    most = max(len(group) for group in groups)
    return torch.cat([group.repeat(ceil(most / len(group)))[:most] for group in groups])
