"""Lengths and cosines against float64, at every size that numbers can have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.detectors.sieve.cosines import lengths_and_cosines

F32, F64 = torch.float32, torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def expected(rows: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, of rows scaled by their largest number first."""
    largest = rows.double().abs().amax(dim=1, keepdim=True)
    scaled = torch.where(largest > 0, rows.double() / largest, 0)
    lengths = scaled.norm(dim=1)
    units = torch.where(lengths[:, None] > 0, scaled / lengths[:, None], 0)
    return lengths * largest[:, 0], units @ units.T


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
    d=st.sampled_from([1, 3, 2047, 2048, 2049, 5000]),
    exponents=st.lists(st.sampled_from([-43, -25, -12, -3, 0, 2, 17, 30, 37, None]), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([F32, F64]),
)
def test_against_float64(sizes: list[int], d: int, exponents: list[int | None], seed: int, dtype: torch.dtype) -> None:
    rows = normal(sum(sizes), d, seed=seed) + normal(d, seed=seed + 1)
    for k in range(len(rows)):
        exponent = exponents[k % len(exponents)]
        rows[k] *= 0 if exponent is None else 10.0 ** (exponent if dtype == F32 else 2.5 * exponent)
    rows = rows.to(dtype)
    lengths, cosines = lengths_and_cosines(*rows.split(sizes))
    of_rows, between = expected(rows)
    close = 1e-6 if dtype == F32 else 1e-12
    torch.testing.assert_close(lengths, of_rows, rtol=close, atol=0.0)
    torch.testing.assert_close(cosines, between, rtol=0.0, atol=3 * close)


def test_long_rows_keep_their_digits() -> None:
    """A hundred thousand equal numbers, of which sums in float32 alone would lose some."""
    rows = torch.full((2, 100_003), 0.1)
    lengths, cosines = lengths_and_cosines(rows[:1], rows[1:])
    assert lengths.tolist() == pytest.approx([float(rows[0, 0]) * 100_003**0.5] * 2, rel=1e-6)
    assert float(cosines[0, 1]) == pytest.approx(1, abs=1e-7)


def test_columns_of_a_wider_matrix() -> None:
    """Parameters are the first columns of updates that hold running statistics as well."""
    rows = normal(5, 5000).float()
    found, plain = lengths_and_cosines(rows[:, :4321]), lengths_and_cosines(rows[:, :4321].clone())
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_input_is_unchanged() -> None:
    for scale in (1.0, 1e30):
        rows = scale * normal(3, 40).float()
        before = rows.clone()
        lengths_and_cosines(rows)
        assert torch.equal(rows, before)
