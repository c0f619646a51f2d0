"""The plain mean, and a case computed by hand on which mean, trimmed mean and FLTrust differ."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.aggregators.fltrust import FLTrust
from fedsieve.aggregators.mean import Mean, mean
from fedsieve.aggregators.trimmed_mean import TrimmedMean
from fedsieve.core.defense import Aggregate

VALUES = st.floats(-100, 100, allow_subnormal=False)


def published(updates: list[list[float]]) -> list[float]:
    """Algorithm 1, last line, every client with the same number of samples: w <- sum_k n_k / n w_k."""
    n_k, n = 1, len(updates)
    result = [0.0] * len(updates[0])
    for update in updates:
        for j, value in enumerate(update):
            result[j] += n_k / n * value
    return result


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4).flatmap(lambda d: st.lists(st.lists(VALUES, min_size=d, max_size=d), min_size=1)))
def test_as_published(make: SimpleNamespace, rows: list[list[float]]) -> None:
    u = make.updates(torch.tensor(rows, dtype=torch.float64))
    result = Mean()(u, make.view(u))
    torch.testing.assert_close(result.update.tolist(), published(rows), rtol=1e-12, atol=1e-10)
    close(result.weights, [1 / len(rows)] * len(rows))
    assert torch.equal(mean(u.matrix), result.update)


def test_rejects_no_client(make: SimpleNamespace) -> None:
    u = make.updates([[1.0], [2.0]])
    result = Mean()(u, make.view(u))
    assert (result.accepted, result.scores, result.state) == (None, None, None)


# Root update (3, 4), of length 5. The clients:
#
#   row        cosine to the root       trust   rescaled to length 5
#   (3, 4)     25 / (5 * 5)             1       (3, 4)
#   (8, 6)     (24 + 24) / (10 * 5)     0.96    (4, 3)
#   (0, 5)     20 / (5 * 5)             0.8     (0, 5)
#   (-30, 0)   -90 / (30 * 5)           0       -
#
# Mean: ((3 + 8 + 0 - 30) / 4, (4 + 6 + 5 + 0) / 4) = (-4.75, 3.75).
# Trimmed mean, f = 1: first column -30, 0, 3, 8 without its ends: (0 + 3) / 2; second 0, 4, 5, 6: (4 + 5) / 2.
# FLTrust: (1 (3, 4) + 0.96 (4, 3) + 0.8 (0, 5)) / 2.76 = (6.84, 10.88) / 2.76.
ROWS = [[3.0, 4.0], [8.0, 6.0], [0.0, 5.0], [-30.0, 0.0]]
BY_HAND = {
    "mean": (Mean(), [-4.75, 3.75], [0.25] * 4),
    # kept values: (3, 4) in both columns, (0, 5) in both, nothing of the others
    "trimmed-mean": (TrimmedMean(), [1.5, 4.5], [0.5, 0, 0.5, 0]),
    "fltrust": (FLTrust(), [6.84 / 2.76, 10.88 / 2.76], [1 / 2.76, 0.96 / 2.76, 0.8 / 2.76, 0]),
}


class TestByHand:
    def results(self, make: SimpleNamespace) -> dict[str, Aggregate]:
        u = make.updates(torch.tensor(ROWS, dtype=torch.float64))
        sent = torch.tensor([3.0, 4.0], dtype=torch.float64)
        root = make.Quadratic(torch.zeros(2, dtype=torch.float64), sent)
        return {name: aggregator(u, make.view(u, f=1, root=root)) for name, (aggregator, _, _) in BY_HAND.items()}

    @pytest.mark.parametrize("name", BY_HAND)
    def test_numbers(self, make: SimpleNamespace, name: str) -> None:
        result = self.results(make)[name]
        close(result.update, BY_HAND[name][1])
        close(result.weights, BY_HAND[name][2])

    def test_all_differ(self, make: SimpleNamespace) -> None:
        found = [result.update for result in self.results(make).values()]
        distances = torch.cdist(torch.stack(found), torch.stack(found)) + 100 * torch.eye(3)
        assert distances.min() > 1
