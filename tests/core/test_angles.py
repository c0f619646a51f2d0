"""Cosine distances, against plain loops."""

import pytest
import torch
from torch import Tensor

from fedsieve.core import linalg
from fedsieve.core.angles import cosine_distances


def table(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def angles(rows: Tensor) -> Tensor:
    """Half the squared distance of the rows scaled to length 1."""
    units = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return torch.stack([(units - unit).square().sum(dim=1) for unit in units]) / 2


class TestCosineDistances:
    @pytest.mark.parametrize("origin", [None, table(1, 30, seed=2)[0]])
    def test_against_loops(self, origin: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
        x = table(6, 30)
        rows = x if origin is None else x + origin
        expected = [[1 - float(a @ b / (a.norm() * b.norm())) for b in rows] for a in rows]
        found = cosine_distances(x, origin)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        assert torch.equal(found, found.T)

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, origin = table(5, 3000), table(1, 3000, seed=1)[0]
        expected = cosine_distances(x, origin)
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        torch.testing.assert_close(cosine_distances(x, origin), expected, rtol=1e-12, atol=1e-14)

    def test_parallel_rows_are_at_distance_0(self) -> None:
        v, w = table(2, 50)
        rows = [v * factor for factor in (1, 1 / 3, 7, 1e-9, 0.1, 1e9)] + [-v / 3, w]
        found = cosine_distances(torch.stack(rows))
        assert not found[:6, :6].any()
        assert found[6, :6].tolist() == pytest.approx([2] * 6)
        assert (found[7, :7] > 0.1).all()

    def test_nearly_parallel_rows_are_not(self) -> None:
        found = cosine_distances(torch.tensor([[1.0, 0.0], [1.0, 1e-5], [0.0, 1.0]], dtype=torch.float64))
        assert found[0, 1].item() == pytest.approx(5e-11, rel=1e-4)

    def test_rows_of_zeros(self) -> None:
        x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
        assert cosine_distances(x).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
        moved = cosine_distances(x - torch.ones(2), torch.ones(2))
        assert torch.equal(moved, cosine_distances(x))

    def test_tiny_rows(self) -> None:
        x = torch.tensor([[1e-30, 0.0], [0.0, 1e-38], [1e30, 0.0]])
        assert cosine_distances(x).tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


class TestManyColumns:
    """From so many float32 columns on, sums within a block of columns are in float32."""

    D = 3 * linalg._MANY + 5

    @pytest.fixture
    def x(self) -> Tensor:
        return table(7, self.D, torch.float32)

    @pytest.mark.parametrize("length", [None, 1.0, 1e3])
    def test_angles(self, x: Tensor, length: float | None) -> None:
        origin = None if length is None else length * table(1, self.D, torch.float32, seed=3)[0]
        x[4], x[5] = 0.3 * x[3], x[3] + 1e-4 * x[5]
        found = cosine_distances(x, origin)
        expected = angles(x.double() if origin is None else x.double() + origin.double())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-13)
        assert torch.equal(found, found.T)

    def test_angles_of_zeros_and_of_rows_that_the_origin_takes_to_zero(self, x: Tensor) -> None:
        x[2] = 0
        expected = angles(x.double())
        expected[2], expected[:, 2], expected[2, 2] = 1, 1, 0
        torch.testing.assert_close(cosine_distances(x), expected, rtol=1e-5, atol=1e-13)
        assert not cosine_distances(x[2:3].expand(3, -1)).any()
        origin = -x[4].clone()
        expected = angles(x.double() + origin.double())
        expected[4], expected[:, 4], expected[4, 4] = 1, 1, 0
        torch.testing.assert_close(cosine_distances(x, origin), expected, rtol=1e-5, atol=1e-13)

    def test_parallel_rows_are_at_distance_0(self, x: Tensor) -> None:
        x[1], x[2], x[3] = 2 * x[0], 0.25 * x[0], x[0]
        assert not cosine_distances(x)[:4, :4].any()
        assert (cosine_distances(x)[4:, :4] > 0.9).all()
