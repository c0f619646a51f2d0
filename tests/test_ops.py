"""Pure tensor functions, against plain loops."""

import pytest
import torch
from torch import Tensor

from fedsieve import ops


def table(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TestColumnBlocks:
    @pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 5000), (1000, 5000), (7, 1024), (7, 1025), (2, 0)])
    def test_every_column_once_in_order(self, n: int, d: int) -> None:
        x = torch.zeros(n, d)
        columns = [j for block in ops.column_blocks(x) for j in range(*block.indices(d))]
        assert columns == list(range(d))
        assert all(block.stop <= d for block in ops.column_blocks(x))

    def test_width_follows_the_budget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ops, "_BLOCK_BYTES", 8 * 10 * 2000)
        widths = [b.stop - b.start for b in ops.column_blocks(torch.zeros(10, 5000, dtype=torch.float64))]
        assert widths == [2000, 2000, 1000]

    def test_width_is_never_tiny(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ops, "_BLOCK_BYTES", 1)
        widths = [b.stop - b.start for b in ops.column_blocks(torch.zeros(10, 2500))]
        assert widths == [1024, 1024, 452]


class TestSortedColumns:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_against_python(self, dtype: torch.dtype) -> None:
        x = table(9, 4, dtype).round(decimals=1)  # with ties
        before = x.clone()
        found = ops.sorted_columns(x)
        assert found.T.tolist() == [sorted(column) for column in x.T.tolist()]
        assert found.dtype == dtype
        assert torch.equal(x, before)

    def test_shares_no_memory(self) -> None:
        x = torch.arange(3.0)[:, None]  # in order already
        ops.sorted_columns(x).zero_()
        assert x.squeeze().tolist() == [0, 1, 2]

    def test_a_slice(self) -> None:
        x = table(5, 6)
        assert torch.equal(ops.sorted_columns(x[:, 2:5]), x[:, 2:5].sort(dim=0).values)


class TestUniformWeights:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_share(self, dtype: torch.dtype) -> None:
        found = ops.uniform_weights(torch.tensor([True, False, True, True, True]), dtype)
        assert found.tolist() == [0.25, 0, 0.25, 0.25, 0.25]
        assert found.dtype == dtype

    def test_nobody(self) -> None:
        assert ops.uniform_weights(torch.zeros(3, dtype=torch.bool), torch.float32).tolist() == [0, 0, 0]


class TestPairwiseSqDistances:
    def test_against_loops(self) -> None:
        x = table(6, 1500)
        found = ops.pairwise_sq_distances(x)
        rows = x.tolist()
        expected = [[sum((a - b) ** 2 for a, b in zip(r, s, strict=True)) for s in rows] for r in rows]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-9)

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = table(6, 3000)
        monkeypatch.setattr(ops, "_BLOCK_BYTES", 1 << 30)
        whole = ops.pairwise_sq_distances(x)
        monkeypatch.setattr(ops, "_BLOCK_BYTES", 1)
        torch.testing.assert_close(ops.pairwise_sq_distances(x), whole, rtol=1e-12, atol=0)

    def test_neighbours_far_from_the_origin(self) -> None:
        # |(1e6, 0) - (1e6, 1)|^2 = 1; a Gram matrix of rows that are not centred would lose it in float32
        found = ops.pairwise_sq_distances(torch.tensor([[1e6, 0.0], [1e6, 1.0]]))
        assert found.tolist() == [[0, 1], [1, 0]]
        assert found.dtype == torch.float64

    def test_neighbours_far_from_the_origin_in_float64(self) -> None:
        near = table(4, 30)
        expected = ops.pairwise_sq_distances(near)
        torch.testing.assert_close(ops.pairwise_sq_distances(near + 1e7), expected, rtol=1e-6, atol=0)

    def test_equal_rows_and_one_row(self) -> None:
        found = ops.pairwise_sq_distances(table(1, 50).expand(4, -1))
        assert found.tolist() == [[0.0] * 4] * 4
        assert ops.pairwise_sq_distances(table(1, 5)).tolist() == [[0]]

    def test_input_is_unchanged(self) -> None:
        x = table(4, 20)
        before = x.clone()
        ops.pairwise_sq_distances(x)
        assert torch.equal(x, before)
