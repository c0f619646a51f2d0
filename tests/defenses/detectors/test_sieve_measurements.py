"""Measurements of clients and reference updates, against least squares in float64."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.detectors.sieve.measurements import Measurements, measure
from fedsieve.detectors.sieve.reference import ReferenceUpdates

F64 = torch.float64
CLASSES, FOLDS = 3, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def references_of(d: int, seed: int = 0, r: int = 12) -> ReferenceUpdates:
    """Subsets of three classes, four held-out updates of folds and three of classes."""
    drawn = normal(r + 8, d, seed=seed) + normal(d, seed=seed + 7)
    classes, folds = torch.arange(r) % CLASSES, torch.arange(r) % FOLDS
    others = [folds != k for k in range(FOLDS)] + [classes != c for c in range(CLASSES)]
    return ReferenceUpdates(drawn[-1], drawn[:r], classes, drawn[r : r + 7], torch.stack(others), FOLDS, True)


def projected(row: Tensor, others: Tensor) -> Tensor:
    """The part of ``row`` in the span of ``others``."""
    solution = torch.linalg.lstsq(others.T, row[:, None], driver="gelsd").solution
    return (others.T @ solution)[:, 0]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), d=st.integers(20, 90), exponent=st.integers(-12, 12))
def test_against_least_squares(seed: int, d: int, exponent: int) -> None:
    w, scale = references_of(d, seed), 10.0**exponent
    x, gradients = scale * normal(5, d, seed=seed + 1), normal(2, d, seed=seed + 2)
    m = measure(x, gradients, w)
    parts = torch.stack([projected(row, w.subsets) for row in x])
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(m.length, x.norm(dim=1))
    torch.testing.assert_close(m.explained, parts.norm(dim=1), rtol=1e-4, atol=1e-5 * scale)
    left = (x - parts).norm(dim=1)
    torch.testing.assert_close(m.residual, left.clamp(min=1e-3 * x.norm(dim=1)), rtol=1e-3, atol=2e-3 * scale)
    torch.testing.assert_close(m.explained**2 + m.residual**2, m.length**2, rtol=2e-6, atol=0.0)
    # the span's orthonormal vectors
    vectors = m.basis.T @ w.subsets
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors), dtype=F64), **close)
    torch.testing.assert_close(m.coordinates @ vectors, parts, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(m.gradient_coordinates, gradients @ vectors.T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(m.inner, x @ x.T, rtol=1e-4, atol=1e-4 * scale**2)
    torch.testing.assert_close(m.slopes, x @ gradients.T, rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(m.gradient_lengths, gradients.norm(dim=1))
    for i in range(5):
        for k in range(2):
            assert float(m.alignment[i, k]) == pytest.approx(cosine(x[i], gradients[k]), abs=1e-5)
    for c in range(CLASSES):
        mean = w.subsets[w.classes == c].mean(dim=0)
        for k in range(2):
            assert float(m.class_alignment[c, k]) == pytest.approx(cosine(mean, gradients[k]), abs=1e-5)
    for k, held in enumerate(w.held_out):
        inside = projected(held, w.subsets[w.others[k]])
        assert float(m.held_explained[k]) == pytest.approx(float(inside.norm()), rel=1e-4)
        assert float(m.held_residual[k]) == pytest.approx(float((held - inside).norm()), rel=1e-3)
        assert float(m.held_length[k]) == pytest.approx(float(held.norm()))
    if d > 40:  # residuals that are more than rounding
        for i in range(5):
            for j in range(5):
                expected = cosine(x[i] - parts[i], x[j] - parts[j])
                assert float(m.residual_cosines[i, j]) == pytest.approx(expected, abs=1e-3)


def test_eigenvectors_are_only_needed_where_a_direction_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x, gradients = references_of(70), normal(5, 70, seed=1), normal(2, 70, seed=2)
    eigenvectors = torch.linalg.eigh

    def unexpected(gram: Tensor) -> Tensor:
        raise AssertionError("no direction of these spans is rounding")

    monkeypatch.setattr(torch.linalg, "eigh", unexpected)
    quick = measure(x, gradients, w)
    monkeypatch.setattr(torch.linalg, "eigh", eigenvectors)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda gram: (gram, torch.tensor(1)))
    slow = measure(x, gradients, w)
    for name in ("explained", "residual", "held_explained", "held_residual", "residual_cosines"):
        torch.testing.assert_close(getattr(quick, name), getattr(slow, name), rtol=1e-9, atol=1e-9)
    # another basis of the same span
    torch.testing.assert_close(quick.coordinates @ quick.basis.T, slow.coordinates @ slow.basis.T)


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_direction_that_is_rounding_is_no_part_of_a_span(noise: float) -> None:
    """Two subsets that differ in the last digits of float32, and what is sent along their difference."""
    w = references_of(90)
    away, subsets = normal(90, seed=9), w.subsets.clone()
    subsets[3] = subsets[0] + noise * away
    m = measure(torch.stack([away, subsets[0]]), normal(2, 90, seed=2), replace(w, subsets=subsets))
    assert m.basis.shape == (12, 11)
    kept = torch.cat([subsets[:3], subsets[4:]])
    assert float(m.explained[0]) == pytest.approx(float(projected(away, kept).norm()), rel=1e-3)
    assert float(m.explained[1]) == pytest.approx(float(subsets[0].norm()), rel=1e-6)


def test_mixtures_of_subsets_have_next_to_no_residual() -> None:
    w = references_of(700)
    mixed = torch.rand(4, 12, generator=torch.Generator().manual_seed(0), dtype=F64) @ w.subsets
    m = measure(torch.cat([mixed, normal(1, 700, seed=5)]), normal(2, 700, seed=3), w)
    share = m.residual / m.length
    assert share[:4].max() < 0.002
    assert share[:4].min() >= 0.000999  # never quite 0
    assert share[4] > 0.9


def test_more_subsets_than_parameters() -> None:
    w = references_of(6)  # they span the whole space
    m = measure(normal(4, 6, seed=1), normal(2, 6, seed=2), w)
    assert m.basis.shape == (12, 6)
    assert (m.residual / m.length).max() < 0.002


def all_finite(m: Measurements) -> bool:
    found = [getattr(m, f.name) for f in fields(m)] + [m.residual_cosines]
    return all(bool(tensor.isfinite().all()) for tensor in found)


@pytest.mark.parametrize(("dtype", "huge", "tiny"), [(torch.float32, 1e37, 1e-44), (F64, 1e100, 1e-100)])
def test_huge_tiny_and_zero_rows(dtype: torch.dtype, huge: float, tiny: float) -> None:
    w = references_of(300)
    w = replace(w, **{name: getattr(w, name).to(dtype) for name in ("root", "subsets", "held_out")})
    plain = normal(1, 300, seed=4)
    x = torch.cat([plain, huge * plain, tiny * plain, 0 * plain]).to(dtype)
    m = measure(x, normal(2, 300, seed=3).to(dtype), w)
    assert all_finite(m)
    share = m.explained[:3] / m.length[:3]
    assert share.tolist() == pytest.approx([float(share[0])] * 3, abs=0.02)  # denormal numbers have few digits
    assert float(m.length[1]) == pytest.approx(huge * float(m.length[0]), rel=1e-6)
    assert float(m.length[3]) == 0
    assert m.alignment[3].tolist() == [0, 0]
    assert m.residual_cosines[0, 1] > 0.999
    assert m.residual_cosines[3].tolist() == [0] * 4
    assert m.residual_cosines[:, 3].tolist() == [0] * 4


@pytest.mark.parametrize("name", ["subsets", "held_out", "all"])
def test_references_of_length_0(name: str) -> None:
    """What a model sends that has learnt all root samples to the last bit."""
    w = references_of(50)
    for part in ("subsets", "held_out", "root") if name == "all" else (name,):
        w = replace(w, **{part: torch.zeros_like(getattr(w, part))})
    x = normal(3, 50, seed=2)
    m = measure(x, torch.zeros(2, 50, dtype=F64), w)
    assert all_finite(m)
    assert m.gradient_lengths.tolist() == [0, 0]
    torch.testing.assert_close(m.length, x.norm(dim=1))
    if name != "held_out":
        assert m.basis.shape == (12, 0)
        assert m.explained.tolist() == [0, 0, 0]
        torch.testing.assert_close(m.residual, m.length)
        assert m.class_alignment.tolist() == [[0, 0]] * CLASSES
    if name != "subsets":
        assert m.held_length.tolist() == [0] * 7
        assert m.held_explained.tolist() == [0] * 7


def test_some_subsets_of_length_0() -> None:
    w, x = references_of(50), normal(3, 50, seed=2)
    subsets = w.subsets.clone()
    subsets[::2] = 0
    m = measure(x, normal(2, 50), replace(w, subsets=subsets))
    for i, row in enumerate(x):
        assert float(m.explained[i]) == pytest.approx(float(projected(row, w.subsets[1::2]).norm()), rel=1e-4)
    assert not m.basis[::2].any()


def test_no_held_out_references() -> None:
    w = references_of(30, r=1)
    w = replace(w, held_out=w.held_out[:0], others=w.others[:0], n_balanced=0)
    m = measure(normal(2, 30), normal(2, 30, seed=1), w)
    assert all_finite(m)
    assert m.held_explained.shape == m.held_residual.shape == m.held_length.shape == (0,)
    assert m.basis.shape == (1, 1)
    assert math.isclose(
        float(m.explained[0]), abs(cosine(normal(2, 30)[0], w.subsets[0])) * float(m.length[0]), rel_tol=1e-5
    )
