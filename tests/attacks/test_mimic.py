"""Mimic: the direction of largest variance, the client that is copied, and the memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.attacks.mimic import Mimic
from fedsieve.core.attack import AttackView, Crafted
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.runs.packing import pack, unpack
from tests.federation.conftest import DIGITS, records_of, simulation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unequal(clients: int, d: int, spread: float = 5.0, noise: float = 0.3, seed: int = 0) -> Callable[[int], Tensor]:
    """Benign updates of one round after the other: each client's own offset along one direction, and noise."""
    offsets, direction = normal(clients, seed=seed), normal(d, seed=seed + 1)
    direction = direction / direction.norm()
    return lambda t: spread * offsets[:, None] * direction + noise * normal(clients, d, seed=seed + 100 + t)


def play(
    attack: Mimic,
    make_view: Callable[..., AttackView],
    rounds: Sequence[tuple[Tensor, Sequence[int]]],
    m: int = 2,
) -> list[Crafted]:
    """What the attack returns in each of ``rounds``, which are the benign updates and their clients' ids."""
    memory, found = None, []
    for t, (benign, ids) in enumerate(rounds):
        view = make_view(normal(m, benign.shape[1], seed=9), benign, seed=t)
        view = replace(view, round=t, benign_ids=torch.tensor(ids), memory=memory)
        found.append(attack.craft(view))
        memory = found[-1].memory
    return found


def transcribed(rounds: Sequence[tuple[Tensor, Sequence[int]]], warmup: int) -> list[int]:
    """The row that is copied in each round, in plain loops over the numbers."""
    d = rounds[0][0].shape[1]
    first = torch.randn(d, generator=torch.Generator().manual_seed(0)).double().tolist()
    length = math.sqrt(sum(v * v for v in first))
    z, mean, along, chosen = [v / length for v in first], [0.0] * d, {}, []
    for t, (benign, ids) in enumerate(rounds):
        x = benign.tolist()
        if t < warmup:
            mean = [(t * mean[j] + sum(row[j] for row in x) / len(x)) / (t + 1) for j in range(d)]
            cz = [0.0] * d
            for row in x:
                inner = sum((row[j] - mean[j]) * z[j] for j in range(d))
                cz = [cz[j] + inner * (row[j] - mean[j]) for j in range(d)]
            length = math.sqrt(sum(v * v for v in cz))
            z = [t / (t + 1) * z[j] + cz[j] / length / (t + 1) for j in range(d)]
            length = math.sqrt(sum(v * v for v in z))
            z = [v / length for v in z]
            for client, row in zip(ids, x, strict=True):
                along.setdefault(client, []).append(sum(z[j] * row[j] for j in range(d)))
        score = {client: abs(sum(values) / len(values)) for client, values in along.items()}
        client = max(ids if t < warmup - 1 else score, key=lambda i: score[i])
        if client not in ids:
            client = max(ids, key=lambda i: abs(sum(z[j] * x[list(ids).index(i)][j] for j in range(d))))
        chosen.append(list(ids).index(client))
    return chosen


class TestAsPublished:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("warmup", [1, 3, 6])
    def test_all_clients_in_every_round(self, make_view: Callable[..., AttackView], warmup: int, seed: int) -> None:
        updates = unequal(6, 8, spread=1.0, noise=1.0, seed=1000 * seed)
        rounds = [(updates(t), range(10, 16)) for t in range(9)]
        found = play(Mimic(warmup), make_view, rounds)
        for (benign, _), row, crafted in zip(rounds, transcribed(rounds, warmup), found, strict=True):
            assert torch.equal(crafted.updates, benign[row].expand(2, -1))

    @pytest.mark.parametrize("seed", range(5))
    def test_other_clients_in_every_round(self, make_view: Callable[..., AttackView], seed: int) -> None:
        updates = unequal(12, 8, spread=1.0, noise=1.0, seed=1000 * seed)
        rounds = []
        for t in range(12):
            ids = torch.randperm(12, generator=torch.Generator().manual_seed(t))[: 3 + t % 3].sort().values
            rounds.append((updates(t)[ids], ids.tolist()))
        for (benign, _), row, crafted in zip(
            rounds, transcribed(rounds, 5), play(Mimic(5), make_view, rounds), strict=True
        ):
            assert torch.equal(crafted.updates, benign[row].expand(2, -1))

    def test_finds_the_direction_of_largest_variance(self, make_view: Callable[..., AttackView]) -> None:
        updates = unequal(9, 40)
        rounds = [(updates(t), range(9)) for t in range(12)]
        found = play(Mimic(12), make_view, rounds)
        everything = torch.cat([benign for benign, _ in rounds]).numpy()
        main = np.linalg.svd(everything - everything.mean(axis=0))[2][0]
        z = found[-1].memory["z"].numpy()
        assert abs(float(z @ main)) > 0.999
        assert float(np.linalg.norm(z)) == pytest.approx(1)
        # the same client from then on: the one that is farthest along it
        sums = np.abs(sum(benign.numpy() @ main for benign, _ in rounds))
        assert torch.equal(found[-1].updates[0], rounds[-1][0][int(sums.argmax())])


class TestMemory:
    def test_direction_and_client_are_fixed_after_the_warm_up(self, make_view: Callable[..., AttackView]) -> None:
        updates = unequal(6, 8)
        rounds = [(updates(t) if t < 4 else 100 * normal(6, 8, seed=t), range(6)) for t in range(8)]
        found = play(Mimic(4), make_view, rounds)
        for key in ("z", "mean"):
            assert torch.equal(found[3].memory[key], found[-1].memory[key])
        assert found[3].memory["clients"] == found[-1].memory["clients"]
        rows = [
            (benign == crafted.updates[0]).all(dim=1).tolist().index(True)
            for (benign, _), crafted in zip(rounds[3:], found[3:], strict=True)
        ]
        assert len(set(rows)) == 1

    def test_counts_rounds_in_which_it_takes_part(self, make_view: Callable[..., AttackView]) -> None:
        view = replace(make_view(normal(2, 5), normal(4, 5, seed=1)), round=77, benign_ids=torch.arange(4))
        assert Mimic(3).craft(view).memory["round"] == 1

    def test_can_be_kept_in_a_checkpoint(self, make_view: Callable[..., AttackView]) -> None:
        updates = unequal(5, 6)
        memory = play(Mimic(3), make_view, [(updates(t), range(5)) for t in range(2)])[-1].memory
        tensors: dict[str, Tensor] = {}
        view = replace(make_view(normal(2, 6), updates(2)), benign_ids=torch.arange(5))
        one, other = (
            Mimic(3).craft(replace(view, memory=kept))
            for kept in (memory, unpack(pack(memory, "memory", tensors), tensors))
        )
        assert torch.equal(one.updates, other.updates)
        assert one.memory["clients"] == other.memory["clients"]

    def test_is_not_written_to(self, make_view: Callable[..., AttackView]) -> None:
        updates = unequal(5, 6)
        memory = play(Mimic(3), make_view, [(updates(0), range(5))])[-1].memory
        before = (memory["z"].clone(), memory["mean"].clone(), dict(memory["clients"]))
        play_on = replace(make_view(normal(2, 6), updates(1)), benign_ids=torch.arange(5), memory=memory)
        Mimic(3).craft(play_on)
        assert torch.equal(memory["z"], before[0])
        assert torch.equal(memory["mean"], before[1])
        assert memory["clients"] == before[2]
        assert memory["round"] == 1


class TestCraft:
    def test_with_partial_knowledge_copies_one_of_its_own(self, make_view: Callable[..., AttackView]) -> None:
        own = unequal(5, 20)(0)
        sent = Mimic().craft(make_view(own, members=torch.tensor([3, 0, 4, 2, 1])))
        assert (sent.updates == sent.updates[0]).all()
        row = (own == sent.updates[0]).all(dim=1).tolist().index(True)
        assert sorted(sent.memory["clients"]) == [0, 1, 2, 3, 4]
        assert abs(float(own[row] @ sent.memory["z"])) == pytest.approx(float((own @ sent.memory["z"]).abs().max()))

    def test_one_known_update_is_sent_unchanged(self, make_view: Callable[..., AttackView]) -> None:
        """And a lone first round does not stop it from learning later."""
        own = normal(1, 20)
        crafted = Mimic().craft(make_view(own))
        assert torch.equal(crafted.updates, own)
        assert float(crafted.memory["z"].norm()) == pytest.approx(1)
        more = unequal(4, 20)(0)
        learnt = Mimic().craft(replace(make_view(more), memory=crafted.memory)).memory
        assert not torch.equal(learnt["z"], crafted.memory["z"])

    def test_a_round_without_benign_clients(self, make_view: Callable[..., AttackView]) -> None:
        """Nothing to copy and nothing to learn: honest updates, and the memory stays."""
        own, memory = normal(2, 6), play(Mimic(3), make_view, [(unequal(5, 6)(0), range(5))])[-1].memory
        alone = replace(make_view(own, own[:0], n_clients=2), benign_ids=torch.arange(0), memory=memory)
        crafted = Mimic(3).craft(alone)
        assert torch.equal(crafted.updates, own)
        assert crafted.memory is memory
        drawn = {**DIGITS, "clients": 6, "malicious": 3, "clients_per_round": 1, "rounds": 6}
        assert len(records_of(drawn, attack="mimic")) == 6

    def test_statistics_do_not_choose(self, make_view: Callable[..., AttackView]) -> None:
        layout = Layout.of({"w": torch.zeros(5)}, {"running_var": torch.zeros(2)})
        benign = unequal(6, 5)(0)
        whole = torch.cat([benign, 1e6 * normal(6, 2, seed=3)], dim=1)
        with_statistics = Mimic().craft(make_view(normal(2, 7), whole, layout=layout))
        without = Mimic().craft(make_view(normal(2, 5), benign))
        assert torch.equal(with_statistics.updates[:, :5], without.updates)
        row = (benign == without.updates[0]).all(dim=1).tolist().index(True)
        assert torch.equal(with_statistics.updates, whole[row].expand(2, -1))  # copied with the rest


@pytest.mark.parametrize("warmup", [0, -3])
def test_out_of_range(warmup: int) -> None:
    with pytest.raises(ParameterError) as error:
        Mimic(warmup)
    assert str(error.value) == f"mimic: warmup must be at least 1, got {warmup}"


class TestDamage:
    more: dict[str, Any] = {  # noqa: RUF012
        **DIGITS,
        "clients": 30,
        "rounds": 30,
        "evaluate_every": 30,
        "partition": {"name": "groups", "q": 0.9},
    }

    def accuracy(self, **more: Any) -> float:
        found = records_of({**self.more, **more})[-1].test_accuracy
        assert found is not None
        return found

    def test_the_mean_suffers_where_data_differ(self) -> None:
        """The more malicious clients, the more."""
        clean, few, many = (self.accuracy(attack="mimic", malicious=m) for m in (0, 6, 15))
        assert clean > few > many
        assert clean - many > 0.3

    def test_copies_the_same_client_in_a_simulation(self) -> None:
        sim = simulation(self.more, attack={"name": "mimic", "warmup": 3}, malicious=6, clients_per_round=25, rounds=8)
        copied = []
        for state, _ in [(sim.initial, None), *sim.rounds()][:-1]:
            cohort = sim._cohort(state.round)
            clients = {i: sim.holdings.clients[i] for i in cohort}
            honest = sim.trainer.updates(state.server.params, clients, state.round)
            bad = torch.tensor([i in sim.holdings.malicious for i in cohort])
            sent, memory = sim.adversary.send(honest, cohort, bad, state.server.params, state.round, state.adversary)
            assert (sent[bad] == sent[bad][0]).all()
            (row,) = [k for k in range(25) if not bad[k] and torch.equal(honest[k], sent[bad][0])]
            copied.append((cohort[row], cohort))
        best = max(memory["attack"]["clients"].items(), key=lambda item: abs(item[1][0] / item[1][1]))[0]
        later = [client for client, cohort in copied[3:] if best in cohort]
        assert later == [best] * len(later) != []
