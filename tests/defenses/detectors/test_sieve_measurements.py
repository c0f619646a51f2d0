"""Measurements of clients and reference updates, against least squares and plain definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.core.layout import Layout
from fedsieve.detectors.sieve.measurements import Measurements, measure
from fedsieve.detectors.sieve.reference import ReferenceUpdates

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def two_layers(a: int, b: int, statistics: int = 0) -> Layout:
    parameters = {"one.weight": torch.empty(a), "two.weight": torch.empty(b)}
    moving = {"two.running_mean": torch.empty(statistics)} if statistics else {}
    return Layout.of(parameters, moving)


TENSORS = ("root", "subsets", "held_out", "label_shifted")
PER_CLIENT = ("gradient_alignment", "residual_norm", "statistics", "negative_cosine")


def references_of(d: int, seed: int = 0, subsets: int = 12) -> ReferenceUpdates:
    """Twelve subsets of three classes in two folds, two held-out and three label-shifted references."""
    drawn = normal(subsets + 6, d, seed=seed) + normal(d, seed=seed + 7)
    return ReferenceUpdates(
        root=drawn[-1],
        subsets=drawn[:subsets],
        classes=torch.arange(subsets) % 3,
        folds=torch.arange(subsets) % 2,
        held_out=drawn[subsets : subsets + 2],
        label_shifted=-drawn[subsets + 2 : subsets + 5],
        complete=True,
    )


def residual(row: Tensor, others: Tensor) -> float:
    """Norm of the least-squares residual of ``row`` outside the span of ``others``."""
    solution = np.linalg.lstsq(others.numpy().T, row.numpy(), rcond=None)[0]
    return float(np.linalg.norm(row.numpy() - others.numpy().T @ solution))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


class TestMeasure:
    layout = two_layers(400, 300, 5)

    def measured(self, x: Tensor, seed: int = 0) -> tuple[Measurements, ReferenceUpdates, Tensor]:
        references, gradient = references_of(705, seed), normal(705, seed=seed + 3)
        return measure(x, gradient, references, self.layout), references, gradient

    @pytest.mark.parametrize("seed", range(3))
    def test_against_definitions(self, seed: int) -> None:
        x = normal(5, 705, seed=seed + 20)
        found, w, gradient = self.measured(x, seed)
        p = 700
        left = [residual(w.held_out[k, :p], w.subsets[w.folds != k, :p]) for k in range(2)]
        unit = math.sqrt(sum(v * v for v in left) / 2)
        honest = torch.stack([w.subsets[w.classes == c].mean(dim=0) for c in range(3)])
        trusted = honest.mean(dim=0)
        longest = max(float(row[p:].norm()) for row in (*honest, w.root, *w.held_out))
        assert found.statistics is not None
        for i, row in enumerate(x):
            assert float(found.gradient_alignment[i]) == pytest.approx(cosine(row[:p], gradient[:p]), abs=1e-9)
            expected_norm = math.log(residual(row[:p], w.subsets[:, :p]) / unit)
            assert float(found.residual_norm[i]) == pytest.approx(expected_norm, abs=1e-4)
            assert float(found.statistics[i]) == pytest.approx(math.log(float(row[p:].norm()) / longest), abs=1e-9)
            parts = (slice(0, p), slice(0, 400), slice(400, p))
            expected = [-cosine(row[part], trusted[part]) for part in parts]
            assert found.negative_cosine[i].tolist() == pytest.approx(expected, abs=1e-9)
        shifted = [cosine(row[:p], gradient[:p]) for row in w.label_shifted]
        assert float(found.label_shifted) == pytest.approx(sum(shifted) / 3, abs=1e-9)
        assert found.class_negative_cosine[:, 0].tolist() == pytest.approx(
            [-cosine(row[:p], trusted[:p]) for row in honest], abs=1e-9
        )

    def test_scale_does_not_matter(self) -> None:
        x = normal(4, 705, seed=9)
        one, w, gradient = self.measured(x)
        scaled = replace(w, **{name: 1e-6 * getattr(w, name) for name in TENSORS})
        other = measure(1e-6 * x, 1e3 * gradient, scaled, self.layout)
        for name in (*PER_CLIENT, "label_shifted", "class_negative_cosine"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_overflow(self, dtype: torch.dtype) -> None:
        x = normal(4, 705, seed=9).to(dtype)
        x[0] *= 1e30
        x[1] = 0
        w = references_of(705)
        w = replace(w, **{name: getattr(w, name).to(dtype) for name in TENSORS})
        found = measure(x, normal(705, seed=3).to(dtype), w, self.layout)
        for name in PER_CLIENT:
            assert getattr(found, name).isfinite().all()
        assert found.residual_norm[0] > 60
        assert found.residual_norm[1] < -40
        assert found.gradient_alignment[1] == 0

    def test_small_layers_have_no_cosine_of_their_own(self) -> None:
        x, w = normal(3, 300), references_of(300)
        found = measure(x, normal(300), w, two_layers(280, 20))
        assert found.negative_cosine.shape == (3, 2)  # the whole model and the large layer
        one = Layout.of({"only.weight": torch.empty(300)})
        assert measure(x, normal(300), w, one).negative_cosine.shape == (3, 1)
        assert found.statistics is None

    def test_mixtures_of_subsets_have_no_residual(self) -> None:
        w = references_of(705)
        mixed = torch.rand(4, 12, generator=torch.Generator().manual_seed(0), dtype=F64) @ w.subsets
        found = measure(torch.cat([mixed, normal(1, 705, seed=5)]), normal(705, seed=3), w, self.layout)
        assert found.residual_norm[:4].max() < -4 < -1 < found.residual_norm[4]
