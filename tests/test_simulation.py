"""The whole loop against one written by hand, and the wall between attackers, server and ground truth."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from fedsieve.clients import ClientData
from fedsieve.data.dataset import Dataset
from fedsieve.data.digits import Digits
from fedsieve.experiment import Experiment
from fedsieve.seeding import stream
from fedsieve.simulation import Simulation, _deal, _recorded
from fedsieve.types import AttackView, Backdoor, Diagnosis, FedSieveError, RoundRecord

CPU = torch.device("cpu")
NOWHERE = Path("no such folder")
TINY: dict[str, Any] = {"dataset": "doubles:Tiny", "defense": "mean", "rounds": 4, "evaluate_every": 1}
DIGITS: dict[str, Any] = {"dataset": "digits", "clients": 8, "malicious": 2, "rounds": 2, "defense": "mean"}


def simulation(settings: dict[str, Any], **more: Any) -> Simulation:
    return Simulation.of(Experiment.of({**settings, **more}), NOWHERE, CPU)


def timeless(records: list[RoundRecord]) -> list[RoundRecord]:
    assert all(record.seconds for record in records)
    return [dataclasses.replace(record, seconds={}) for record in records]


def played(settings: dict[str, Any], **more: Any) -> list[RoundRecord]:
    return timeless([record for _, record in simulation(settings, **more).rounds()])


def softmax_gradient(weights: Float[Tensor, "c f+1"], data: ClientData) -> Float[Tensor, "c f+1"]:
    """Gradient of the mean cross-entropy of logistic regression, from the formula; the bias is the last column."""
    x = torch.cat([data.x, data.x.new_ones(len(data.x), 1)], dim=1)
    wrong = (x @ weights.T).softmax(dim=1) - torch.nn.functional.one_hot(data.y, len(weights))
    return wrong.T @ x / len(x)


def as_matrix(flat: Float[Tensor, " d"]) -> Float[Tensor, "3 5"]:
    """Weights [3, 4] and biases [3], as the model keeps them."""
    return torch.cat([flat[:12].view(3, 4), flat[12:].view(3, 1)], dim=1)


def accuracy(weights: Float[Tensor, "c f+1"], data: ClientData) -> float:
    logits = data.x @ weights[:, :-1].T + weights[:, -1]
    return float((logits.argmax(dim=1) == data.y).double().mean())


class TestClosedForm:
    @pytest.mark.parametrize("steps", [1, 3])
    def test_federated_averaging(self, doubles: ModuleType, steps: int) -> None:
        alpha, beta = 0.7, 0.4
        sim = simulation(
            TINY,
            clients=5,
            server={"learning_rate": alpha},
            local={"learning_rate": beta, "steps": steps},
        )
        weights = as_matrix(sim.initial.params)
        rounds = list(sim.rounds())
        assert len(rounds) == 4
        for k, (state, record) in enumerate(rounds):
            moved = []
            for data in sim.clients.values():
                local = weights
                for _ in range(steps):
                    local = local - beta * softmax_gradient(local, data)
                moved.append(local - weights)
            mean = torch.stack(moved).mean(dim=0)
            weights = weights + alpha * mean
            torch.testing.assert_close(as_matrix(state.params), weights, rtol=1e-10, atol=1e-12)
            assert record.round == k
            assert record.clients == (0, 1, 2, 3, 4)
            assert record.weights == pytest.approx((0.2,) * 5)
            assert record.update_norm == pytest.approx(float(mean.norm()))
            assert record.test_accuracy == pytest.approx(accuracy(weights, sim.test))
            logits = sim.test.x @ weights[:, :-1].T + weights[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, sim.test.y)
            assert record.test_loss == pytest.approx(float(loss))
            assert (record.malicious, record.rejected, record.screened) == ((), None, ())
            assert (record.false_positive_rate, record.false_negative_rate) == (None, None)
            assert (record.attack_success_rate, record.suspicion) == (None, None)
            assert (record.applied, record.note) == (True, "")
            assert set(record.seconds) == {"train", "attack", "defend", "evaluate", "record"}
        assert rounds[-1][1].test_loss < rounds[0][1].test_loss

    def test_with_an_attack_in_the_middle(self, doubles: ModuleType) -> None:
        """Two of six send minus three times the truth: the mean is (4 honest - 6 honest of the bad) / 6."""
        sim = simulation(TINY, clients=6, malicious=2, attack="doubles:Spy")
        assert len(sim.malicious) == 2
        weights = as_matrix(sim.initial.params)
        for state, record in sim.rounds():
            moved = [
                (-3 if client in sim.malicious else 1) * -0.5 * softmax_gradient(weights, data)
                for client, data in sim.clients.items()
            ]
            weights = weights + 0.5 * torch.stack(moved).mean(dim=0)
            torch.testing.assert_close(as_matrix(state.params), weights, rtol=1e-10, atol=1e-12)
            assert record.malicious == tuple(sorted(sim.malicious))

    def test_root_client_trains_like_any(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, defense="doubles:Watch", local={"learning_rate": 0.4})
        list(sim.rounds())
        views = [entry[1] for entry in doubles.seen if isinstance(entry, tuple)]
        assert len(views) == 4
        for view in views:
            root = view.root
            assert len(root.data.y) == 6
            expected = -0.4 * softmax_gradient(as_matrix(view.global_params), root.data)
            torch.testing.assert_close(as_matrix(root.update()), expected, rtol=1e-10, atol=1e-12)

    def test_server_optimizer(self, doubles: ModuleType) -> None:
        server = {"optimizer": {"name": "Adam", "eps": 0.001}, "learning_rate": 0.1}
        sim = simulation(TINY, server=server)
        weights = torch.nn.Parameter(sim.initial.params.clone())
        by_hand = torch.optim.Adam([weights], lr=0.1, eps=0.001)
        for state, _ in sim.rounds():
            matrix = as_matrix(weights.detach())
            mean = torch.stack([-0.5 * softmax_gradient(matrix, data) for data in sim.clients.values()]).mean(dim=0)
            weights.grad = -torch.cat([mean[:, :-1].flatten(), mean[:, -1]])
            by_hand.step()
            torch.testing.assert_close(state.params, weights.detach(), rtol=1e-9, atol=1e-12)


class TestAttackers:
    def rows_at_the_server(self, doubles: ModuleType, attack: str, **more: Any) -> list[Tensor]:
        sim = simulation(TINY, clients=6, malicious=2, rounds=1, attack=attack, defense="doubles:Watch", **more)
        list(sim.rounds())
        (found,) = [entry[0] for entry in doubles.seen if isinstance(entry, tuple)]
        assert found.client_ids.tolist() == list(range(6))
        assert found.layout == sim.trainer.model.layout
        honest = sim.trainer.updates(sim.initial.params, sim.clients, 0)
        bad = torch.tensor([i in sim.malicious for i in range(6)])
        return [found.matrix, honest, bad]

    def test_change_only_their_own_rows(self, doubles: ModuleType) -> None:
        sent, honest, bad = self.rows_at_the_server(doubles, "doubles:Spy")
        torch.testing.assert_close(sent[~bad], honest[~bad], rtol=0, atol=0)
        torch.testing.assert_close(sent[bad], -3 * honest[bad], rtol=0, atol=0)
        assert (honest.norm(dim=1) > 0).all()

    def test_cannot_reach_the_others_through_what_they_see(self, doubles: ModuleType) -> None:
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
        bad = torch.tensor([i in sim.malicious for i in range(6)])
        for k, view in enumerate(views):
            honest = sim.trainer.updates(states[k].params, sim.clients, k)
            assert (view.round, view.n_clients, view.layout) == (k, 6, sim.trainer.model.layout)
            torch.testing.assert_close(view.global_params, states[k].params, rtol=0, atol=0)
            torch.testing.assert_close(view.own, honest[bad], rtol=0, atol=0)
            if knowledge == "full":
                assert view.others is not None
                torch.testing.assert_close(view.others, honest[~bad], rtol=0, atol=0)
            else:
                assert view.others is None
                assert view.known is view.own
            expected = torch.rand(3, generator=stream(0, "attack", k))
            torch.testing.assert_close(torch.rand(3, generator=view.generator), expected, rtol=0, atol=0)
        assert {f.name for f in dataclasses.fields(AttackView)} == {
            "round", "own", "others", "n_clients", "global_params", "generator", "layout", "members", "train", "root",
            "rehearse",
        }  # fmt: skip

    def test_can_train_on_their_own_data_only(self, doubles: ModuleType) -> None:
        local = {"batch_size": 10, "steps": 3}  # the pull shows from the second step on
        sim = simulation(TINY, clients=6, malicious=2, rounds=1, attack="doubles:Forger", local=local)
        list(sim.rounds())
        (view,) = doubles.seen[-1:]
        bad = sorted(sim.malicious)
        assert [sim.malicious[k] for k in view.members] == bad
        start = view.global_params + 1
        for poisoned, data in ((True, sim.clients), (False, sim.clean)):
            expected = sim.trainer.updates(start, {i: data[i] for i in bad}, 0)
            torch.testing.assert_close(view.train(start, poisoned=poisoned), expected, rtol=0, atol=0)
        torch.testing.assert_close(view.train(view.global_params), view.own, rtol=0, atol=0)
        assert not torch.equal(view.train(start), view.train(start, poisoned=False))
        settings = dataclasses.replace(sim.trainer.settings, proximal=5.0)
        pulled = dataclasses.replace(sim.trainer, settings=settings).updates(start, {i: sim.clients[i] for i in bad}, 0)
        torch.testing.assert_close(view.train(start, proximal=5.0), pulled, rtol=0, atol=0)
        assert not torch.allclose(pulled, view.train(start))
        assert set(view.train.poisoned) == set(view.train.clean) == set(bad)

    def test_their_root_data_is_their_own_clean_data(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=6, malicious=2, rounds=1, attack="doubles:Forger", root={"size": 9})
        pool = {tuple(row.tolist()) for i in sim.malicious for row in sim.clean[i].x}
        rows = [tuple(row.tolist()) for row in sim.attacker_root.x]
        assert len(rows) == len(set(rows)) == 9
        assert set(rows) <= pool

    def test_rehearse_the_defense_only_if_granted(self, doubles: ModuleType) -> None:
        settings = {**TINY, "clients": 6, "malicious": 2, "rounds": 1, "attack": "doubles:Spy"}
        list(simulation(settings, defense="trimmed-mean").rounds())
        assert doubles.seen[-1].rehearse is None
        list(simulation(settings, defense="trimmed-mean", knows_defense=True).rounds())
        view = doubles.seen[-1]
        rows = torch.randn(6, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = rows.sort(dim=0).values[2:4].mean(dim=0)
        torch.testing.assert_close(view.rehearse(rows).update, expected, rtol=1e-12, atol=1e-12)
        list(simulation(settings, defense="fltrust", knows_defense=True).rounds())
        view = doubles.seen[-1]
        assert float(view.rehearse(view.root.update().expand(6, -1).clone()).suspicion.max()) == pytest.approx(0)
        list(simulation(settings, defense="doubles:Momentum", knows_defense=True).rounds())
        view = doubles.seen[-1]
        assert torch.equal(view.rehearse(rows).update, view.rehearse(rows).update)

    def test_wrong_shape_is_said(self, doubles: ModuleType) -> None:
        with pytest.raises(FedSieveError) as error:
            played(TINY, clients=6, malicious=2, attack="doubles:OneRow")
        assert (
            str(error.value) == "attack doubles:OneRow returned [15] instead of [2, 15]: one row per malicious client"
        )

    def test_no_attack_no_attackers(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=6, malicious=3, attack="none")
        assert sim.malicious == ()
        assert sim.experiment.n_malicious == 0
        records = [record for _, record in sim.rounds()]
        assert len(records) == 4
        assert all(record.malicious == () and record.false_negative_rate is None for record in records)

    def test_everybody_malicious(self, doubles: ModuleType) -> None:
        records = played(TINY, clients=3, malicious=3, attack="doubles:Spy", defense="doubles:Below")
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
            assert record.screened == record.malicious == tuple(sorted(sim.malicious))
            assert record.applied
            assert [record.weights[i] for i in record.malicious] == [0, 0]
            assert sum(record.weights) == pytest.approx(1)
            assert updates.client_ids.tolist() == [i for i in range(6) if i not in sim.malicious]

    def test_nobody_finite(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=3, malicious=3, attack="doubles:Constant", defense="doubles:Below")
        for state, record in sim.rounds():
            assert torch.equal(state.params, sim.initial.params)
            assert not record.applied
            assert record.note == "no update was finite"
            assert record.screened == record.rejected == (0, 1, 2)
            assert record.weights == (0, 0, 0)

    def test_huge_updates(self, doubles: ModuleType) -> None:
        sim = simulation(
            TINY, clients=3, malicious=2, attack={"name": "doubles:Constant", "value": 1.7e308}, defense="mean"
        )
        for state, record in sim.rounds():
            assert torch.equal(state.params, sim.initial.params)
            assert (record.applied, record.note, record.update_norm) == (False, "the aggregate overflowed", None)


class TestPoisonedData:
    def pair(self, attack: Any) -> tuple[Simulation, Simulation]:
        clean, poisoned = (simulation(DIGITS, attack=a) for a in ("none", attack))
        assert set(clean.clients) == set(poisoned.clients) == set(range(8))
        assert len(poisoned.malicious) == 2
        return clean, poisoned

    def test_label_flip(self) -> None:
        clean, poisoned = self.pair("label-flip")
        for client in range(8):
            before, after = clean.clients[client], poisoned.clients[client]
            assert torch.equal(before.x, after.x)
            assert torch.equal(after.y, 9 - before.y if client in poisoned.malicious else before.y)
        assert poisoned.triggered is None
        assert torch.equal(clean.test.y, poisoned.test.y)

    def test_scaling(self) -> None:
        clean, poisoned = self.pair({"name": "scaling", "share": 0.5, "target": 3})
        for client in range(8):
            before, after = clean.clients[client], poisoned.clients[client]
            n = len(before.y)
            assert torch.equal(before.x, after.x[:n])
            assert torch.equal(before.y, after.y[:n])
            extra = after.x[n:]
            assert len(extra) == (round(n / 2) if client in poisoned.malicious else 0)
            assert (extra[:, :, :2, :2] == 1).all()
            assert (after.y[n:] == 3).all()
        assert isinstance(poisoned.attack, Backdoor)
        assert poisoned.triggered is not None
        assert torch.equal(poisoned.triggered.already, clean.test.y == 3)
        assert 0 < int(poisoned.triggered.already.sum()) < len(clean.test.y)
        assert (poisoned.triggered.wanted == 3).all()
        assert torch.equal(poisoned.triggered.x, poisoned.attack.trigger(clean.test.x))
        assert torch.equal(poisoned.test.x, clean.test.x)

    def test_success_of_a_backdoor_is_counted(self) -> None:
        sim = simulation(DIGITS, attack="scaling", rounds=3, evaluate_every=1)
        assert sim.triggered is not None
        found = []
        for state, record in sim.rounds():
            predicted = sim.trainer.model.logits(state.params, sim.triggered.x).argmax(dim=1)
            hit = (predicted == 0).double()
            assert record.attack_success_rate == pytest.approx(float(hit[sim.test.y != 0].mean()))
            assert record.attack_success_rate_all == pytest.approx(float(hit.mean()))
            found.append(record.attack_success_rate)
        assert len(found) == 3
        assert max(found) > 0.5


class TestDealing:
    @pytest.mark.parametrize("partition", ["groups", "iid", "dirichlet"])
    def test_root_clients_and_test_data_are_disjoint(self, partition: str) -> None:
        e = Experiment.of({**DIGITS, "clients": 12, "partition": partition, "root": {"size": 50}})
        data = Digits().load(NOWHERE, stream(e.seed, "split"))
        root, parts = _deal(e, data)
        rows = torch.cat([root, *parts])
        assert len(root) == 50
        assert len(parts) == 12
        assert len(rows) == len(set(rows.tolist())) == len(data.y_train)
        # the samples that the simulation uses are these
        sim = Simulation.of(e, NOWHERE, CPU)
        for client, part in enumerate(parts):
            assert torch.equal(sim.clients[client].x, data.x_train[part])
            assert torch.equal(sim.clients[client].y, data.y_train[part])
        assert sim.server.root is not None
        own: Any = sim.server.root(sim.initial.params, 0)
        assert torch.equal(own.data.x, data.x_train[root])
        assert torch.equal(own.data.y, data.y_train[root])
        assert torch.equal(sim.test.x, data.x_test)
        # train and test together are the original, each sample once
        assert len(data.y_train) + len(data.y_test) == 1797
        whole = torch.cat([data.x_train, data.x_test]).flatten(1)
        raw = self.original().x_train.flatten(1)
        assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, raw.tolist()))

    def original(self) -> Dataset:
        from sklearn.datasets import load_digits

        raw = load_digits()
        x = torch.from_numpy(raw.images).float().unsqueeze(1) / 16
        y = torch.from_numpy(raw.target).long()
        return Dataset(x, y, x[:0], y[:0], 10)

    def test_the_roots_shares(self) -> None:
        e = Experiment.of({**DIGITS, "root": {"size": 40, "bias": 0.55, "label": 7}})
        data = Digits().load(NOWHERE, stream(e.seed, "split"))
        root, _ = _deal(e, data)
        counts = torch.bincount(data.y_train[root], minlength=10).tolist()
        assert counts == [2, 2, 2, 2, 2, 2, 2, 22, 2, 2]

    def test_the_root_does_not_depend_on_the_clients(self) -> None:
        found = []
        for clients in (4, 8):
            e = Experiment.of({**DIGITS, "clients": clients})
            data = Digits().load(NOWHERE, stream(e.seed, "split"))
            found.append(_deal(e, data)[0])
        assert torch.equal(*found)

    def test_a_root_label_that_is_no_class(self) -> None:
        with pytest.raises(FedSieveError, match=r"root\.label is 10, the classes are 0 to 9"):
            simulation(DIGITS, root={"label": 10})


class TestSampling:
    def test_cohorts(self, doubles: ModuleType) -> None:
        records = played(TINY, clients=10, clients_per_round=4, malicious=3, attack="label-flip", rounds=8)
        malicious = simulation(TINY, clients=10, malicious=3, attack="label-flip").malicious
        assert len(records) == 8
        for record in records:
            assert len(record.clients) == len(set(record.clients)) == len(record.weights) == 4
            assert list(record.clients) == sorted(record.clients)
            assert set(record.clients) <= set(range(10))
            assert set(record.malicious) == set(record.clients) & set(malicious)
        assert len({record.clients for record in records}) >= 5
        assert set().union(*(record.clients for record in records)) == set(range(10))
        again = played(TINY, clients=10, clients_per_round=4, malicious=3, attack="label-flip", rounds=8)
        assert again == records

    def test_a_round_without_attackers(self, doubles: ModuleType) -> None:
        records = played(TINY, clients=10, clients_per_round=2, malicious=1, attack="doubles:Spy", rounds=12)
        views = [entry for entry in doubles.seen if isinstance(entry, AttackView)]
        attacked = [record.round for record in records if record.malicious]
        assert 0 < len(attacked) < 12
        assert [view.round for view in views] == attacked
        assert all(view.own.shape == (1, 15) and view.n_clients == 2 for view in views)

    def test_rows_carry_the_ids_of_the_cohort(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=10, clients_per_round=4, defense="doubles:Watch", rounds=3)
        records = [record for _, record in sim.rounds()]
        watched = [entry for entry in doubles.seen if isinstance(entry, tuple)]
        assert len(watched) == 3
        for record, (updates, view) in zip(records, watched, strict=True):
            assert updates.client_ids.tolist() == list(record.clients)
            for client, row in zip(record.clients, updates.matrix, strict=True):
                alone = sim.trainer.updates(view.global_params, {client: sim.clients[client]}, view.round)[0]
                torch.testing.assert_close(row, alone, rtol=1e-10, atol=1e-12)


class TestSeeds:
    @pytest.mark.parametrize(
        "settings",
        [
            {**TINY, "attack": "doubles:Noise", "defense": "doubles:Momentum", "clients_per_round": 4},
            {**DIGITS, "attack": "min-max", "defense": "skymask", "clients": 12},
            {**DIGITS, "attack": "scaling", "defense": "fltrust", "partition": "dirichlet"},
        ],
    )
    def test_decide_everything(self, doubles: ModuleType, settings: dict[str, Any]) -> None:
        before = torch.random.get_rng_state()
        one = played(settings, seed=3)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(12345)
        assert played(settings, seed=3) == one
        other = played(settings, seed=4)
        assert [r.update_norm for r in other] != [r.update_norm for r in one]

    def test_differ_in_every_draw(self) -> None:
        one, two = (simulation(DIGITS, seed=seed, attack="label-flip", clients=20, malicious=10) for seed in (1, 2))
        assert one.malicious != two.malicious
        assert not torch.equal(one.initial.params, two.initial.params)
        assert not torch.equal(one.test.x, two.test.x)
        assert not torch.equal(one.clients[0].y[:20], two.clients[0].y[:20])
        assert one._cohort(0) == two._cohort(0) == list(range(20))

    def test_any_round_can_be_the_first(self, doubles: ModuleType) -> None:
        settings = {**TINY, "attack": "doubles:Noise", "defense": "doubles:Momentum", "clients_per_round": 4}
        sim = simulation(settings)
        straight = list(sim.rounds())
        third = sim.rounds(straight[1][0])
        rest = list(third)
        assert [r.round for _, r in rest] == [2, 3]
        assert timeless([r for _, r in rest]) == timeless([r for _, r in straight[2:]])
        assert torch.equal(rest[-1][0].params, straight[-1][0].params)


class TestRecords:
    def test_rates(self, doubles: ModuleType) -> None:
        sim = simulation(TINY, clients=8, malicious=3, attack="doubles:Spy", defense={"name": "doubles:Below", "id": 3})
        bad = set(sim.malicious)
        caught = len(bad & {0, 1, 2})
        assert 0 < caught < 3  # the case is a telling one
        records = [record for _, record in sim.rounds()]
        assert len(records) == 4
        for record in records:
            assert record.rejected == (0, 1, 2)
            assert record.false_positive_rate == pytest.approx((3 - caught) / 5)
            assert record.false_negative_rate == pytest.approx((3 - caught) / 3)
            assert record.suspicion == (0, -1, -2, -3, -4, -5, -6, -7)
            assert record.weights == pytest.approx((0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2))

    @pytest.mark.parametrize(
        ("every", "rounds", "evaluated"), [(1, 4, [0, 1, 2, 3]), (2, 5, [1, 3, 4]), (3, 5, [2, 4]), (9, 5, [4])]
    )
    def test_evaluation_is_due(self, doubles: ModuleType, every: int, rounds: int, evaluated: list[int]) -> None:
        records = played({**TINY, "evaluate_every": every, "rounds": rounds})
        assert len(records) == rounds
        assert [r.round for r in records if r.test_accuracy is not None] == evaluated
        assert [r.round for r in records if r.test_loss is not None] == evaluated

    def test_evaluation_changes_no_other_number(self, doubles: ModuleType) -> None:
        often, seldom = (played(TINY, evaluate_every=k) for k in (1, 4))
        assert often[-1] == seldom[-1]
        assert [r.update_norm for r in often] == [r.update_norm for r in seldom]


class TestWhereUpdatesLie:
    @staticmethod
    def recorded(matrix: Tensor) -> list[tuple[float | None, float | None]]:
        n = len(matrix)
        seen = Diagnosis(matrix.new_zeros(n, 2), None, ("one",), matrix.new_ones(n, 1), ("",) * n)
        found = _recorded(seen, matrix, torch.isfinite(matrix).all(dim=1)).updates
        assert found is not None
        return list(found)

    def test_is_their_principal_plane(self) -> None:
        matrix = torch.randn(9, 40, generator=stream(0, "test")) * 1e-3
        matrix[4, 7] = torch.nan
        found = self.recorded(matrix)
        assert found[4] == (None, None)
        finite = [k for k in range(9) if k != 4]
        ours = np.array([found[k] for k in finite], dtype=float)
        theirs = PCA(2).fit_transform(matrix[finite].double().numpy())
        assert np.abs(ours) == pytest.approx(np.abs(theirs), rel=1e-3, abs=1e-7)
        assert np.abs((ours * theirs).sum(axis=0)) == pytest.approx((theirs**2).sum(axis=0), rel=1e-3)

    def test_of_huge_ones_and_of_none(self) -> None:
        matrix = torch.zeros(4, 3)
        matrix[0] = 3e38
        found = self.recorded(matrix)
        assert found[1] == found[2] == found[3]
        assert found[0][0] != found[1][0]
        assert all(x is not None for pair in found for x in pair)
        assert self.recorded(torch.full((2, 3), torch.nan)) == [(None, None)] * 2
        assert self.recorded(torch.ones(1, 3)) == [(0, 0)]

    def test_is_kept_of_every_round(self) -> None:
        for record in played(DIGITS, attack="min-max", defense="skymask", malicious=2):
            assert record.diagnosis is not None
            assert record.diagnosis.updates is not None
            assert len(record.diagnosis.updates) == 8


def test_batchnorm_statistics_take_the_aggregate_in_full(doubles: ModuleType) -> None:
    sim = simulation(
        {**TINY, "model": "doubles:Normed", "defense": "doubles:Watch", "server": {"learning_rate": 0.3}, "rounds": 2}
    )
    layout = sim.trainer.model.layout
    names = [s.name for s in layout.segments if s.start >= layout.n_parameters]
    assert names == ["layers.1.running_mean", "layers.1.running_var"]
    n, before = layout.n_parameters, sim.initial.params
    for k, (state, record) in enumerate(sim.rounds()):
        mean = doubles.seen[-1][0].matrix.mean(dim=0)
        torch.testing.assert_close(state.params[:n], before[:n] + 0.3 * mean[:n], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state.params[n:], before[n:] + mean[n:], rtol=1e-12, atol=1e-14)
        if k == 0:  # one step from mean 0, variance 1 with momentum 0.1: a tenth of the clients' mean statistics
            first = sim.trainer.model.layout.unflatten(before)
            hidden = [d.x @ first["layers.0.weight"].T + first["layers.0.bias"] for d in sim.clients.values()]
            average = torch.stack([h.mean(dim=0) for h in hidden]).mean(dim=0)
            spread = torch.stack([h.var(dim=0) for h in hidden]).mean(dim=0)
            torch.testing.assert_close(state.params[n : n + 5], 0.1 * average)
            torch.testing.assert_close(state.params[n + 5 :], 0.9 + 0.1 * spread)
        # evaluation normalises with the running statistics
        module = sim.trainer.model.module.eval()
        logits = torch.func.functional_call(module, layout.unflatten(state.params), (sim.test.x,))
        right = (logits.argmax(dim=1) == sim.test.y).double().mean()
        assert record.test_accuracy == pytest.approx(float(right))
        before = state.params


PERSONAL: dict[str, Any] = {
    **TINY, "model": "doubles:Normed", "clients": 4, "malicious": 1, "attack": "doubles:Spy", "defense": "mean",
    "local": {"batch_size": 10, "batch_norm": "local"}, "rounds": 3,
}  # fmt: skip


class TestPersonalNormalisation:
    """FedBN: what belongs to BatchNorm stays with the clients."""

    def test_stays_with_its_client(self, doubles: ModuleType) -> None:
        sim = simulation(PERSONAL)
        bn = sim.trainer.model.normalisation
        names = [s.name for s in sim.trainer.model.layout.segments if s.start in bn.tolist()]
        assert names == ["layers.1.weight", "layers.1.bias", "layers.1.running_mean", "layers.1.running_var"]
        params, personal = sim.initial.params, sim.initial.personal
        assert personal is not None
        for state, _ in sim.rounds():
            rows = []
            for i in range(4):
                begin = params.clone()
                begin[bn] = personal[i]
                rows.append(begin + sim.trainer.updates(begin, {i: sim.clients[i]}, state.round - 1)[0])
            local = torch.stack(rows)
            sent = local - params
            bad = sim.malicious[0]
            sent[bad] *= -3
            sent[:, bn] = 0
            torch.testing.assert_close(state.params[:15], (params + 0.5 * sent.mean(dim=0))[:15])
            torch.testing.assert_close(state.params[bn], sim.initial.params[bn], rtol=0, atol=0)
            torch.testing.assert_close(state.personal, local[:, bn])
            params, personal = state.params, state.personal
        assert not torch.equal(personal[0], personal[1])

    def test_is_evaluated_with_the_benign_clients_mean(self, doubles: ModuleType) -> None:
        sim = simulation(PERSONAL)
        bn = sim.trainer.model.normalisation
        benign = [i for i in range(4) if i not in sim.malicious]
        for state, record in sim.rounds():
            assert state.personal is not None
            params = state.params.clone()
            params[bn] = state.personal[benign].mean(dim=0)
            hit = sim.trainer.model.logits(params, sim.test.x).argmax(dim=1) == sim.test.y
            assert record.test_accuracy == pytest.approx(float(hit.double().mean()))

    def test_who_is_not_drawn_keeps_it(self, doubles: ModuleType) -> None:
        sim = simulation(PERSONAL, clients_per_round=2, rounds=6)
        before = sim.initial.personal
        for state, record in sim.rounds():
            assert before is not None
            assert state.personal is not None
            changed = (state.personal != before).any(dim=1)
            assert changed.tolist() == [i in record.clients for i in range(4)]
            before = state.personal

    def test_a_model_without_batch_norm(self, doubles: ModuleType) -> None:
        with pytest.raises(FedSieveError, match=r"model doubles:Linear has no BatchNorm layer"):
            simulation(TINY, local={"batch_norm": "local"})


def test_an_attack_that_must_know_the_defense(doubles: ModuleType) -> None:
    with pytest.raises(FedSieveError) as error:
        simulation(TINY, attack="doubles:Insider")
    assert str(error.value) == "attack doubles:Insider must know the defense; grant it with knows_defense=true"
    assert simulation(TINY, attack="doubles:Insider", knows_defense=True).experiment.knows_defense
    nested = {"name": "doubles:Pair", "attacks": ["none", {"name": "doubles:Pair", "attacks": ["doubles:Insider"]}]}
    with pytest.raises(FedSieveError, match="attack doubles:Pair must know the defense"):
        simulation(TINY, attack=nested)
