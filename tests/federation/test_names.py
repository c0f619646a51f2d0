"""Clients' names and test samples, where clients are natural ones; and whether it is known who is malicious."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.federation.simulation import Simulation
from tests.federation.conftest import CPU, NOWHERE, TINY, records_of, simulation

SITES = ("Mitte", "Nord", "Süd", "St. Anna", "West")


def table(folder: Path, rows: int = 40) -> str:
    """A table in which the column x tells the site: its number, plus noise below a half."""
    random = np.random.default_rng(0)
    lines = ["x,z,site,sick"]
    for k in range(rows * len(SITES)):
        site = k % len(SITES)
        lines.append(f"{site},{random.normal():.3f},{SITES[site]},{'yes' if random.random() < 0.5 else 'no'}")
    path = folder / "sites.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def of_sites(folder: Path, **more: Any) -> Simulation:
    dataset = {"name": "csv", "file": table(folder), "label": "sick", "client": "site"}
    settings = {"dataset": dataset, "defense": "mean", "rounds": 2, "root": {"size": 10}, **more}
    return simulation(settings)


def site_of(x: torch.Tensor) -> list[int]:
    """The number of the site of each sample, from its first, standardised column."""
    values = torch.unique(x[:, 0])
    return torch.searchsorted(values, x[:, 0].contiguous()).tolist()


class TestNames:
    def test_all_sites(self, tmp_path: Path) -> None:
        sim = of_sites(tmp_path)
        # natural clients are numbered by their sorted names
        assert sim.holdings.names == tuple(sorted(SITES))
        everybody = torch.cat([sim.holdings.clients[k].x for k in range(5)])
        owner = torch.cat([torch.full((len(sim.holdings.clients[k].x),), k) for k in range(5)])
        sites = [SITES[k] for k in site_of(everybody)]
        assert sites == [sim.holdings.names[k] for k in owner.tolist()]

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_fewer_clients_than_sites(self, tmp_path: Path, seed: int) -> None:
        whole, sim = of_sites(tmp_path, seed=seed), of_sites(tmp_path, clients=3, seed=seed)
        assert len(set(sim.holdings.names)) == 3
        columns = {n: float(whole.holdings.clients[k].x[0, 0]) for k, n in enumerate(whole.holdings.names)}
        for client, name in enumerate(sim.holdings.names):
            assert set(sim.holdings.clients[client].x[:, 0].tolist()) == {columns[name]}

    def test_test_samples(self, tmp_path: Path) -> None:
        sim = of_sites(tmp_path, clients=4)
        clients = sim.holdings.test_clients
        assert clients is not None
        assert len(clients) == len(sim.holdings.test.y)
        assert set(clients.tolist()) == {-1, 0, 1, 2, 3}
        for client in range(4):
            own = sim.holdings.clients[client].x[0, 0]
            assert (sim.holdings.test.x[clients == client, 0] == own).all()
            assert (sim.holdings.test.x[clients != client, 0] != own).all()
        *_, (state, _) = sim.rounds()
        found = sim.scores(state)
        assert [(c.client, c.name) for c in found.clients] == list(enumerate(sim.holdings.names))
        assert [c.scores.n for c in found.clients] == torch.bincount(clients[clients >= 0]).tolist()
        assert [c.name for c in found.classes] == ["no", "yes"]

    @pytest.mark.parametrize("partition", ["iid", "groups"])
    def test_other_partitions_have_none(self, tmp_path: Path, partition: str) -> None:
        holdings = of_sites(tmp_path, partition=partition, clients=5).holdings
        assert (holdings.names, holdings.test_clients) == ((), None)

    def test_data_without_names(self, doubles: ModuleType) -> None:
        holdings = simulation(TINY).holdings
        assert (holdings.names, holdings.test_clients) == ((), None)
        assert holdings.class_names == ("0", "1", "2")


class TestTruth:
    @pytest.mark.parametrize(
        ("settings", "known"),
        [
            ({}, True),  # digits, no attack
            ({"attack": "min-max"}, True),
            ({"dataset": {"name": "csv", "file": "x.csv", "label": "y"}}, False),
            ({"dataset": {"name": "csv", "file": "x.csv", "label": "y"}, "attack": "min-max"}, True),
        ],
    )
    def test_by_settings(self, settings: dict[str, Any], known: bool, tmp_path: Path) -> None:
        if "file" in (dataset := settings.get("dataset", {})):
            (tmp_path / "x.csv").write_text("a,y\n1,0\n2,1\n")
            settings = {**settings, "dataset": {**dataset, "file": str(tmp_path / "x.csv")}}
        assert Experiment.of(settings).truth is known

    def test_records(self, tmp_path: Path, doubles: ModuleType) -> None:
        sim = of_sites(tmp_path, defense="doubles:Below")
        for _, record in sim.rounds():
            assert record.malicious is None
            assert record.rejected is not None
            assert (record.false_positive_rate, record.false_negative_rate) == (None, None)
        for record in records_of({**TINY, "defense": "doubles:Below"}):
            assert record.malicious == ()
            assert record.false_positive_rate is not None
        attacked = of_sites(tmp_path, defense="doubles:Below", attack="sign-flip", malicious=1)
        for _, record in attacked.rounds():
            assert len(record.malicious or ()) == 1

    def test_numbers_are_those_of_before(self, tmp_path: Path) -> None:
        """What is known changes what is told, and no other number."""
        sim = of_sites(tmp_path)
        other = Simulation.of(
            Experiment.of({**sim.experiment.model_dump(), "attack": "sign-flip", "malicious": 0}), NOWHERE, CPU
        )
        for (_, a), (_, b) in zip(sim.rounds(), other.rounds(), strict=True):
            assert (a.malicious, b.malicious) == (None, ())
            assert (a.weights, a.update_norm, a.test_loss) == (b.weights, b.update_norm, b.test_loss)
