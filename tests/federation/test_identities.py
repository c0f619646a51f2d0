"""Malicious clients that come back under new ids: what the server, the attacker and the records then see."""

from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.fresh_identity import FreshIdentity
from fedsieve.config import registry
from fedsieve.core.attack import AttackView, Crafted
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.errors import FedSieveError
from fedsieve.core.metrics import summarize
from fedsieve.core.records import RoundRecord, client_behind, seen_id
from fedsieve.federation.simulation import Simulation
from tests.federation.conftest import DIGITS, TINY, simulation, timeless

N, M, K = 8, 3, 5  # clients, malicious ones, clients of a round where not all take part
FRESH: dict[str, Any] = {
    **TINY, "clients": N, "malicious": M, "attack": {"name": "fresh-identity", "attack": "doubles:Spy"}, "rounds": 6,
}  # fmt: skip


def every(rounds: int, **inner: Any) -> dict[str, Any]:
    return {"attack": {"name": "fresh-identity", "every": rounds, **inner}}


def expected(sim: Simulation, record: RoundRecord, rounds_each: int = 1) -> tuple[int, ...]:
    """The ids of a round by hand: those of benign clients stay, a malicious one's grow by n."""
    cohort, turn = sim._cohort(record.round), record.round // rounds_each
    return tuple(i + N * turn if i in sim.holdings.malicious else i for i in cohort)


def numbers(records: list[RoundRecord]) -> list[RoundRecord]:
    """The records with clients in place of ids."""

    def clients(ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(client_behind(i, N) for i in ids)

    return [
        replace(
            r,
            clients=clients(r.clients),
            malicious=clients(r.malicious),
            rejected=None if r.rejected is None else clients(r.rejected),
            screened=clients(r.screened),
        )
        for r in timeless(records)
    ]


class TestIds:
    def test_no_two_clients_ever_share_one(self) -> None:
        seen = [seen_id(client, used, 7) for client in range(7) for used in range(50)]
        assert len(set(seen)) == len(seen)
        assert all(client_behind(seen_id(i, used, 7), 7) == i for i in range(7) for used in (0, 1, 49))

    def test_the_largest_experiment_fits_64_bits(self) -> None:
        largest = seen_id(9_999_999, 999_999, 10_000_000)  # all clients and rounds that settings may ask for
        assert int(torch.tensor(largest)) == largest == 10**13 - 1

    @pytest.mark.parametrize("rounds_each", [1, 2, 4])
    @pytest.mark.parametrize("drawn", [N, K])
    def test_in_the_records(self, doubles: ModuleType, rounds_each: int, drawn: int) -> None:
        settings = {**FRESH, **every(rounds_each, attack="doubles:Spy"), "clients_per_round": drawn}
        sim = simulation(settings, defense="doubles:Watch")
        records = [record for _, record in sim.rounds()]
        watched = [entry[0] for entry in doubles.seen if isinstance(entry, tuple)]
        assert len(records) == len(watched) == 6
        used: dict[int, set[int]] = {}  # rounds in which a new id was seen, by id
        for record, updates in zip(records, watched, strict=True):
            assert record.clients == expected(sim, record, rounds_each)
            assert record.malicious == tuple(i for i in record.clients if client_behind(i, N) in sim.holdings.malicious)
            assert tuple(updates.client_ids.tolist()) == record.clients
            assert updates.client_ids.dtype == torch.long
            for i in record.malicious:
                used.setdefault(i, set()).add(record.round // rounds_each)
        assert sum(len(record.malicious) for record in records) > 3
        assert all(len(turns) == 1 for turns in used.values())  # once given up, an id never comes back

    def test_everything_else_is_as_without_new_ids(self, doubles: ModuleType) -> None:
        for more in ({}, {"clients_per_round": K}, {"defense": "trimmed-mean", "assumed_malicious": 2}):
            plain = [r for _, r in simulation({**FRESH, "attack": "doubles:Spy"}, **more).rounds()]
            fresh = [r for _, r in simulation(FRESH, **more).rounds()]
            assert numbers(fresh) == numbers(plain)
            assert any(r.clients != p.clients for r, p in zip(fresh, plain, strict=True))

    def test_an_answer_that_is_no_number_of_ids(self, doubles: ModuleType) -> None:
        with pytest.raises(FedSieveError) as error:
            list(simulation(FRESH, attack="doubles:Renames").rounds())
        assert str(error.value) == (
            "attack doubles:Renames returned 1 as the number of ids that malicious client 2 has used up before round "
            "0, expected an integer in 0 to 0"
        )


class TestRates:
    def test_by_hand(self, doubles: ModuleType) -> None:
        """Rejected are clients with ids below 3: benign ones always, malicious ones under their first id only."""
        sim = simulation(FRESH, defense={"name": "doubles:Below", "id": 3})
        bad = set(sim.holdings.malicious)
        caught, wrong = len(bad & {0, 1, 2}), len({0, 1, 2} - bad)
        assert 0 < caught < 3
        records = [record for _, record in sim.rounds()]
        for record in records:
            assert record.false_positive_rate == pytest.approx(wrong / (N - M))
            assert record.false_negative_rate == pytest.approx(1 if record.round else (M - caught) / M)
            assert record.rejected == tuple(i for i in record.clients if i < 3)
        found = summarize(records)
        assert found["false_positive_rate"] == pytest.approx(wrong / (N - M))
        assert found["false_negative_rate"] == pytest.approx((5 + (M - caught) / M) / 6)
        assert found["late_false_negative_rate"] == 1

    def test_screened(self, doubles: ModuleType) -> None:
        sim = simulation(FRESH, **every(1, attack="doubles:Constant"))  # NaN
        for _, record in sim.rounds():
            assert (
                record.screened
                == record.malicious
                == tuple(i for i in expected(sim, record) if i >= N or i in bad(sim))
            )
            assert [record.weights[record.clients.index(i)] for i in record.malicious] == [0] * M


def bad(sim: Simulation) -> set[int]:
    return set(sim.holdings.malicious)


@dataclass(frozen=True)
class Recorder:
    """The mean; its state has the ids of the last round."""

    calls: list[tuple[list[int], Any]] = field(default_factory=list)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        ids = updates.client_ids.tolist()
        self.calls.append((ids, view.state))
        weights = updates.matrix.new_full((len(ids),), 1 / len(ids))
        return Aggregate(updates.matrix.mean(dim=0), weights, weights > 0, state=ids)


@dataclass(frozen=True)
class Simulating:
    def craft(self, view: AttackView, /) -> Tensor:
        assert view.simulate_defense is not None
        view.simulate_defense(view.known_updates)
        return -view.malicious_updates


class TestTheAttacker:
    @pytest.mark.parametrize("knowledge", ["full", "partial"])
    def test_simulates_the_defense_on_the_same_ids(self, doubles: ModuleType, knowledge: str) -> None:
        sim = simulation(FRESH, knows_defense=True, knowledge=knowledge, clients_per_round=K)
        simulated = Recorder()
        own = replace(sim.adversary, attack=FreshIdentity(Simulating()), defense=simulated)
        sim = replace(sim, adversary=own)
        records = [record for _, record in sim.rounds()]
        calls = iter(simulated.calls)
        last: list[int] | None = None
        for record in records:
            if not record.malicious:
                continue
            benign = [i for i in record.clients if i not in record.malicious]
            if knowledge == "full":
                ids = [*record.malicious, *benign]
                assert [next(calls), next(calls)] == [(ids, last)] * 2  # the second for the memory
                last = ids
            else:  # another number of rows than the round has clients
                assert next(calls) == (list(range(len(record.malicious))), None)
        assert next(calls, None) is None

    def test_keeps_data_members_and_random_numbers(self, doubles: ModuleType) -> None:
        """The client behind the ids is the same: it trains on its own data, under its number among the malicious."""
        sim = simulation(FRESH)
        states = [sim.initial, *(state for state, _ in sim.rounds())]
        views = [entry for entry in doubles.seen if isinstance(entry, AttackView)]
        here = sorted(sim.holdings.malicious)
        for view, state in zip(views, states, strict=False):
            assert [sim.holdings.malicious[k] for k in view.members] == here
            data = {i: sim.holdings.clients[i] for i in here}
            honest = sim.trainer.updates(state.server.params, data, view.round)
            torch.testing.assert_close(view.malicious_updates, honest, rtol=0, atol=0)
        assert len(views) == 6


class TestPersonalBatchNorm:
    def test_belongs_to_the_client_behind_the_ids(self, doubles: ModuleType) -> None:
        settings = {**FRESH, "model": "doubles:Normed", "local": {"batch_size": 10, "batch_norm": "local"}}
        for drawn in (N, K):
            fresh, plain = (
                list(simulation(settings, clients_per_round=drawn, attack=attack).rounds())
                for attack in (FRESH["attack"], "doubles:Spy")
            )
            before = simulation(settings).initial.personal
            for (state, record), (other, same) in zip(fresh, plain, strict=True):
                assert before is not None
                assert state.personal is not None
                assert other.personal is not None
                torch.testing.assert_close(state.personal, other.personal, rtol=0, atol=0)
                assert state.personal.shape[0] == N
                changed = (state.personal != before).any(dim=1).tolist()
                assert changed == [i in {client_behind(c, N) for c in record.clients} for i in range(N)]
                assert record.test_accuracy == same.test_accuracy
                before = state.personal


# By name, with parameters under which ids are forgotten within a few rounds.
REMEMBER: dict[str, dict[str, Any]] = {
    "momentum,krum": {"momentum": {"forget_after": 3}},
    "norm-clipping,momentum,trimmed-mean": {"momentum": {"forget_after": 3}},
    "fldetector": {"window": 2, "start": 1, "forget_after": 3},
    "sparsefed": {},
}


class TestDefensesThatRemember:
    @pytest.mark.parametrize("rounds_each", [1, 2])
    @pytest.mark.parametrize("drawn", [N, K])
    @pytest.mark.parametrize("name", REMEMBER)
    def test_forget_ids_that_never_return(self, name: str, drawn: int, rounds_each: int) -> None:
        defense = {"name": name, **registry.complete("defenses", name, REMEMBER[name])}
        settings = {**DIGITS, "clients": N, "malicious": M, "rounds": 12, "evaluate_every": 12}
        more = {**every(rounds_each), "clients_per_round": drawn, "assumed_malicious": 1}
        known: set[int] = set()
        for state, record in simulation(settings, defense=defense, **more).rounds():
            assert record.applied
            assert None not in record.weights
            now = remembered(state.server.defense)
            assert all(i // N >= (record.round - 3) // rounds_each for i in now if i >= N)
            known |= now
        assert (name == "sparsefed") == (not known)  # which keeps no ids
        assert name == "sparsefed" or max(known) >= N  # new ones among them


def remembered(state: Any) -> set[int]:
    """Client ids in a state: keys that are numbers, and the tensor ``ids``."""
    if isinstance(state, list | tuple):
        return set().union(*map(remembered, state))
    if not isinstance(state, dict):
        return set()
    ids = state.get("ids")
    found = {key for key in state if isinstance(key, int)} | set(ids.tolist() if isinstance(ids, Tensor) else ())
    return found.union(*map(remembered, state.values()))


@dataclass(frozen=True)
class Counting:
    """Sends the number of rounds in which it took part, which it can only know from its memory."""

    def craft(self, view: AttackView, /) -> Crafted:
        memory = view.memory or {"rounds": 0, "last": None}
        memory["rounds"] += 1  # what it is handed is its own
        memory["last"] = view.malicious_updates.mean(dim=0)
        return Crafted(torch.full_like(view.malicious_updates, float(memory["rounds"])), memory)


class TestMemory:
    @pytest.mark.parametrize("knowledge", ["full", "partial"])
    @pytest.mark.parametrize("drawn", [N, 2])
    def test_reaches_the_next_round_in_which_it_takes_part(
        self, doubles: ModuleType, knowledge: str, drawn: int
    ) -> None:
        sim = simulation(FRESH, knowledge=knowledge, clients_per_round=drawn, defense="doubles:Watch", rounds=8)
        sim = replace(sim, adversary=replace(sim.adversary, attack=FreshIdentity(Counting())))
        taken, before = 0, None
        for state, record in sim.rounds():
            sent = doubles.seen[-1][0].matrix
            if record.malicious:
                taken += 1
                rows = [record.clients.index(i) for i in record.malicious]
                assert (sent[rows] == taken).all()
                assert state.adversary["attack"]["rounds"] == taken
                before = state.adversary
            else:
                assert state.adversary is before
        assert taken > 3
        assert (taken < 8) == (drawn == 2)

    def test_a_round_that_is_run_again_finds_it_as_it_was(self, doubles: ModuleType) -> None:
        """A round may end in an interruption after the attack: its state must not have changed."""
        sim = simulation(FRESH)
        sim = replace(sim, adversary=replace(sim.adversary, attack=Counting()))
        first, _ = sim.run_round(sim.initial)
        one, two = (sim.run_round(first) for _ in range(2))
        assert first.adversary["attack"]["rounds"] == 1
        assert one[0].adversary["attack"]["rounds"] == two[0].adversary["attack"]["rounds"] == 2
        assert timeless([one[1]]) == timeless([two[1]])


def test_a_sign_flipper_is_never_the_same_id_twice() -> None:
    """On real data: 12 rounds, 3 of 8 clients."""
    sim = simulation(DIGITS, clients=N, malicious=M, rounds=12, attack="fresh-identity", defense="trimmed-mean")
    records = [record for _, record in sim.rounds()]
    ids = [i for record in records for i in record.malicious]
    assert len(ids) == len(set(ids)) == 12 * M
    assert sorted({client_behind(i, N) for i in ids}) == sorted(sim.holdings.malicious)
    benign = {i for record in records for i in record.clients} - set(ids)
    assert benign == set(range(N)) - set(sim.holdings.malicious)
    plain = [r for _, r in simulation(DIGITS, clients=N, malicious=M, rounds=12, attack="sign-flip",
                                      defense="trimmed-mean").rounds()]  # fmt: skip
    assert [r.update_norm for r in plain] == [r.update_norm for r in records]
