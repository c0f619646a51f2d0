"""Sieve over the rounds of small simulations: attackers who wait, hide or copy, awkward root data, resuming.

Each bound is on a run of a few rounds with seeds that no result of this project uses.
"""

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsieve.core.records import RoundRecord
from fedsieve.detectors.sieve import MISFIT
from fedsieve.federation.simulation import SimulationState
from tests.federation.conftest import simulation, timeless

DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "clients": 20,
    "rounds": 10,
    "defense": "sieve",
    "evaluate_every": 1,
    "server": {"learning_rate": 1.0},
    "local": {"steps": 5},
}


class Played:
    """A run, and what became of its clients."""

    def __init__(self, seed: int = 101, **settings: Any) -> None:
        self.simulation = simulation({**DIGITS, "malicious": 0, "seed": seed, **settings})
        self.steps: list[float] = []
        self.records: list[RoundRecord] = []
        state, self.states = self.simulation.initial, []
        for _ in range(self.simulation.experiment.rounds):
            before = state.server.params
            state, record = self.simulation.run_round(state)
            self.steps.append(float((state.server.params - before).norm()))
            self.records.append(record)
            self.states.append(state)
        assert all(torch.isfinite(s.server.params).all() for s in self.states)

    def rejected(self, *, benign: bool, start: int = 0) -> float:
        """Share of the rounds of benign or malicious clients, under whatever ids, in which they were rejected."""
        lost = taken = 0
        for r in self.records[start:]:
            clients = {i for i in r.clients if (i not in r.malicious) == benign}
            lost, taken = lost + len(clients & set(r.rejected or ())), taken + len(clients)
        return lost / max(1, taken)

    @property
    def accuracy(self) -> list[float]:
        return [float(r.test_accuracy or 0.0) for r in self.records]

    @property
    def backdoor(self) -> float:
        """The highest success of the backdoor in any round."""
        return max(float(r.attack_success_rate or 0.0) for r in self.records)


class WithBatchNorm(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        size = math.prod(input_shape)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(size, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, n_classes)
        )

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class TestWithoutAttack:
    @pytest.mark.parametrize("seed", [101, 102])
    @pytest.mark.parametrize("settings", [{}, {"partition": {"name": "groups", "q": 1.0}}], ids=["usual", "one class"])
    def test_nobody_is_rejected_and_nothing_is_lost(self, seed: int, settings: dict[str, Any]) -> None:
        found, plain = Played(seed, **settings), Played(seed, **settings, defense="mean")
        assert found.rejected(benign=True) == 0
        assert found.accuracy[-1] > plain.accuracy[-1] - 0.03
        assert {r.note for r in found.records} == {""}

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
    def test_few_clients(self, n: int) -> None:
        found = Played(clients=n, rounds=6)
        assert found.rejected(benign=True) == 0
        assert all(r.applied for r in found.records)
        assert found.accuracy[-1] > found.accuracy[0] + 0.1

    @pytest.mark.parametrize(
        "root",
        [{"shift": 1}, {"shift": 2}, {"wrong_labels": 0.15}, {"size": 20}, {"size": 1}, {"bias": 0.95}],
        ids=["shifted", "shifted by two", "wrong labels", "few", "one sample", "one class"],
    )
    def test_root_data_as_they_are_in_life(self, plain: Played, root: dict[str, Any]) -> None:
        found = Played(root=root)
        assert found.rejected(benign=True) == 0
        assert found.accuracy[-1] > plain.accuracy[-1] - (0.1 if root == {"shift": 2} else 0.03)
        says = [MISFIT in r.note for r in found.records]
        assert not any(says) or "shift" in root
        assert sum(says) > 0.5 * len(says) or root != {"shift": 2}

    def test_running_statistics(self, doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doubles, "WithBatchNorm", WithBatchNorm, raising=False)
        found = Played(model="doubles:WithBatchNorm", clients=8, rounds=5)
        assert found.rejected(benign=True) == 0
        assert all(r.test_loss is not None for r in found.records)
        assert found.accuracy[-1] > found.accuracy[0]


MALICIOUS = 4


@pytest.fixture(scope="module")
def plain() -> Played:
    """The mean, without an attack."""
    return Played(defense="mean")


class TestAttackers:
    """Four or more of twenty clients; each must do no lasting damage, and take no benign client with it."""

    @pytest.mark.parametrize("off", ["honest", "zeros", "shrunken"])
    def test_a_sleeper_is_found_when_it_wakes(self, plain: Played, off: str) -> None:
        found = Played(malicious=MALICIOUS, attack={"name": "sleeper", "start": 5, "off": off})
        assert found.rejected(benign=False, start=5) > 0.85
        assert found.rejected(benign=True) == 0
        assert found.accuracy[-1] > plain.accuracy[-1] - 0.03
        assert found.backdoor < 0.1

    @pytest.mark.parametrize("off", ["honest", "zeros", "shrunken"])
    def test_on_off(self, plain: Played, off: str) -> None:
        found = Played(malicious=MALICIOUS, attack={"name": "on-off", "period": 3, "duty": 1, "off": off})
        attacks = [r for r in found.records if len(set(r.rejected or ()) & set(r.malicious)) == MALICIOUS]
        assert len(attacks) == 3  # of ten rounds; credit that was earned in between excuses nothing
        assert found.rejected(benign=True) == 0
        assert found.accuracy[-1] > plain.accuracy[-1] - 0.03
        assert found.backdoor < 0.1

    def test_fresh_identities(self, plain: Played) -> None:
        found = Played(malicious=MALICIOUS, attack={"name": "fresh-identity", "every": 1})
        assert len({i for r in found.records for i in r.malicious}) > 4 * MALICIOUS
        assert found.rejected(benign=False) == 1
        assert found.rejected(benign=True) == 0
        assert found.accuracy[-1] > plain.accuracy[-1] - 0.03
        assert min(found.accuracy) >= 0.1

    @pytest.mark.parametrize("malicious", [4, 8])
    def test_copies_of_distinct_clients_convict_nobody(self, plain: Played, malicious: int) -> None:
        found = Played(malicious=malicious, attack="copycat")
        assert found.rejected(benign=True) == 0
        assert found.accuracy[-1] > plain.accuracy[-1] - 0.03
        copied = [max(w or 0.0 for w in r.weights) for r in found.records]
        assert max(copied) < 1.6 / 12  # nobody gains much weight

    @pytest.mark.parametrize("malicious", [4, 8])
    def test_the_client_that_is_copied_is_not_rejected(self, malicious: int) -> None:
        found = Played(malicious=malicious, attack={"name": "copycat", "victims": "one"})
        for r in found.records:
            scores = dict(zip(r.clients, r.scores or (), strict=True))
            score = scores[r.malicious[0]]
            victims = [i for i in r.clients if i not in r.malicious and scores[i] == pytest.approx(score, abs=0.01)]
            assert not set(victims) & set(r.rejected or ())

    def test_one_huge_update(self, plain: Played) -> None:
        """Honest for five rounds, then minus a thousand times its own update."""
        huge = {"name": "sleeper", "start": 5, "attack": {"name": "sign-flip", "factor": 1000.0}}
        found = Played(malicious=1, attack=huge)
        assert found.rejected(benign=False, start=5) == 1
        assert found.rejected(benign=True) == 0
        assert max(found.steps) < 1.3 * max(plain.steps)
        assert max(a - b for a, b in zip(plain.accuracy, found.accuracy, strict=True)) < 0.1

    @pytest.mark.parametrize("malicious", [4, 16])
    def test_zeros(self, plain: Played, malicious: int) -> None:
        found = Played(malicious=malicious, attack={"name": "free-rider", "what": "zeros"})
        assert found.rejected(benign=True) == 0
        assert found.accuracy[-1] > plain.accuracy[-1] - 0.05
        weights = [w for r in found.records for i, w in zip(r.clients, r.weights, strict=True) if i in r.malicious]
        assert set(weights) == {0}

    @pytest.mark.parametrize("attack", ["label-flip", "scaling"])
    def test_most_clients_malicious(self, attack: str) -> None:
        # in early rounds they stand apart by little more than the least evidence
        settings = {"clients": 30, "malicious": 24, "attack": attack, "partition": {"name": "groups", "q": 0.5}}
        found = Played(local={"steps": 1}, rounds=8, **settings)
        assert found.rejected(benign=False) == 1
        assert found.rejected(benign=True) == 0

    def test_tiny_updates_beside_a_wrong_root_convict_nobody(self) -> None:
        """Who sends next to nothing is closer to the references than the honest clients are, which are no group."""
        off = {"name": "on-off", "period": 20, "duty": 1, "off": "shrunken", "shrink": 0.02}
        found = Played(malicious=3, root={"shift": 1}, attack=off)
        assert found.rejected(benign=True) == 0


class TestResuming:
    def resumed(self, run: Played, at: int) -> list[RoundRecord]:
        state: SimulationState = run.states[at]
        records = []
        for _ in range(at + 1, len(run.records)):
            state, record = run.simulation.run_round(state)
            records.append(record)
        assert torch.equal(state.server.params, run.states[-1].server.params)
        return records

    def test_rounds_are_a_function_of_the_state(self) -> None:
        run = Played(malicious=MALICIOUS, attack="label-flip", rounds=8, clients=10, clients_per_round=7)
        assert timeless(self.resumed(run, 3)) == timeless(run.records[4:])

    def test_twice_the_same(self) -> None:
        one, two = (Played(malicious=3, attack="scaling", rounds=4) for _ in range(2))
        assert timeless(one.records) == timeless(two.records)
        assert torch.equal(one.states[-1].server.params, two.states[-1].server.params)
