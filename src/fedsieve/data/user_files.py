"""What the datasets in files of the user's have in common: defaults, paths, the test set, classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError

DEFAULTS: Mapping[str, Any] = {"model": "logistic-regression", "clients": 30, "partition": "iid"}
MAX_CLASSES = 1000  # a label with more values is a quantity or a name


def resolved(file: str) -> Path:
    """The absolute path of a file, given relative to the current directory or to ``~``."""
    return Path(file).expanduser().absolute()


def check_share(name: str, test: float) -> None:
    """Raise :class:`ParameterError`, in the name of the dataset, unless the share of test rows is in (0, 1)."""
    if not 0 < test < 1:
        raise ParameterError(f"{name}: test must be above 0 and below 1, got {test}")


def split(name: str, n: int, share: float, generator: torch.Generator) -> tuple[Int[Tensor, " A"], Int[Tensor, " B"]]:
    """Training rows and test rows, each in the order in which they are drawn.

    Args:
        name: Name of the dataset, for error messages.
        n: Number of rows.
        share: Share of test rows; rounded, but at least one row is in each part.
        generator: Draws the rows.

    Raises:
        ParameterError: If n is less than 2.
    """
    if n < 2:
        raise ParameterError(f"{name}: {n} rows can't be split into training and test rows")
    cut = min(max(1, round(share * n)), n - 1)
    order = torch.randperm(n, generator=generator)
    return order[cut:], order[:cut]


def label_classes(name: str, what: str, values: Any) -> tuple[Int[Tensor, " N"], int]:
    """Classes 0 to c - 1 in the order of the sorted distinct values, [N], and c.

    Args:
        name: Name of the dataset, for error messages.
        what: Name of the values, for error messages.
        values: N values of one type.

    Raises:
        ParameterError: If c is not in 2 to ``MAX_CLASSES``.

    >>> label_classes("csv", "label 'y'", ["b", "a", "b"])
    (tensor([1, 0, 1]), 2)
    """
    distinct, codes = np.unique(values, return_inverse=True)
    if not 2 <= len(distinct) <= MAX_CLASSES:
        raise ParameterError(f"{name}: {what} has {len(distinct)} distinct values; classes must be 2 to {MAX_CLASSES}")
    return torch.from_numpy(codes.astype(np.int64)), len(distinct)
