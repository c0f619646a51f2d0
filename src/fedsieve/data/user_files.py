"""What the datasets in files of the user's have in common: defaults, paths, the test set, classes."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError

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


def numbered(values: Sequence[Hashable]) -> Int[Tensor, " N"]:
    """Numbers from 0 in the order of the sorted distinct values, which are all text or all integers.

    >>> numbered(["01", "1", "01"])
    tensor([0, 1, 0])
    """
    numbers = {value: k for k, value in enumerate(sorted(set(values)))}  # type: ignore[type-var]
    return torch.tensor([numbers[value] for value in values], dtype=torch.long)


def split(
    name: str, n: int, share: float, generator: torch.Generator, owners: Int[Tensor, " n"] | None = None
) -> tuple[Int[Tensor, " A"], Int[Tensor, " B"]]:
    """Training rows and test rows, each in the order in which they are drawn.

    Args:
        name: Name of the dataset, for error messages.
        n: Number of rows.
        share: Share of test rows; rounded, but at least one row is in each part. Fewer if there are owners with a
            single row.
        generator: Draws the rows.
        owners: Natural client of each row; each keeps a training row.

    Raises:
        ParameterError: If n is less than 2, or no owner has two rows.
    """
    if n < 2:
        raise ParameterError(f"{name}: {n} rows can't be split into training and test rows")
    cut = min(max(1, round(share * n)), n - 1)
    order = torch.randperm(n, generator=generator)
    if owners is None:
        return order[cut:], order[:cut]
    left: list[int] = owners.bincount().tolist()
    tested = torch.zeros(n, dtype=torch.bool)
    for k, owner in enumerate(owners[order].tolist()):
        if cut and left[owner] > 1:
            tested[k], left[owner], cut = True, left[owner] - 1, cut - 1
    if not tested.any():
        raise ParameterError(
            f"{name}: each of the {n} rows has another client, so none can be spared for testing; "
            "clients are who has several rows: name another column or none"
        )
    return order[~tested], order[tested]


def check_number_of_classes(name: str, what: str, n_classes: int) -> None:
    """Raise :class:`ParameterError`, in the name of the dataset, unless there are 2 to ``MAX_CLASSES`` classes."""
    if not 2 <= n_classes <= MAX_CLASSES:
        raise ParameterError(f"{name}: {what} has {n_classes} distinct values; classes must be 2 to {MAX_CLASSES}")
