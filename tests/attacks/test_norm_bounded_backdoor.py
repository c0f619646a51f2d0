"""Norm-bounded backdoor: training in a ball, the boost, and the length of what is sent."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.norm_bounded_backdoor import NormBoundedBackdoor
from fedsieve.attacks.scaling import Scaling
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from tests.federation.conftest import DIGITS, records_of, simulation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Drill:
    """Training that moves halfway to a target per client, on clean data to another; keeps its arguments."""

    honest: Tensor
    target: Tensor
    calls: list[tuple[Tensor, bool]] = field(default_factory=list)

    def __call__(self, start: Tensor, /, *, poisoned: bool = True, proximal: float = 0.0) -> Tensor:
        assert proximal == 0
        self.calls.append((start.clone(), poisoned))
        return ((self.target if poisoned else self.honest) - start) / 2


def transcribed(view: AttackView, bound: float, boost: float, rounds: int) -> list[list[float]]:
    """The paper's attack by m colluding clients, in plain loops over the numbers."""
    drill = view.train
    assert isinstance(drill, Drill)
    p, w = view.layout.n_parameters, view.global_params.tolist()
    d = len(w)
    honest = [[(a - b) / 2 for a, b in zip(row, w, strict=True)] for row in drill.honest.tolist()]
    honest += [] if view.benign_updates is None else view.benign_updates.tolist()
    lengths = sorted(math.sqrt(sum(v * v for v in row[:p])) for row in honest)
    n = len(lengths)
    median = (lengths[(n - 1) // 2] + lengths[n // 2]) / 2
    radius = bound * median / boost
    moved = [[0.0] * d for _ in drill.target]
    for _ in range(rounds):
        mean = [sum(row[j] for row in moved) / len(moved) for j in range(d)]
        for i, target in enumerate(drill.target.tolist()):
            row = [mean[j] + (target[j] - (w[j] + mean[j])) / 2 for j in range(d)]
            length = math.sqrt(sum(v * v for v in row[:p]))
            moved[i] = [v * min(1.0, radius / length) if j < p else v for j, v in enumerate(row)]
    return [[boost * v if j < p else v for j, v in enumerate(row)] for row in moved]


class TestCraft:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        m=st.integers(1, 4),
        b=st.integers(0, 4),
        bound=st.floats(0.05, 5),
        boost=st.one_of(st.none(), st.floats(0.5, 20)),
        rounds=st.integers(1, 4),
        seed=st.integers(0, 99),
    )
    def test_as_published(
        self,
        make_view: Callable[..., AttackView],
        m: int,
        b: int,
        bound: float,
        boost: float | None,
        rounds: int,
        seed: int,
    ) -> None:
        layout = Layout.of({"w": torch.zeros(5)}, {"running_mean": torch.zeros(2)})
        train = Drill(normal(m, 7, seed=seed), 3 * normal(m, 7, seed=seed + 1))
        others = normal(b, 7, seed=seed + 2) if b else None
        view = make_view(normal(m, 7, seed=seed + 3), others, n_clients=9, layout=layout, train=train)
        sent = NormBoundedBackdoor(bound=bound, boost=boost, rounds=rounds).craft(view)
        expected = transcribed(view, bound, 9 / m if boost is None else boost, rounds)
        torch.testing.assert_close(sent, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        assert [poisoned for _, poisoned in train.calls] == [False] + [True] * rounds

    @pytest.mark.parametrize("bound", [0.1, 1.0, 2.5])
    @pytest.mark.parametrize("rounds", [1, 5])
    def test_is_as_long_as_the_bound_and_no_longer(
        self, make_view: Callable[..., AttackView], bound: float, rounds: int
    ) -> None:
        own, honest = normal(3, 20), normal(3, 20, seed=1)
        start = torch.linspace(-1, 1, 20).double()  # the view's global model
        others = normal(4, 20, seed=2)
        train = Drill(2 * honest + start, 50 * own + start)
        sent = NormBoundedBackdoor(bound=bound, rounds=rounds).craft(make_view(own, others, train=train))
        median = torch.cat([honest, others]).norm(dim=1).median()
        torch.testing.assert_close(sent.norm(dim=1), (bound * median).expand(3), rtol=1e-9, atol=0)

    def test_a_short_update_is_boosted_and_not_cut(self, make_view: Callable[..., AttackView]) -> None:
        own, start = normal(2, 10), torch.linspace(-1, 1, 10).double()
        train = Drill(2 * own + start, 0.02 * own + start)
        sent = NormBoundedBackdoor(rounds=1).craft(make_view(own, n_clients=8, train=train))
        torch.testing.assert_close(sent, 4 * 0.01 * own, rtol=1e-9, atol=1e-12)
        sent = NormBoundedBackdoor(rounds=1, boost=30.0).craft(make_view(own, n_clients=8, train=train))
        torch.testing.assert_close(sent, 30 * 0.01 * own, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("boost", [1.0, 1e10, 1e30, 3e38])
    def test_any_boost_that_float32_holds(self, make_view: Callable[..., AttackView], boost: float) -> None:
        """The ball is tiny then, but what is sent is as long as ever, zeros among it included."""
        own = torch.where(torch.arange(20) % 4 == 0, 0, normal(3, 20)).float()
        start = torch.linspace(-1, 1, 20)
        train = Drill(2 * normal(3, 20, seed=1).float() + start, 50 * own + start)
        view = make_view(own, normal(4, 20, seed=2).float(), train=train)
        sent = NormBoundedBackdoor(boost=boost, rounds=1).craft(view)
        assert sent.dtype == torch.float32
        torch.testing.assert_close(sent, NormBoundedBackdoor(rounds=1).craft(view), rtol=1e-4, atol=1e-6)

    def test_nothing_honest_moves(self, make_view: Callable[..., AttackView]) -> None:
        """The bound is then 0, and so is what is sent."""
        own, start = normal(2, 10), torch.linspace(-1, 1, 10).double()
        train = Drill(start.expand(2, -1), own)
        assert not NormBoundedBackdoor().craft(make_view(own, n_clients=8, train=train)).any()

    def test_hides_from_norm_clipping(self, make_view: Callable[..., AttackView]) -> None:
        """The server's bound is the median over all clients; the attacker's estimate of it is reached, not passed."""
        sim = simulation(DIGITS, clients=10, malicious=3, rounds=3, attack="norm-bounded-backdoor", local={"steps": 4})
        for state, _ in sim.rounds():
            data = {**sim.holdings.clients, **sim.holdings.clean}
            honest = sim.trainer.updates(state.server.params, data, state.round)
            bad = torch.tensor([i in sim.holdings.malicious for i in range(10)])
            cohort = list(range(10))
            poisoned = sim.trainer.updates(state.server.params, sim.holdings.clients, state.round)
            sent, _ = sim.adversary.send(poisoned, cohort, bad, state.server.params, state.round, None)
            lengths = honest.norm(dim=1).sort().values
            torch.testing.assert_close(sent[bad].norm(dim=1), ((lengths[4] + lengths[5]) / 2).expand(3))
            assert torch.equal(sent[~bad], poisoned[~bad])


class TestPoison:
    @pytest.mark.parametrize("shape", [(1, 8, 8), (25,)])
    def test_as_scaling(self, make_poison_view: Callable[..., PoisonView], shape: tuple[int, ...]) -> None:
        x, y = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
        ours, theirs = NormBoundedBackdoor(target=2, share=0.25), Scaling(target=2, share=0.25)
        for one, other in zip(
            ours.poison(x, y, make_poison_view()), theirs.poison(x, y, make_poison_view()), strict=True
        ):
            assert torch.equal(one, other)
        task = make_poison_view().task
        found, expected = ours.triggered(x, y, task), theirs.triggered(x, y, task)
        assert torch.equal(found.x, expected.x)
        assert found.wanted.tolist() == [2] * 12
        assert found.already.tolist() == (y == 2).tolist()
        assert isinstance(ours, Backdoor)

    def test_errors_have_its_name(self, make_poison_view: Callable[..., PoisonView]) -> None:
        x, y, task = torch.ones(4, 1, 8, 8), torch.arange(4), make_poison_view().task
        for attack, message in [
            (NormBoundedBackdoor(target=4), "target must be below the 4 classes, got 4"),
            (
                NormBoundedBackdoor(stride=2),
                "stride has no effect on images of shape [1, 8, 8], got 2; set size and value instead",
            ),
        ]:
            with pytest.raises(ParameterError) as error:
                attack.poison(x, y, make_poison_view())
            assert str(error.value) == f"norm-bounded-backdoor: {message}"
        with pytest.raises(ParameterError, match=r"^norm-bounded-backdoor: each of the 4 test samples looks as with"):
            NormBoundedBackdoor().triggered(x, y, Task(4, task.folder))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bound": 0.0}, "bound must be positive and finite, got 0.0"),
        ({"bound": math.inf}, "bound must be positive and finite, got inf"),
        ({"bound": math.nan}, "bound must be positive and finite, got nan"),
        ({"boost": -1.0}, "boost must be positive and finite, got -1.0"),
        ({"boost": math.inf}, "boost must be positive and finite, got inf"),
        ({"boost": 1e300}, "boost must be at most 3.4e+38 in absolute value, the limit of float32, got 1e+300"),
        ({"bound": 1e300}, "bound must be at most 3.4e+38 in absolute value, the limit of float32, got 1e+300"),
        ({"value": -1e39}, "value must be at most 3.4e+38 in absolute value, the limit of float32, got -1e+39"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"share": 0.0}, "share must be in (0, 1], got 0.0"),
        ({"size": 0}, "size and stride must be at least 1 and target at least 0, got 0, 20 and 0"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        NormBoundedBackdoor(**parameters)
    assert str(error.value) == f"norm-bounded-backdoor: {message}"


def test_a_larger_bound_plants_the_backdoor_sooner() -> None:
    """Under the plain mean, and under the norm clipping that it is made for."""
    more = {**DIGITS, "clients": 30, "malicious": 6, "rounds": 15, "evaluate_every": 1}
    area = {}
    for defense in ("mean", "norm-clipping"):
        for bound in (0.25, 0.5, 1.0):
            attack = {"name": "norm-bounded-backdoor", "bound": bound}
            rates = [record.attack_success_rate for record in records_of({**more, "defense": defense}, attack=attack)]
            area[bound] = sum(rate for rate in rates if rate is not None) / len(rates)
        assert area[0.25] < area[0.5] < area[1.0]
        assert area[1.0] > 0.7
