"""FLTrust, against Algorithm 2."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.aggregators.fltrust import FLTrust, fltrust, trust_scores
from fedsieve.core.defense import Aggregate
from fedsieve.core.errors import MissingDataError
from fedsieve.core.linalg import row_norms

VALUES = st.floats(-100, 100, allow_subnormal=False).map(lambda v: round(v, 3))


def published(rows: list[list[float]], root: list[float]) -> tuple[list[float], list[float]]:
    """Algorithm 2, lines 8 to 14; trust of a zero update, which has no cosine, is 0. Returns update and trust."""

    def norm(v: list[float]) -> float:
        return math.sqrt(sum(c * c for c in v))

    trust, normalised = [], []
    for g in rows:
        if norm(g) == 0 or norm(root) == 0:
            trust.append(0.0)
            normalised.append([0.0] * len(root))
            continue
        cosine = sum(a * b for a, b in zip(g, root, strict=True)) / (norm(g) * norm(root))
        trust.append(max(cosine, 0.0))  # equation 2
        normalised.append([norm(root) / norm(g) * c for c in g])  # equation 3
    total = sum(trust)
    if total == 0:
        return [0.0] * len(root), trust
    aggregate = [0.0] * len(root)  # equation 4
    for score, g in zip(trust, normalised, strict=True):
        for j, c in enumerate(g):
            aggregate[j] += score * c / total
    return aggregate, trust


def aggregate(make: SimpleNamespace, rows: list[list[float]], root: list[float]) -> Aggregate:
    u = make.updates(torch.tensor(rows, dtype=torch.float64))
    sent = torch.tensor(root, dtype=torch.float64)
    result: Aggregate = FLTrust()(u, make.view(u, root=make.Quadratic(torch.zeros_like(sent), sent)))
    assert torch.equal(fltrust(u.matrix, sent), result.update)
    return result


def vectors(d: int) -> st.SearchStrategy[tuple[list[list[float]], list[float]]]:
    row = st.lists(VALUES, min_size=d, max_size=d)
    return st.tuples(st.lists(row, min_size=1, max_size=6), row)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=st.integers(1, 5).flatmap(vectors))
def test_as_published(make: SimpleNamespace, case: tuple[list[list[float]], list[float]]) -> None:
    rows, root = case
    update, trust = published(rows, root)
    result = aggregate(make, rows, root)
    # where all rows are orthogonal up to rounding, rounding decides whether there is any trust
    if max(trust) > 1e-9:
        torch.testing.assert_close(result.update.tolist(), update, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.weights.tolist(), [t / sum(trust) for t in trust], rtol=1e-9, atol=1e-9)
    assert result.scores is not None
    torch.testing.assert_close(result.scores.tolist(), [1 - t for t in trust], rtol=1e-9, atol=1e-9)


class TestTrust:
    def test_by_hand(self) -> None:
        x = torch.tensor([[3.0, 4], [4, 3], [-4, 3], [-3, -4], [0, 0], [8, 6]], dtype=torch.float64)
        found = trust_scores(x, row_norms(x), torch.tensor([3.0, 4], dtype=torch.float64)).tolist()
        assert found == pytest.approx([1, 0.96, 0, 0, 0, 0.96])  # (-4, 3) is orthogonal

    def test_zero_root(self) -> None:
        x = torch.ones(2, 3)
        assert trust_scores(x, row_norms(x), torch.zeros(3)).tolist() == [0, 0]

    def test_length_does_not_count(self, make: SimpleNamespace) -> None:
        short, long = [[1.0, 2.0], [2.0, 1.0]], [[1e6, 2e6], [2e-6, 1e-6]]
        one, other = aggregate(make, short, [1.0, 1.0]), aggregate(make, long, [1.0, 1.0])
        torch.testing.assert_close(one.update, other.update)
        torch.testing.assert_close(one.weights, other.weights)


class TestEdges:
    def test_zero_update_counts_nothing(self, make: SimpleNamespace) -> None:
        result = aggregate(make, [[0.0, 0.0], [2.0, 0.0]], [1.0, 0.0])
        assert result.update.tolist() == [1, 0]
        assert result.weights.tolist() == [0, 1]
        assert result.scores is not None
        assert result.scores.tolist() == [1, 0]

    @pytest.mark.parametrize("rows", [[[-1.0, 0.0], [-5.0, 3.0]], [[0.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0]]])
    def test_no_client_trusted(self, make: SimpleNamespace, rows: list[list[float]]) -> None:
        result = aggregate(make, rows, [2.0, 0.0])
        assert result.update.tolist() == [0, 0]
        assert result.weights.tolist() == [0] * len(rows)
        assert result.accepted is None
        assert result.scores is not None
        assert result.scores.tolist() == [1] * len(rows)

    def test_zero_root(self, make: SimpleNamespace) -> None:
        result = aggregate(make, [[1.0, 0.0]], [0.0, 0.0])
        assert (result.update.tolist(), result.weights.tolist()) == ([0, 0], [0])

    def test_no_root(self, make: SimpleNamespace) -> None:
        u = make.updates([[1.0]])
        with pytest.raises(MissingDataError) as error:
            FLTrust()(u, make.view(u))
        assert str(error.value) == "fltrust needs root data, and the server has none"

    @pytest.mark.parametrize("value", [1e-45, 1e-38, 1e-20, 1e15, 1e25, 3e38])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_one_client_of_any_length_does_not_stop_the_others(
        self, make: SimpleNamespace, value: float, sign: int
    ) -> None:
        rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.5], [sign * value] * 3])
        u = make.updates(rows)
        root = make.Quadratic(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
        result = FLTrust()(u, make.view(u, root=root))
        assert result.update.isfinite().all()
        assert result.update.norm() <= 1.001 * rows[0].norm()
        assert result.weights[:2].sum() > 0.5
        # whatever its length, it counts as any client of its direction does
        same = FLTrust()(make.updates(torch.cat([rows[:2], sign * torch.ones(1, 3)])), make.view(u, root=root))
        torch.testing.assert_close(result.update, same.update)
        torch.testing.assert_close(result.weights, same.weights)


class TestStatistics:
    """Running statistics have no say in trust."""

    root = torch.tensor([3.0, 4.0, 100.0, 0.0])  # two parameters, two statistics

    def aggregate(self, make: SimpleNamespace, rows: list[list[float]]) -> Aggregate:
        u = make.updates(torch.tensor(rows), statistics=2)
        result: Aggregate = FLTrust()(u, make.view(u, root=make.Quadratic(torch.zeros(4), self.root, statistics=2)))
        return result

    def test_reversed_parameters_with_benign_statistics_have_no_trust(self, make: SimpleNamespace) -> None:
        result = self.aggregate(make, [[-3.0, -4.0, 100.0, 0.0], [3.0, 4.0, 100.0, 0.0]])
        assert result.weights.tolist() == [0, 1]
        assert result.scores is not None
        assert result.scores.tolist() == [1, 0]
        torch.testing.assert_close(result.update, self.root[:2])

    def test_trust_is_that_of_the_parameters(self, make: SimpleNamespace) -> None:
        result = self.aggregate(make, [[3.0, 4.0, -1e6, 1e6], [4.0, 3.0, 100.0, 0.0], [0.0, 5.0, 0.0, 100.0]])
        torch.testing.assert_close(result.weights, torch.tensor([1, 0.96, 0.8]) / 2.76)
        assert result.scores is not None
        torch.testing.assert_close(result.scores, torch.tensor([0, 0.04, 0.2]))
