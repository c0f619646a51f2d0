"""Clipping to a bound or the median length, and the mean of the clipped."""

import pytest
import torch
from torch import Tensor

from fedsieve.core import linalg
from fedsieve.core.clipping import check_max_norm, clip_updates, clipped_mean
from fedsieve.core.errors import ParameterError


def table(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("max_norm", [None, 2.0])
def test_updates_to_a_bound_or_the_median(max_norm: float | None) -> None:
    x = table(5, 7)
    clipped, bound = clip_updates(x, max_norm)
    assert bound == (sorted(linalg.row_norms(x).tolist())[2] if max_norm is None else 2)
    assert torch.equal(clipped, linalg.clip_rows(x, bound))


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_bounds_that_are_none(bound: float) -> None:
    with pytest.raises(ParameterError, match=f"^rule: max_norm must be finite and positive, got {bound}$"):
        check_max_norm("rule", bound)


def test_bounds_that_are_some() -> None:
    check_max_norm("rule", None)
    check_max_norm("rule", 1e-300)


def test_mean_of_the_clipped() -> None:
    x = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.0, 10.0]])
    mean, bound = clipped_mean(x, rows=torch.tensor([True, True, False]))
    assert (mean.tolist(), bound) == ([4.5, 6.0], 10)
    mean, bound = clipped_mean(x, rows=torch.tensor([False] * 3))
    assert (mean.tolist(), bound) == ([0, 0], 10)
