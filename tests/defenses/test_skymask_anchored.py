"""Anchored masks and what is measured beside them, against loops and least squares."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve import ops
from fedsieve.defenses.skymask.anchored import Measurements, copies, masks_of, measure
from fedsieve.types import Layout, Witnesses

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def two_layers(a: int, b: int, statistics: int = 0) -> Layout:
    parameters = {"one.weight": torch.empty(a), "two.weight": torch.empty(b)}
    moving = {"two.running_mean": torch.empty(statistics)} if statistics else {}
    return Layout.of(parameters, moving)


class TestMasks:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(n=st.integers(1, 5), a=st.integers(1, 6), b=st.integers(1, 6), seed=st.integers(0, 10**6))
    def test_against_loops(self, n: int, a: int, b: int, seed: int) -> None:
        x, gradient = normal(n, a + b, seed=seed).round(), normal(a + b, seed=seed + 1).round()  # with zeros
        masks = masks_of(x, gradient, two_layers(a, b))
        for layer, columns in enumerate((range(a), range(a, a + b))):
            for i in range(n):
                kept = sum(float(x[i, k] * gradient[k]) < 0 for k in columns)
                decided = sum(float(x[i, k] * gradient[k]) != 0 for k in columns)
                assert (masks.kept[layer, i], masks.decided[layer, i]) == (kept, decided)
                for j in range(n):
                    both = [k for k in columns if x[i, k] != 0 and x[j, k] != 0]
                    differing = sum(bool(x[i, k] * x[j, k] < 0) for k in both)
                    assert (masks.common[layer, i, j], masks.differing[layer, i, j]) == (len(both), differing)

    def test_a_kept_parameter_is_one_whose_gate_opens(self) -> None:
        # the rule behind it: the loss of W + s(m) u, one step from m = 0, by autograd
        target, u = normal(30, seed=1), normal(30)
        m = torch.zeros(30, dtype=F64, requires_grad=True)
        loss = (m.sigmoid() * u - target).square().sum()
        (slope,) = torch.autograd.grad(loss, m)
        at_half = 2 * (0.5 * u - target)
        masks = masks_of(u[None], at_half, two_layers(20, 10))
        assert masks.kept.sum() == (slope < 0).sum()

    def test_blocks_and_statistics_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, gradient = normal(6, 5000), normal(5000, seed=1)
        layout, found = two_layers(3000, 1500, 500), []
        for block_bytes in (1, 1 << 30):
            monkeypatch.setattr(ops, "_BLOCK_BYTES", block_bytes)
            found.append(masks_of(x, gradient, layout))
        for name in ("common", "differing", "kept", "decided"):
            assert torch.equal(getattr(found[0], name), getattr(found[1], name))
        assert found[0].common.sum(dim=0).max() == 4500


class TestCopies:
    layout = two_layers(2000, 3000)

    def found(self, x: Tensor, layout: Layout | None = None) -> tuple[list[bool], list[bool]]:
        layout = layout or self.layout
        return tuple(c.tolist() for c in copies(x, masks_of(x, x[0], layout), 5e-4))  # type: ignore[return-value]

    def test_honest_clients_are_none(self) -> None:
        alike = normal(1, 5000, seed=1) + 0.05 * normal(20, 5000)  # 1.6 % of the signs differ
        assert self.found(alike) == ([False] * 20, [False] * 20)

    @pytest.mark.parametrize("scale", [1.0, 3.0])
    def test_same_signs(self, scale: float) -> None:
        x = normal(8, 5000)
        x[5] = scale * x[2] * (1 + 0.1 * normal(5000, seed=2).sigmoid())
        assert self.found(x) == ([k in (2, 5) for k in range(8)], [False] * 8)

    def test_same_in_one_layer(self) -> None:
        x = normal(8, 5000)
        x[5, :2000] = 2 * x[2, :2000]
        assert self.found(x) == ([False] * 8, [k in (2, 5) for k in range(8)])

    def test_alike_everywhere_is_no_copy_of_a_layer(self) -> None:
        # masks that differ in 0.1 % of all entries may well agree in a layer
        x = normal(1, 5000, seed=1).expand(8, -1).clone()
        for row in range(8):
            x[row, 2000 + 10 * row : 2010 + 10 * row] *= -1
        assert self.found(x) == ([False] * 8, [False] * 8)

    def test_everybody_alike_is_nobody(self) -> None:
        assert self.found(normal(1, 5000).expand(8, -1).clone())[0] == [False] * 8

    def test_small_models_must_be_equal(self) -> None:
        layout, x = two_layers(5, 5), normal(6, 10).abs()  # all signs are the same
        assert self.found(x, layout)[0] == [False] * 6
        x[1] = x[4]
        assert self.found(x, layout)[0] == [False, True, False, False, True, False]

    def test_clients_that_learned_nothing(self) -> None:
        for layout, d in ((self.layout, 5000), (two_layers(5, 5), 10)):
            x = normal(6, d)
            x[:3] = 0
            assert self.found(x, layout) == ([False] * 6, [False] * 6)


def known(d: int, seed: int = 0, parts: int = 12) -> Witnesses:
    drawn = normal(parts + 6, d, seed=seed) + normal(d, seed=seed + 7)
    return Witnesses(
        model=drawn[-1],
        parts=drawn[:parts],
        classes=torch.arange(parts) % 3,
        folds=torch.arange(parts) % 2,
        held_out=drawn[parts : parts + 2],
        lying=-drawn[parts + 2 : parts + 5],
        complete=True,
    )


def beyond(row: Tensor, others: Tensor) -> float:
    """Length of what least squares leave."""
    solution = np.linalg.lstsq(others.numpy().T, row.numpy(), rcond=None)[0]
    return float(np.linalg.norm(row.numpy() - others.numpy().T @ solution))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


class TestMeasure:
    layout = two_layers(400, 300, 5)

    def measured(self, x: Tensor, seed: int = 0) -> tuple[Measurements, Witnesses, Tensor]:
        witnesses, gradient = known(705, seed), normal(705, seed=seed + 3)
        return measure(x, gradient, witnesses, self.layout), witnesses, gradient

    @pytest.mark.parametrize("seed", range(3))
    def test_against_definitions(self, seed: int) -> None:
        x = normal(5, 705, seed=seed + 20)
        found, w, gradient = self.measured(x, seed)
        p = 700
        left = [beyond(w.held_out[k, :p], w.parts[w.folds != k, :p]) for k in range(2)]
        unit = math.sqrt(sum(v * v for v in left) / 2)
        honest = torch.stack([w.parts[w.classes == c].mean(dim=0) for c in range(3)])
        trusted = honest.mean(dim=0)
        longest = max(float(row[p:].norm()) for row in (*honest, w.model, *w.held_out))
        assert found.statistics is not None
        for i, row in enumerate(x):
            assert float(found.harm[i]) == pytest.approx(cosine(row[:p], gradient[:p]), abs=1e-9)
            strange = math.log(beyond(row[:p], w.parts[:, :p]) / unit)
            assert float(found.strangeness[i]) == pytest.approx(strange, abs=1e-4)
            assert float(found.statistics[i]) == pytest.approx(math.log(float(row[p:].norm()) / longest), abs=1e-9)
            parts = (slice(0, p), slice(0, 400), slice(400, p))
            expected = [-cosine(row[part], trusted[part]) for part in parts]
            assert found.opposition[i].tolist() == pytest.approx(expected, abs=1e-9)
        lying = [cosine(row[:p], gradient[:p]) for row in w.lying]
        assert float(found.lying) == pytest.approx(sum(lying) / 3, abs=1e-9)
        assert found.honest_opposition[:, 0].tolist() == pytest.approx(
            [-cosine(row[:p], trusted[:p]) for row in honest], abs=1e-9
        )

    def test_scale_free(self) -> None:
        # as the server's witnesses do, all may be as long as they like
        x = normal(4, 705, seed=9)
        one, w, gradient = self.measured(x)
        scaled = {name: 1e-6 * getattr(w, name) for name in ("model", "parts", "held_out", "lying")}
        other = measure(1e-6 * x, 1e3 * gradient, Witnesses(**{**vars(w), **scaled}), self.layout)
        for name in ("harm", "strangeness", "statistics", "opposition", "lying", "honest_opposition"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_overflow(self, dtype: torch.dtype) -> None:
        x = normal(4, 705, seed=9).to(dtype)
        x[0] *= 1e30
        x[1] = 0
        w = Witnesses(**{k: v.to(dtype) if k in ("model", "parts", "held_out", "lying") else v
                         for k, v in vars(known(705)).items()})  # fmt: skip
        found = measure(x, normal(705, seed=3).to(dtype), w, self.layout)
        for name in ("harm", "strangeness", "statistics", "opposition"):
            assert getattr(found, name).isfinite().all()
        assert found.strangeness[0] > 60
        assert found.strangeness[1] < -40
        assert found.harm[1] == 0

    def test_small_layers_have_no_opposition_of_their_own(self) -> None:
        x, w = normal(3, 300), known(300)
        found = measure(x, normal(300), w, two_layers(280, 20))
        assert found.opposition.shape == (3, 2)  # the whole, and the large layer
        one = Layout.of({"only.weight": torch.empty(300)})
        assert measure(x, normal(300), w, one).opposition.shape == (3, 1)
        assert found.statistics is None

    def test_what_the_root_samples_explain_is_not_strange(self, make: SimpleNamespace) -> None:
        w = known(705)
        mixed = torch.rand(4, 12, generator=torch.Generator().manual_seed(0), dtype=F64) @ w.parts
        found = measure(torch.cat([mixed, normal(1, 705, seed=5)]), normal(705, seed=3), w, self.layout)
        assert found.strangeness[:4].max() < -4 < -1 < found.strangeness[4]
