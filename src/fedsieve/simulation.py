"""The simulator: the only place that knows who is malicious. Drives clients, attack and server, round by round."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fedsieve import metrics, registry
from fedsieve.clients import ClientData, LocalTraining, RootClient, Trainer
from fedsieve.data.dataset import Dataset
from fedsieve.data.partition import root_indices
from fedsieve.experiment import Experiment
from fedsieve.models.flat import FlatModel, build_module
from fedsieve.seeding import stream
from fedsieve.server import Server, ServerState
from fedsieve.types import Attack, AttackView, Backdoor, FedSieveError, ParameterError, RoundRecord, Updates


@dataclass(frozen=True)
class Simulation:
    """A federation ready to run.

    Attributes:
        experiment: What was asked for.
        server: The server's half of a round.
        trainer: The clients' half.
        clients: Training data by client id; malicious clients' already poisoned.
        malicious: The ground truth.
        attack: What they do.
        initial: The state before round 0.
        test: Evaluation data.
        triggered: Test samples not of the backdoor's target, with its trigger; None without a backdoor.
    """

    experiment: Experiment
    server: Server
    trainer: Trainer
    clients: dict[int, ClientData]
    malicious: frozenset[int]
    attack: Attack
    initial: ServerState
    test: ClientData
    triggered: ClientData | None

    @classmethod
    def of(cls, experiment: Experiment, folder: Path, device: torch.device) -> "Simulation":
        """Load data, deal it, poison it, build the model.

        Args:
            experiment: What to run.
            folder: Where datasets lie.
            device: Where to compute.

        Raises:
            FedSieveError: If data is missing or settings don't fit it.
        """
        e = experiment
        attack = registry.build("attacks", e.attack.name, e.attack.parameters)
        data: Dataset = registry.build("datasets", e.dataset.name, e.dataset.parameters).load(
            folder, stream(e.seed, "split")
        )
        root, parts = _deal(e, data)
        malicious = frozenset(
            torch.randperm(e.clients, generator=stream(e.seed, "malicious"))[: e.n_malicious].tolist()
        )
        clients = {}
        for client, rows in enumerate(parts):
            x, y = data.x_train[rows], data.y_train[rows]
            if client in malicious:
                x, y = attack.poison(x, y, data.n_classes, stream(e.seed, "poison", client=client))
            clients[client] = ClientData(x.to(device), y.to(device))
        factory = registry.load("models", e.model.name)
        module = build_module(factory, data.input_shape, data.n_classes, stream(e.seed, "weights"), e.model.parameters)
        model, params = FlatModel.of(module)
        _check_fit(model, params, data, e.model.name)
        settings = LocalTraining(**e.local.model_dump())
        trainer = Trainer(model, settings, e.seed)
        root_data = ClientData(data.x_train[root].to(device), data.y_train[root].to(device))
        optimizer = e.server.optimizer
        server = Server(
            defense=registry.build_defense(e.defense.name, e.defense.parameters),
            layout=model.layout,
            seed=e.seed,
            assumed_malicious=e.assumed_malicious,
            learning_rate=e.server.learning_rate,
            optimizer=getattr(torch.optim, optimizer.name) if optimizer else None,
            optimizer_options=optimizer.parameters if optimizer else {},
            root=partial(RootClient, trainer, root_data),
        )
        x_test, y_test = data.x_test.to(device), data.y_test.to(device)
        triggered = None
        if isinstance(attack, Backdoor):
            rows = y_test != attack.target
            triggered = ClientData(attack.trigger(x_test[rows]), torch.full_like(y_test[rows], attack.target))
        return cls(
            experiment=e,
            server=server,
            trainer=trainer,
            clients=clients,
            malicious=malicious,
            attack=attack,
            initial=ServerState(params.to(device)),
            test=ClientData(x_test, y_test),
            triggered=triggered,
        )

    def rounds(self, state: ServerState | None = None) -> Iterator[tuple[ServerState, RoundRecord]]:
        """Every round from ``state`` on (by default from the start), with the state after it."""
        state = state or self.initial
        while state.round < self.experiment.rounds:
            state, record = self.play(state)
            yield state, record

    def play(self, state: ServerState) -> tuple[ServerState, RoundRecord]:
        """One round."""
        clock = _Clock()
        cohort = self._cohort(state.round)
        honest = self.trainer.updates(state.params, {i: self.clients[i] for i in cohort}, state.round)
        clock.lap("train")
        bad = torch.tensor([i in self.malicious for i in cohort], device=honest.device)
        matrix = self._attacked(honest, bad, state) if bad.any() else honest
        clock.lap("attack")
        updates = Updates(matrix, torch.tensor(cohort, device=matrix.device), self.trainer.model.layout)
        following, decision = self.server.step(state, updates)
        clock.lap("defend")
        accuracy, loss, success = self._evaluated(state.round, following.params)
        clock.lap("evaluate")
        result = decision.aggregate
        malicious = [i for i in cohort if i in self.malicious]
        rejected = None
        if result.accepted is not None:
            rejected = [i for i, ok in zip(cohort, result.accepted.tolist(), strict=True) if not ok]
        return following, RoundRecord(
            round=state.round,
            clients=tuple(cohort),
            malicious=tuple(malicious),
            rejected=None if rejected is None else tuple(rejected),
            screened=tuple(i for i, out in zip(cohort, decision.screened.tolist(), strict=True) if out),
            weights=tuple(_finite(w) for w in result.weights.tolist()),
            suspicion=None if result.suspicion is None else tuple(_finite(s) for s in result.suspicion.tolist()),
            update_norm=_finite(float(result.update.double().norm())),
            applied=decision.applied,
            note=decision.note,
            test_accuracy=accuracy,
            test_loss=loss,
            attack_success_rate=success,
            false_positive_rate=metrics.false_positive_rate(cohort, malicious, rejected),
            false_negative_rate=metrics.false_negative_rate(cohort, malicious, rejected),
            seconds=clock.laps,
        )

    def _cohort(self, round: int) -> list[int]:
        """Ids of the clients of this round, ascending."""
        n, k = self.experiment.clients, self.experiment.clients_per_round
        if k == n:
            return list(range(n))
        drawn: list[int] = torch.randperm(n, generator=stream(self.experiment.seed, "cohort", round))[:k].tolist()
        return sorted(drawn)

    def _attacked(self, honest: Tensor, bad: Tensor, state: ServerState) -> Tensor:
        """The updates as sent, with the attack's rows in the malicious clients' places."""
        view = AttackView(
            round=state.round,
            own=honest[bad],
            others=honest[~bad] if self.experiment.knowledge == "full" else None,
            n_clients=len(honest),
            global_params=state.params.clone(),
            generator=stream(self.experiment.seed, "attack", state.round),
            layout=self.trainer.model.layout,
        )
        crafted = self.attack.craft(view)
        if crafted.shape != view.own.shape:  # we can't know what a third party's attack returns
            raise FedSieveError(
                f"attack {self.experiment.attack.name} returned {list(crafted.shape)} instead of "
                f"{list(view.own.shape)}: one row per malicious client"
            )
        sent = honest.clone()
        sent[bad] = crafted.to(honest)
        return sent

    def _evaluated(self, round: int, params: Tensor) -> tuple[float | None, float | None, float | None]:
        """Test accuracy, test loss and attack success rate, or None where they are not due."""
        e = self.experiment
        if (round + 1) % e.evaluate_every and round + 1 < e.rounds:
            return None, None, None
        correct, loss = self._score(params, self.test)
        success = self._score(params, self.triggered)[0] if self.triggered else None
        return correct, _finite(loss), success

    def _score(self, params: Tensor, data: ClientData) -> tuple[float, float]:
        """Accuracy and mean loss."""
        # on a CPU, batches whose activations stay near the cache are twice as fast as large ones
        size = 100 if params.device.type == "cpu" and self.trainer.model.convolves else 4096
        correct, loss = 0, 0.0
        for x, y in zip(torch.split(data.x, size), torch.split(data.y, size), strict=True):
            logits = self.trainer.model.logits(params, x)
            correct += metrics.n_correct(logits, y)
            loss += metrics.total_loss(logits, y)
        return correct / max(1, len(data.y)), loss / max(1, len(data.y))


def _deal(e: Experiment, data: Dataset) -> tuple[Tensor, list[Tensor]]:
    """Rows of the training data: the root dataset's, and each client's; all disjoint."""
    if e.root.label >= data.n_classes:
        raise ParameterError(f"root.label is {e.root.label}, the classes are 0 to {data.n_classes - 1}")
    root = root_indices(data.y_train, data.n_classes, e.root.size, e.root.bias, e.root.label, stream(e.seed, "root"))
    rest = torch.ones(len(data.y_train), dtype=torch.bool)
    rest[root] = False
    rows = rest.nonzero().squeeze(1)
    partition = registry.build("partitions", e.partition.name, e.partition.parameters)
    owners = None if data.owners is None else data.owners[rows]
    parts = partition(data.y_train[rows], owners, e.clients, data.n_classes, stream(e.seed, "partition"))
    return root, [rows[part] for part in parts]


def _check_fit(model: FlatModel, params: Tensor, data: Dataset, name: str) -> None:
    """Whether the model takes the samples and gives one logit per class, before any work is done."""
    shape = list(data.input_shape)
    try:
        found = list(model.logits(params, data.x_train[:2]).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ParameterError(
            f"model {name} can't take samples of shape {shape}: {str(error).splitlines()[0]}"
        ) from error
    if found != [2, data.n_classes]:
        raise ParameterError(
            f"model {name} gives outputs of shape {found} for 2 samples of shape {shape}; "
            f"[2, {data.n_classes}] was expected, a logit for each of {data.n_classes} classes"
        )


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


class _Clock:
    """Wall time of the phases of a round, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 6), now
