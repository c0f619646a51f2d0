"""What the datasets in files of the user's have in common: defaults, paths, the test set, classes."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.data.dataset import Dataset

DEFAULTS: Mapping[str, Any] = {"model": "logistic-regression", "clients": 30, "partition": "iid"}
MAX_CLASSES = 1000  # a label with more values is a quantity or a name


def resolved(file: str) -> Path:
    """The absolute path of a file, given relative to the current directory or to ``~``."""
    try:
        return Path(file).expanduser().absolute()
    except RuntimeError:  # there is no such user
        return Path(file).absolute()


def check_share(name: str, test: float) -> None:
    """Raise :class:`ParameterError`, in the name of the dataset, unless the share of test rows is in (0, 1)."""
    if not 0 < test < 1:
        raise ParameterError(f"{name}: test must be above 0 and below 1, got {test}")


def numbered(values: Sequence[Hashable]) -> tuple[Int[Tensor, " N"], tuple[str, ...]]:
    """Numbers from 0 in the order of the sorted distinct values, which are all text or all integers, and their names.

    >>> numbered(["01", "1", "01"])
    (tensor([0, 1, 0]), ('01', '1'))
    """
    names = sorted(set(values))  # type: ignore[type-var]
    numbers = {value: k for k, value in enumerate(names)}
    return torch.tensor([numbers[value] for value in values], dtype=torch.long), tuple(map(_name, names))


def _name(value: Hashable) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def split(
    name: str,
    n: int,
    share: float,
    generator: torch.Generator,
    owners: Int[Tensor, " n"] | None = None,
    y: Int[Tensor, " n"] | None = None,
) -> tuple[Int[Tensor, " A"], Int[Tensor, " B"]]:
    """Training rows and test rows, each in random order.

    Without owners, the test rows are drawn from all rows alike. With owners, every owner keeps a training row; if there
    can be as many test rows as owners with two rows or more, each of these has one, and the others are drawn so that
    every owner, and every class of an owner, has its share of them.

    Args:
        name: Name of the dataset, for error messages.
        n: Number of rows.
        share: Share of test rows; rounded, but at least one row is in each part. Fewer if there are owners with a
            single row.
        generator: Draws the rows.
        owners: Natural client of each row.
        y: Class of each row; used with owners.

    Raises:
        ParameterError: If n is less than 2, or no owner has two rows.
    """
    if n < 2:
        raise ParameterError(f"{name}: {n} rows can't be split into training and test rows")
    cut = min(max(1, round(share * n)), n - 1)
    order = torch.randperm(n, generator=generator)
    if owners is None:
        return order[cut:], order[:cut]
    # the rows of each owner together, in random order: the first is for training, the second for testing
    drawn = order[owners[order].argsort(stable=True)]
    sizes = owners.bincount()
    sizes = sizes[sizes > 0]
    starts = sizes.cumsum(0) - sizes
    seconds = starts[sizes > 1] + 1
    if not len(seconds):
        raise ParameterError(
            f"{name}: each of the {n} rows has another client, so none can be spared for testing; "
            "clients are who has several rows: name another column or none"
        )
    tested = torch.zeros(n, dtype=torch.bool)
    free = torch.ones(n, dtype=torch.bool)
    free[starts] = False
    if len(seconds) <= cut:
        tested[drawn[seconds]], free[seconds] = True, False
        cut -= len(seconds)
    rest = drawn[free]
    if y is not None:  # every so many rows of this order are as many of each owner's and class's as can be
        rest = rest[(owners[rest] * (int(y.max()) + 1) + y[rest]).argsort(stable=True)]
    cut = min(cut, len(rest))
    if cut:
        step = len(rest) / cut
        tested[
            rest[((torch.arange(cut) + torch.rand((), generator=generator)) * step).long().clamp(max=len(rest) - 1)]
        ] = True
    return order[~tested[order]], order[tested[order]]


def parted(
    x: Tensor,
    y: Int[Tensor, " n"],
    rows: tuple[Int[Tensor, " A"], Int[Tensor, " B"]],
    class_names: tuple[str, ...],
    owners: Int[Tensor, " o"] | None,
    **about: Any,
) -> Dataset:
    """The dataset of samples, of which some rows are for training and the others for testing.

    Args:
        x: All samples.
        y: Their classes.
        rows: Training rows and test rows.
        class_names: Name of each class.
        owners: Natural client of each sample, or of the first ones, which are the training rows; None without.
        about: What else a :class:`Dataset` has.
    """
    train, test = rows
    of_all = owners is not None and len(owners) == len(y)
    return Dataset(
        x[train],
        y[train],
        x[test],
        y[test],
        len(class_names),
        None if owners is None else owners[train],
        class_names=class_names,
        test_owners=owners[test] if owners is not None and of_all else None,
        **about,
    )


def check_number_of_classes(name: str, what: str, n_classes: int) -> None:
    """Raise :class:`ParameterError`, in the name of the dataset, unless there are 2 to ``MAX_CLASSES`` classes."""
    if not 2 <= n_classes <= MAX_CLASSES:
        raise ParameterError(f"{name}: {what} has {n_classes} distinct values; classes must be 2 to {MAX_CLASSES}")
