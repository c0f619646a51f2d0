"""Mask training: the gradient against autograd, the training against the published equations in plain loops."""

import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedsieve.core import linalg
from fedsieve.detectors.skymask import masks as module
from fedsieve.detectors.skymask.clusters import principal_components
from fedsieve.detectors.skymask.fused import fused_step, is_fused
from fedsieve.detectors.skymask.masks import (
    mask_gradient,
    masked_mean,
    plain_step,
    train_blocks,
    train_masks,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def published_masks(
    models: list[list[float]],
    gradient: Callable[[list[float]], list[float]],
    rate: float,
    clip: float | None,
    max_steps: int,
    tolerance: float,
) -> tuple[list[list[float]], int]:
    """Section III-C: masks of ones; W~ by equation 2; m_i <- m_i - rate dL/dm_i, with dL/dm_i by the chain rule.

    In terms of models, not updates: dW~_j / dm_ij = [s'(m_ij) w_ij sum_k s(m_kj) - s'(m_ij) sum_k s(m_kj) w_kj]
    / (sum_k s(m_kj))^2. Clipped, and stopped when no gate moves further than ``tolerance``.
    """
    clip = math.inf if clip is None else clip
    n, d = len(models), len(models[0])
    masks = [[1.0] * d for _ in range(n)]
    steps = 0
    while steps < max_steps:
        steps += 1
        total = [sum(sigmoid(masks[k][j]) for k in range(n)) for j in range(d)]
        weighted = [sum(sigmoid(masks[k][j]) * models[k][j] for k in range(n)) for j in range(d)]
        outer = gradient([weighted[j] / total[j] for j in range(d)])
        moved = 0.0
        new = [[0.0] * d for _ in range(n)]
        for i in range(n):
            for j in range(d):
                gate = sigmoid(masks[i][j])
                slope = gate * (1 - gate)
                inner = (slope * models[i][j] * total[j] - slope * weighted[j]) / total[j] ** 2
                new[i][j] = masks[i][j] - rate * min(max(outer[j] * inner, -clip), clip)
                moved = max(moved, abs(sigmoid(new[i][j]) - gate))
        masks = new
        if moved <= tolerance:
            break
    return masks, steps


class TestMaskGradient:
    def test_against_autograd(self) -> None:
        x, masks, target = normal(5, 7), 2 * normal(5, 7, seed=1), normal(7, seed=2)
        leaf = masks.clone().requires_grad_()
        mean = masked_mean(x, leaf)
        loss = (mean - target).pow(4).sum() + (mean[0] * mean[1]).sin()
        (expected,) = torch.autograd.grad(loss, leaf)
        inner = masked_mean(x, masks).requires_grad_()
        (outer,) = torch.autograd.grad((inner - target).pow(4).sum() + (inner[0] * inner[1]).sin(), inner)
        torch.testing.assert_close(mask_gradient(x, masks, outer), expected, rtol=1e-12, atol=1e-14)

    def test_against_finite_differences(self) -> None:
        x, masks, target = normal(4, 3), normal(4, 3, seed=1), normal(3, seed=2)

        def loss(m: Tensor) -> float:
            return float((masked_mean(x, m) - target).pow(4).sum())

        found = mask_gradient(x, masks, 4 * (masked_mean(x, masks) - target) ** 3)
        h = 1e-5
        for i in range(4):
            for j in range(3):
                bump = torch.zeros_like(masks)
                bump[i, j] = h
                slope = (loss(masks + bump) - loss(masks - bump)) / (2 * h)
                assert float(found[i, j]) == pytest.approx(slope, rel=1e-6, abs=1e-9)

    def test_columns_sum_to_zero_with_equal_masks(self) -> None:
        # moving every mask of a coordinate alike leaves the mean where it is
        found = mask_gradient(normal(6, 4), torch.ones(6, 4, dtype=torch.float64), normal(4, seed=1))
        torch.testing.assert_close(found.sum(dim=0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-14)
        assert found.abs().max() > 1e-3


class TestMaskedMean:
    def test_equal_masks_give_the_mean(self) -> None:
        x = normal(5, 3)
        torch.testing.assert_close(masked_mean(x, torch.full_like(x, -2.5)), x.mean(dim=0))

    def test_by_hand(self) -> None:
        # s(0) = 1/2, s(log 3) = 3/4: (1/2 * 1 + 3/4 * 6) / (5/4) = 4
        x, masks = torch.tensor([[1.0], [6.0]]), torch.tensor([[0.0], [math.log(3)]])
        assert masked_mean(x, masks).item() == pytest.approx(4)

    @pytest.mark.parametrize("i", range(4))
    def test_one_open_gate_gives_that_client(self, i: int) -> None:
        x = normal(4, 6)
        masks = torch.full_like(x, -60.0)
        masks[i] = 60
        torch.testing.assert_close(masked_mean(x, masks), x[i], rtol=1e-12, atol=1e-12)


def train(x: Tensor, root: Any, start: Tensor | None = None, **more: Any) -> tuple[Tensor, int]:
    settings = {"learning_rate": 1e6, "clip": 1e-7, "max_steps": 20, "tolerance": 1e-3} | more
    return train_masks(x, torch.zeros_like(x[0]) if start is None else start, root, **settings)


class TestTrainMasks:
    """Candidates are updates here and models in the transcription; the difference is the global model."""

    CASES = (
        {"learning_rate": 5.0, "clip": None, "max_steps": 7, "tolerance": 0.0},
        {"learning_rate": 40.0, "clip": 0.01, "max_steps": 12, "tolerance": 0.0},  # some coordinates clipped
        {"learning_rate": 1e7, "clip": 1e-7, "max_steps": 10, "tolerance": 0.0},  # nearly all of them
        {"learning_rate": 3.0, "clip": 1.0, "max_steps": 400, "tolerance": 2e-3},  # converges
    )

    def compare(self, x: Tensor, start: Tensor, root: Any, case: dict[str, Any]) -> int:
        def gradient(w: list[float]) -> list[float]:
            return root.gradient(torch.tensor(w, dtype=torch.float64))[1].tolist()  # type: ignore[no-any-return]

        expected, steps = published_masks(
            (x + start).tolist(),
            gradient,
            case["learning_rate"],
            case["clip"],
            case["max_steps"],
            case["tolerance"],
        )
        masks, found_steps = train(x, root, start, **case)
        torch.testing.assert_close(masks, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)
        assert found_steps == steps
        assert (masks - 1).abs().max() > 0.05  # they moved
        return steps

    @pytest.mark.parametrize("case", CASES)
    def test_as_published_on_a_quadratic(self, make: SimpleNamespace, case: dict[str, Any]) -> None:
        steps = self.compare(
            normal(4, 5), normal(5, seed=1), make.Quadratic(normal(5, seed=2), normal(5, seed=3)), case
        )
        if case["tolerance"]:
            assert 1 < steps < case["max_steps"]
        else:
            assert steps == case["max_steps"]

    @pytest.mark.parametrize("case", CASES[:3])
    def test_as_published_on_a_softmax(self, make: SimpleNamespace, case: dict[str, Any]) -> None:
        root = make.Softmax(normal(10, 2, seed=1), torch.arange(10) % 3, normal(6, seed=2))
        self.compare(2 * normal(5, 6), 0.1 * normal(6, seed=3), root, {**case, "learning_rate": case["learning_rate"]})

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 10**6), n=st.integers(1, 5), rate=st.floats(0.1, 20))
    def test_as_published_on_random_quadratics(self, make: SimpleNamespace, seed: int, n: int, rate: float) -> None:
        root = make.Quadratic(normal(3, seed=seed + 1), normal(3))
        x = normal(n, 3, seed=seed)
        expected, _ = published_masks(
            x.tolist(), lambda w: root.gradient(normal(3).new_tensor(w))[1].tolist(), rate, 1, 6, 0
        )
        masks, _ = train(x, root, learning_rate=rate, clip=1.0, max_steps=6, tolerance=0.0)
        torch.testing.assert_close(masks, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)

    def test_loss_falls(self, make: SimpleNamespace) -> None:
        x, root = normal(8, 30), make.Quadratic(0.3 * normal(30, seed=1), normal(30))
        losses = [float(root.loss(x.mean(dim=0)))]
        for steps in (1, 5, 25, 125):
            masks, _ = train(x, root, learning_rate=5.0, clip=1.0, max_steps=steps, tolerance=0.0)
            losses.append(float(root.loss(masked_mean(x, masks))))
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.5 * losses[0]

    def test_a_step_is_mask_gradient(self, make: SimpleNamespace) -> None:
        x, root = normal(4, 9), make.Quadratic(normal(9, seed=1), normal(9))
        masks, steps = train(x, root, learning_rate=2.0, clip=0.05, max_steps=1)
        ones = torch.ones_like(x)
        gradient = mask_gradient(x, ones, root.gradient(masked_mean(x, ones))[1])
        assert 0 < (gradient.abs() > 0.05).sum() < gradient.numel()  # some are clipped, some are not
        torch.testing.assert_close(masks, 1 - 2 * gradient.clamp(-0.05, 0.05), rtol=1e-12, atol=1e-12)
        assert steps == 1

    def test_by_hand(self, make: SimpleNamespace) -> None:
        # one dimension: the optimum is 1, the mean of 1 and -1 is 0, so the mask of 1 must grow and that of -1 shrink
        x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        root = make.Quadratic(torch.ones(1, dtype=torch.float64), x[0])
        masks, _ = train(x, root, learning_rate=1.0, clip=1e9, max_steps=1)
        # outer = 0 - 1, total = 2 s(1): gradient = -(+-1) (1 - s(1)) / 2
        slope = (1 - sigmoid(1)) / 2
        torch.testing.assert_close(masks.squeeze(1).tolist(), [1 + slope, 1 - slope], rtol=1e-12, atol=0)

    @pytest.mark.parametrize(("rate", "steps"), [(1e-6, 11), (5.0, 20)])
    def test_early_stop_looks_once(self, make: SimpleNamespace, rate: float, steps: int) -> None:
        x, root = normal(8, 30), make.Quadratic(0.3 * normal(30, seed=1), normal(30))
        more = {"learning_rate": rate, "clip": 1.0, "tolerance": 0.0}
        assert train(x, root, early_stop=True, **more)[1] == steps
        assert train(x, root, **more)[1] == 20

    def test_stops_where_there_is_no_gradient(self, make: SimpleNamespace) -> None:
        x = normal(3, 4)
        masks, steps = train(x, make.Quadratic(x.mean(dim=0), x[0]))
        assert steps == 1
        torch.testing.assert_close(masks, torch.ones_like(x), rtol=0, atol=1e-6)

    def test_blocks_do_not_matter(self, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        x, root = normal(6, 5000), make.Quadratic(normal(5000, seed=1), normal(5000))
        found = []
        for block_bytes, blocks in ((1, 5), (1 << 30, 1)):
            monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
            assert len(list(linalg.column_blocks(x))) == blocks
            masks, _ = train(x, root, learning_rate=5.0, clip=1.0)
            found.append((masks, principal_components(masks > 0.9, 3)))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("clip", [0.02, None])
    @pytest.mark.parametrize("tolerance", [0.0, 0.02])
    def test_as_the_formulas_step_by_step(
        self, make: SimpleNamespace, dtype: torch.dtype, clip: float | None, tolerance: float
    ) -> None:
        x, root = normal(6, 3000).to(dtype), make.Quadratic(normal(3000, seed=1).to(dtype), normal(3000).to(dtype))
        found, steps = train(x, root, learning_rate=3.0, clip=clip, max_steps=9, tolerance=tolerance)
        masks, mean = torch.ones_like(x), x.mean(dim=0)
        total = torch.full_like(mean, 6) * torch.ones((), dtype=dtype).sigmoid()
        for expected_steps in range(1, 10):  # noqa: B007
            outer, gates = root.gradient(mean)[1], masks.sigmoid()
            gradient = (x - mean) * (outer / total) * (1 - gates) * gates
            masks = masks - 3 * (gradient if clip is None else gradient.clamp(-clip, clip))
            after = masks.sigmoid()
            total = after.sum(dim=0)
            mean = (after * x).sum(dim=0) / total
            if (after - gates).abs().max() <= tolerance:
                break
        assert steps == expected_steps
        close = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(found, masks, rtol=close, atol=close)

    @pytest.mark.parametrize("good", [0, 1, 4])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_ends_where_the_gradient_is_not_finite(self, make: SimpleNamespace, good: int, bad: float) -> None:
        x, target, calls = normal(5, 40), normal(40, seed=1), [0]

        class Breaks(make.Quadratic):  # type: ignore[misc, name-defined]
            def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
                calls[0] += 1
                value, slope = super().gradient(flat)
                return value, torch.where(torch.arange(40) == 7, bad, slope) if calls[0] > good else slope

        more = {"learning_rate": 2.0, "clip": 1.0}
        masks, steps = train(x, Breaks(target, target), **more)
        assert (steps, calls[0]) == (good, good + 1)
        expected = train(x, make.Quadratic(target, target), **more, max_steps=good)[0] if good else torch.ones_like(x)
        assert torch.equal(masks, expected)

    @pytest.mark.parametrize("end", ["tolerance", "early stop", "not finite"])
    def test_a_gpu_need_not_be_asked_if_it_has_ended(
        self, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, end: str
    ) -> None:
        x, target, calls = normal(8, 30), 0.3 * normal(30, seed=1), [0]
        more: dict[str, Any] = {"learning_rate": 5.0, "clip": 1.0, "tolerance": 0.0, "max_steps": 40}
        if end == "tolerance":
            more["tolerance"] = 0.05
        elif end == "early stop":
            more |= {"early_stop": True, "learning_rate": 1e-6}

        class Root(make.Quadratic):  # type: ignore[misc, name-defined]
            def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
                calls[0] += 1
                value, slope = super().gradient(flat)
                return value, slope * math.nan if end == "not finite" and calls[0] > 13 else slope

        expected, steps = train(x, Root(target, normal(30)), **more)
        assert 1 < steps < 40
        assert calls[0] == steps + (end == "not finite")
        monkeypatch.setattr(module, "is_fused", lambda _: True)
        monkeypatch.setattr(module, "fused_step", plain)
        calls[0] = 0
        found, found_steps = train(x, Root(target, normal(30)), **more)
        assert found_steps == steps
        assert calls[0] % 10 == 0
        assert calls[0] - 10 < steps + (end == "not finite") <= calls[0]
        assert torch.equal(found, expected)

    def test_matrices_in_memory(self, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        # updates, masks and gates in blocks of columns; all else is a block or a vector
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        x, root, most = normal(200, 40_000), make.Quadratic(normal(40_000, seed=1), normal(40_000)), [0]
        made: list[weakref.ref[Tensor]] = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                found = func(*args, **(kwargs or {}))
                if isinstance(found, Tensor):
                    made[:] = [ref for ref in (*made, weakref.ref(found)) if ref() is not None]
                    storages = [t.untyped_storage() for ref in made if (t := ref()) is not None]
                    alive = {storage.data_ptr(): storage.nbytes() for storage in storages}
                    most[0] = max(most[0], sum(alive.values()) - alive.get(x.data_ptr(), 0))
                return found

        with Watch():
            more = {"learning_rate": 1e6, "clip": 1e-7, "max_steps": 3, "tolerance": 1e-3}
            train_blocks([x[:150], x[150:]], torch.zeros_like(x[0]), root, **more)
        assert 3 < most[0] / (x.numel() * x.element_size()) < 3.2

    def test_several_matrices_are_one(self, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", 1)
        x, root = normal(9, 3000), make.Quadratic(normal(3000, seed=1), normal(3000))
        more = {"learning_rate": 5.0, "clip": 1.0, "max_steps": 5, "tolerance": 0.0}
        masks, steps = train_blocks([x[:6], x[6:6], x[6:]], torch.zeros_like(x[0]), root, **more)
        assert [block.shape for block in masks] == [(9, 1024), (9, 1024), (9, 952)]
        assert steps == 5
        assert torch.equal(torch.cat(masks, dim=1), train(x, root, **more)[0])

    def test_inputs_are_unchanged(self, make: SimpleNamespace) -> None:
        x, start = normal(4, 6), normal(6, seed=1)
        root = make.Quadratic(normal(6, seed=2), normal(6))
        before = x.clone(), start.clone(), root.target.clone()
        train(x, root, start)
        assert all(torch.equal(a, b) for a, b in zip((x, start, root.target), before, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype(self, make: SimpleNamespace, dtype: torch.dtype) -> None:
        masks, _ = train(normal(4, 6).to(dtype), make.Quadratic(normal(6, seed=2).to(dtype), normal(6).to(dtype)))
        assert masks.dtype == dtype


class TestSummedLoss:
    """Equation 3 sums the loss over the k root samples; the published code averages."""

    def test_gradient_is_k_times_as_long(self, make: SimpleNamespace) -> None:
        x, root = normal(5, 8), make.Quadratic(normal(8, seed=1), normal(8))
        k = len(root.data[1])
        more = {"clip": None, "tolerance": 0.0, "max_steps": 6}
        summed, _ = train(x, root, learning_rate=0.1, summed=True, **more)
        mean, _ = train(x, root, learning_rate=0.1 * k, **more)
        torch.testing.assert_close(summed, mean, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(summed, train(x, root, learning_rate=0.1, **more)[0], atol=1e-3)

    def test_early_stop_sees_the_sum(self, make: SimpleNamespace) -> None:
        # twenty samples: a gain of 0.001 in the mean is one of 0.02 in the sum
        x, root = normal(8, 30), make.Quadratic(0.3 * normal(30, seed=1), normal(30))
        more = {"clip": None, "tolerance": 0.0, "early_stop": True}
        gains = {}
        for rate in (1e-4, 3e-4, 1e-3):
            masks, _ = train(x, root, learning_rate=20 * rate, max_steps=10, **{**more, "early_stop": False})
            gain = float(root.loss(x.mean(dim=0)) - root.loss(masked_mean(x, masks)))
            gains[rate] = gain
            assert train(x, root, learning_rate=20 * rate, **more)[1] == (11 if gain < 0.01 else 20)
            assert train(x, root, learning_rate=rate, summed=True, **more)[1] == (11 if 20 * gain < 0.01 else 20)
        assert any(gain < 0.01 < 20 * gain for gain in gains.values())


def plain(x: Tensor, masks: Tensor, mean: Tensor, total: Tensor, outer: Tensor, active: Tensor, **how: float) -> Tensor:
    """:func:`plain_step` as :func:`fused_step` is called."""
    if not active:
        return torch.zeros_like(active)
    found = plain_step(x, masks, masks.sigmoid(), mean, total, outer, x.new_empty(x.numel() + 3), **how)
    return torch.full_like(active, found)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class TestStep:
    @pytest.mark.parametrize(
        ("step", "device"),
        [
            pytest.param(plain, "cpu", id="plain"),
            pytest.param(plain, "cuda", id="plain on a GPU", marks=cuda),
            pytest.param(fused_step, "cuda", id="fused", marks=cuda),
        ],
    )
    @pytest.mark.parametrize("shape", [(2, 1), (9, 130), (101, 5001), (33, 4096)])
    @pytest.mark.parametrize("active", [True, False])
    @pytest.mark.parametrize(("rate", "clip"), [(1e7, 1e-7), (5.0, 0.01), (5.0, math.inf)])
    def test_same_as_the_formulas(
        self, step: Callable[..., Tensor], device: str, shape: tuple[int, int], active: bool, rate: float, clip: float
    ) -> None:
        x, masks = (normal(*shape, seed=seed).float().to(device) for seed in range(2))
        outer, on = normal(shape[1], seed=2).float().to(device), torch.tensor(active, device=device)
        mean, total = masked_mean(x, masks), masks.sigmoid().sum(dim=0)
        expected = masks - rate * mask_gradient(x, masks, outer).clamp(-clip, clip) if active else masks
        most = float((expected.sigmoid() - masks.sigmoid()).abs().max())
        for tolerance, moves in ((most + 1e-5, False), (most - 1e-5, active)):
            new = masks.clone(), mean.clone(), total.clone()
            moved = step(x, *new, outer, on, learning_rate=rate, clip=clip, tolerance=tolerance)
            after = expected, masked_mean(x, expected), expected.sigmoid().sum(dim=0)
            for one, other in zip(new, after, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            assert not active or bool(moved) == moves

    @cuda
    def test_no_step_from_what_is_not_finite(self) -> None:
        x, masks = (normal(9, 130, seed=seed).float().cuda() for seed in range(2))
        bad, new = torch.full_like(x[0], math.nan), masks.clone()
        off = torch.zeros((), dtype=torch.bool, device="cuda")
        fused_step(x, new, bad, torch.zeros_like(bad), bad, off, learning_rate=1.0, clip=1.0, tolerance=0.0)
        assert torch.equal(new, masks)

    @cuda
    def test_training_on_a_gpu_is_that_on_a_cpu(self, make: SimpleNamespace) -> None:
        x, target = normal(21, 3000).float(), 0.3 * normal(3000, seed=1).float()
        more = {"learning_rate": 3.0, "clip": 1.0, "max_steps": 60, "tolerance": 2e-2}
        expected, steps = train(x, make.Quadratic(target, x[0]), **more)
        assert 1 < steps < 60
        assert is_fused(x.cuda())
        assert not is_fused(x.double().cuda())
        found, found_steps = train(x.cuda(), make.Quadratic(target.cuda(), x[0].cuda()), **more)
        assert found_steps == steps
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
