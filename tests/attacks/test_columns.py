"""Sums over clients by coordinate: equal to torch's in float64, for all sizes of numbers."""

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.columns import deviations, sum_signs


def numbers(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of all sizes, in several blocks of columns; columns of zeros, equal rows, and sums that are 0."""
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=g) * 10 ** torch.linspace(-37, 37, d)
    x[:, ::7] = 0
    x[:, 3::11] = x[:1, 3::11]
    if n > 1:
        x[1, 5::13] = -x[0, 5::13]
        x[2:, 5::13] = 0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 3000), (7, 2000), (600, 2500)])
def test_as_torch_computes_them(n: int, d: int, dtype: torch.dtype) -> None:
    x = numbers(n, d, dtype)
    before = x.clone()
    if dtype == torch.float32:
        assert torch.equal(sum_signs(x), x.sum(dim=0, dtype=torch.float64).sign().float())
    for correction in (0, 1)[: min(n, 2)]:
        expected = x.double().std(dim=0, correction=correction).to(dtype)
        torch.testing.assert_close(deviations(x, correction), expected, rtol=1e-6, atol=1e-40)
        assert not deviations(x, correction)[::7].any()
    assert torch.equal(x, before)


def test_not_finite() -> None:
    x = torch.tensor([[torch.inf, torch.nan, 1.0, torch.inf], [1.0, 1.0, 1.0, -torch.inf]])
    assert sum_signs(x).tolist() == x.sum(dim=0).sign().tolist() == [1, 0, 1, 0]
    assert deviations(x).isnan().tolist() == [True, True, False, True]
