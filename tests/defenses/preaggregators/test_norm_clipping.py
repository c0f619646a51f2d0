"""Norm clipping, against min(1, bound / length), and its effect on the aggregator behind it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.mean import Mean
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.core import linalg
from fedsieve.core.defense import PreAggregator, Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.preaggregators.norm_clipping import NormClipping, norm_clipping

VALUES = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-100, 100).map(lambda v: round(v, 3)))


def published(rows: list[list[float]], bound: float | None) -> list[list[float]]:
    """u / max(1, |u| / bound) for every client; without a bound, the middle of the lengths."""
    lengths = [math.sqrt(sum(value * value for value in row)) for row in rows]
    if bound is None:
        ranked, n = sorted(lengths), len(rows)
        bound = ranked[n // 2] if n % 2 else (ranked[n // 2 - 1] + ranked[n // 2]) / 2
    clipped = []
    for row, length in zip(rows, lengths, strict=True):
        clipped.append([value * bound / length for value in row] if length > bound else row)
    return clipped


def preaggregate(make: SimpleNamespace, rows: Any, max_norm: float | None = None) -> torch.Tensor:
    u = make.updates(torch.as_tensor(rows, dtype=torch.float64))
    done = NormClipping(max_norm).preaggregate(u, make.view(u))
    assert torch.equal(done.updates.client_ids, u.client_ids)
    assert (done.updates.layout, done.state) == (u.layout, None)
    matrix: torch.Tensor = done.updates.matrix
    assert torch.equal(norm_clipping(u.matrix, max_norm), matrix)
    return matrix


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda d: st.lists(st.lists(VALUES, min_size=d, max_size=d), min_size=1, max_size=7)
    ),
    bound=st.one_of(st.none(), st.floats(0.01, 200)),
)
def test_as_published(make: SimpleNamespace, rows: list[list[float]], bound: float | None) -> None:
    found = preaggregate(make, rows, bound).tolist()
    torch.testing.assert_close(found, published(rows, bound), rtol=1e-12, atol=1e-12)


def test_is_a_pre_aggregator() -> None:
    assert isinstance(NormClipping(), PreAggregator)


# lengths 1, 5, 13: the median is 5
ROWS = [[1.0, 0.0], [3.0, -4.0], [-5.0, 12.0]]


class TestByHand:
    def test_median(self, make: SimpleNamespace) -> None:
        expected = [[1.0, 0.0], [3.0, -4.0], [-25 / 13, 60 / 13]]
        torch.testing.assert_close(preaggregate(make, ROWS).tolist(), expected)

    def test_even_number(self, make: SimpleNamespace) -> None:
        # lengths 1, 5, 13, 30: the bound is 9
        found = preaggregate(make, [*ROWS, [30.0, 0.0]])
        torch.testing.assert_close(found.norm(dim=1).tolist(), [1.0, 5.0, 9.0, 9.0])

    def test_max_norm(self, make: SimpleNamespace) -> None:
        torch.testing.assert_close(preaggregate(make, ROWS, 0.5).norm(dim=1).tolist(), [0.5] * 3)
        assert preaggregate(make, ROWS, 13.0).tolist() == ROWS

    def test_before_an_aggregator(self, make: SimpleNamespace) -> None:
        u = make.updates(torch.tensor(ROWS, dtype=torch.float64))
        mean = Chain((NormClipping(),), Mean())(u, make.view(u))
        torch.testing.assert_close(mean.update.tolist(), [(1 + 3 - 25 / 13) / 3, (0 - 4 + 60 / 13) / 3])
        assert mean.weights.tolist() == pytest.approx([1 / 3] * 3)
        trimmed = Chain((NormClipping(),), TrimmedMean())(u, make.view(u, f=1))
        assert trimmed.update.tolist() == [1, 0]


@pytest.mark.parametrize("columns", [40, 20_000])
@pytest.mark.parametrize("max_norm", [None, 3.0])
def test_the_mean_behind_it_writes_no_clipped_update(
    make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, columns: int, max_norm: float | None
) -> None:
    layout = Layout.of({"w": torch.empty(columns)}, {"var": torch.empty(3)})
    x = torch.randn(7, columns + 3, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)[:, None]
    u = Updates(x, torch.arange(7), layout)
    clipped = NormClipping(max_norm).preaggregate(u, make.view(u)).updates
    expected = Mean()(clipped, make.view(clipped))
    monkeypatch.setattr(NormClipping, "preaggregate", None)
    found = Chain((NormClipping(max_norm),), Mean())(u, make.view(u))
    exact = {"rtol": 0.0, "atol": 0.0} if columns < 100 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found.update, expected.update, **exact)
    assert torch.equal(found.weights, expected.weights)
    assert (found.state, found.accepted) == ((None, None), None)


@pytest.mark.parametrize(("m", "n"), [(1, 4), (3, 11), (4, 9)])
def test_a_minority_moves_the_mean_by_its_share_of_the_bound(make: SimpleNamespace, m: int, n: int) -> None:
    x = torch.zeros(n, 8, dtype=torch.float64)
    x[:, 0] = 2.0
    x[:m] = torch.tensor([0.0] * 7 + [-1e30])
    u = make.updates(x)
    update = Chain((NormClipping(),), Mean())(u, make.view(u)).update
    torch.testing.assert_close(update.tolist(), [2 * (n - m) / n, *[0.0] * 6, -2 * m / n])


class TestRange:
    @pytest.mark.parametrize("value", [1e-30, 1e20, 3e38])
    def test_one_huge_row_has_the_right_length(self, make: SimpleNamespace, value: float) -> None:
        x = torch.ones(3, 400)
        x[0] = value * torch.linspace(-1, 1, 400)
        u = make.updates(x)
        clipped = NormClipping().preaggregate(u, make.view(u)).updates.matrix
        assert clipped.dtype == torch.float32
        if value > 1:
            assert clipped[0].norm().item() == pytest.approx(20, rel=1e-6)
            assert torch.cosine_similarity(clipped[0], x[0] / value, dim=0).item() == pytest.approx(1, abs=1e-6)
        else:
            assert torch.equal(clipped, x)

    def test_scale_too_small_for_float32(self) -> None:
        # 1e-8 / (3e38 * 20) is below float32, its product with the row is not
        x = torch.full((1, 400), 3e38)
        assert linalg.clip_rows(x, 1e-8).double().norm().item() == pytest.approx(1e-8, rel=1e-6)

    def test_input_is_unchanged(self, make: SimpleNamespace) -> None:
        u = make.updates([[1.0, 1.0], [5.0, 5.0], [2.0, 2.0]])
        before = u.matrix.clone()
        done = NormClipping().preaggregate(u, make.view(u)).updates.matrix
        done.fill_(7)
        assert torch.equal(u.matrix, before)

    def test_most_rows_zero(self, make: SimpleNamespace) -> None:
        assert not preaggregate(make, [[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]]).any()

    @pytest.mark.parametrize("rows", [[[5.0, 1.0]], [[0.0, 0.0]], [[2.0], [2.0], [2.0]], [[3.0]]])
    def test_rows_of_the_median_length_stay_as_they_are(self, make: SimpleNamespace, rows: list[list[float]]) -> None:
        assert preaggregate(make, rows).tolist() == rows


def test_statistics_pass_unchanged(make: SimpleNamespace) -> None:
    layout = Layout.of({"w": torch.empty(1)}, {"var": torch.empty(2)})
    x = torch.tensor([[1.0, 300.0, 400.0], [2.0, 30.0, 40.0], [40.0, 3.0, 4.0]])
    u = Updates(x, torch.arange(3), layout)
    for max_norm, expected in ((None, [1.0, 2.0, 2.0]), (0.5, [0.5] * 3), (99.0, [1.0, 2.0, 40.0])):
        found = NormClipping(max_norm).preaggregate(u, make.view(u)).updates.matrix
        torch.testing.assert_close(found[:, 0].tolist(), expected)
        torch.testing.assert_close(found[:, 1:].tolist(), [[300.0, 400.0], [30.0, 40.0], [3.0, 4.0]])


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_parameters(value: float) -> None:
    with pytest.raises(ParameterError) as error:
        NormClipping(max_norm=value)
    assert str(error.value) == f"norm-clipping: max_norm must be finite and positive, got {value}"
    with pytest.raises(ParameterError) as other:
        norm_clipping(torch.ones(2, 1), value)
    assert str(other.value) == str(error.value)
