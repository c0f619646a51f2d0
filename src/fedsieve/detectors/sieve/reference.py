"""Reference updates: what benign clients would send, trained by the server on its root data."""

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.core.defense import Root
from fedsieve.core.layout import Layout

_MOST_SUBSETS = 100
_MOST_SINGLE = 10
_LEAST_NORMALISED = 4  # samples of a subset where the model has BatchNorm, for useful batch statistics
_FOLDS = 5


@dataclass(frozen=True)
class ReferenceUpdates:
    """Updates that the server trained from the global model on its root data; parameters only.

    Attributes:
        root: The root model's update: trained as a client trains, on all root data, [p].
        subsets: Updates trained on one root sample each, or on a few samples of one class, [r, p].
        classes: Class of each subset, [r].
        held_out: Updates of other sets of root samples: one per fold with classes balanced, then one for half of the
            samples of a class, for at most ten classes, [h, p].
        others: Which subsets have none of a held-out update's samples, [h, r].
        n_balanced: How many of the held-out updates are those of folds.
        complete: Whether the root data have every class of the task.
    """

    root: Float[Tensor, " p"]
    subsets: Float[Tensor, "r p"]
    classes: Int[Tensor, " r"]
    held_out: Float[Tensor, "h p"]
    others: Bool[Tensor, "h r"]
    n_balanced: int
    complete: bool

    @property
    def by_class(self) -> Float[Tensor, "c p"]:
        """Mean of the subsets' updates of each class present, in ascending order of classes."""
        return torch.stack([self.subsets[self.classes == c].mean(dim=0) for c in torch.unique(self.classes)])


def train_references(root: Root, layout: Layout, generator: torch.Generator) -> ReferenceUpdates:
    """Train all reference updates, as one cohort of clients.

    Args:
        root: The root data.
        layout: The model's layout; a model with running statistics has BatchNorm and gets subsets of at least four
            samples, where the class has so many.
        generator: Draws subsets, folds and halves, which an attacker must not be able to predict.
    """
    x, y = root.data
    present, sizes = torch.unique(y, return_counts=True)
    least = _LEAST_NORMALISED if layout.size > layout.n_parameters else 1
    size = max(least, ceil(len(y) / _MOST_SUBSETS))
    subsets: list[Tensor] = []
    classes: list[int] = []
    folds: list[int] = []
    for c, count in zip(present.tolist(), sizes.tolist(), strict=True):
        rows = (y == c).nonzero().squeeze(1)
        rows = rows[torch.randperm(count, generator=generator).to(rows.device)]
        cut = torch.tensor_split(rows, max(1, count // size))
        # in random order to the folds in turn, starting where the class before stopped
        folds += (torch.randperm(len(cut), generator=generator) + len(folds)).remainder(_FOLDS).tolist()
        subsets += cut
        classes += [c] * len(cut)
    fold_of, class_of = torch.tensor(folds), torch.tensor(classes)
    members = [fold_of == fold for fold in torch.unique(fold_of)] if len(set(folds)) > 1 else []
    held_out = [balanced(y, _joined(subsets, rows)) for rows in members]
    n_balanced = len(members)
    for k in torch.randperm(len(present), generator=generator)[:_MOST_SINGLE].tolist():
        own = (class_of == int(present[k])).nonzero().squeeze(1)
        if len(own) > 1:
            half = torch.zeros_like(fold_of, dtype=torch.bool)
            half[own[torch.randperm(len(own), generator=generator)[: len(own) // 2]]] = True
            members.append(half)
            held_out.append(_joined(subsets, half))
    updates = root.train([(x, y), *((x[rows], y[rows]) for rows in (*subsets, *held_out))])
    updates = updates[:, : layout.n_parameters]
    trained = torch.split(updates, [1, len(subsets), len(held_out)])
    return ReferenceUpdates(
        root=trained[0][0],
        subsets=trained[1],
        classes=class_of.to(y.device),
        held_out=trained[2],
        others=(~torch.stack(members) if members else torch.zeros(0, len(subsets), dtype=torch.bool)).to(y.device),
        n_balanced=n_balanced,
        complete=len(present) == root.n_classes,
    )


def _joined(subsets: list[Tensor], chosen: Bool[Tensor, " r"]) -> Int[Tensor, " k"]:
    return torch.cat([rows for rows, here in zip(subsets, chosen.tolist(), strict=True) if here])


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
