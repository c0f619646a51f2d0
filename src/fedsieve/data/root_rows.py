"""Which training samples are the server's root dataset."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.errors import ParameterError

DEFAULT_SIZE = 100


def quotas(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` split in proportion to ``shares``, in integers that sum to it (largest remainders).

    >>> quotas(10, [0.5, 0.28, 0.22])
    [5, 3, 2]
    """
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda k: (counts[k] - exact[k], k))
    for k in by_remainder[: total - sum(counts)]:
        counts[k] += 1
    return counts


def class_shares(n_classes: int, bias: float | None, label: int) -> list[float]:
    """Share of each class in the root dataset: ``bias`` of class ``label``, the rest in equal parts; None: all equal.

    >>> class_shares(3, 0.5, 0)
    [0.5, 0.25, 0.25]
    """
    if bias is None or n_classes == 1:
        return [1 / n_classes] * n_classes
    return [bias if k == label else (1 - bias) / (n_classes - 1) for k in range(n_classes)]


def root_indices(
    y: Int[Tensor, " N"],
    n_classes: int,
    size: int | None,
    bias: float | None,
    label: int,
    generator: torch.Generator,
    owners: Int[Tensor, " N"] | None = None,
    class_name: Callable[[int], str] = "class {}".format,
) -> Int[Tensor, " size"]:
    """Indices of the samples of the server's root dataset.

    Args:
        y: Classes of all training samples.
        n_classes: Number of classes.
        size: Number of root samples. None: the largest number up to ``DEFAULT_SIZE`` that is at most a tenth of the
            training samples (or one of each class, if that is more) and takes no class's last samples: at most half of
            a class where ``bias`` is None.
        bias: Share of class ``label``, in [0, 1]; all other classes have equal shares of the rest. None: all have.
        label: A class.
        generator: Draws the samples of each class.
        owners: Natural client of each sample; none loses its last sample, as far as there are others.
        class_name: Names a class in messages.

    Raises:
        ParameterError: If the classes have too few samples.
    """
    members = [torch.nonzero(y == k).squeeze(1) for k in range(n_classes)]
    drawn = [rows[torch.randperm(len(rows), generator=generator)] for rows in members]
    counts, shares = [len(rows) for rows in drawn], class_shares(n_classes, bias, label)

    def remedies(most: int, short: int) -> str:
        choices = [f"root.size={size} is possible"] if (size := _largest(most, 0, shares, counts)) else []
        if n_classes > 2 and shares[short] < 1:
            choices.append(f"root.bias=0 with root.label={short} leaves that class out")
        return ", ".join([*choices, "root.size=0 suits defenses that need no root data"])

    if size is not None:
        wanted = quotas(size, shares)
        short = next((k for k in range(n_classes) if wanted[k] > counts[k]), None)
        if short is not None:
            raise ParameterError(
                f"root.size={size} takes {wanted[short]} samples of {class_name(short)}, of which the training data "
                f"have {counts[short]}; {remedies(size, short)}"
            )
        return _chosen(drawn, wanted, owners)[0]
    least = min(sum(share > 0 for share in shares), DEFAULT_SIZE)
    most = min(DEFAULT_SIZE, max(len(y) // 10, least))
    spare = counts if bias is not None else [count // 2 for count in counts]
    size = _largest(most, least, shares, spare)
    if not size:
        rarest = min((k for k in range(n_classes) if shares[k] > 0), key=lambda k: spare[k] / shares[k])
        raise ParameterError(
            f"root data can't be taken by default, without root.size: {class_name(rarest)} has {counts[rarest]} "
            f"training samples; {remedies(most, rarest)}"
        )
    for smaller in range(size, least - 1, -1):
        found, whole = _chosen(drawn, quotas(smaller, shares), owners)
        if whole:
            return found
    raise ParameterError(
        f"root data can't be taken by default, without root.size: natural clients would lose their last sample; "
        f"root.size={size} takes it, root.size=0 suits defenses that need no root data"
    )


def _largest(most: int, least: int, shares: Sequence[float], spare: Sequence[int]) -> int:
    """The largest size for which no class gives more than it can spare; 0 if there is none of at least ``least``."""
    # the quota of a class is at least its exact share less one
    bounds = [int((left + 1) / share) + 1 for left, share in zip(spare, shares, strict=True) if share > 0]
    for size in range(min([most, *bounds]), max(least, 1) - 1, -1):
        if all(count <= left for count, left in zip(quotas(size, shares), spare, strict=True)):
            return size
    return 0


def _chosen(drawn: Sequence[Tensor], wanted: Sequence[int], owners: Tensor | None) -> tuple[Tensor, bool]:
    """The first rows of each class, last ones of an owner only for want of others; and whether there were none."""
    if owners is None:
        return torch.cat([rows[:count] for rows, count in zip(drawn, wanted, strict=True)]), True
    left: list[int] = owners.bincount().tolist()
    chosen: list[int] = []
    whole = True
    for rows, count in zip(drawn, wanted, strict=True):
        taken: list[int] = []
        last: list[int] = []
        for row, owner in zip(rows.tolist(), owners[rows].tolist(), strict=True):
            if len(taken) == count:
                break
            if left[owner] > 1:
                taken.append(row)
                left[owner] -= 1
            else:
                last.append(row)
        whole = whole and len(taken) == count
        chosen += taken + last[: count - len(taken)]
    return torch.tensor(chosen, dtype=torch.long), whole
