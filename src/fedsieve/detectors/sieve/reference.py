"""Reference updates: what benign clients would send, trained by the server on its root data."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
        classes: Class of each subset, [r]; on the CPU.
        held_out: Updates of other sets of root samples: one per fold with classes balanced, then one for half of the
            samples of a class, for at most ten classes, [h, p].
        others: Which subsets have none of a held-out update's samples, [h, r]; on the CPU.
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


def train_references(root: Root, layout: Layout, generator: torch.Generator) -> ReferenceUpdates:
    """Train all reference updates, as one cohort of clients.

    Args:
        root: The root data.
        layout: The model's layout; a model with running statistics has BatchNorm and gets subsets of at least four
            samples, where the class has so many.
        generator: Draws subsets, folds and halves, which an attacker must not be able to predict.
    """
    x, y = root.data
    labels = y.tolist()  # sets of samples are lists of rows: tensors of this size would cost a launch a step
    rows_of = _by_class(labels, range(len(labels)))
    present = list(rows_of)
    least = _LEAST_NORMALISED if layout.size > layout.n_parameters else 1
    size = max(least, ceil(len(labels) / _MOST_SUBSETS))
    subsets: list[list[int]] = []
    classes: list[int] = []
    fold_of: list[int] = []
    for c in present:
        cut = _parts(_shuffled(rows_of[c], generator), max(1, len(rows_of[c]) // size))
        # in random order to the folds in turn, starting where the class before stopped
        first = len(fold_of)
        fold_of += [(first + k) % _FOLDS for k in _shuffled(range(len(cut)), generator)]
        subsets += cut
        classes += [c] * len(cut)
    folds = [[k for k, its in enumerate(fold_of) if its == fold] for fold in range(_FOLDS)]
    folds = [fold for fold in folds if fold] if len(subsets) > 1 else []
    halves = []
    for c in _shuffled(present, generator)[:_MOST_SINGLE]:
        own = [k for k, its in enumerate(classes) if its == c]
        if len(own) > 1:
            halves.append(sorted(_shuffled(own, generator)[: len(own) // 2]))
    members = [*folds, *halves]
    held_out = [[row for k in chosen for row in subsets[k]] for chosen in members]
    held_out[: len(folds)] = [balanced(labels, rows) for rows in held_out[: len(folds)]]
    others = torch.ones(len(members), len(subsets), dtype=torch.bool)
    for k, chosen in enumerate(members):
        others[k, chosen] = False
    sets = [*subsets, *held_out]
    every, sizes = torch.tensor([row for rows in sets for row in rows]).to(y.device), [len(rows) for rows in sets]
    samples = zip(torch.split(x[every], sizes), torch.split(y[every], sizes), strict=True)
    updates = root.train([(x, y), *samples])[:, : layout.n_parameters]
    return ReferenceUpdates(
        root=updates[0],
        subsets=updates[1 : 1 + len(subsets)],
        classes=torch.tensor(classes),
        held_out=updates[1 + len(subsets) :],
        others=others,
        n_balanced=len(folds),
        complete=len(present) == root.n_classes,
    )


def _shuffled(rows: Sequence[int], generator: torch.Generator) -> list[int]:
    return [rows[k] for k in torch.randperm(len(rows), generator=generator).tolist()]


def _by_class(labels: Sequence[int], rows: Iterable[int]) -> dict[int, list[int]]:
    """The rows of each class among them, in ascending order of classes."""
    found: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        found[labels[row]].append(row)
    return dict(sorted(found.items()))


def _parts(rows: list[int], count: int) -> list[list[int]]:
    """The rows in ``count`` parts, in order; the first ones are one longer where sizes can't be equal."""
    size, longer = divmod(len(rows), count)
    stops = list(accumulate(size + (k < longer) for k in range(count)))
    return [rows[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def balanced(labels: Sequence[int], rows: Sequence[int]) -> list[int]:
    """The rows, sorted by class; rows of rarer classes are repeated so that all classes are equally frequent.

    Args:
        labels: Classes of all samples.
        rows: Samples to choose from, as indices into ``labels``.

    >>> balanced([0, 1, 0, 0], [0, 1, 2])
    [0, 2, 1, 1]
    """
    groups = _by_class(labels, rows).values()
    most = max(len(group) for group in groups)
    return [row for group in groups for row in (group * ceil(most / len(group)))[:most]]
