"""The simulation of a federation, round by round: clients train, the adversary attacks, the server defends.

Only the simulation and the records know which clients are malicious.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fedsieve.aggregators.weighting import CAP, weighted
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.config.optimizers import optimizers
from fedsieve.core.defense import Updates
from fedsieve.core.errors import ParameterError
from fedsieve.core.records import RoundRecord
from fedsieve.core.scores import FinalScores
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.federation.adversary import Adversary, check_layout
from fedsieve.federation.clients import LocalTraining, Trainer
from fedsieve.federation.evaluation import Scores, evaluate, outputs
from fedsieve.federation.model import build_model
from fedsieve.federation.recording import round_record
from fedsieve.federation.root import RootClient, RunnableModel
from fedsieve.federation.scoring import final_scores
from fedsieve.federation.server import Server, ServerState
from fedsieve.federation.setup import Holdings, distribute
from fedsieve.federation.trial import batch_sizes, tried
from fedsieve.models.build import arguments
from fedsieve.models.precision import check_precision


@dataclass(frozen=True)
class SimulationState:
    """All that a simulation carries from one round to the next.

    Attributes:
        server: The server's state.
        personal: Each client's own values of the BatchNorm coordinates, [clients, k]; None where these are shared.
        adversary: What the attacker remembers: the attack's memory and the state of its simulated defense.
    """

    server: ServerState
    personal: Tensor | None = None
    adversary: Any = None

    @property
    def round(self) -> int:
        """The round to come, from 0."""
        return self.server.round


@dataclass(frozen=True, repr=False)
class Simulation:
    """A federation with its data, ready to run.

    Attributes:
        experiment: The settings.
        server: The server's part of a round.
        trainer: The clients' part of a round.
        holdings: All data by holder, and which clients are malicious.
        adversary: The malicious clients.
        initial: The state before round 0.
        arguments: What the model's factory was called with, by name.
    """

    experiment: Experiment
    server: Server
    trainer: Trainer
    holdings: Holdings
    adversary: Adversary
    initial: SimulationState
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment, folder: Path, device: torch.device) -> "Simulation":
        """Load and distribute the data, poison the malicious clients' part, build the model.

        Args:
            experiment: The settings.
            folder: Folder of the datasets.
            device: Device of all tensors.

        Raises:
            FedSieveError: If data are missing or the settings don't fit them.
        """
        loader = registry.build("datasets", experiment.dataset.name, experiment.dataset.parameters)
        return cls.on(experiment, loader.load(folder, stream(experiment.seed, "split")), folder, device)

    @classmethod
    def on(cls, experiment: Experiment, data: Dataset, folder: Path, device: torch.device) -> "Simulation":
        """As :meth:`of`, with data that are loaded already; the experiment's dataset is then only a name.

        Raises:
            FedSieveError: If the settings don't fit the data.
        """
        e = experiment
        attack = registry.build("attacks", e.attack.name, e.attack.parameters)
        holdings = distribute(e, data, attack, folder, device)
        model, params = build_model(e, data)
        params = params.to(device)
        check_layout(attack, model.layout)
        check_precision(e.local.precision, device, params.dtype)
        settings = LocalTraining(**e.local.model_dump(exclude={"batch_norm"}, exclude_none=True))
        # a root model takes as many steps as a client does, however few samples it has for them
        root_settings = settings.as_many_steps(holdings.middle_sizes)
        network = RunnableModel(model, data.input_shape)
        trainer = _tried(Trainer(model, settings, e.seed), root_settings, params, holdings, data.n_classes)
        defense = registry.build_defense(e.defense.name, e.defense.parameters)
        if e.server.weighting == "samples":  # every client, a malicious one too, tells how many samples it has
            defense = weighted(defense, lambda ids: holdings.sizes[ids % e.clients], e.server.weight_cap or CAP)
        optimizer = e.server.optimizer
        server = Server(
            defense=defense,
            layout=model.layout,
            seed=e.seed,
            assumed_malicious=e.assumed_malicious,
            learning_rate=e.server.learning_rate,
            optimizer=optimizers()[optimizer.name] if optimizer else None,
            optimizer_options=optimizer.parameters if optimizer else {},
            root=partial(RootClient, replace(trainer, settings=root_settings), holdings.root, data.n_classes)
            if len(holdings.root.y)
            else None,
            network=network,
        )
        # so that the attacker can't predict the batches of the server's root models
        own_seed = stream(e.seed, "attacker seed").initial_seed()
        adversary = Adversary(
            attack=attack,
            name=e.attack.name,
            malicious=holdings.malicious,
            n_clients=e.clients,
            poisoned=holdings.clients,
            clean=holdings.clean,
            trainer=trainer,
            root=(replace(trainer, settings=root_settings, seed=own_seed), holdings.attacker_root, data.n_classes),
            network=network,
            seed=e.seed,
            sees_benign_updates=e.knowledge == "full",
            defense=defense if e.knows_defense else None,
            assumed_malicious=e.assumed_malicious,
            server_learning_rate=server.added,
        )
        personal = None
        if e.local.batch_norm == "local":
            coordinates = model.normalisation
            if not len(coordinates):
                raise ParameterError(f"local.batch_norm is local, but model {e.model.name} has no BatchNorm layer")
            personal = params[coordinates].repeat(e.clients, 1)
        factory = registry.load("models", e.model.name)
        made = arguments(factory, data.input_shape, data.n_classes, e.model.parameters, data.vocabulary)
        return cls(e, server, trainer, holdings, adversary, SimulationState(ServerState(params), personal), made)

    def __repr__(self) -> str:
        e = self.experiment
        named = f"{e.attack.name} against {e.defense.name}, {e.dataset.name}, {e.model.name}"
        known = f", {len(self.holdings.malicious)} malicious" if e.truth else ""
        return f"<Simulation: {named}, {e.clients} clients{known}, {e.rounds} rounds>"

    def rounds(self, state: SimulationState | None = None) -> Iterator[tuple[SimulationState, RoundRecord]]:
        """Every round from ``state`` on (by default from the start), with the state after it."""
        state = state or self.initial
        while state.round < self.experiment.rounds:
            state, record = self.run_round(state)
            yield state, record

    def run_round(self, state: SimulationState) -> tuple[SimulationState, RoundRecord]:
        """Run one round.

        Returns:
            The state after the round, and its record.
        """
        clock, holdings = _Clock(), self.holdings
        params = state.server.params
        cohort = self._cohort(state.round)
        honest, personal = self._trained(cohort, state)
        clock.lap("train")
        matrix, memory = honest, state.adversary
        ids = self.adversary.ids(cohort, state.round)
        bad = torch.tensor([i in holdings.malicious for i in cohort], device=honest.device)
        if bad.any():
            matrix, memory = self.adversary.send(honest, cohort, bad, params, state.round, memory, state.personal)
        if personal is not None:  # not sent, so an attack can't change them either
            matrix[:, self.trainer.model.normalisation] = 0
        clock.lap("attack")
        updates = Updates(matrix, torch.tensor(ids, device=matrix.device), self.trainer.model.layout)
        server, decision = self.server.step(state.server, updates)
        following = SimulationState(server, personal, memory)
        clock.lap("defend")
        scores = self._evaluated(following)
        clock.lap("evaluate")
        attackers = [i for i, attacks in zip(ids, bad.tolist(), strict=True) if attacks]
        malicious = attackers if self.experiment.truth else None
        record = round_record(state.round, updates, malicious, decision, scores)
        clock.lap("record")
        return following, replace(record, seconds=clock.laps)

    def _cohort(self, round: int) -> list[int]:
        """The clients that take part in a round by their first ids, ascending."""
        n, k = self.experiment.clients, self.experiment.clients_per_round
        if k == n:
            return list(range(n))
        drawn: list[int] = torch.randperm(n, generator=stream(self.experiment.seed, "cohort", round))[:k].tolist()
        return sorted(drawn)

    def _trained(self, cohort: list[int], state: SimulationState) -> tuple[Float[Tensor, "n d"], Tensor | None]:
        """Every client's honestly trained update, and all clients' own BatchNorm values after training."""
        data, params = {i: self.holdings.clients[i] for i in cohort}, state.server.params
        if state.personal is None:
            return self.trainer.updates(params, data, state.round), None
        own = {i: state.personal[i] for i in cohort}
        honest = self.trainer.updates(params, data, state.round, own)
        coordinates, personal = self.trainer.model.normalisation, state.personal.clone()
        personal[cohort] = params[coordinates] + honest[:, coordinates]
        return honest, personal

    def _evaluated(self, state: SimulationState) -> Scores:
        """Scores of the global model after a round, if an evaluation is due."""
        e = self.experiment
        if state.round % e.evaluate_every and state.round < e.rounds:
            return Scores()
        return evaluate(self.trainer.model, self.evaluated(state), self.holdings.test, self.holdings.triggered)

    def evaluated(self, state: SimulationState) -> Float[Tensor, " d"]:
        """The global model as it is evaluated: with the benign clients' mean of their own BatchNorm values, if any."""
        params = state.server.params
        if state.personal is not None:
            benign = [i for i in range(self.experiment.clients) if i not in self.holdings.malicious]
            params = params.clone()
            params[self.trainer.model.normalisation] = state.personal[benign or slice(None)].mean(dim=0)
        return params

    def scores(self, state: SimulationState) -> FinalScores:
        """All scores of the global model, by class and by client, too."""
        h = self.holdings
        logits = outputs(self.trainer.model, self.evaluated(state), h.test.x)
        return final_scores(logits, h.test.y.cpu(), state.round, h.class_names, h.test_clients, h.names)


def _tried(
    trainer: Trainer, root_settings: LocalTraining, params: Tensor, holdings: Holdings, n_classes: int
) -> Trainer:
    """The trainer, after one step with every batch size of the clients, the server and the attacker."""
    roots = [holdings.root, holdings.attacker_root]
    batches = batch_sizes(trainer, holdings.examples)
    batches += batch_sizes(replace(trainer, settings=root_settings), roots)
    batches += [(len(root.y), root) for root in roots]  # a defense may take the gradient on all of it
    shown = [holdings.test.x, *([] if holdings.triggered is None else [holdings.triggered.x])]
    return tried(trainer, params, batches, shown, n_classes)


class _Clock:
    """Wall time of the phases of a round, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 6), now
