"""Sorted columns and means of ranks, against plain loops and by hand."""

import pytest
import torch
from torch import Tensor

from fedsieve.core import linalg, ranks


def table(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TestSortedColumns:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_against_python(self, dtype: torch.dtype) -> None:
        x = table(9, 4).round(decimals=1).to(dtype)  # with ties
        before = x.clone()
        found = ranks.sorted_columns(x)
        assert found.T.tolist() == [sorted(column) for column in x.T.tolist()]
        assert found.dtype == dtype
        assert torch.equal(x, before)

    def test_shares_no_memory(self) -> None:
        x = torch.arange(3.0)[:, None]  # in order already
        ranks.sorted_columns(x).zero_()
        assert x.squeeze().tolist() == [0, 1, 2]

    def test_a_negated_view(self) -> None:
        x = table(5, 6)
        negated = torch.complex(x, -x).conj().imag
        assert torch.equal(ranks.sorted_columns(negated), x.sort(dim=0).values)

    def test_a_slice(self) -> None:
        x = table(5, 6)
        assert torch.equal(ranks.sorted_columns(x[:, 2:5]), x[:, 2:5].sort(dim=0).values)


class TestMeanOfRanks:
    X = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [93.0, 0.0]])

    @pytest.mark.parametrize(
        ("start", "stop", "mean", "weights"),
        [
            (1, 3, [3, 5], [1 / 6, 5 / 12, 5 / 12, 0]),
            (0, 4, [25, 3.75], [0.25] * 4),
            (0, 1, [1, 0], [0.5, 0, 0, 0.5]),
            (3, 4, [93, 5], [1 / 6, 1 / 6, 1 / 6, 0.5]),
        ],
    )
    def test_by_hand(self, start: int, stop: int, mean: list[float], weights: list[float]) -> None:
        found = ranks.mean_of_ranks(self.X, start, stop)
        assert [t.tolist() for t in found] == [pytest.approx(mean), pytest.approx(weights)]

    def test_only_some_columns_count(self) -> None:
        mean, weights = ranks.mean_of_ranks(self.X, 1, 3, torch.tensor([True, False]))
        assert (mean.tolist(), weights.tolist()) == ([3, 5], [0, 0.5, 0.5, 0])
        mean, weights = ranks.mean_of_ranks(self.X, 1, 3, torch.tensor([False, False]))
        assert (mean.tolist(), weights.tolist()) == ([3, 5], [0, 0, 0, 0])

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, counted = table(7, 3000), torch.arange(3000) % 3 == 0
        expected = ranks.mean_of_ranks(x, 2, 5, counted)
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        for found, other in zip(ranks.mean_of_ranks(x, 2, 5, counted), expected, strict=True):
            torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-14)
