"""The decorator of the rules' plain functions, on small functions whose results are known."""

from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.aggregators.deepsight import deepsight
from fedsieve.aggregators.flame import flame
from fedsieve.aggregators.fltrust import fltrust
from fedsieve.aggregators.geometric_median import geometric_median
from fedsieve.aggregators.invariant import invariant
from fedsieve.aggregators.krum import krum, multi_krum
from fedsieve.aggregators.mean import mean
from fedsieve.aggregators.median import median
from fedsieve.aggregators.sparsefed import sparsefed
from fedsieve.aggregators.trimmed_mean import trimmed_mean
from fedsieve.aggregators.weak_dp import weak_dp
from fedsieve.core.direct import direct
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.detectors.tolpegin import tolpegin
from fedsieve.preaggregators.momentum import momentum
from fedsieve.preaggregators.norm_clipping import norm_clipping

HUGE = 3e38  # two of these have no sum in float32
X = torch.arange(12.0).view(4, 3)
LAYOUT = Layout.of({"w": torch.empty(5)})
NETWORK = SimpleNamespace(input_shape=(1,), logits=lambda flat, x: x)


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(ParameterError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


class TestRange:
    """Finite in, finite and right out: in float64 where float32 overflows, clamped where the result does."""

    def test_the_mean_of_huge_values(self) -> None:
        x = torch.tensor([[HUGE, HUGE], [HUGE, -HUGE], [HUGE, HUGE], [HUGE, -HUGE]])
        assert mean(x).tolist() == [torch.tensor(HUGE).item(), 0]

    def test_the_median_of_huge_values(self) -> None:
        assert median(torch.full((4, 1), HUGE)).item() == torch.tensor(HUGE).item()
        assert trimmed_mean(torch.full((4, 1), -HUGE), trim=1).item() == torch.tensor(-HUGE).item()

    def test_half_precision_does_not_overflow_in_between(self) -> None:
        x = torch.full((8, 2), 6e4, dtype=torch.float16)
        assert mean(x).tolist() == x[0].tolist()
        assert mean(x).dtype == torch.float16
        assert torch.equal(norm_clipping(x), x)

    def test_a_result_beyond_the_range_is_clamped(self) -> None:
        held = torch.full((2,), HUGE)
        step, _, memory = sparsefed(torch.full((3, 2), HUGE), held, held, keep=0.5)  # 3e38 + 0.9 * 3e38 + 3e38
        most = torch.finfo(torch.float32).max
        assert (step.tolist(), memory.tolist()) == ([most, 0], [0, most])
        half = torch.full((3, 2), 6e4, dtype=torch.float16)
        assert sparsefed(half, half[0], half[0], keep=1)[0].tolist() == [torch.finfo(torch.float16).max] * 2

    def test_float64_beyond_its_range_is_an_error(self) -> None:
        x = torch.full((3, 2), 1.7e308, dtype=torch.float64)
        assert said(lambda: mean(x)) == (
            "mean: the median row of x has values up to 1.7e+308, float64 has squares of 1e+150 at most; divide x by "
            "a constant"
        )
        assert said(lambda: krum(x, f=0)).startswith("krum: the median row of x has values up to 1.7e+308")
        x[0] = 0
        x[1] = 0
        assert mean(x).tolist() == [1.7e308 / 3] * 2

    def test_a_tiny_update_keeps_its_trust(self) -> None:
        root, expected = torch.tensor([3.0, 4.0]), torch.tensor([1.5, 2.0])
        for scale in (1e-38, 1e-42, 1e-20, 1.0, 1e20, 3e37):
            x = torch.stack([root.double() * scale, torch.tensor([0.0, 0.0], dtype=torch.float64), -root.double()])
            torch.testing.assert_close(fltrust(x.float(), root), root, rtol=1e-3, atol=0)
            both = torch.stack([root.double() * scale, torch.tensor([4.0, -3.0], dtype=torch.float64) * scale])
            torch.testing.assert_close(fltrust(both.float(), 0.5 * root), expected, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 1e37])
    def test_root_updates_of_any_length(self, scale: float) -> None:
        root = torch.tensor([3.0, 4.0]) * scale
        torch.testing.assert_close(fltrust(torch.tensor([[3.0, 4.0]]), root), root, rtol=1e-4, atol=0)

    def test_noise_is_the_same_where_a_rule_is_computed_twice(self) -> None:
        x, draws = torch.zeros(3, 40), torch.randn(40, generator=torch.Generator().manual_seed(5))
        found = weak_dp(x, sigma=3e38, generator=torch.Generator().manual_seed(5))
        most = torch.finfo(torch.float32).max
        torch.testing.assert_close(found, (3e38 * draws.double()).clamp(-most, most).float())
        assert found.abs().max() == most


class TestRows:
    def test_rows_that_are_not_finite_are_named(self) -> None:
        x = torch.ones(12, 2)
        x[[0, 7], 1] = torch.tensor([torch.nan, -torch.inf])
        expected = "median: rows 0, 7 of x are not finite; fedsieve.aggregate drops such rows"
        assert said(lambda: median(x)) == expected
        assert said(lambda: mean(x)) == expected.replace("median", "mean")
        x[:9] = torch.inf
        assert "rows 0, 1, 2, 3, 4 and 4 more of x are not finite" in said(lambda: krum(x, f=2))
        assert said(lambda: tolpegin(x)).endswith("fedsieve.detect drops such rows")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_of_a_mean_whose_other_rows_are_huge(self, value: float) -> None:
        x = torch.full((3, 2), HUGE)
        x[1, 1] = value
        assert "row 1 of x is not finite" in said(lambda: mean(x))


class TestArguments:
    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            (lambda: krum(X, f=1.5), "krum: f must be an integer, got 1.5"),  # type: ignore[arg-type]
            (lambda: krum(X, f=True), "krum: f must be an integer, got True"),
            (lambda: krum(X, f=torch.zeros(99)), "krum: f must be an integer, got tensor([0., 0., "),  # type: ignore[arg-type]
            (lambda: norm_clipping(X, 10**400), "norm-clipping: max_norm must be a number, got a number of 1329 bits"),
            (lambda: deepsight(X, X[0], LAYOUT, NETWORK, torch.Generator()), "x has 3 columns, layout has 5"),
            (lambda: deepsight(X, X[0], LAYOUT, None, torch.Generator()), "network must be a Network, got None"),  # type: ignore[arg-type]
            (lambda: krum(X, f=None), "krum: f must be an integer, got None"),  # type: ignore[arg-type]
            (lambda: krum(X, f="1"), "krum: f must be an integer, got '1'"),  # type: ignore[arg-type]
            (lambda: krum(X, f=torch.tensor([1, 2])), "krum: f must be an integer, got tensor([1, 2])"),  # type: ignore[arg-type]
            (lambda: multi_krum(X, 0, keep=2.0), "multi-krum: keep must be an integer, got 2.0"),  # type: ignore[arg-type]
            (lambda: invariant(X, tau="0.2"), "invariant: tau must be a number, got '0.2'"),  # type: ignore[arg-type]
            (lambda: invariant(X, strict=1), "invariant: strict must be a bool, got 1"),  # type: ignore[arg-type]
            (lambda: invariant(X, tau=float("nan")), "invariant: tau must be in [0, 1], got nan"),
            (lambda: norm_clipping(X, float("nan")), "norm-clipping: max_norm must be finite and positive, got nan"),
            (lambda: geometric_median(X, float("nan")), "geometric-median: iterations must be an integer, got nan"),  # type: ignore[arg-type]
            (lambda: weak_dp(X, generator=3), "weak-dp: generator must be a Generator, got 3"),  # type: ignore[arg-type]
            (lambda: momentum(X, X[:2]), "momentum: past must be float16, bfloat16, float32 or float64 of shape [4"),
            (lambda: momentum(X, X.to("meta")), "momentum: past must hold values, got a tensor on the device meta"),
            (lambda: fltrust(X, X[0].long()), "fltrust: root_update must be float16, bfloat16, float32 or float64"),
            (lambda: fltrust(X, X[0].double() * 1e200), "fltrust: root_update must be finite in float32"),
            (lambda: median(np.ones((2, 3))), "got ndarray; fedsieve.aggregate takes arrays and lists"),  # type: ignore[arg-type]
            (lambda: tolpegin([[1.0]]), "got list; fedsieve.detect takes arrays and lists"),  # type: ignore[arg-type]
            (lambda: mean(X.to(torch.float8_e5m2)), "got float8_e5m2 of shape [4, 3]"),
        ],
    )  # fmt: skip
    def test_mistakes(self, call: Callable[[], Any], expected: str) -> None:
        assert expected in said(call)

    def test_integers_and_numbers_of_other_libraries(self) -> None:
        for f in (np.int64(1), torch.tensor(1)):
            assert torch.equal(trimmed_mean(X, f), trimmed_mean(X, 1))  # type: ignore[arg-type]
        for tau in (np.float64(0.5), np.float32(0.5), Fraction(1, 2)):
            assert torch.equal(invariant(X, tau), invariant(X, 0.5))  # type: ignore[arg-type]
        assert torch.equal(norm_clipping(X, torch.tensor(2.0)), norm_clipping(X, 2.0))  # type: ignore[arg-type]

    def test_missing_ones_are_python_s_own_mistake(self) -> None:
        with pytest.raises(TypeError, match="missing a required argument: 'f'"):
            krum(X)  # type: ignore[call-arg]


class TestResults:
    def test_other_arguments_are_left_alone(self) -> None:
        past, root = torch.ones(4, 3), torch.ones(3)
        given = [X.clone().requires_grad_(), past.clone().requires_grad_(), root.clone().requires_grad_()]
        found = [momentum(given[0], given[1]), fltrust(given[0], given[2]), flame(given[0], given[2], noise=0.0)]
        assert not any(result.requires_grad or result.grad_fn for result in found)
        for tensor, before in zip(given, (X, past, root), strict=True):
            assert torch.equal(tensor, before)
            assert tensor.grad is None

    def test_no_memory_is_shared(self) -> None:
        for rule in (mean, median, norm_clipping, momentum, sparsefed):
            for x in (X.clone(), X[:1].clone()):
                held, found = x.clone(), rule(x)  # type: ignore[operator]
                for part in found if isinstance(found, tuple) else (found,):
                    part.fill_(7)
                assert torch.equal(x, held)
        x = X.clone()
        step, held, memory = sparsefed(x, keep=1.0)
        step.fill_(7)
        held.fill_(8)
        assert not memory.any()

    def test_types_of_several_results_and_of_bools(self) -> None:
        assert [part.dtype for part in sparsefed(X.half())] == [torch.float16] * 3
        assert tolpegin(X.bfloat16()).dtype == torch.bool

    def test_a_function_stays_what_it_was(self) -> None:
        assert krum.__name__ == "krum"
        assert krum.__doc__ is not None
        assert "BoundError" in krum.__doc__

    def test_generators_move_on_as_in_one_call(self) -> None:
        one, two = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        weak_dp(X, generator=one)
        weak_dp(torch.full((4, 3), HUGE), sigma=1.0, generator=two)
        assert torch.equal(one.get_state(), two.get_state())


def test_the_name_is_that_of_the_rule() -> None:
    @direct("rule")
    def rule(x: Float[Tensor, "n d"], other: Float[Tensor, " d"] | None = None) -> Float[Tensor, " d"]:
        return x[0] if other is None else other

    assert said(lambda: rule(X[0])).startswith("rule: x must be")
    assert said(lambda: rule(X, X)).startswith("rule: other must be")
    assert torch.equal(rule(X, X[1]), X[1])
    assert torch.equal(rule(X), X[0])
