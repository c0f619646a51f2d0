"""What is usual among the clients of a round, and who is far from it."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedsieve.detectors.sieve.evidence import JOINT, Evidence
from fedsieve.detectors.sieve.usual import center, far, lower_spread

F64 = torch.float64


def evidence(residual: Sequence[float] = (), joint: Sequence[float] = (), longest: float | None = 1.0) -> Evidence:
    n = max(len(residual), len(joint))
    columns = torch.zeros(n, 5, dtype=F64)
    columns[:, JOINT] = torch.tensor(joint, dtype=F64) if joint else 0
    return Evidence(
        columns=columns,
        informative=torch.ones(n, dtype=torch.bool),
        residual=torch.tensor(residual, dtype=F64) if residual else torch.ones(n, dtype=F64),
        cut=torch.ones(n, dtype=F64),
        limit=2.0,
        usual=1.0,
        longest=longest,
        longest_unit=1.0,
        stretch=1.0,
        widened=1.0,
        trusted=True,
        fit=1.0,
        calibration={},
    )


def nobody(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.bool)


class TestFar:
    def test_beyond_five_times_the_references(self) -> None:
        assert far(evidence([1.0] * 8 + [4.99, 5.01])).tolist() == [False] * 9 + [True]

    def test_and_beyond_six_deviations_of_the_clients(self) -> None:
        # the lower half lies a factor e^1.28 below the median at its tenth percentile: one deviation is a factor e
        residual = [torch.tensor(v).exp().item() for v in torch.linspace(-1.6, 1.6, 17).tolist()]
        six = float(torch.tensor(6.0).exp())
        assert far(evidence([*residual, 0.8 * six])).sum() == 0
        assert far(evidence([*residual, 2 * six])).tolist() == [False] * 17 + [True]

    def test_those_who_say_nothing_are_not(self) -> None:
        e = evidence([1.0] * 5 + [100.0])
        e.informative[5] = False
        assert not far(e).any()

    def test_nobody_where_nothing_can_be_held_out(self) -> None:
        assert not far(evidence([1.0] * 5 + [100.0], longest=None)).any()


class TestCenter:
    def test_median_and_spread_of_those_who_stay(self) -> None:
        joint = torch.linspace(-20, 20, 41).tolist()
        middle, spread = center(evidence(joint=[*joint, 500.0, 500.0]), torch.tensor([False] * 41 + [True] * 2))
        assert middle == pytest.approx(0)
        assert spread == pytest.approx(14 / 1.04)  # above the median, 85 % are within one deviation and 0.04

    def test_at_least_the_references_own_spread(self) -> None:
        middle, spread = center(evidence(joint=[0.1, 0.2, 0.3, 0.4]), nobody(4))
        assert middle == pytest.approx(0.25)
        assert spread == 1

    def test_of_all_where_fewer_than_three_stay(self) -> None:
        rejected = torch.tensor([False, False, True, True, True])
        assert center(evidence(joint=[0.0, 0.0, 6.0, 6.0, 6.0]), rejected)[0] == 6


def test_the_lower_half_alone_says_how_far_clients_lie_apart() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert lower_spread(values) == pytest.approx(1, rel=0.03)
    assert lower_spread(torch.where(values > 0.1, 50.0, values)) == pytest.approx(lower_spread(values))
