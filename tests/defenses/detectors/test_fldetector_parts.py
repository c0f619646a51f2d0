"""FLDetector's parts: the Hessian against dense BFGS, distances, and the gap statistic against its definition."""

from math import sqrt
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.core import linalg
from fedsieve.detectors import fldetector
from fedsieve.detectors.fldetector import distances, hessian_product, more_than_one


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(d: int, seed: int = 0) -> Tensor:
    """A positive definite matrix."""
    root = normal(d, d, seed=seed)
    return root @ root.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


def dense_bfgs(steps: Tensor, changes: Tensor) -> Tensor:
    """B <- B - B s s' B / (s' B s) + y y' / (y' s), from (y's / s's) I of the last pair; one pair after another."""
    s, y = steps[-1], changes[-1]
    matrix = (y @ s) / (s @ s) * torch.eye(len(s), dtype=s.dtype)
    for s, y in zip(steps, changes, strict=True):
        moved = matrix @ s
        matrix = matrix - torch.outer(moved, moved) / (s @ moved) + torch.outer(y, y) / (y @ s)
    return matrix


class TestHessian:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), k=st.integers(1, 6), d=st.integers(1, 9), shrink=st.floats(1e-3, 1))
    def test_against_dense_bfgs(self, seed: int, k: int, d: int, shrink: float) -> None:
        steps = normal(k, d, seed=seed) * shrink ** torch.arange(k)[:, None]
        changes, v = steps @ curved(d, seed + 1), normal(d, seed=seed + 2)
        expected = dense_bfgs(steps, changes) @ v
        torch.testing.assert_close(hessian_product(steps, changes, v), expected, rtol=1e-6, atol=1e-6)

    def test_last_step_is_exact(self) -> None:
        steps, matrix = normal(4, 12), curved(12, 1)
        found = hessian_product(steps, steps @ matrix, steps[-1])
        torch.testing.assert_close(found, matrix @ steps[-1], rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("k", [1, 3, 8])
    def test_exact_in_the_span_of_conjugate_steps(self, k: int) -> None:
        matrix = curved(8)
        _, vectors = torch.linalg.eigh(matrix)
        steps = vectors[:, :k].T * torch.arange(1, k + 1)[:, None]
        v = normal(k, seed=1) @ steps
        torch.testing.assert_close(hessian_product(steps, steps @ matrix, v), matrix @ v, rtol=1e-9, atol=1e-9)

    def test_same_curvature_everywhere(self) -> None:
        steps, v = normal(3, 6), normal(6, seed=1)
        torch.testing.assert_close(hessian_product(steps, 2.5 * steps, v), 2.5 * v, rtol=1e-9, atol=1e-9)

    def test_pairs_without_positive_curvature_are_left_out(self) -> None:
        matrix = curved(7)
        steps = normal(5, 7)
        changes = steps @ matrix
        changes[1] *= -1
        changes[4] = changes[4] - steps[4] * (changes[4] @ steps[4]) / (steps[4] @ steps[4])  # at a right angle
        steps[2] = 0  # the model did not move
        v, good = normal(7, seed=2), [0, 3]
        expected = dense_bfgs(steps[good], changes[good]) @ v
        torch.testing.assert_close(hessian_product(steps, changes, v), expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("sign", [-1, 0])
    def test_no_curvature_at_all(self, sign: int) -> None:
        steps = normal(3, 5)
        assert hessian_product(steps, sign * steps, normal(5)).tolist() == [0] * 5
        assert hessian_product(steps[:0], steps[:0], normal(5)).tolist() == [0] * 5

    @pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 1e200])
    def test_changes_that_overflowed_are_left_out(self, bad: float) -> None:
        steps, v = normal(3, 5), normal(5, seed=1)
        changes = steps @ curved(5)
        changes[1] = bad
        expected = dense_bfgs(steps[[0, 2]], changes[[0, 2]]) @ v
        torch.testing.assert_close(hessian_product(steps, changes, v), expected, rtol=1e-9, atol=1e-9)

    def test_steps_of_very_different_length(self) -> None:
        steps = normal(10, 20) * 10.0 ** -torch.arange(10)[:, None]
        matrix = curved(20, 1)
        found = hessian_product(steps, steps @ matrix, steps[-1])
        torch.testing.assert_close(found / 1e-9, matrix @ steps[-1] / 1e-9, rtol=1e-6, atol=1e-6)

    def test_the_same_step_again_and_again(self) -> None:
        steps = normal(1, 6).expand(4, -1).clone()
        matrix = curved(6)
        found = hessian_product(steps, steps @ matrix, steps[0])
        torch.testing.assert_close(found, matrix @ steps[0], rtol=1e-9, atol=1e-9)

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps, v = normal(3, 3000), normal(3000, seed=1)
        found = []
        for block_bytes in (1, 1 << 30):
            monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
            found.append(hessian_product(steps, steps + 0.1 * normal(3, 3000, seed=2), v))
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_distances() -> None:
    before, sent = torch.tensor([[5.0, 5.0], [1.0, 1.0], [1e30, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0], [0, 0]])
    # the predictions are (4, 2), (0, -2) and (1e30, -3)
    found = distances(sent, before, torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([sqrt(10), 2, 1e30])


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_median(n: int) -> None:
    x = normal(n, 7)
    assert fldetector.median(x).tolist() == pytest.approx([median(column) for column in x.T.tolist()])


# --- One cluster of scores, or more -------------------------------------------------------------------------


class TestGapStatistic:
    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), n=st.integers(3, 30), b=st.integers(1, 5), apart=st.floats(0, 8))
    def test_as_published(self, rounds: SimpleNamespace, seed: int, n: int, b: int, apart: float) -> None:
        rng = np.random.default_rng(seed)
        scores, references = rng.normal(size=n) + apart * (np.arange(n) < n // 4), rng.uniform(size=(b, n))
        expected = rounds.published_gap(scores.tolist(), references.tolist())
        assert more_than_one(scores, references) == expected

    def test_both_answers_happen(self) -> None:
        references = np.random.default_rng(0).uniform(size=(10, 30))
        two = np.concatenate(
            [np.random.default_rng(1).uniform(0, 0.1, 24), np.random.default_rng(2).uniform(0.9, 1, 6)]
        )
        assert more_than_one(two, references)
        assert not more_than_one(np.linspace(0, 1, 30), references)

    def test_no_spread(self) -> None:
        references = np.random.default_rng(0).uniform(size=(10, 4))
        assert not more_than_one(np.full(4, 0.3), references)
        assert more_than_one(np.array([0.0, 0.0, 0.0, 1.0]), references)  # neither of the two has spread

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_too_few(self, n: int) -> None:
        assert not more_than_one(np.arange(n, dtype=float), np.zeros((3, n)))
