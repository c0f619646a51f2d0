"""The federations of an audit: of all sites, watched; of all but one; and of each alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from fedsieve.audit.reference import reference_rows
from fedsieve.audit.training import Tamper, Watched, alone, predictor, rows_of, trained, watch, without
from fedsieve.config.experiment import Experiment
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset


@dataclass
class Looked:
    """What one seed's federations show, by site number."""

    watched: Watched
    score: float
    local: dict[int, float | None] = field(default_factory=dict)
    of_global: dict[int, float | None] = field(default_factory=dict)
    right: dict[int, Float[np.ndarray, " c"]] = field(default_factory=dict)
    rows: dict[int, Int[np.ndarray, " c"]] = field(default_factory=dict)
    change: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Federations:
    """The settings of all of them.

    Attributes:
        experiment: Of the federation of all sites.
        folder: Folder of the datasets.
        device: Where to compute.
        tick: Called after each round.
        tamper: Changes the updates that the server gets; None changes nothing.
    """

    experiment: Experiment
    folder: Path
    device: torch.device
    tick: Callable[[], None]
    tamper: Tamper | None

    def look(self, data: Dataset, seed: int, trusted: Sequence[int], size: int | None) -> Looked:
        """The watched federation of all sites."""
        watched = self.again(data, seed, trusted, size)
        predict = predictor(watched.simulation, watched.state.server.params)
        return Looked(watched, _balanced(predict(data.x_test), data.y_test.numpy()))

    def again(self, data: Dataset, seed: int, trusted: Sequence[int], size: int | None) -> Watched:
        """That federation, without a look at its model."""
        if data.root_rows is None:
            rows = reference_rows(data, trusted, stream(seed, "reference"), size)
            data = replace(data, root_rows=rows)
        return watch(self._experiment(seed, n_sites(data)), data, self.folder, self.device, self.tick, self.tamper)

    def leave_out(self, sets: dict[int, Dataset], seen: dict[int, Looked]) -> None:
        """Models of all sites, of all but one, and of each alone, all by plain averaging."""
        for seed, data in sets.items():
            s, n = seen[seed], n_sites(data)
            mean = self._experiment(seed, n, "mean")
            everybody = trained(mean, data, self.folder, self.device, self.tick)
            test_owners, y = data.test_owners, data.y_test.numpy()
            assert test_owners is not None
            for k in range(n):
                own = (test_owners == k).numpy()
                fewer = self._experiment_of(mean, n - 1)
                others = trained(fewer, without(data, k), self.folder, self.device, self.tick)
                x, labels = rows_of(data, k)
                right = others(x) == labels
                s.rows[k] = np.bincount(labels, minlength=data.n_classes)
                s.right[k] = np.bincount(labels[right], minlength=data.n_classes).astype(float)
                held_out = data.x_test[~torch.from_numpy(own)]
                s.change[k] = _balanced(others(held_out), y[~own]) - _balanced(everybody(held_out), y[~own])
                s.of_global[k] = _balanced(everybody(data.x_test[torch.from_numpy(own)]), y[own]) if own.any() else None
                s.local[k] = self._alone(mean, data, k) if own.any() else None

    def _alone(self, e: Experiment, data: Dataset, site: int) -> float:
        part = alone(data, site)
        predict = trained(self._experiment_of(e, 1), part, self.folder, self.device, self.tick)
        return _balanced(predict(part.x_test), part.y_test.numpy())

    def _experiment(self, seed: int, clients: int, defense: str | None = None) -> Experiment:
        changes = {"seed": seed} | ({"defense": {"name": defense}, "root": {"size": 0}} if defense else {})
        return self._experiment_of(self.experiment, clients, **changes)

    @staticmethod
    def _experiment_of(e: Experiment, clients: int, **changes: object) -> Experiment:
        settings = e.model_dump(mode="json")
        settings |= {"clients": clients, "clients_per_round": clients, "evaluate_every": e.rounds, "malicious": 0}
        return Experiment.of(settings | {"assumed_malicious": 0} | changes)


def n_sites(data: Dataset) -> int:
    """Number of sites; rows of a trusted file are of none."""
    assert data.owners is not None
    return len(data.owner_names) or int(data.owners.max()) + 1


def _balanced(predicted: Int[np.ndarray, " k"], y: Int[np.ndarray, " k"]) -> float:
    """Mean over the classes in ``y`` of the share that is predicted right."""
    return float(np.mean([(predicted[y == k] == k).mean() for k in np.unique(y)]))
