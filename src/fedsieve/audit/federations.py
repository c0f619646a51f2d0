"""The federations of an audit: of all sites, watched; of all but one; and of each alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.audit.reference import reference_rows
from fedsieve.audit.training import Tamper, Watched, alone, predictor, rows_of, trained, watch, without
from fedsieve.config.experiment import Experiment
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.federation.scoring import balanced_accuracy


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
        return Looked(watched, balanced_accuracy(data.y_test.numpy(), predict(data.x_test)))

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
            mean, fewer, single = (self._experiment(seed, clients, "mean") for clients in (n, n - 1, 1))
            everybody = self._trained(mean, data)(data.x_test)
            assert data.test_owners is not None
            test_owners, y = data.test_owners.numpy(), data.y_test.numpy()
            for k in range(n):
                own = test_owners == k
                others = self._trained(fewer, without(data, k))
                x, labels = rows_of(data, k)
                right = others(x) == labels
                s.rows[k] = np.bincount(labels, minlength=data.n_classes)
                s.right[k] = np.bincount(labels[right], minlength=data.n_classes).astype(float)
                left = balanced_accuracy(y[~own], others(data.x_test)[~own])
                s.change[k] = left - balanced_accuracy(y[~own], everybody[~own])
                s.of_global[k] = balanced_accuracy(y[own], everybody[own]) if own.any() else None
                s.local[k] = self._alone(single, alone(data, k)) if own.any() else None

    def _alone(self, single: Experiment, part: Dataset) -> float:
        return balanced_accuracy(part.y_test.numpy(), self._trained(single, part)(part.x_test))

    def _trained(self, e: Experiment, data: Dataset) -> Callable[[Tensor], Int[np.ndarray, " k"]]:
        return trained(e, data, self.folder, self.device, self.tick)

    def _experiment(self, seed: int, clients: int, defense: str | None = None) -> Experiment:
        settings = self.experiment.model_dump(mode="json")
        settings |= {"clients": clients, "clients_per_round": clients, "evaluate_every": self.experiment.rounds}
        settings |= {"malicious": 0, "assumed_malicious": 0, "seed": seed}
        return Experiment.of(settings | ({"defense": {"name": defense}, "root": {"size": 0}} if defense else {}))


def n_sites(data: Dataset) -> int:
    """Number of sites; rows of a trusted file are of none."""
    assert data.owners is not None
    return len(data.owner_names) or int(data.owners.max()) + 1
