"""The attacker's simulation of the defense: what reaches it, what it remembers, and that it predicts nothing."""

import dataclasses
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.core.attack import AttackView, UpdateAttack
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.detectors.sieve.reference import train_references
from fedsieve.federation import adversary, clients, root, server
from fedsieve.federation.simulation import Simulation
from tests.federation.conftest import DIGITS, TINY, simulation, timeless


@dataclass(frozen=True)
class Recorder:
    """The mean; keeps the updates and the view of every call, with numbers drawn from the view's generator."""

    calls: list[tuple[Updates, ServerView, Tensor]] = field(default_factory=list)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        state = view.generator.clone_state()
        self.calls.append((updates, view, torch.rand(8, generator=state)))
        n = len(updates.matrix)
        weights = updates.matrix.new_full((n,), 1 / n)
        return Aggregate(updates.matrix.mean(dim=0), weights, weights > 0, state=(view.state or 0) + 1)


@dataclass(frozen=True)
class Simulating:
    """Simulates the defense ``times`` times on its own rows, with what it sees behind them, and sends ``value``."""

    times: int = 1
    value: float = 0.0
    results: list[Aggregate] = field(default_factory=list)

    def craft(self, view: AttackView, /) -> Tensor:
        sent = torch.full_like(view.malicious_updates, self.value)
        assert view.simulate_defense is not None
        for _ in range(self.times):
            rows = [sent] if view.benign_updates is None else [sent, view.benign_updates]
            self.results.append(view.simulate_defense(torch.cat(rows)))
        return sent


def with_recorders(
    attack: UpdateAttack, settings: dict[str, Any] = TINY, **more: Any
) -> tuple[Simulation, Recorder, Recorder]:
    """A simulation in which one recorder defends and another is what the attacker simulates."""
    usual = {"clients": 6, "malicious": 2, "attack": "sign-flip", "knows_defense": True}
    sim = simulation(settings, **{**usual, **more})
    real, simulated = Recorder(), Recorder()
    return (
        dataclasses.replace(
            sim,
            server=dataclasses.replace(sim.server, defense=real),
            adversary=dataclasses.replace(sim.adversary, attack=attack, defense=simulated),
        ),
        real,
        simulated,
    )


class TestNothingOfTheServersCanBePredicted:
    def test_no_stream_is_shared(self, monkeypatch: pytest.MonkeyPatch, doubles: ModuleType) -> None:
        """All random streams that are opened while the adversary acts are others than those that the server opens."""
        opened: dict[str, set[tuple[Any, ...]]] = {"adversary": set(), "server": set(), "clients": set()}
        party = ["clients"]

        def watched(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
            opened[party[0]].add((seed, purpose, round, client))
            return stream(seed, purpose, round, client)

        def acting(name: str, method: Any) -> Any:
            def call(*args: Any) -> Any:
                party[0] = name
                try:
                    return method(*args)
                finally:
                    party[0] = "clients"

            return call

        for module in (adversary, clients, root, server):
            monkeypatch.setattr(module, "stream", watched)
        monkeypatch.setattr(adversary.Adversary, "send", acting("adversary", adversary.Adversary.send))
        monkeypatch.setattr(server.Server, "step", acting("server", server.Server.step))
        sim = simulation(DIGITS, attack="sign-flip", defense="sieve", knows_defense=True)
        sim = dataclasses.replace(sim, adversary=dataclasses.replace(sim.adversary, attack=Simulating()))
        assert len(list(sim.rounds())) == 2
        training = {"batches", "dropout/0", "root dropout"}
        assert {purpose for _, purpose, _, _ in opened["server"]} == {"defense", *training}
        assert {purpose for _, purpose, _, _ in opened["adversary"]} == {"attack", "simulated defense", *training}
        assert opened["server"] & (opened["adversary"] | opened["clients"]) == set()
        # by its own seed, not only by the client: the server's seed opens no stream of root models for the attacker
        seeds = {seed for seed, purpose, _, client in opened["adversary"] if purpose == "batches" and client < 0}
        assert len(seeds) == 1
        assert seeds.isdisjoint({0})

    def test_generators(self, doubles: ModuleType) -> None:
        sim, real, simulated = with_recorders(Simulating(times=2))
        assert len(list(sim.rounds())) == len(real.calls) == 4
        drawn_by_server = [tuple(draws.tolist()) for *_, draws in real.calls]
        drawn_by_attacker = [tuple(draws.tolist()) for *_, draws in simulated.calls]
        assert len(drawn_by_attacker) == 4 * 3  # twice by the attack, once for the memory
        assert set(drawn_by_server).isdisjoint(drawn_by_attacker)
        assert len(set(drawn_by_server)) == 4
        for k in range(4):  # the same in every call of a round, others in another round
            assert len(set(drawn_by_attacker[3 * k : 3 * k + 3])) == 1
        assert len(set(drawn_by_attacker)) == 4

    def test_batches_and_folds(self, doubles: ModuleType) -> None:
        """Even an attacker that has the server's very root data trains other root models on it."""
        settings = {**DIGITS, "root": {"size": 60}, "local": {"batch_size": 8}, "rounds": 5}
        sim, real, simulated = with_recorders(Simulating(), settings, clients=8)
        trainer, _, n_classes = sim.adversary.root
        attacker = dataclasses.replace(sim.adversary, root=(trainer, sim.holdings.root, n_classes))
        sim = dataclasses.replace(sim, adversary=attacker)
        list(sim.rounds())
        same = []
        for (_, at_server, _), (_, at_attacker, _) in zip(real.calls, simulated.calls[::2], strict=True):
            assert at_server.round == at_attacker.round
            assert torch.equal(at_server.global_params, at_attacker.global_params)
            assert at_server.root is not None
            assert at_attacker.root is not None
            assert torch.equal(at_server.root.data[0], at_attacker.root.data[0])
            assert not torch.allclose(at_server.root.update(), at_attacker.root.update())
            layout = sim.trainer.model.layout
            ours, theirs = (
                train_references(view.root, layout, view.generator.clone_state())
                for view in (at_server, at_attacker)
                if view.root is not None
            )
            same.append(torch.equal(ours.others, theirs.others))
            assert not torch.allclose(ours.held_out, theirs.held_out)
        assert len(same) == 5
        assert not any(same)


class TestSimulatedDefense:
    def test_gets_no_row_that_is_not_finite(self, doubles: ModuleType) -> None:
        attack = Simulating(value=torch.nan)
        sim, _, simulated = with_recorders(attack)
        records = [record for _, record in sim.rounds()]
        assert len(attack.results) == 4
        assert len(simulated.calls) == 8  # the attack's calls, and those for the memory
        benign = [i for i in range(6) if i not in sim.holdings.malicious]
        for updates, _, _ in simulated.calls:
            assert updates.matrix.isfinite().all()
            assert updates.client_ids.tolist() == benign
        for result in attack.results:  # the malicious clients come first
            assert result.weights.tolist() == pytest.approx([0, 0, 0.25, 0.25, 0.25, 0.25])
            assert result.accepted is not None
            assert result.accepted.tolist() == [False, False, True, True, True, True]
        assert all(len(record.screened) == 2 for record in records)

    def test_all_rows_not_finite(self, doubles: ModuleType) -> None:
        attack = Simulating(value=torch.inf)
        sim, _, simulated = with_recorders(attack, clients=3, malicious=3)
        list(sim.rounds())
        assert simulated.calls == []
        assert len(attack.results) == 4
        for result in attack.results:
            assert not result.update.any()
            assert not result.weights.any()

    def test_examines_the_malicious_clients_first(self, doubles: ModuleType) -> None:
        sim, _, simulated = with_recorders(Simulating(value=5.0), rounds=1)
        list(sim.rounds())
        for updates, view, _ in simulated.calls:
            ids = updates.client_ids.tolist()
            assert ids == sorted(sim.holdings.malicious) + [i for i in range(6) if i not in sim.holdings.malicious]
            assert (updates.matrix[:2] == 5).all()
            assert not (updates.matrix[2:] == 5).any()
            assert view.n_malicious == 2

    def test_remembers_if_the_attacker_sees_benign_updates(self, doubles: ModuleType) -> None:
        sim, _, simulated = with_recorders(Simulating(times=2))
        states = [state for state, _ in sim.rounds()]
        assert [state.adversary for state in states] == [{"attack": None, "defense": k} for k in (1, 2, 3, 4)]
        seen = [view.state for _, view, _ in simulated.calls]
        assert seen == [None] * 3 + [1] * 3 + [2] * 3 + [3] * 3  # two calls do not count twice

    def test_remembers_nothing_otherwise(self, doubles: ModuleType) -> None:
        sim, _, simulated = with_recorders(Simulating(times=2), knowledge="partial")
        states = [state for state, _ in sim.rounds()]
        assert [state.adversary for state in states] == [{"attack": None, "defense": None}] * 4
        assert [view.state for _, view, _ in simulated.calls] == [None] * 8
        assert all(len(updates.matrix) == 2 for updates, _, _ in simulated.calls)

    def test_remembers_nothing_if_it_is_not_used(self, doubles: ModuleType) -> None:
        sim, _, simulated = with_recorders(Simulating(times=0))
        assert [state.adversary for state, _ in sim.rounds()] == [{"attack": None, "defense": None}] * 4
        assert simulated.calls == []

    def test_another_number_of_rows_is_examined_without_memory(self, doubles: ModuleType) -> None:
        recorder = Recorder()
        view = ServerView(3, 1, stream(0, "x"), torch.zeros(2), state=7)
        layout = Layout.of({"w": torch.zeros(2)})
        simulated = adversary.SimulatedDefense(recorder, layout, torch.tensor([8, 5, 6]), view)
        simulated(torch.ones(3, 2))
        simulated(torch.ones(2, 2))
        assert [(u.client_ids.tolist(), v.state) for u, v, _ in recorder.calls] == [([8, 5, 6], 7), ([0, 1], None)]

    def test_the_attacker_cannot_change_what_it_knows(self, doubles: ModuleType) -> None:
        """What an attack writes into its root data's model and its updates reaches no other party."""

        class Writing:
            def craft(self, view: AttackView, /) -> Tensor:
                view.global_params.fill_(1e6)
                view.malicious_updates.fill_(1e6)
                assert view.benign_updates is not None
                view.benign_updates.fill_(1e6)
                view.root.update().fill_(1e6)
                return torch.zeros_like(view.malicious_updates)

        sim, real, _ = with_recorders(Writing())
        plain, _, _ = with_recorders(Simulating(times=0))
        for (state, record), (expected, other) in zip(sim.rounds(), plain.rounds(), strict=True):
            assert torch.equal(state.server.params, expected.server.params)
            assert timeless([record]) == timeless([other])
        assert all(view.global_params.abs().max() < 1e3 for _, view, _ in real.calls)
