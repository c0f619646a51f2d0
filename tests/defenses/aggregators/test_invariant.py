"""The Invariant Aggregator, against Algorithm 1 and the ranks of the published code."""

import math
from fractions import Fraction
from math import comb
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.aggregators.invariant import Invariant, agreed, invariant, kept_ranks, votes_needed
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.core import linalg
from fedsieve.core.defense import Aggregate
from fedsieve.core.errors import ParameterError

VALUES = st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 1.0, 2.0]), st.floats(-100, 100, allow_subnormal=False))


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def published(rows: list[list[float]], tau: str, alpha: str) -> list[float]:
    """Algorithm 1 on new - old; where ceil(alpha n) at both ends leaves nothing, the one or two in the middle."""
    n, result = len(rows), []
    for k in range(len(rows[0])):
        column = sorted(row[k] for row in rows)
        consistency = Fraction(abs(sum(sign(value) for value in column)), n)
        cut = math.ceil(Fraction(alpha) * n)
        middle = column[cut : n - cut] or column[(n - 1) // 2 : n // 2 + 1]
        result.append(sum(middle) / len(middle) if consistency > Fraction(tau) else 0.0)
    return result


def published_code(rows: list[list[float]]) -> list[float]:
    """The published code on old - new, with its slice; a coordinate where it gives NaN is the median instead."""
    n, result = len(rows), []
    for k in range(len(rows[0])):
        column = sorted(-row[k] for row in rows)
        agreement = abs(sum(sign(value) for value in column) / n)
        middle = column[int(0.45 * n) : int((1 - 0.45) * n)] or column[(n - 1) // 2 : n // 2 + 1]
        result.append(-sum(middle) / len(middle) if agreement >= 0.6 else 0.0)
    return result


def tables(most: int) -> st.SearchStrategy[list[list[float]]]:
    def rows(d: int) -> st.SearchStrategy[list[list[float]]]:
        return st.lists(st.lists(VALUES, min_size=d, max_size=d), min_size=1, max_size=most)

    return st.integers(1, 3).flatmap(rows)


def call(make: SimpleNamespace, rows: Any, **parameters: Any) -> Aggregate:
    u = make.updates(torch.as_tensor(rows, dtype=torch.float64))
    return Invariant(**parameters)(u, make.view(u))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=tables(21),
    tau=st.sampled_from(["0.0", "0.2", "0.3", "0.6", "1.0"]),
    alpha=st.sampled_from(["0.0", "0.25", "0.4"]),
)
def test_as_published(make: SimpleNamespace, rows: list[list[float]], tau: str, alpha: str) -> None:
    found = call(make, rows, tau=float(tau), alpha=float(alpha)).update
    torch.testing.assert_close(found.tolist(), published(rows, tau, alpha), rtol=1e-12, atol=1e-12)
    x = torch.tensor(rows, dtype=torch.float64)
    assert torch.equal(invariant(x, tau=float(tau), trim=float(alpha)), found)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=tables(24))
def test_as_the_published_code(make: SimpleNamespace, rows: list[list[float]]) -> None:
    found = call(make, rows, preset="code").update
    torch.testing.assert_close(found.tolist(), published_code(rows), rtol=1e-12, atol=1e-12)


def test_papers_values_are_the_default(make: SimpleNamespace) -> None:
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = call(make, x)
    torch.testing.assert_close(result.update.tolist(), published(x.tolist(), "0.2", "0.25"), rtol=1e-12, atol=1e-12)
    assert 0 < (result.update == 0).sum() < 50
    assert torch.equal(invariant(x), result.update)


class TestVotes:
    @pytest.mark.parametrize(
        ("n", "tau", "strict", "votes"),
        # in floating point 0.29 * 100 is 28.999999999999996, which 29 votes would exceed
        [
            *[(20, 0.2, True, 5), (20, 0.2, False, 4), (5, 0.6, True, 4), (5, 0.6, False, 3), (10, 0.3, False, 3)],
            *[
                (10, 0.7, False, 7),
                (100, 0.29, False, 29),
                (100, 0.29, True, 30),
                (7, 0.0, True, 1),
                (7, 0.0, False, 0),
            ],
            *[(7, 1.0, True, 8), (7, 1.0, False, 7), (1, 0.2, True, 1), (11, 0.2, True, 3), (11, 0.2, False, 3)],
        ],
    )
    def test_needed(self, n: int, tau: float, strict: bool, votes: int) -> None:
        assert votes_needed(n, tau, strict) == votes

    def test_at_the_boundary(self, make: SimpleNamespace) -> None:
        # 12 up, 8 down: 4 votes of 20 are exactly 0.2; trimmed by 5 at either end, 7 ones and 3 minus ones are left
        rows = [[1.0]] * 12 + [[-1.0]] * 8
        assert call(make, rows).update.tolist() == [0]
        assert call(make, rows, strict=False).update.item() == pytest.approx(0.4)
        assert invariant(torch.tensor(rows), strict=False).item() == pytest.approx(0.4)
        assert call(make, rows, tau=0.19).update.item() == pytest.approx(0.4)
        # the code's boundary: 16 up, 4 down are 12 votes, 0.6
        rows = [[1.0]] * 16 + [[-1.0]] * 4
        assert call(make, rows, preset="code").update.tolist() == [1]
        assert call(make, rows, preset="code", strict=True).update.tolist() == [0]

    def test_zeros_have_no_vote_and_count_in_n(self, make: SimpleNamespace) -> None:
        # 2 votes of 10: masked, though all votes agree
        assert call(make, [[3.0]] * 2 + [[0.0]] * 8, trim=False).update.tolist() == [0]
        assert call(make, [[3.0]] * 3 + [[0.0]] * 7, trim=False).update.item() == pytest.approx(0.9)

    def test_parity(self) -> None:
        # without zeros, the votes of 10 clients add up to an even number: tau 0.2 and 0.3 give the same mask
        x = torch.randn(10, 1000, generator=torch.Generator().manual_seed(0))
        assert torch.equal(agreed(x, votes_needed(10, 0.2, True)), agreed(x, votes_needed(10, 0.3, True)))
        assert not torch.equal(agreed(x, votes_needed(10, 0.2, True)), agreed(x, votes_needed(10, 0.2, False)))

    @pytest.mark.parametrize(
        ("n", "tau", "strict", "share"), [(10, 0.2, True, 0.344), (20, 0.6, False, 0.012), (20, 0.2, True, 0.263)]
    )
    def test_share_kept_by_chance(self, n: int, tau: float, strict: bool, share: float) -> None:
        # fair independent signs: the binomial share of coordinates with that many votes, and a count of them
        needed = votes_needed(n, tau, strict)
        exact = sum(comb(n, up) for up in range(n + 1) if abs(2 * up - n) >= needed) / 2**n
        assert exact == pytest.approx(share, abs=5e-4)
        x = torch.randn(n, 40_000, generator=torch.Generator().manual_seed(1))
        assert agreed(x, needed).float().mean() == pytest.approx(exact, abs=0.01)

    @pytest.mark.parametrize("m", range(10))
    def test_agreement_of_the_benign_is_kept_up_to_the_bound(self, make: SimpleNamespace, m: int) -> None:
        # all benign clients up, m of 20 down: 1 - 2m/20 of the votes, so kept if and only if tau is less
        rows = [[1.0]] * (20 - m) + [[-1.0]] * m
        for tau in (0.1, 0.2, 0.5, 0.9):
            kept = call(make, rows, tau=tau).update.item() != 0
            assert kept == (Fraction(str(tau)) < 1 - Fraction(2 * m, 20))

    @pytest.mark.parametrize(("strict", "kept"), [(True, False), (False, True)])
    def test_papers_setting_is_at_the_boundary(self, make: SimpleNamespace, strict: bool, kept: bool) -> None:
        # 16 benign clients split evenly, 4 malicious ones agree: a coordinate that only the minority pushes
        rows = [[1.0]] * 8 + [[-1.0]] * 8 + [[5.0]] * 4
        assert (call(make, rows, strict=strict).update.item() != 0) == kept

    def test_huge_rows_have_one_vote_each(self, make: SimpleNamespace) -> None:
        x = torch.full((9, 3), 1.0)
        x[0] = -3e38
        u = make.updates(x)
        assert Invariant()(u, make.view(u)).update.tolist() == [1, 1, 1]


class TestRanks:
    @pytest.mark.parametrize("n", range(1, 61))
    def test_as_the_published_slice(self, n: int) -> None:
        # in ascending order of old - new; ours is the mirror image, and defined where the slice is empty
        start, stop = int(0.45 * n), int((1 - 0.45) * n)
        empty = start >= stop
        assert empty == (n in (1, 3, 5, 7, 9))
        expected = ((n - 1) // 2, n // 2 + 1) if empty else (n - stop, n - start)
        assert kept_ranks(n, 0.45, "code") == expected

    def test_even_numbers_have_the_lower_median_of_old_minus_new(self, make: SimpleNamespace) -> None:
        # 10 values of new - old, all positive: of 5 and 6, in the middle, the code keeps old - new = -6
        rows = [[float(k)] for k in range(1, 11)]
        assert call(make, rows, preset="code").update.tolist() == [6]
        assert published_code(rows) == [6]

    @pytest.mark.parametrize(
        ("n", "alpha", "expected"),
        [
            *[(20, 0.25, (5, 15)), (10, 0.25, (3, 7)), (4, 0.25, (1, 3)), (3, 0.25, (1, 2)), (10, 0.1, (1, 9))],
            *[(30, 0.1, (3, 27)), (11, 0.4, (5, 6)), (1, 0.25, (0, 1)), (2, 0.25, (0, 2)), (6, 0.49, (2, 4))],
            (7, 0.0, (0, 7)),
        ],
    )
    def test_of_the_paper(self, n: int, alpha: float, expected: tuple[int, int]) -> None:
        assert kept_ranks(n, alpha, "paper") == expected

    @pytest.mark.parametrize("preset", ["paper", "code"])
    def test_never_empty(self, preset: Any) -> None:
        for n in range(1, 80):
            for alpha in (0.0, 0.1, 0.25, 0.45, 0.499):
                start, stop = kept_ranks(n, alpha, preset)
                assert 0 <= start < stop <= n


class TestAblations:
    # 10 clients; column 0: nine up, one far up. Column 1: five up, five down, one of them far up. Column 2: all down.
    ROWS = ([[1.0, 1.0, -1.0]] * 4 + [[1.0, -1.0, -2.0]] * 5) + [[91.0, 101.0, -2.0]]

    @pytest.mark.parametrize(
        ("parameters", "expected"),
        [
            ({}, [1, 0, -1.75]),  # ranks 3 to 6: column 2 is -2 six times, then -1: three -2, one -1
            ({"trim": False}, [10, 0, -1.6]),
            ({"mask": False}, [1, 0, -1.75]),  # ranks 3 to 6 of column 1: -1, -1, 1, 1
        ],
    )
    def test_by_hand(self, make: SimpleNamespace, parameters: dict[str, bool], expected: list[float]) -> None:
        assert call(make, self.ROWS, **parameters).update.tolist() == pytest.approx(expected)

    def test_trim_alone_is_the_trimmed_mean(self, make: SimpleNamespace) -> None:
        x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        u = make.updates(x)
        found, expected = (stage(u, make.view(u)) for stage in (Invariant(mask=False), TrimmedMean(trim=5)))
        torch.testing.assert_close(found.update, expected.update)
        torch.testing.assert_close(found.weights, expected.weights)


class TestWeights:
    def test_are_those_in_the_kept_columns(self, make: SimpleNamespace) -> None:
        # column 0 is kept, and rows 1 and 2 are its middle; column 1 is masked, and its middle does not count
        rows = [[1.0, 5.0], [2.0, -9.0], [3.0, -5.0], [9.0, 9.0]]
        result = call(make, rows)
        assert result.update.tolist() == [2.5, 0]
        assert result.weights.tolist() == [0, 0.5, 0.5, 0]

    def test_no_column_kept(self, make: SimpleNamespace) -> None:
        result = call(make, [[1.0, -2.0], [-1.0, 2.0]])
        assert (result.update.tolist(), result.weights.tolist()) == ([0, 0], [0, 0])
        assert (result.accepted, result.scores, result.state) == (None, None, None)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype(self, make: SimpleNamespace, dtype: torch.dtype) -> None:
        u = make.updates(torch.ones(3, 2, dtype=dtype))
        result = Invariant()(u, make.view(u))
        assert result.update.dtype == result.weights.dtype == dtype


@pytest.mark.parametrize("preset", ["paper", "code"])
@pytest.mark.parametrize("n", range(1, 8))
def test_any_number_of_clients(make: SimpleNamespace, n: int, preset: str) -> None:
    x = torch.ones(n, 1) * torch.tensor([1.0, -2.0, 0.0])
    u = make.updates(x)
    result = Invariant(preset=preset)(u, make.view(u))  # type: ignore[arg-type]
    assert result.update.tolist() == [1, -2, 0]
    torch.testing.assert_close(result.weights, torch.full((n,), 1 / n))


def test_blocks_do_not_matter(make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results: list[tuple[Tensor, Tensor]] = []
    for block_bytes in (1, 1 << 30):
        monkeypatch.setattr(linalg, "_BLOCK_BYTES", block_bytes)
        result = call(make, x)
        results.append((result.update, result.weights))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tau": 1.01}, "invariant: tau must be in [0, 1], got 1.01"),
        ({"tau": -0.1}, "invariant: tau must be in [0, 1], got -0.1"),
        ({"alpha": 0.5}, "invariant: alpha must be in [0, 0.5), got 0.5"),
        ({"alpha": -0.1}, "invariant: alpha must be in [0, 0.5), got -0.1"),
        ({"tau": math.nan}, "invariant: tau must be in [0, 1], got nan"),
        (
            {"mask": False, "trim": False},
            "invariant: mask=False and trim=False leave the plain mean; use the defense mean",
        ),
        ({"trim": False, "alpha": 0.1}, "invariant: alpha=0.1 has no effect with trim=False; it needs trim=True"),
        ({"mask": False, "tau": 0.2}, "invariant: tau=0.2 has no effect with mask=False; it needs mask=True"),
        ({"mask": False, "strict": True}, "invariant: strict=True has no effect with mask=False; it needs mask=True"),
        (
            {"preset": "code", "trim": False, "tau": 0.2, "strict": True},
            "invariant: preset=code has no effect with tau, strict and trim=False; it needs trim=True",
        ),
    ],
)
def test_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        Invariant(**parameters)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "parameters",
    [
        {"trim": False, "tau": 0.5, "strict": False},
        {"mask": False, "alpha": 0.1},
        {"preset": "code", "trim": False, "tau": 0.2},
        {"preset": "code", "mask": False, "alpha": 0.1},
    ],
)
def test_parameters_that_have_an_effect(parameters: dict[str, Any]) -> None:
    Invariant(**parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tau": 1.01}, "invariant: tau must be in [0, 1], got 1.01"),
        ({"trim": 0.5}, "invariant: trim must be in [0, 0.5), got 0.5"),
    ],
)
def test_parameters_of_the_function(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        invariant(torch.zeros(3, 2), **parameters)  # type: ignore[arg-type]
    assert str(error.value) == message
