"""Data are distributed, poisoned and separated as the experiment says."""

from types import ModuleType
from typing import Any

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import Backdoor
from fedsieve.core.errors import FedSieveError
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.data.digits import Digits
from fedsieve.federation.setup import _rows
from fedsieve.federation.simulation import Simulation
from tests.federation.conftest import CPU, DIGITS, NOWHERE, TINY, simulation


class TestDistribution:
    @pytest.mark.parametrize("partition", ["groups", "iid", "dirichlet"])
    def test_root_clients_and_test_data_are_disjoint(self, partition: str) -> None:
        e = Experiment.of({**DIGITS, "clients": 12, "partition": partition, "root": {"size": 50}})
        data = Digits().load(NOWHERE, stream(e.seed, "split"))
        root, parts = _rows(e, data)
        rows = torch.cat([root, *parts])
        assert len(root) == 50
        assert len(parts) == 12
        assert len(rows) == len(set(rows.tolist())) == len(data.y_train)
        # the samples that the simulation uses are these
        sim = Simulation.of(e, NOWHERE, CPU)
        for client, part in enumerate(parts):
            assert torch.equal(sim.holdings.clients[client].x, data.x_train[part])
            assert torch.equal(sim.holdings.clients[client].y, data.y_train[part])
        assert sim.server.root is not None
        own: Any = sim.server.root(sim.initial.server.params, 0)
        assert torch.equal(own.samples.x, data.x_train[root])
        assert torch.equal(own.samples.y, data.y_train[root])
        assert torch.equal(sim.holdings.test.x, data.x_test)
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

    def test_the_shares_of_classes_in_the_root_data(self) -> None:
        e = Experiment.of({**DIGITS, "root": {"size": 40, "bias": 0.55, "label": 7}})
        data = Digits().load(NOWHERE, stream(e.seed, "split"))
        root, _ = _rows(e, data)
        counts = torch.bincount(data.y_train[root], minlength=10).tolist()
        assert counts == [2, 2, 2, 2, 2, 2, 2, 22, 2, 2]

    def test_the_root_does_not_depend_on_the_clients(self) -> None:
        found = []
        for clients in (4, 8):
            e = Experiment.of({**DIGITS, "clients": clients})
            data = Digits().load(NOWHERE, stream(e.seed, "split"))
            found.append(_rows(e, data)[0])
        assert torch.equal(*found)

    def test_a_root_label_that_is_not_a_class(self) -> None:
        with pytest.raises(FedSieveError, match=r"root\.label is 10, the classes are 0 to 9"):
            simulation(DIGITS, root={"label": 10})


class TestPoisonedData:
    def pair(self, attack: Any) -> tuple[Simulation, Simulation]:
        clean, poisoned = (simulation(DIGITS, attack=a) for a in ("none", attack))
        assert set(clean.holdings.clients) == set(poisoned.holdings.clients) == set(range(8))
        assert len(poisoned.holdings.malicious) == 2
        return clean, poisoned

    def test_label_flip(self) -> None:
        clean, poisoned = self.pair("label-flip")
        for client in range(8):
            before, after = clean.holdings.clients[client], poisoned.holdings.clients[client]
            assert torch.equal(before.x, after.x)
            assert torch.equal(after.y, 9 - before.y if client in poisoned.holdings.malicious else before.y)
        assert poisoned.holdings.triggered is None
        assert torch.equal(clean.holdings.test.y, poisoned.holdings.test.y)

    def test_scaling(self) -> None:
        clean, poisoned = self.pair({"name": "scaling", "share": 0.5, "target": 3})
        for client in range(8):
            before, after = clean.holdings.clients[client], poisoned.holdings.clients[client]
            n = len(before.y)
            assert torch.equal(before.x, after.x[:n])
            assert torch.equal(before.y, after.y[:n])
            extra = after.x[n:]
            assert len(extra) == (round(n / 2) if client in poisoned.holdings.malicious else 0)
            assert (extra[:, :, :2, :2] == 1).all()
            assert (after.y[n:] == 3).all()
        assert isinstance(poisoned.adversary.attack, Backdoor)
        assert poisoned.holdings.triggered is not None
        assert torch.equal(poisoned.holdings.triggered.already, clean.holdings.test.y == 3)
        assert 0 < int(poisoned.holdings.triggered.already.sum()) < len(clean.holdings.test.y)
        assert (poisoned.holdings.triggered.wanted == 3).all()
        assert torch.equal(poisoned.holdings.triggered.x, poisoned.adversary.attack.trigger(clean.holdings.test.x))
        assert torch.equal(poisoned.holdings.test.x, clean.holdings.test.x)

    def test_success_of_a_backdoor_is_counted(self) -> None:
        sim = simulation(DIGITS, attack="scaling", rounds=3, evaluate_every=1)
        assert sim.holdings.triggered is not None
        found = []
        for state, record in sim.rounds():
            predicted = sim.trainer.model.logits(state.server.params, sim.holdings.triggered.x).argmax(dim=1)
            hit = (predicted == 0).double()
            assert record.attack_success_rate == pytest.approx(float(hit[sim.holdings.test.y != 0].mean()))
            assert record.attack_success_rate_all == pytest.approx(float(hit.mean()))
            found.append(record.attack_success_rate)
        assert len(found) == 3
        assert max(found) > 0.5


class TestModel:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            (
                {"model": "doubles:Scalar"},
                "of shape [2, 1] for 2 samples of shape [4]; [2, 3] was expected",
            ),
            ({"model": "doubles:Convolution"}, "model doubles:Convolution can't take samples of shape [4]: "),
        ],
    )
    def test_that_does_not_fit_the_data(self, doubles: ModuleType, settings: dict[str, Any], said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            simulation({**TINY, **settings})
        assert said in str(error.value)
        assert "\n" not in str(error.value)
