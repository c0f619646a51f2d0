"""The best split in two, against every possible split; components and HDBSCAN by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from fedsieve.core.clustering import best_cut, gram_components, hdbscan, one_blas_thread


class TestBestCut:
    def within(self, values: list[float], above: list[bool]) -> float:
        """Sum of squares within the two parts."""
        total = 0.0
        for side in (True, False):
            group = [v for v, a in zip(values, above, strict=True) if a == side]
            assert group
            total += sum((v - sum(group) / len(group)) ** 2 for v in group)
        return total

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(values=st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=12).filter(lambda v: len(set(v)) > 1))
    def test_against_every_cut(self, values: list[float]) -> None:
        best = min(self.within(values, [v > cut for v in values]) for cut in sorted(set(values))[:-1])
        above = best_cut(np.array(values)).tolist()
        assert self.within(values, above) == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert min(v for v, a in zip(values, above, strict=True) if a) > max(
            v for v, a in zip(values, above, strict=True) if not a
        )

    def test_by_hand(self) -> None:
        assert best_cut(np.array([9.0, 1.0, 8.0, 0.0, 1.0])).tolist() == [True, False, True, False, False]


class TestGramComponents:
    X = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [6.0, 1.0], [9.0, 0.0]], dtype=torch.float64)

    def test_keep_distances(self) -> None:
        found = torch.from_numpy(gram_components(self.X @ self.X.T, 2))
        torch.testing.assert_close(torch.cdist(found, found), torch.cdist(self.X, self.X))
        assert found.mean(dim=0).tolist() == pytest.approx([0, 0], abs=1e-12)
        assert found[:, 0].var() > found[:, 1].var()

    def test_the_sign_follows_the_cubes(self) -> None:
        for x in (self.X, -self.X):
            assert (gram_components(x @ x.T, 2) ** 3).sum(axis=0).min() > 0

    def test_the_gram_matrix_need_not_be_centred(self) -> None:
        moved = self.X + torch.tensor([5.0, -3.0])
        np.testing.assert_allclose(
            gram_components(moved @ moved.T, 2), gram_components(self.X @ self.X.T, 2), atol=1e-9
        )

    def test_no_more_than_the_rank(self) -> None:
        x = self.X[:, :1]
        found = gram_components(x @ x.T, 9)
        assert found.shape == (5, 9)
        assert found[:, 0].tolist() == pytest.approx([-4.2, -1.2, -1.2, 1.8, 4.8])
        assert not found[:, 1:].any()

    def test_small_numbers(self) -> None:
        x = 1e-3 * self.X
        assert gram_components(x @ x.T, 2)[:, 1].any()
        x = 1e-6 * self.X  # the variance is within rounding of numbers of the size of 1
        assert not gram_components(x @ x.T, 2)[:, 1].any()


class TestHDBSCAN:
    def apart(self, *values: float) -> torch.Tensor:
        x = torch.tensor(values, dtype=torch.float64)
        return (x[:, None] - x).abs()

    @pytest.mark.parametrize(
        ("values", "size", "labels"),
        [
            ((5,), 2, [0]),
            ((5, 6), 2, [0, 0]),
            ((1, 1, 1), 2, [0, 0, 0]),
            ((1, 1, 7, 7, 7), 2, [0, 0, 1, 1, 1]),
            ((0, 1, 50, 51, 120), 2, [0, 0, 1, 1, -1]),
            ((0, 1, 2, 50, 51), 3, [0, 0, 0, -1, -1]),
        ],
    )
    def test_by_hand(self, values: tuple[float, ...], size: int, labels: list[int]) -> None:
        assert hdbscan(self.apart(*values), size).tolist() == labels

    def test_distances_are_unchanged(self) -> None:
        distances = self.apart(1, 1, 7, 7)
        before = distances.clone()
        hdbscan(distances, 2)
        assert torch.equal(distances, before)


def test_one_blas_thread() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        assert set(threads()) == {1}
    assert threads() == before
