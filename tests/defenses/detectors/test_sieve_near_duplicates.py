"""Binary masks in closed form against loops, and near-duplicates among them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.core import linalg
from fedsieve.core.layout import Layout
from fedsieve.detectors.sieve.near_duplicates import masks_of, near_duplicates

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

    def test_keeps_parameters_whose_mask_grows(self) -> None:
        # by autograd: the loss of W + s(m) u, one step from m = 0
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
            monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
            found.append(masks_of(x, gradient, layout))
        for name in ("common", "differing", "kept", "decided"):
            assert torch.equal(getattr(found[0], name), getattr(found[1], name))
        assert found[0].common.sum(dim=0).max() == 4500


class TestNearDuplicates:
    layout = two_layers(2000, 3000)

    def found(self, x: Tensor, layout: Layout | None = None) -> tuple[list[bool], list[bool]]:
        layout = layout or self.layout
        return tuple(rows.tolist() for rows in near_duplicates(x, masks_of(x, x[0], layout), 5e-4))  # type: ignore[return-value]

    def test_benign_clients(self) -> None:
        x = normal(1, 5000, seed=1) + 0.05 * normal(20, 5000)  # 1.6 % of the signs differ
        assert self.found(x) == ([False] * 20, [False] * 20)

    @pytest.mark.parametrize("scale", [1.0, 3.0])
    def test_equal_signs(self, scale: float) -> None:
        x = normal(8, 5000)
        x[5] = scale * x[2] * (1 + 0.1 * normal(5000, seed=2).sigmoid())
        assert self.found(x) == ([k in (2, 5) for k in range(8)], [False] * 8)

    @pytest.mark.parametrize(("flipped", "same"), [((0, 2), True), ((1, 1), True), ((1, 2), False), ((3, 0), False)])
    def test_the_rate_is_of_all_entries(self, flipped: tuple[int, int], same: bool) -> None:
        x = normal(8, 5000)  # of 5000 common entries, 2.5 may differ
        x[5] = x[2]
        x[5, : flipped[0]] *= -1
        x[5, 2000 : 2000 + flipped[1]] *= -1
        assert self.found(x) == ([same and k in (2, 5) for k in range(8)], [False] * 8)

    def test_equal_signs_in_one_layer(self) -> None:
        x = normal(8, 5000)
        x[5, :2000] = 2 * x[2, :2000]
        assert self.found(x) == ([False] * 8, [k in (2, 5) for k in range(8)])

    def test_similar_masks_are_not_near_duplicates_in_a_layer(self) -> None:
        # masks that differ in 0.1 % of all entries may agree in a layer
        x = normal(1, 5000, seed=1).expand(8, -1).clone()
        for row in range(8):
            x[row, 2000 + 10 * row : 2010 + 10 * row] *= -1
        assert self.found(x) == ([False] * 8, [False] * 8)

    def test_equal_updates_of_all_clients(self) -> None:
        assert self.found(normal(1, 5000).expand(8, -1).clone())[0] == [False] * 8

    def test_updates_of_small_models_must_be_equal(self) -> None:
        layout, x = two_layers(5, 5), normal(6, 10).abs()  # all signs are the same
        assert self.found(x, layout)[0] == [False] * 6
        x[1] = x[4]
        assert self.found(x, layout)[0] == [False, True, False, False, True, False]

    def test_updates_of_zeros(self) -> None:
        for layout, d in ((self.layout, 5000), (two_layers(5, 5), 10)):
            x = normal(6, d)
            x[:3] = 0
            assert self.found(x, layout) == ([False] * 6, [False] * 6)
