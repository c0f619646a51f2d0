"""A little is enough: z, the shift, and the backdoor clamped to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.lie import LIE, LIEBackdoor, z_max
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task
from fedsieve.core.errors import ParameterError

Rows = list[list[float]]
VALUE = st.integers(-1000, 1000).map(lambda v: v / 100)


def tables() -> st.SearchStrategy[Rows]:
    return st.integers(1, 4).flatmap(
        lambda d: st.lists(st.lists(VALUE, min_size=d, max_size=d), min_size=2, max_size=6)
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(rows: Rows) -> tuple[list[float], list[float]]:
    mu = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    variances = [sum((row[j] - mu[j]) ** 2 for row in rows) / len(rows) for j in range(len(mu))]
    return mu, [math.sqrt(v) for v in variances]


@dataclass(frozen=True)
class Drill:
    """Training that keeps its arguments and moves halfway to a target per client."""

    honest: Tensor
    target: Tensor
    calls: list[tuple[Tensor, bool, float]] = field(default_factory=list)

    def __call__(self, start: Tensor, /, *, poisoned: bool = True, proximal: float = 0.0) -> Tensor:
        self.calls.append((start.clone(), poisoned, proximal))
        return (self.target - start) / 2 if poisoned else self.honest.clone()


class TestZ:
    # The paper's example: of 50 workers 24 are corrupted, so s = 2 and (50 - 24 - 2) / (50 - 24) = 0.923, z = 1.43 in
    # a table of the normal distribution. The others are from the same table: 19/20, 9/13; 4/8 would be 0, 4/9 less.
    @pytest.mark.parametrize(
        ("n", "m", "z"), [(50, 24, 1.43), (40, 20, 1.64), (20, 7, 0.50), (10, 2, 0.0), (10, 1, 0.0)]
    )
    def test_golden(self, n: int, m: int, z: float) -> None:
        assert z_max(n, m) == pytest.approx(z, abs=0.006)

    @pytest.mark.parametrize("n", range(1, 30))
    def test_finite_not_negative_and_increasing_in_m(self, n: int) -> None:
        found = [z_max(n, m) for m in range(1, n)]
        assert all(0 <= z < 3 for z in [*found, z_max(n, n)])
        # with a malicious majority no supporters are needed, and z depends on the number of benign clients
        minority = [z for m, z in enumerate(found, 1) if 2 * m <= n]
        assert minority == sorted(minority)

    def test_is_the_largest_by_definition(self) -> None:
        for n, m in [(50, 24), (40, 20), (101, 45)]:
            s = math.floor(n / 2 + 1) - m
            below = 0.5 * (1 + math.erf(z_max(n, m) / math.sqrt(2)))
            assert below == pytest.approx((n - m - s) / (n - m))


class TestLIE:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(rows=tables(), z=st.floats(0.1, 3))
    def test_as_published(self, make_view: Callable[..., AttackView], rows: Rows, z: float) -> None:
        x = torch.tensor(rows, dtype=torch.float64)
        mu, sigma = moments(rows)
        expected = [m - z * s for m, s in zip(mu, sigma, strict=True)]
        torch.testing.assert_close(LIE(z).craft(make_view(x[:1], x[1:]))[0].tolist(), expected, rtol=1e-9, atol=1e-9)

    # updates 1 and 3: mu 2, sigma 1
    def test_by_hand(self, make_view: Callable[..., AttackView]) -> None:
        assert LIE(1.5).craft(make_view(torch.tensor([[1.0], [3.0]]))).tolist() == [[0.5], [0.5]]

    def test_z_is_the_papers_by_default(self, make_view: Callable[..., AttackView]) -> None:
        own, others = normal(24, 5), normal(26, 5, seed=1)
        sent, known = LIE().craft(make_view(own, others)), torch.cat([own, others])
        torch.testing.assert_close(sent[0], known.mean(dim=0) - z_max(50, 24) * known.std(dim=0, correction=0))
        assert torch.equal(sent, sent[:1].expand(24, -1))

    def test_z_counts_all_clients_of_the_round_with_partial_knowledge(
        self, make_view: Callable[..., AttackView]
    ) -> None:
        own = normal(24, 5)
        sent = LIE().craft(make_view(own, n_clients=50))
        torch.testing.assert_close(sent[0], own.mean(dim=0) - z_max(50, 24) * own.std(dim=0, correction=0))

    def test_one_known_update_is_sent_honestly(self, make_view: Callable[..., AttackView]) -> None:
        own = normal(1, 5)
        assert torch.equal(LIE(3.0).craft(make_view(own, n_clients=4)), own)

    @pytest.mark.parametrize("z", [0.0, -1.0, math.nan])
    def test_out_of_range(self, z: float) -> None:
        with pytest.raises(ParameterError) as error:
            LIE(z=z)
        assert str(error.value) == f"lie: z must be positive, got {z}"


class TestBackdoor:
    def test_is_a_backdoor(self) -> None:
        assert isinstance(LIEBackdoor(), Backdoor)
        assert not isinstance(LIE(), Backdoor)

    @pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 30)])
    def test_success_is_measured_on_the_test_data(self, shape: tuple[int, ...]) -> None:
        x, y = torch.rand(shape) + 0.1, torch.tensor([2, 0, 1, 2, 3])
        found = LIEBackdoor(target=2, size=3, value=-1.0, stride=10).triggered(x, y, Task(4, Path()))
        expected = x.clone()
        if len(shape) == 4:
            expected[:, :, :3, :3] = -1
        else:
            expected[:, [0, 10, 20]] = 0
        assert torch.equal(found.x, expected)
        assert found.wanted.tolist() == [2] * 5
        assert found.already.tolist() == [True, False, False, True, False]

    def test_poison(self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]) -> None:
        attack = LIEBackdoor(target=3, share=0.25)
        x, y = attack.poison(*samples, make_poison_view())
        assert torch.equal(x[:20], samples[0])
        assert y[20:].tolist() == [3] * 5
        triggered = attack.trigger(samples[0]).tolist()
        assert len({triggered.index(row) for row in x[20:].tolist()}) == 5
        with pytest.raises(ParameterError) as error:
            LIEBackdoor(target=4).poison(*samples, make_poison_view())
        assert str(error.value) == "lie-backdoor: target must be below the 4 classes, got 4"
        with pytest.raises(ParameterError) as error:
            LIEBackdoor(value=2.0).poison(*samples, make_poison_view())
        assert (
            str(error.value)
            == "lie-backdoor: value has no effect on samples of shape [25], got 2.0; set stride instead"
        )

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        rows=tables(),
        target=st.lists(VALUE, min_size=4, max_size=4),
        z=st.floats(0.1, 3),
        rounds=st.integers(1, 3),
        seen=st.booleans(),
    )
    def test_as_published(
        self,
        make_view: Callable[..., AttackView],
        rows: Rows,
        target: list[float],
        z: float,
        rounds: int,
        seen: bool,
    ) -> None:
        """The paper in updates: train from w + mu, and clamp the update to mu +- z sigma."""
        d = len(rows[0])
        clean, others = rows[:2], rows[2:]
        w = [0.5 * j for j in range(d)]
        targets = torch.tensor([target[:d], [-v for v in target[:d]]], dtype=torch.float64)
        train = Drill(torch.tensor(clean, dtype=torch.float64), targets)
        mu, sigma = moments(clean + others if seen else clean)

        place = [a + b for a, b in zip(w, mu, strict=True)]
        for _ in range(rounds):  # the average of the two moves halfway to the average of the targets, which is 0
            place = [v / 2 for v in place]
        expected = []
        for j in range(d):
            v = place[j] - w[j]
            expected.append(min(max(v, mu[j] - z * sigma[j]), mu[j] + z * sigma[j]))

        granted = torch.tensor(others, dtype=torch.float64).reshape(-1, d) if seen else None
        view = make_view(
            torch.full((2, d), 99.0, dtype=torch.float64),
            granted,
            n_clients=9,
            global_params=torch.tensor(w, dtype=torch.float64),
            train=train,
        )
        sent = LIEBackdoor(z=z, rounds=rounds).craft(view)
        torch.testing.assert_close(sent.tolist(), [expected] * 2, rtol=1e-9, atol=1e-9)

    def test_what_is_trained(self, make_view: Callable[..., AttackView]) -> None:
        train = Drill(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
        view = make_view(torch.full((2, 1), 50.0), global_params=torch.tensor([10.0]), train=train)
        # mu = 2, sigma = 1; from 12 the backdoor moves to 6, then to 3: 9 below 12, clamped to one sigma
        assert LIEBackdoor(z=1.0, rounds=2, alpha=0.7).craft(view).tolist() == [[1.0], [1.0]]
        calls = [(start.tolist(), poisoned, proximal) for start, poisoned, proximal in train.calls]
        assert calls == [([10.0], False, 0.0), ([12.0], True, 0.7), ([6.0], True, 0.7)]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_stays_within_the_spread(self, make_view: Callable[..., AttackView], dtype: torch.dtype) -> None:
        honest, others = normal(4, 300).to(dtype), normal(6, 300, seed=1).to(dtype)
        train = Drill(honest, 100 * normal(4, 300, seed=2).to(dtype))
        sent = LIEBackdoor().craft(make_view(honest, others, train=train))
        known = torch.cat([honest, others])
        off = (sent[0] - known.mean(dim=0)).abs() / known.std(dim=0, correction=0)
        assert sent.dtype == dtype
        assert (off <= z_max(10, 4) + 1e-4).all()
        assert (off > 0.9 * z_max(10, 4)).float().mean() > 0.9

    def test_one_known_update_is_sent_honestly(self, make_view: Callable[..., AttackView]) -> None:
        honest = normal(1, 5)
        sent = LIEBackdoor().craft(make_view(-honest, n_clients=4, train=Drill(honest, 9 * honest)))
        assert torch.equal(sent, honest)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"share": 0.0}, "lie-backdoor: share must be in (0, 1], got 0.0"),
            ({"stride": 0}, "lie-backdoor: size and stride must be at least 1 and target at least 0, got 5, 0 and 0"),
            ({"z": -1.0}, "lie-backdoor: z must be positive, got -1.0"),
            ({"alpha": -1.0}, "lie-backdoor: alpha must be at least 0 and rounds at least 1, got -1.0 and 5"),
            ({"rounds": 0}, "lie-backdoor: alpha must be at least 0 and rounds at least 1, got 0.2 and 0"),
        ],
    )
    def test_out_of_range(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            LIEBackdoor(**parameters)
        assert str(error.value) == message
