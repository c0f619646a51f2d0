"""Which rows are the reference data, the root dataset, of an audit."""

from collections.abc import Collection

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.data.dataset import Dataset
from fedsieve.data.root_rows import DEFAULT_SIZE


def reference_rows(
    data: Dataset, sites: Collection[int], generator: torch.Generator, size: int | None = None
) -> Int[Tensor, " r"]:
    """Training rows drawn evenly over classes, and of each class evenly over sites.

    No site gives more than half of its rows of a class, so that none is left without any.

    Args:
        data: With owners.
        sites: From which rows may be drawn.
        generator: Draws.
        size: Number of rows; None: a tenth of the training rows, at most 100.

    Raises:
        ParameterError: If these sites have too few rows, or none of some class.
    """
    assert data.owners is not None
    wanted = size or max(data.n_classes, min(DEFAULT_SIZE, len(data.y_train) // 10))
    drawn: list[int] = []
    for k in range(data.n_classes):
        queues = []
        for site in sorted(sites):
            rows = ((data.y_train == k) & (data.owners == site)).nonzero().squeeze(1)
            shuffled = rows[torch.randperm(len(rows), generator=generator)].tolist()
            queues.append(shuffled[: len(rows) // 2])
        order = torch.randperm(len(queues), generator=generator).tolist()  # no site is first in every class
        turns = [
            queues[i][turn] for turn in range(max(map(len, queues), default=0)) for i in order if turn < len(queues[i])
        ]
        quota = wanted // data.n_classes + (k < wanted % data.n_classes)
        if not turns:
            raise ParameterError(
                f"the reference data need two rows or more of {data.class_name(k)} at one of the sites that they are "
                "drawn from"
            )
        if size is not None and len(turns) < quota:
            raise ParameterError(
                f"{size} reference rows need {quota} of {data.class_name(k)}, but half of what the sites have is "
                f"{len(turns)}"
            )
        drawn += turns[:quota]
    return torch.tensor(sorted(drawn))
