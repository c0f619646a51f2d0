"""Data are distributed, poisoned and separated as the experiment says."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import Backdoor
from fedsieve.core.errors import FedSieveError, ParameterError
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
            simulation(DIGITS, root={"label": 10, "bias": 0.5})

    @pytest.mark.parametrize("clients", [3, 5, 9, 10])
    def test_fewer_clients_than_classes_have_all_data(self, clients: int) -> None:
        sim = simulation(DIGITS, clients=clients, malicious=0)
        assert sum(len(c.y) for c in sim.holdings.clients.values()) + 100 == 1438
        assert "1438 of 1438 training images used, 100 root samples" in sim.holdings.reading


def table(folder: Path, rare: int = 8, n: int = 400, sites: int = 6) -> dict[str, Any]:
    """A table with a rare class, a site for each row, and a column that tells the classes apart."""
    rows = "".join(f"{k % 13 + 5 * (k < rare)},s{k % sites},{'yes' if k < rare else 'no'}\n" for k in range(n))
    (folder / "t.csv").write_text("a,site,y\n" + rows, encoding="utf-8")
    return {"name": str(folder / "t.csv"), "label": "y"}


class TestRootData:
    @pytest.mark.parametrize("defense", ["mean", "norm-clipping,median", "skymask", "norm-clipping,fltrust"])
    def test_a_rare_class(self, tmp_path: Path, defense: str) -> None:
        sim = simulation({"dataset": table(tmp_path, rare=10), "defense": defense, "malicious": 0})
        counts = sim.holdings.root.y.bincount().tolist()
        held = sum((c.y == 1).sum() for c in sim.holdings.clients.values())
        positives = int(held) + counts[1]
        assert counts == [positives // 2 + 1, positives // 2]
        assert sum(len(c.y) for c in sim.holdings.clients.values()) + sum(counts) == 320

    def settings(self, folder: Path, **more: Any) -> dict[str, Any]:
        """Every class but two has one sample."""
        rows = "".join(f"{k},{k % 2}\n" for k in range(200)) + "1,2\n2,3\n3,4\n"
        (folder / "t.csv").write_text("a,y\n" + rows, encoding="utf-8")
        return {"dataset": {"name": str(folder / "t.csv"), "label": "y"}, "malicious": 0, **more}

    @pytest.mark.parametrize("defense", ["mean", "multi-krum", "norm-clipping,trimmed-mean", "fldetector"])
    def test_that_nobody_needs_is_not_asked_for(self, tmp_path: Path, defense: str) -> None:
        sim = simulation(self.settings(tmp_path, defense=defense, clients=10))
        assert len(sim.holdings.root.y) == 0
        assert sim.server.root is None
        assert sim.holdings.reading.endswith("162 of 162 training rows used, 0 root samples")
        assert sum(len(c.y) for c in sim.holdings.clients.values()) == 162

    @pytest.mark.parametrize("defense", ["skymask", "skymask-nr", "sieve", "fltrust", "norm-clipping,skymask,median"])
    def test_that_a_stage_needs(self, tmp_path: Path, defense: str) -> None:
        said = (
            r"^root data can't be taken by default, without root.size: class [234] has [01] training samples; .*"
            rf"root\.bias=0 with root\.label=[234] leaves that class out, .* \(defense {defense} needs root data\)$"
        )
        with pytest.raises(ParameterError, match=said):
            simulation(self.settings(tmp_path, defense=defense))
        with pytest.raises(
            ParameterError, match=rf"^root\.size is 0, but defense {defense} needs root data; set it above"
        ):
            simulation(self.settings(tmp_path, defense=defense, root={"size": 0}))

    @pytest.mark.parametrize("defense", ["mean", "skymask"])
    def test_an_impossible_size_is_an_error(self, tmp_path: Path, defense: str) -> None:
        given = {"dataset": table(tmp_path), "defense": defense, "root": {"size": 100, "bias": 0.1}, "malicious": 0}
        with pytest.raises(ParameterError) as error:
            simulation(given)
        message = str(error.value)
        assert message.startswith("root.size=100 takes 90 samples of class 1 ('yes'), of which the training data have ")
        size = int(message.split("root.size=")[2].split()[0])
        sim = simulation({**given, "root": {"size": size, "bias": 0.1}})
        assert len(sim.holdings.root.y) == size

    def test_none_at_all(self, tmp_path: Path) -> None:
        attack = {"name": "adaptive-skymask", "shares": [0.1], "strengths": [1.0]}
        sim = simulation(DIGITS, root={"size": 0}, attack=attack, knows_defense=True, defense="median")
        assert len(sim.holdings.root.y) == 0
        assert sim.server.root is None
        assert len(sim.holdings.attacker_root.y) == 100  # an attacker has clean data of its own
        assert sum(len(c.y) for c in sim.holdings.clients.values()) == 1438
        (_, record), *_ = sim.rounds()
        assert record.applied
        assert len(simulation(DIGITS, attack="label-flip").holdings.attacker_root.y) == 100
        assert len(simulation(DIGITS, attack="label-flip", root={"size": 7}).holdings.attacker_root.y) == 7

    def test_all_defenses_have_the_same_clients(self) -> None:
        one, other = (simulation(DIGITS, defense=defense).holdings for defense in ("mean", "skymask"))
        assert one.root.x.equal(other.root.x)
        assert all(one.clients[k].x.equal(other.clients[k].x) for k in range(8))

    @pytest.mark.parametrize(
        ("root", "said"),
        [
            ({"size": 0, "bias": 0.5}, "root: bias=0.5 has no effect with size=0, which is no root data"),
            ({"label": 3}, "root: label=3 has no effect without bias, the share of that class"),
            ({"size": -1}, "root.size: Input should be greater than or equal to 0, got -1"),
        ],
    )
    def test_settings_without_effect(self, root: dict[str, Any], said: str) -> None:
        with pytest.raises(ParameterError) as error:
            Experiment.of({**DIGITS, "root": root})
        assert str(error.value) == said


class TestReading:
    def test_by_site(self, tmp_path: Path) -> None:
        given = {**table(tmp_path, rare=60), "client": "site"}
        sim = simulation({"dataset": given, "defense": "skymask", "root": {"size": 32}})
        assert sim.holdings.reading == (
            "400 rows, 2 classes (340/60), 1 numeric + 0 one-hot columns, 6 clients by site, "
            "320 of 320 training rows used, 32 root samples"
        )
        sim = simulation({"dataset": given, "defense": "skymask", "root": {"size": 32}, "clients": 5, "malicious": 0})
        used = 32 + sum(len(c.y) for c in sim.holdings.clients.values())
        assert 260 < used < 280
        assert f"5 clients by site, {used} of 320 training rows used, 32 root samples" in sim.holdings.reading

    def test_a_backdoor_and_root_data_that_are_not_needed(self, tmp_path: Path) -> None:
        given = {"dataset": table(tmp_path, rare=100), "defense": "mean", "attack": "scaling"}
        assert simulation(given).holdings.reading == (
            "400 rows, 2 classes (300/100), 1 numeric + 1 one-hot columns (site with 6 values), "
            "30 clients of partition iid, 320 of 320 training rows used, "
            "32 root samples (not needed by mean: root.size=0 leaves them to the clients), backdoor to class 0 ('no')"
        )
        assert simulation(given, attack={"name": "scaling", "target": 1}).holdings.reading.endswith("class 1 ('yes')")

    def test_digits(self) -> None:
        assert simulation(DIGITS, defense="skymask").holdings.reading == (
            "1797 images of 1 x 8 x 8 (channels, height, width), "
            "10 classes (178/182/177/183/181/182/181/179/174/180), 8 clients of partition groups, "
            "1438 of 1438 training images used, 100 root samples"
        )


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

    @pytest.mark.parametrize(("scale", "shift"), [(255.0, 0.0), (1.0, 0.0), (3.0, -1.0)])
    @pytest.mark.parametrize("attack", ["scaling", "lie-backdoor", "mixture", "split-layers"])
    def test_the_trigger_is_on_the_scale_of_the_data(
        self, tmp_path: Path, attack: str, scale: float, shift: float
    ) -> None:
        g = torch.Generator().manual_seed(0)
        x = (torch.rand(200, 3, 6, 6, generator=g) * 0.9 * scale + shift).numpy()
        x[150:] = x.min()
        x[:100, 0, 5, 5] = scale + shift  # the brightest pixel
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(200) % 2)
        given: Any = {"name": attack}
        given |= {"attacks": ["scaling"]} if attack == "mixture" else {}
        given |= {"attack": "scaling"} if attack == "split-layers" else {}
        settings = {"dataset": str(tmp_path / "a.npz"), "clients": 5, "malicious": 2, "defense": "mean"}
        holdings = simulation({**settings, "model": "mlp"}, attack=given).holdings
        assert holdings.triggered is not None
        bright = torch.full((3, 5, 5), scale + shift)
        assert all(image[:, :5, :5].equal(bright) for image in holdings.triggered.x)
        for client in holdings.malicious:
            n = len(holdings.clean[client].y)
            more = holdings.clients[client].x[n:]
            assert len(more) > 0
            assert all(image[:, :5, :5].equal(bright) for image in more)

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
