"""What the attacker sees and does, and that it can neither change nor predict what belongs to others."""

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.core.attack import AttackView
from fedsieve.core.errors import FedSieveError
from fedsieve.core.seeding import stream
from tests.federation.conftest import TINY, records_of, simulation


class TestAttackers:
    def rows_at_the_server(self, doubles: ModuleType, attack: str, **more: Any) -> list[Tensor]:
        sim = simulation(TINY, clients=6, malicious=2, rounds=1, attack=attack, defense="doubles:Watch", **more)
        list(sim.rounds())
        (found,) = [entry[0] for entry in doubles.seen if isinstance(entry, tuple)]
        assert found.client_ids.tolist() == list(range(6))
        assert found.layout == sim.trainer.model.layout
        honest = sim.trainer.updates(sim.initial.server.params, sim.holdings.clients, 0)
        bad = torch.tensor([i in sim.holdings.malicious for i in range(6)])
        return [found.matrix, honest, bad]

    def test_change_only_their_own_rows(self, doubles: ModuleType) -> None:
        sent, honest, bad = self.rows_at_the_server(doubles, "doubles:Spy")
        torch.testing.assert_close(sent[~bad], honest[~bad], rtol=0, atol=0)
        torch.testing.assert_close(sent[bad], -3 * honest[bad], rtol=0, atol=0)
        assert (honest.norm(dim=1) > 0).all()

    def test_get_copies_of_what_they_see(self, doubles: ModuleType) -> None:
        sent, honest, bad = self.rows_at_the_server(doubles, "doubles:Vandal")
        torch.testing.assert_close(sent[~bad], honest[~bad], rtol=0, atol=0)
        assert not sent[bad].any()
        view = doubles.seen[-1][1]
        assert view.global_params.abs().max() < 1e3

    @pytest.mark.parametrize("knowledge", ["full", "partial"])
    def test_see_what_the_threat_model_grants(self, doubles: ModuleType, knowledge: str) -> None:
        sim = simulation(TINY, clients=6, malicious=2, rounds=3, attack="doubles:Spy", knowledge=knowledge)
        states = [sim.initial, *(state for state, _ in sim.rounds())]
        views = [entry for entry in doubles.seen if isinstance(entry, AttackView)]
        assert len(views) == 3
        bad = torch.tensor([i in sim.holdings.malicious for i in range(6)])
        for k, view in enumerate(views):
            honest = sim.trainer.updates(states[k].server.params, sim.holdings.clients, k)
            assert (view.round, view.n_clients, view.layout) == (k, 6, sim.trainer.model.layout)
            torch.testing.assert_close(view.global_params, states[k].server.params, rtol=0, atol=0)
            torch.testing.assert_close(view.malicious_updates, honest[bad], rtol=0, atol=0)
            if knowledge == "full":
                assert view.benign_updates is not None
                torch.testing.assert_close(view.benign_updates, honest[~bad], rtol=0, atol=0)
                assert view.benign_ids is not None
                assert view.benign_ids.tolist() == [i for i in range(6) if not bad[i]]
            else:
                assert view.benign_updates is None
                assert view.benign_ids is None
                assert view.known_updates is view.malicious_updates
            expected = torch.rand(3, generator=stream(0, "attack", k))
            torch.testing.assert_close(torch.rand(3, generator=view.generator), expected, rtol=0, atol=0)
            assert view.on_samples is not None
            same, own = view.on_samples(*view.root.data), view.root
            for found, expected in zip(
                same.gradient(view.global_params), own.gradient(view.global_params), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
            torch.testing.assert_close(same.update(), own.update(), rtol=0, atol=0)
        names = "round malicious_updates benign_updates n_clients global_params generator layout members train root"
        more = {"simulate_defense", "memory", "benign_ids", "on_samples"}
        assert {f.name for f in dataclasses.fields(AttackView)} == {*names.split(), *more}

    @pytest.mark.parametrize("attack", ["label-flip", "min-max"])
    def test_updates_are_copied_once_or_not_at_all(self, doubles: ModuleType, attack: str) -> None:
        """Of a thousand clients' updates, a copy takes longer than many an attack."""
        sim = simulation(TINY, clients=6, malicious=2, attack=attack)
        params, bad = sim.initial.server.params, torch.tensor([i in sim.holdings.malicious for i in range(6)])
        honest = sim.trainer.updates(params, dict(sim.holdings.clients), 0)
        before = honest.clone()
        sent, _ = sim.adversary.send(honest, list(range(6)), bad, params, 0, None)
        assert sent is honest
        assert torch.equal(sent[~bad], before[~bad])
        assert torch.equal(sent[bad], before[bad]) == (attack == "label-flip")
        list(simulation(TINY, clients=6, malicious=2, rounds=1, attack="doubles:Spy").rounds())
        view = doubles.seen[-1]
        pieces = (view.malicious_updates, view.benign_updates, view.known_updates)
        assert len({rows.untyped_storage().data_ptr() for rows in pieces}) == 1
        assert torch.equal(view.known_updates, torch.cat(pieces[:2]))

    def test_can_train_on_their_own_data_only(self, doubles: ModuleType) -> None:
        local = {"batch_size": 10, "steps": 3}  # the pull shows from the second step on
        sim = simulation(TINY, clients=6, malicious=2, rounds=1, attack="doubles:Forger", local=local)
        list(sim.rounds())
        (view,) = doubles.seen[-1:]
        bad = sorted(sim.holdings.malicious)
        assert [sim.holdings.malicious[k] for k in view.members] == bad
        start = view.global_params + 1
        for poisoned, data in ((True, sim.holdings.clients), (False, sim.holdings.clean)):
            expected = sim.trainer.updates(start, {i: data[i] for i in bad}, 0)
            torch.testing.assert_close(view.train(start, poisoned=poisoned), expected, rtol=0, atol=0)
        torch.testing.assert_close(view.train(view.global_params), view.malicious_updates, rtol=0, atol=0)
        assert not torch.equal(view.train(start), view.train(start, poisoned=False))
        settings = dataclasses.replace(sim.trainer.settings, proximal=5.0)
        pulled = dataclasses.replace(sim.trainer, settings=settings).updates(
            start, {i: sim.holdings.clients[i] for i in bad}, 0
        )
        torch.testing.assert_close(view.train(start, proximal=5.0), pulled, rtol=0, atol=0)
        assert not torch.allclose(pulled, view.train(start))
        assert set(view.train.poisoned) == set(view.train.clean) == set(bad)

    def test_their_root_data_is_their_own_clean_data(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=6, malicious=2, rounds=1, attack="doubles:Forger", root={"size": 9})
        pool = {tuple(row.tolist()) for i in sim.holdings.malicious for row in sim.holdings.clean[i].x}
        rows = [tuple(row.tolist()) for row in sim.holdings.attacker_root.x]
        assert len(rows) == len(set(rows)) == 9
        assert set(rows) <= pool

    def test_simulate_the_defense_only_if_granted(self, doubles: ModuleType) -> None:
        settings = {**TINY, "clients": 6, "malicious": 2, "rounds": 1, "attack": "doubles:Spy"}
        list(simulation(settings, defense="trimmed-mean").rounds())
        assert doubles.seen[-1].simulate_defense is None
        list(simulation(settings, defense="trimmed-mean", knows_defense=True).rounds())
        view = doubles.seen[-1]
        rows = torch.randn(6, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = rows.sort(dim=0).values[2:4].mean(dim=0)
        torch.testing.assert_close(view.simulate_defense(rows).update, expected, rtol=1e-12, atol=1e-12)
        list(simulation(settings, defense="fltrust", knows_defense=True).rounds())
        view = doubles.seen[-1]
        assert float(view.simulate_defense(view.root.update().expand(6, -1).clone()).scores.max()) == pytest.approx(0)
        list(simulation(settings, defense="doubles:Momentum", knows_defense=True).rounds())
        view = doubles.seen[-1]
        assert torch.equal(view.simulate_defense(rows).update, view.simulate_defense(rows).update)

    @pytest.mark.parametrize(
        ("server", "known"),
        [({"learning_rate": 0.25}, 0.25), ({"learning_rate": 0.25, "optimizer": "SGD"}, 1.0)],
        ids=["share", "optimizer"],
    )
    def test_the_simulated_defense_knows_how_far_the_server_goes(
        self, doubles: ModuleType, server: dict[str, Any], known: float
    ) -> None:
        settings = {**TINY, "clients": 6, "malicious": 2, "rounds": 1, "attack": "doubles:Spy", "server": server}
        list(simulation(settings, defense="mean", knows_defense=True).rounds())
        assert doubles.seen[-1].simulate_defense.view.learning_rate == known

    def test_wrong_shape_is_said(self, doubles: ModuleType) -> None:
        with pytest.raises(FedSieveError) as error:
            records_of(TINY, clients=6, malicious=2, attack="doubles:OneRow")
        assert (
            str(error.value)
            == "attack doubles:OneRow returned float64 of shape [15] instead of float64 of shape [2, 15]: one row per malicious client"  # noqa: E501
        )

    def test_without_attack_no_client_is_malicious(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=6, malicious=3, attack="none")
        assert sim.holdings.malicious == ()
        assert sim.experiment.n_malicious == 0
        records = [record for _, record in sim.rounds()]
        assert len(records) == 4
        assert all(record.malicious == () and record.false_negative_rate is None for record in records)

    def test_all_clients_malicious(self, doubles: ModuleType) -> None:
        records = records_of(TINY, clients=3, malicious=3, attack="doubles:Spy", defense="doubles:Below")
        assert len(records) == 4
        for record in records:
            assert record.malicious == (0, 1, 2)
            assert record.false_positive_rate is None
            assert record.false_negative_rate == pytest.approx(1 / 3)

    def test_updates_that_are_not_finite(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=6, malicious=2, attack="doubles:Constant", defense="doubles:Watch")
        records = [record for _, record in sim.rounds()]
        assert len(records) == 4
        watched = [entry[0] for entry in doubles.seen if isinstance(entry, tuple)]
        assert len(watched) == 4
        for record, updates in zip(records, watched, strict=True):
            assert record.screened == record.malicious == tuple(sorted(sim.holdings.malicious))
            assert record.applied
            assert [record.weights[i] for i in record.malicious] == [0, 0]
            assert sum(record.weights) == pytest.approx(1)
            assert updates.client_ids.tolist() == [i for i in range(6) if i not in sim.holdings.malicious]

    def test_no_update_finite(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=3, malicious=3, attack="doubles:Constant", defense="doubles:Below")
        for state, record in sim.rounds():
            assert torch.equal(state.server.params, sim.initial.server.params)
            assert not record.applied
            assert record.note == "no update was finite"
            assert record.screened == record.rejected == (0, 1, 2)
            assert record.weights == (0, 0, 0)

    def test_huge_updates(self, doubles: ModuleType) -> None:
        sim = simulation(
            TINY, clients=3, malicious=2, attack={"name": "doubles:Constant", "value": 1.7e308}, defense="mean"
        )
        before = sim.initial.server.params
        for state, record in sim.rounds():
            assert not torch.equal(state.server.params, before)
            assert (record.applied, record.note, record.screened) == (True, "", record.malicious)
            assert record.screened_reasons == ("out of proportion",) * 2
            before = state.server.params


def test_an_attack_that_must_know_the_defense(doubles: ModuleType) -> None:
    with pytest.raises(FedSieveError) as error:
        simulation(TINY, attack="doubles:Insider")
    assert str(error.value) == "attack doubles:Insider must know the defense; grant it with knows_defense=true"
    assert simulation(TINY, attack="doubles:Insider", knows_defense=True).experiment.knows_defense
    nested = {"name": "doubles:Pair", "attacks": ["none", {"name": "doubles:Pair", "attacks": ["doubles:Insider"]}]}
    with pytest.raises(FedSieveError, match="attack doubles:Pair must know the defense"):
        simulation(TINY, attack=nested)
