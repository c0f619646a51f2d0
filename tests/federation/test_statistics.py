"""Running statistics of accepted clients."""

import math
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsieve.aggregators.chain import Chain
from fedsieve.aggregators.krum import Krum
from fedsieve.aggregators.mean import Mean
from fedsieve.core.attack import AttackView
from fedsieve.core.defense import Aggregate, Detection, ServerView, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.server import Server, ServerState
from fedsieve.federation.statistics import combined, robust_mean
from tests.federation.conftest import records_of

LAYOUT = Layout.of({"w": torch.zeros(3)}, {"norm.running_mean": torch.zeros(2), "norm.running_var": torch.zeros(2)})
values = st.floats(-1e6, 1e6, width=32)


def by_hand(column: list[float]) -> float:
    centre = median(column)
    radius = median(abs(v - centre) for v in column)
    return fmean(min(max(v, centre - radius), centre + radius) for v in column)


@settings(deadline=None)
@given(st.lists(st.lists(values, min_size=2, max_size=2), min_size=1, max_size=9))
def test_is_the_mean_of_what_is_near_the_median(rows: list[list[float]]) -> None:
    found = robust_mean(torch.tensor(rows, dtype=torch.float64))
    expected = torch.tensor([by_hand([row[k] for row in rows]) for k in (0, 1)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-6)


@settings(deadline=None)
@given(st.lists(values, min_size=5, max_size=9), st.sampled_from([3e38, -3e38, 1e3, -7.5]), st.data())
def test_a_minority_moves_nothing_farther_than_the_others_scatter(
    benign: list[float], sent: float, data: st.DataObject
) -> None:
    m = data.draw(st.integers(1, len(benign) - 1))
    found = float(robust_mean(torch.tensor([[v] for v in benign + [sent] * m], dtype=torch.float64)))
    spread = max(benign) - min(benign)
    assert min(benign) - spread - 1e-6 <= found <= max(benign) + spread + 1e-6


def test_alike_on_both_sides_it_is_the_mean() -> None:
    x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]]) + 7
    assert robust_mean(x).tolist() == [7]


@dataclass(frozen=True)
class Accepts:
    """Accepts the given clients, and averages the parameters of these."""

    ids: tuple[int, ...]

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        return Detection(torch.isin(updates.client_ids, torch.tensor(self.ids)))


def result(weights: list[float], accepted: list[bool] | None = None) -> Aggregate:
    return Aggregate(torch.zeros(5), torch.tensor(weights), None if accepted is None else torch.tensor(accepted))


class TestWhose:
    X = torch.tensor([[1.0], [2.0], [3.0], [100.0], [200.0]])

    def test_of_one_client_chosen_all_count(self) -> None:
        # close to all clients' mean, so that only the number of chosen clients decides
        assert combined(self.X, result([0.0, 0, 1, 0, 0])).tolist() == [pytest.approx((1 + 2 + 3 + 5 + 5) / 5)]
        assert combined(self.X, result([0.0, 0.5, 0.5, 0, 0])).tolist() == [pytest.approx((1 + 2 + 3 + 5 + 5) / 5)]
        assert combined(self.X, result([0.2, 0.4, 0.4, 0, 0])).tolist() == [2]

    def test_of_one_client_that_is_rejected(self) -> None:
        assert combined(self.X[:1], result([0.0], [False])).tolist() == [0]

    @pytest.mark.parametrize("scale", [1.0, 1e30])
    @pytest.mark.parametrize(("sent", "expected"), [(2.0, 2.0), (2.001, 1.0), (-2.0, -2.0), (-2.5, 1.0)])
    def test_up_to_twice_as_long_as_that_of_all(self, scale: float, sent: float, expected: float) -> None:
        x = scale * torch.tensor([[1.0, -1], [1, -1], [1, -1], [1, -1], [sent, -sent]])
        found = combined(x, result([0.0, 0, 0, 0, 1], [False] * 4 + [True]))
        torch.testing.assert_close(found, scale * torch.tensor([expected, -expected]))

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (result([0.2] * 5, [True] * 3 + [False] * 2), 2.0),
            (result([0.2] * 5, [True] + [False] * 4), 1.0),  # most were rejected
            (result([0.2] * 5, [False] * 3 + [True, False]), (1 + 2 + 3 + 5 + 5) / 5),  # a few, unlike all
            (result([1 / 3] * 3 + [0, 0]), 2.0),
            (result([0.0, 0, 0, 0, 1]), (1 + 2 + 3 + 5 + 5) / 5),  # one update chosen, nobody rejected: all clients
            (result([0.0] * 5, [False] * 5), 0.0),
            (result([0.2] * 5, [True] * 5), (1 + 2 + 3 + 5 + 5) / 5),
        ],
    )
    def test_accepted_or_with_a_weight_or_all(self, found: Aggregate, expected: float) -> None:
        assert combined(self.X, found).tolist() == [pytest.approx(expected)]


def attacked(defense: Any, statistics: list[float], n: int = 9, m: int = 3) -> Tensor:
    """The model's statistics after 20 rounds in which malicious clients send honest parameters."""
    g = stream(0, "test")
    server, state = Server(defense, LAYOUT, assumed_malicious=m), ServerState(torch.tensor([0.0] * 5 + [1.0, 1.0]))
    for _ in range(20):
        x = 0.01 * torch.randn(n, 7, generator=g)
        x[:m, 3:] = torch.tensor(statistics)
        state, decision = server.step(state, Updates(x, torch.arange(n), LAYOUT))
        assert decision.applied
    return state.params[3:]


@pytest.mark.parametrize("statistics", [[1e6] * 4, [5.0, 5.0, -1.0, -1.0], [-3.0, 0.0, 9.0, -9.0]])
@pytest.mark.parametrize("name", ["krum", "everybody"])
def test_honest_parameters_are_no_way_in(name: str, statistics: list[float]) -> None:
    defense = Krum() if name == "krum" else Chain((Accepts(tuple(range(9))),), Mean())
    moved = attacked(defense, statistics) - torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert moved.abs().max() < 20 * 0.01


def test_control_a_plain_mean_is_open() -> None:
    assert attacked(Mean(), [5.0, 5.0, 9.0, 9.0]).min() > 30


def test_a_variance_is_never_negative() -> None:
    assert attacked(Mean(), [0.0, 0.0, -9.0, 0.1])[2] == 0


class Net(nn.Module):
    """A layer with running statistics, on the digits."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        n = math.prod(input_shape)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(n, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, n_classes)
        )

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


@dataclass(frozen=True)
class HonestParameters:
    """Sends honest parameters and running statistics of its own."""

    def craft(self, view: AttackView, /) -> Tensor:
        x, p = view.malicious_updates.clone(), view.layout.n_parameters
        x[:, p:] *= -3
        return x


@pytest.mark.parametrize("defense", ["mean", "flame", "deepsight", "tolpegin", "krum", "median"])
def test_poisoned_statistics_break_the_plain_mean_alone(defense: str) -> None:
    given_settings = {
        "dataset": "digits", "model": f"{__name__}:Net", "clients": 10, "malicious": 3, "rounds": 15,
        "local": {"learning_rate": 0.1, "steps": 5}, "server": {"learning_rate": 1.0},
        "partition": {"name": "groups", "q": 0.1}, "evaluate_every": 15, "defense": defense,
    }  # fmt: skip
    clean = records_of(given_settings)[-1].test_accuracy
    poisoned = records_of(given_settings, attack=f"{__name__}:HonestParameters")[-1].test_accuracy
    assert clean is not None
    assert poisoned is not None
    assert clean > 0.75
    if defense == "mean":
        assert poisoned < clean - 0.3
    else:
        assert poisoned > clean - 0.1
