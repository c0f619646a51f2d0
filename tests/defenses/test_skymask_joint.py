"""Masks trained together: the gradient, the training and the clustering, each against something independent."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from fedsieve import ops
from fedsieve.defenses.skymask.joint import (
    mask_gradient,
    masked_mean,
    principal_components,
    train_masks,
    two_clusters,
)
from fedsieve.losses import LOSSES
from fedsieve.models.flat import FlatModel
from fedsieve.models.mlp import MLP
from fedsieve.types import Objective, Witnesses


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def published_masks(
    models: list[list[float]],
    gradient: Callable[[list[float]], list[float]],
    rate: float,
    clip: float,
    max_steps: int,
    tolerance: float,
) -> tuple[list[list[float]], int]:
    """Section III-C: masks of ones; W~ by equation 2; m_i <- m_i - rate dL/dm_i, with dL/dm_i by the chain rule.

    In terms of models, not updates: dW~_j / dm_ij = [s'(m_ij) w_ij sum_k s(m_kj) - s'(m_ij) sum_k s(m_kj) w_kj]
    / (sum_k s(m_kj))^2. Clipped, and stopped when no gate moves further than ``tolerance``.
    """
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
        {"learning_rate": 5.0, "clip": 1e9, "max_steps": 7, "tolerance": 0.0},  # no clip
        {"learning_rate": 40.0, "clip": 0.01, "max_steps": 12, "tolerance": 0.0},  # some coordinates clipped
        {"learning_rate": 1e7, "clip": 1e-7, "max_steps": 10, "tolerance": 0.0},  # nearly all of them
        {"learning_rate": 3.0, "clip": 1.0, "max_steps": 400, "tolerance": 2e-3},  # stops by itself
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
    def test_as_published_anywhere(self, make: SimpleNamespace, seed: int, n: int, rate: float) -> None:
        root = make.Quadratic(normal(3, seed=seed + 1), normal(3))
        x = normal(n, 3, seed=seed)
        expected, _ = published_masks(
            x.tolist(), lambda w: root.gradient(normal(3).new_tensor(w))[1].tolist(), rate, 1, 6, 0
        )
        masks, _ = train(x, root, learning_rate=rate, clip=1.0, max_steps=6, tolerance=0.0)
        torch.testing.assert_close(masks, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)

    def test_descends(self, make: SimpleNamespace) -> None:
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

    def test_the_client_that_helps_is_let_in(self, make: SimpleNamespace) -> None:
        # by hand, in one dimension: the optimum is 1, the mean of 1 and -1 is 0, so the 1 must open, the -1 close
        x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        root = make.Quadratic(torch.ones(1, dtype=torch.float64), x[0])
        masks, _ = train(x, root, learning_rate=1.0, clip=1e9, max_steps=1)
        # outer = 0 - 1, total = 2 s(1): gradient = -(+-1) (1 - s(1)) / 2
        slope = (1 - sigmoid(1)) / 2
        torch.testing.assert_close(masks.squeeze(1).tolist(), [1 + slope, 1 - slope], rtol=1e-12, atol=0)

    @pytest.mark.parametrize("objective", ["cross-entropy", "batch", "margin"])
    def test_objective(self, objective: Objective) -> None:
        torch.manual_seed(0)
        model, start = FlatModel.of(MLP((4,), 3, hidden=(5,)).double())
        x, y, rows = normal(12, 4), torch.arange(12) % 3, normal(5, len(start))
        masks, _ = train(rows, ModelRoot(model, x, y, start), start, max_steps=1, objective=objective, clip=1e9)
        slope = model.gradient(start + rows.mean(dim=0), x, y, LOSSES[objective])[1]
        expected = 1 - 1e6 * mask_gradient(rows, torch.ones_like(rows), slope)
        torch.testing.assert_close(masks, expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(("rate", "steps"), [(1e-6, 11), (5.0, 20)])
    def test_least_gain_looks_once(self, make: SimpleNamespace, rate: float, steps: int) -> None:
        x, root = normal(8, 30), make.Quadratic(0.3 * normal(30, seed=1), normal(30))
        more = {"learning_rate": rate, "clip": 1.0, "tolerance": 0.0}
        assert train(x, root, least_gain=1e-2, **more)[1] == steps
        assert train(x, root, **more)[1] == 20

    def test_nothing_to_learn_stops_at_once(self, make: SimpleNamespace) -> None:
        x = normal(3, 4)
        masks, steps = train(x, make.Quadratic(x.mean(dim=0), x[0]))
        assert steps == 1
        torch.testing.assert_close(masks, torch.ones_like(x), rtol=0, atol=1e-6)

    def test_statistics_do_not_learn(self) -> None:
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).double()
        model, start = FlatModel.of(module)
        root = ModelRoot(model, normal(8, 3), torch.arange(8) % 2, start)
        masks, _ = train(normal(5, len(start)), root, start, max_steps=3)
        p = model.layout.n_parameters
        assert p < len(start)
        assert torch.equal(masks[:, p:], torch.ones_like(masks[:, p:]))
        assert (masks[:, :p] != 1).any()

    def test_blocks_do_not_matter(self, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        x, root = normal(6, 5000), make.Quadratic(normal(5000, seed=1), normal(5000))
        found = []
        for block_bytes, blocks in ((1, 5), (1 << 30, 1)):
            monkeypatch.setattr(ops, "_BLOCK_BYTES", block_bytes)
            assert len(list(ops.column_blocks(x))) == blocks
            masks, _ = train(x, root, learning_rate=5.0, clip=1.0)
            found.append((masks, principal_components(masks > 0.9, 3)))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-9)

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


class ModelRoot:
    """Root data seen through a network."""

    def __init__(self, model: FlatModel, x: Tensor, y: Tensor, sent: Tensor) -> None:
        self.model, self.x, self.y, self.sent = model, x, y, sent

    def loss(self, flat: Tensor, /) -> Tensor:
        return self.model.loss(flat, self.x, self.y)

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.model.gradient(flat, self.x, self.y, LOSSES[objective])

    def update(self) -> Tensor:
        return self.sent

    def witnesses(self) -> Witnesses:
        raise AssertionError("nothing here asks for witnesses")


def test_no_graph_over_clients_times_coordinates() -> None:
    torch.manual_seed(0)
    model, start = FlatModel.of(MLP((20,), 5, hidden=(30,)))
    n, d = 17, len(start)
    root = ModelRoot(model, normal(8, 20).float(), torch.arange(8) % 5, start)
    x = normal(n, d).float()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        masks, _ = train(x, root, start, max_steps=3)
    assert len(saved) > 3  # the model's own backward pass was seen
    assert max(saved) < d < n * d
    assert not masks.requires_grad
    assert masks.grad_fn is None
    assert not x.requires_grad


# --- Clustering ---------------------------------------------------------------------------------------------


def bits(n: int, d: int, seed: int = 0, share: float = 0.5) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < share


def up_to_sign(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape
    for k in range(found.shape[1]):
        one, other = found[:, k], expected[:, k]
        assert min(np.abs(one - other).max(), np.abs(one + other).max()) < tolerance


class TestPrincipalComponents:
    @pytest.mark.parametrize(("n", "d"), [(8, 30), (30, 8), (20, 3000), (100, 50)])
    @pytest.mark.parametrize("share", [0.5, 0.9])
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_against_sklearn(self, n: int, d: int, share: float, k: int) -> None:
        binary = bits(n, d, share=share)
        expected = PCA(k, svd_solver="full").fit_transform(binary.double().numpy())
        up_to_sign(principal_components(binary, k), expected, 1e-7)

    def test_by_hand(self) -> None:
        # two rows that differ in four coordinates lie 2 apart, at -1 and 1 from their middle
        binary = torch.tensor([[True] * 4 + [True, False], [False] * 4 + [True, False]])
        found = principal_components(binary, 2)
        assert sorted(found[:, 0].tolist()) == pytest.approx([-1, 1])
        assert found[:, 1].tolist() == [0, 0]

    def test_all_components_keep_all_distances(self) -> None:
        binary = bits(7, 2000)
        found = principal_components(binary, 6)
        for i in range(7):
            for j in range(7):
                different = int((binary[i] != binary[j]).sum())
                assert ((found[i] - found[j]) ** 2).sum() == pytest.approx(different, rel=1e-12, abs=1e-9)

    @pytest.mark.parametrize("seed", range(5))
    def test_order_of_rows_is_irrelevant(self, seed: int) -> None:
        binary = bits(15, 200, seed)
        order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
        one, other = principal_components(binary, 2), principal_components(binary[order], 2)
        np.testing.assert_allclose(other, one[order.numpy()], atol=1e-9)

    @pytest.mark.parametrize("value", [True, False])
    def test_constant_masks(self, value: bool) -> None:
        found = principal_components(torch.full((9, 4000), value), 2)
        assert found.tolist() == [[0, 0]] * 9

    def test_equal_rows(self) -> None:
        found = principal_components(bits(1, 5000).expand(9, -1), 2)
        assert found.tolist() == [[0, 0]] * 9

    def test_more_components_than_there_are(self) -> None:
        found = principal_components(bits(3, 50), 5)
        assert found.shape == (3, 5)
        assert np.abs(found[:, :2]).max() > 1
        assert not found[:, 2:].any()

    def test_one_row(self) -> None:
        assert principal_components(bits(1, 20), 2).tolist() == [[0, 0]]


def cloud(n: int, centre: tuple[float, float] = (0, 0), spread: float = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, spread, (n, 2))


def agree(labels: np.ndarray | None, truth: list[int]) -> None:
    assert labels is not None
    assert labels.tolist() in (truth, [1 - t for t in truth])


EVIDENCE = 1.3


class TestTwoClusters:
    @pytest.mark.parametrize(("a", "b"), [(10, 10), (16, 4), (4, 16), (80, 21), (20, 81)])
    @pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
    def test_clear_clusters(self, a: int, b: int, scale: float) -> None:
        points = scale * np.concatenate([cloud(a), cloud(b, (12, 5), seed=1)])
        agree(two_clusters(points, EVIDENCE), [0] * a + [1] * b)

    def test_clusters_of_different_width(self) -> None:
        points = np.concatenate([cloud(30), cloud(10, (9, 0), 0.01, seed=1)])
        agree(two_clusters(points, EVIDENCE), [0] * 30 + [1] * 10)

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("n", [21, 100])
    def test_one_cloud(self, n: int, seed: int) -> None:
        assert two_clusters(cloud(n, seed=seed) * [3, 1], EVIDENCE) is None

    def test_evidence_decides(self) -> None:
        points = np.concatenate([cloud(15), cloud(15, (6, 0), seed=1)])
        agree(two_clusters(points, 0.0), [0] * 15 + [1] * 15)
        assert two_clusters(points, 1e3) is None
        agree(two_clusters(points, None), [0] * 15 + [1] * 15)

    @pytest.mark.parametrize("seed", range(5))
    def test_without_a_question_there_are_two(self, seed: int) -> None:
        points = cloud(21, seed=seed)
        assert two_clusters(points, EVIDENCE) is None
        assert two_clusters(points, None) is not None

    @pytest.mark.parametrize("row", [(0.0, 0.0), (2.0, 2.0), (1.0, 2.0)])
    def test_identical_rows(self, row: tuple[float, float]) -> None:
        assert two_clusters(np.array([row] * 12), EVIDENCE) is None
        assert two_clusters(np.array([row] * 12), 0.0) is None

    @pytest.mark.parametrize(("a", "b"), [(10, 10), (9, 3), (3, 9), (20, 5)])
    def test_two_groups_of_identical_rows(self, a: int, b: int) -> None:
        points = np.array([(1.0, 0.5)] * a + [(-2.0, 0.5)] * b)
        agree(two_clusters(points, EVIDENCE), [0] * a + [1] * b)

    def test_identical_rows_against_a_cloud(self) -> None:
        points = np.concatenate([cloud(17), np.full((4, 2), 15.0)])
        agree(two_clusters(points, EVIDENCE), [0] * 17 + [1] * 4)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_too_few_points(self, k: int) -> None:
        few = 2 * (k + 1)  # a mixture needs k + 1 points a component
        points = np.repeat([[5.0] * k, [-5.0] * k], few // 2, axis=0)
        agree(two_clusters(points, EVIDENCE), [0] * (few // 2) + [1] * (few // 2))
        assert two_clusters(points[:-1], EVIDENCE) is None
        assert two_clusters(points[:1], EVIDENCE) is None

    def test_order_of_rows_is_irrelevant(self) -> None:
        found = 0
        for seed in range(12):
            rng = np.random.default_rng(seed)
            points = np.concatenate([cloud(12, seed=seed), cloud(8, (5, 1), seed=seed + 1)])
            order = rng.permutation(20)
            one, other = two_clusters(points, 0.0), two_clusters(points[order], 0.0)
            if one is None:
                assert other is None
            else:
                agree(other, one[order].tolist())
                found += 1
        assert found >= 6

    def test_points_are_unchanged(self) -> None:
        points = np.concatenate([cloud(10), cloud(10, (9, 9), seed=1)])
        before = points.copy()
        two_clusters(points, EVIDENCE)
        np.testing.assert_array_equal(points, before)
