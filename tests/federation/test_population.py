"""Many registered clients: who is malicious, data that are made when they are asked for, and whole runs."""

import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.core.seeding import stream
from fedsieve.data.digits import Digits
from fedsieve.federation.clients import ClientData
from fedsieve.federation.population import Members, made_when_asked
from fedsieve.federation.setup import Holdings, distribute
from tests.federation.conftest import CPU, DIGITS, NOWHERE, simulation, timeless

MILLION: dict[str, Any] = {
    **DIGITS,
    "clients": 1_000_000,
    "malicious": 200_000,
    "clients_per_round": 10,
    "partition": {"name": "bootstrap", "samples": 20},
}
# 20 of 40 clients have 50 samples each, together fewer than the 1,338 there are; of 60, more
SHARED: dict[str, Any] = {**DIGITS, "clients": 40, "malicious": 20, "partition": {"name": "bootstrap", "samples": 50}}
LATE: dict[str, Any] = {**SHARED, "clients": 80, "malicious": 60}


def holdings(settings: dict[str, Any], **more: Any) -> Holdings:
    """Without a model, which takes longer than all the rest."""
    e = Experiment.of({**settings, **more})
    attack = registry.build("attacks", e.attack.name, e.attack.parameters)
    return distribute(e, Digits().load(NOWHERE, stream(e.seed, "split")), attack, NOWHERE, CPU)


def equal(a: ClientData, b: ClientData) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


class TestMembers:
    def test_are_as_a_tuple(self) -> None:
        for n, m in ((1, 1), (9, 0), (9, 4), (9, 9)):
            ids = torch.randperm(n, generator=torch.Generator().manual_seed(n))[:m]
            members, expected = Members(ids, n), tuple(ids.tolist())
            assert members == expected == tuple(members)
            assert len(members) == m
            assert [members[k] for k in range(m)] == list(expected)
            assert [i in members for i in range(-n, n + 5)] == [i in expected for i in range(-n, n + 5)]
            assert [members.index(i) for i in expected] == list(range(m))
            assert members != (*expected, n)
        assert "3" not in Members(torch.tensor([3]), 5)
        with pytest.raises(ValueError, match="client 4 is none of the 1 members"):
            Members(torch.tensor([3]), 5).index(4)
        with pytest.raises(IndexError):
            Members(torch.tensor([3]), 5)[1]


class TestMadeWhenAsked:
    def made(self, most: int) -> tuple[Mapping[int, ClientData], list[int]]:
        """Clients 0 to 9 with 100 numbers each, and whose data were made."""
        asked: list[int] = []

        def make(client: int) -> ClientData:
            asked.append(client)
            return ClientData(torch.full((1, 100), float(client)), torch.tensor([client]))

        data = made_when_asked(range(10), make, most)
        assert int(data[0].y) == 0  # the tests' type checks may have asked already
        asked.clear()
        return data, asked

    def test_is_a_mapping(self) -> None:
        data, asked = self.made(1 << 20)
        assert isinstance(data, Mapping)
        assert list(data) == list(data.keys()) == list(range(10))
        assert len(data) == 10
        assert 9 in data
        assert 10 not in data
        assert not asked
        assert [int(own.y) for own in data.values()] == [client for client, _ in data.items()] == list(range(10))
        assert asked == list(range(1, 10))
        assert data.get(10) is None
        assert data.get(3) is data[3] is dict(data)[3]
        with pytest.raises(KeyError):
            data[10]

    @pytest.mark.parametrize(("clients", "made"), [(3, [1, 2, 5, 1]), (10, [1, 2, 5]), (0, [0, 1, 2, 0, 5, 1])])
    def test_keeps_those_used_last(self, clients: int, made: list[int]) -> None:
        data, asked = self.made(clients * (408 + 4096))
        for client in (0, 1, 2, 0, 5, 1):  # with room for three, 5 displaces 1 and not 0, which was used after it
            assert int(data[client].y) == client
        assert asked == made


class TestAMillionClients:
    @pytest.mark.parametrize("attack", ["none", "label-flip", "scaling"])
    def test_take_a_few_bytes_each(self, attack: str) -> None:
        holdings(MILLION, clients=1000, malicious=200, attack=attack)
        tracemalloc.start()
        found = holdings(MILLION, attack=attack)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 6e6  # without tensors; 4 bytes a client say who is malicious
        assert found.sizes.untyped_storage().nbytes() + found.malicious.ids.untyped_storage().nbytes() <= 10 * 1e6
        assert len(found.clients) == 1_000_000
        assert len(found.malicious) == len(found.clean) == (0 if attack == "none" else 200_000)
        assert len(found.examples) <= 4

    def test_have_their_own_data_whenever_they_are_asked(self) -> None:
        one, other = holdings(MILLION, attack="scaling"), holdings(MILLION, attack="scaling")
        bad = one.malicious[199_999]  # poisoned when it is asked for
        benign = next(i for i in range(10) if i not in one.malicious)
        asked = [bad, benign, one.malicious[0]]
        assert all(equal(one.clients[i], other.clients[i]) for i in reversed(asked))
        assert [len(one.clients[i].y) for i in asked] == [30, 20, 30]
        assert [len(one.clean[i].y) for i in (bad, one.malicious[0])] == [20, 20]
        assert equal(ClientData(one.clients[bad].x[:20], one.clients[bad].y[:20]), one.clean[bad])
        assert (one.clients[bad].y[20:] == 0).all()
        assert (one.clients[bad].x[20:, :, :2, :2] == 1).all()

    @pytest.mark.parametrize("defense", ["mean", "sieve"])
    def test_take_part_ten_a_round(self, defense: str) -> None:
        settings = {**MILLION, "attack": "label-flip", "defense": defense}
        first, second = ([*simulation(settings).rounds()] for _ in range(2))
        assert timeless([record for _, record in first]) == timeless([record for _, record in second])
        assert torch.equal(first[-1][0].server.params, second[-1][0].server.params)
        records = [record for _, record in first]
        assert all(len(set(record.clients)) == 10 for record in records)
        assert max(records[0].clients) > 500_000
        bad = holdings(settings).malicious
        assert all(record.malicious == tuple(i for i in record.clients if i in bad) for record in records)
        state = first[-1][0].server.defense
        if defense == "sieve":  # it remembers who took part, and nobody else
            assert {i for record in records for i in record.clients} == set(state["history"]["ids"].tolist())


class TestClientsThatShareSamples:
    def test_have_rows_of_the_clients_part(self) -> None:
        e = Experiment.of(SHARED)
        found, data = holdings(SHARED), Digits().load(NOWHERE, stream(e.seed, "split"))
        root = {tuple(row) for row in found.root.x.flatten(1).tolist()}
        known = {(*x, y) for x, y in zip(data.x_train.flatten(1).tolist(), data.y_train.tolist(), strict=True)}
        for own in found.clients.values():
            assert len(own.y) == 50
            assert all((*x, y) in known for x, y in zip(own.x.flatten(1).tolist(), own.y.tolist(), strict=True))
            assert not root & {tuple(row) for row in own.x.flatten(1).tolist()}
        assert "40 clients of partition bootstrap" in found.reading
        assert "50 samples each drawn from 1338 of 1438 training images" in found.reading

    @pytest.mark.parametrize("attack", ["label-flip", "scaling"])
    def test_those_poisoned_late_are_poisoned_alike(self, attack: str) -> None:
        """The same as those poisoned before round 0, one by one, whatever was asked for before."""
        found, again = holdings(LATE, attack=attack), holdings(LATE, attack=attack)
        for client in reversed(range(80)):
            assert equal(found.clients[client], again.clients[client])
            if client not in found.malicious:
                continue
            before, after = found.clean[client], found.clients[client]
            n = len(after.y) - len(before.y)
            assert n == (25 if attack == "scaling" else 0)
            assert torch.equal(after.y[:50], before.y if attack == "scaling" else 9 - before.y)

    def test_sizes(self) -> None:
        # all 20 are poisoned at once; of 60, the 28 that have 1,438 samples together, at most
        for settings, larger in ((SHARED, 20), (LATE, 28)):
            found = holdings(settings, attack="scaling")
            assert (found.sizes == 75).sum() == larger
            assert (found.sizes == 50).sum() == settings["clients"] - larger
            assert sorted(len(own.y) for own in found.examples) == [50, 50, 75]
            assert found.middle_sizes == ((50, 75) if settings is SHARED else (50, 50))

    def test_the_attackers_root_data_are_clean(self) -> None:
        found = holdings(LATE, attack="scaling")
        clean = {tuple(row) for i in found.malicious for row in found.clean[i].x.flatten(1).tolist()}
        assert len(found.attacker_root.y) == 100
        assert all(tuple(row) in clean for row in found.attacker_root.x.flatten(1).tolist())

    @pytest.mark.parametrize("kind", ["noise", "brightness", "one-class", "more-data"])
    def test_some_may_be_odd(self, kind: str) -> None:
        plain, odd = holdings(SHARED), holdings(SHARED, odd={"kind": kind, "clients": 3})
        assert len(odd.odd) == 3
        for client in range(40):
            assert equal(plain.clients[client], odd.clients[client]) == (client not in odd.odd)
        if kind == "more-data":
            assert [len(odd.clients[i].y) for i in odd.odd] == odd.sizes[list(odd.odd)].tolist() == [250] * 3

    def test_more_clients_than_samples_need_it(self) -> None:
        with pytest.raises(ParameterError, match="use fewer clients, or partition bootstrap, in which clients have"):
            holdings(MILLION, partition="groups")
        with pytest.raises(ParameterError, match=r"bootstrap: samples is 2000, more than the 1338 there are"):
            holdings(SHARED, partition={"name": "bootstrap", "samples": 2000})


def test_clients_of_disjoint_parts_are_views_of_one_tensor() -> None:
    """One copy of the data, however many clients there are."""
    found = holdings(DIGITS, clients=30)
    storages = {own.x.untyped_storage().data_ptr() for own in found.clients.values()}
    assert len(storages) == 1
    assert found.clients[0].x.untyped_storage().nbytes() == 4 * 64 * sum(found.sizes.tolist())
