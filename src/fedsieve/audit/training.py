"""Federations over the sites as they are: what the server sees of each, and what the model is without it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.config.experiment import Experiment
from fedsieve.core.defense import Aggregate, Aggregator, ServerView, Updates
from fedsieve.core.records import RoundRecord
from fedsieve.data.dataset import Dataset
from fedsieve.federation.evaluation import outputs
from fedsieve.federation.simulation import Simulation, SimulationState

Tamper = Callable[[Updates, torch.Generator], Updates]


@dataclass
class Watching:
    """An aggregator that is watched: hands everything on, and keeps what its records don't have.

    Attributes:
        defense: The aggregator.
        tamper: Changes what the server gets; None changes nothing.
        lengths: By round, the norm of each client's update.
        places: By round, the position of each client in the diagnosis, [n, 2]; NaN without one.
    """

    defense: Aggregator
    tamper: Tamper | None = None
    lengths: list[Float[Tensor, " n"]] = field(default_factory=list)
    places: list[Float[Tensor, "n 2"]] = field(default_factory=list)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        updates = self.tamper(updates, view.generator) if self.tamper else updates
        found = self.defense(updates, view)
        lengths = updates.parameters.double().norm(dim=1).cpu()
        seen = found.diagnosis
        self.lengths.append(lengths)
        self.places.append(
            lengths.new_full((len(lengths), 2), torch.nan) if seen is None else seen.coordinates.double().cpu()
        )
        return found


@dataclass(frozen=True)
class Watched:
    """One federation of all sites.

    Attributes:
        simulation: As it was set up.
        state: After the last round.
        records: Of the rounds.
        lengths: Norm of each site's update divided by the median of the round, [rounds, n].
        places: Position of each site in the defense's diagnosis, [rounds, n, 2]; NaN without one.
        scores: Anomaly scores, [rounds, n]; NaN without.
    """

    simulation: Simulation
    state: SimulationState
    records: Sequence[RoundRecord]
    lengths: Float[Tensor, "rounds n"]
    places: Float[Tensor, "rounds n 2"]
    scores: Float[Tensor, "rounds n"]


def watch(
    experiment: Experiment,
    data: Dataset,
    folder: Path,
    device: torch.device,
    on_round: Callable[[], None],
    tamper: Tamper | None = None,
) -> Watched:
    """Run a federation in which all clients take part in all rounds.

    Raises:
        FedSieveError: If the settings don't fit the data.
    """
    simulation = Simulation.on(experiment, data, folder, device)
    watching = Watching(simulation.server.defense, tamper)
    watched = replace(simulation, server=replace(simulation.server, defense=watching))
    records, state = [], watched.initial
    for following, record in watched.rounds():
        records.append(record)
        state = following
        on_round()
    lengths = torch.stack(watching.lengths)
    scores = [[torch.nan if s is None else s for s in r.scores or [None] * experiment.clients] for r in records]
    return Watched(
        simulation,
        state,
        records,
        lengths / lengths.median(dim=1, keepdim=True).values.clamp(min=1e-300),
        torch.stack(watching.places),
        torch.tensor(scores, dtype=torch.float64),
    )


def trained(
    experiment: Experiment, data: Dataset, folder: Path, device: torch.device, on_round: Callable[[], None]
) -> Callable[[Tensor], Int[np.ndarray, " k"]]:
    """A function that predicts the classes of samples by the model of a federation.

    The model is the mean over the last quarter of the rounds, since single rounds jump.

    Raises:
        FedSieveError: If the settings don't fit the data.
    """
    simulation = Simulation.on(experiment, data, folder, device)
    params, late = torch.zeros_like(simulation.initial.server.params), 0
    for state, _ in simulation.rounds():
        if 4 * state.round > 3 * experiment.rounds:
            params, late = params + state.server.params, late + 1
        on_round()
    return predictor(simulation, params / late)


def predictor(simulation: Simulation, params: Float[Tensor, " d"]) -> Callable[[Tensor], Int[np.ndarray, " k"]]:
    """A function that predicts the classes of samples by a model."""

    def predict(x: Tensor) -> Int[np.ndarray, " k"]:
        return outputs(simulation.trainer.model, params, x.to(params.device)).argmax(dim=1).numpy()

    return predict


def without(data: Dataset, site: int) -> Dataset:
    """The dataset without the rows of one site; the others keep their order."""
    train, test = _owners(data)
    names = tuple(name for k, name in enumerate(data.owner_names) if k != site)
    rows = None if data.root_rows is None else _moved(data.root_rows, train != site)
    return _part(data, train != site, test != site, names, rows, lambda owners: owners - (owners > site).long())


def alone(data: Dataset, site: int) -> Dataset:
    """The rows of one site as a dataset of one client."""
    train, test = _owners(data)
    return _part(data, train == site, test == site, data.owner_names[site : site + 1], None, torch.zeros_like)


def rows_of(data: Dataset, site: int) -> tuple[Tensor, Int[np.ndarray, " k"]]:
    """All samples of a site, those of the training set first, and their classes."""
    train, test = _owners(data)
    x = torch.cat([data.x_train[train == site], data.x_test[test == site]])
    y = torch.cat([data.y_train[train == site], data.y_test[test == site]])
    return x, y.numpy()


def _owners(data: Dataset) -> tuple[Int[Tensor, " N"], Int[Tensor, " M"]]:
    assert data.owners is not None
    assert data.test_owners is not None
    return data.owners, data.test_owners


def _part(
    data: Dataset,
    train: Bool[Tensor, " N"],
    test: Bool[Tensor, " M"],
    names: tuple[str, ...],
    root_rows: Int[Tensor, " r"] | None,
    renumbered: Callable[[Tensor], Tensor],
) -> Dataset:
    """Some rows of a dataset, with other numbers of their sites."""
    owners, test_owners = _owners(data)
    return replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_test[test],
        y_test=data.y_test[test],
        owners=renumbered(owners[train]),
        test_owners=renumbered(test_owners[test]),
        owner_names=names,
        root_rows=root_rows,
    )


def _moved(rows: Int[Tensor, " r"], stays: Bool[Tensor, " N"]) -> Int[Tensor, " k"]:
    """Row numbers among the rows that stay."""
    return (stays.long().cumsum(0) - 1)[rows[stays[rows]]]
