"""The simulator: the only place that knows who is malicious. Drives clients, attack and server, round by round."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsieve import metrics, registry
from fedsieve.clients import ClientData, LocalTraining, RootClient, RunnableModel, Trainer
from fedsieve.clustering import gram_components, one_blas_thread
from fedsieve.data.dataset import Dataset
from fedsieve.data.partition import root_indices
from fedsieve.experiment import Experiment
from fedsieve.models.flat import FlatModel, build_module
from fedsieve.ops import centred_gram
from fedsieve.optim import optimizers
from fedsieve.seeding import stream
from fedsieve.server import Server, ServerState
from fedsieve.types import (
    Aggregate,
    Attack,
    AttackView,
    Backdoor,
    Defense,
    Diagnosis,
    DiagnosisRecord,
    FedSieveError,
    Layout,
    ParameterError,
    PoisonView,
    RoundRecord,
    ServerView,
    Task,
    Triggered,
    Updates,
)


@dataclass(frozen=True)
class Simulation:
    """A federation ready to run.

    Attributes:
        experiment: What was asked for.
        server: The server's half of a round.
        trainer: The clients' half.
        root_trainer: The same for root models: where clients run epochs, as many steps as the median client takes.
        n_classes: Of the task.
        clients: Training data by client id; malicious clients' already poisoned.
        malicious: The ground truth: their ids, in the attacker's own order.
        clean: Malicious clients' data as it was before they poisoned it.
        attacker_root: As much of that, all together, as the server has root data; empty without malicious clients.
        attack: What they do.
        initial: The state before round 0.
        test: Evaluation data.
        triggered: What the backdoor's success is measured on; None without a backdoor.
    """

    experiment: Experiment
    server: Server
    trainer: Trainer
    root_trainer: Trainer
    n_classes: int
    clients: dict[int, ClientData]
    malicious: tuple[int, ...]
    clean: dict[int, ClientData]
    attacker_root: ClientData
    attack: Attack
    initial: ServerState
    test: ClientData
    triggered: Triggered | None

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
        task = Task(data.n_classes, folder, data.encode)
        malicious = tuple(torch.randperm(e.clients, generator=stream(e.seed, "malicious"))[: e.n_malicious].tolist())
        clients = {
            client: ClientData(data.x_train[rows].to(device), data.y_train[rows].to(device))
            for client, rows in enumerate(parts)
        }
        clean = {client: clients[client] for client in malicious}
        for member, client in enumerate(malicious):
            rows = parts[client]
            seen = PoisonView(task, member, stream(e.seed, "poison", client=client))
            x, y = attack.poison(data.x_train[rows], data.y_train[rows], seen)
            clients[client] = ClientData(x.to(device), y.to(device))
        factory = registry.load("models", e.model.name)
        module = build_module(
            factory,
            data.input_shape,
            data.n_classes,
            stream(e.seed, "weights"),
            e.model.parameters,
            data.vocabulary,
        )
        model, params = FlatModel.of(module)
        _check_fit(model, params, data, e.model.name)
        settings = LocalTraining(**e.local.model_dump(exclude={"batch_norm"}))
        trainer = Trainer(model, settings, e.seed)
        # the root model takes as many steps as a client does, however few samples it has for them
        root_trainer = Trainer(model, settings.as_many_steps([len(c.y) for c in clients.values()]), e.seed)
        root_data = ClientData(data.x_train[root].to(device), data.y_train[root].to(device))
        optimizer = e.server.optimizer
        server = Server(
            defense=registry.build_defense(e.defense.name, e.defense.parameters),
            layout=model.layout,
            seed=e.seed,
            assumed_malicious=e.assumed_malicious,
            learning_rate=e.server.learning_rate,
            optimizer=optimizers()[optimizer.name] if optimizer else None,
            optimizer_options=optimizer.parameters if optimizer else {},
            root=partial(RootClient, root_trainer, root_data, data.n_classes),
            network=RunnableModel(model, data.input_shape),
        )
        triggered = attack.triggered(data.x_test, data.y_test, task) if isinstance(attack, Backdoor) else None
        if triggered is not None:
            triggered = Triggered(*(t.to(device) for t in (triggered.x, triggered.wanted, triggered.already)))
        params = params.to(device)
        personal = None
        if e.local.batch_norm == "local":
            coordinates = model.normalisation
            if not len(coordinates):
                raise ParameterError(f"local.batch_norm is local, but model {e.model.name} has no BatchNorm layer")
            personal = params[coordinates].repeat(e.clients, 1)
        return cls(
            experiment=e,
            server=server,
            trainer=trainer,
            root_trainer=root_trainer,
            n_classes=data.n_classes,
            clients=clients,
            malicious=malicious,
            clean=clean,
            attacker_root=_sample(list(clean.values()), root_data, stream(e.seed, "attacker root")),
            attack=attack,
            initial=ServerState(params, personal=personal),
            test=ClientData(data.x_test.to(device), data.y_test.to(device)),
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
        honest, personal = self._trained(cohort, state)
        clock.lap("train")
        bad = torch.tensor([i in self.malicious for i in cohort], device=honest.device)
        matrix, attacker = self._attacked(honest, cohort, bad, state) if bad.any() else (honest, state.attacker)
        clock.lap("attack")
        if personal is not None:  # no update of these is sent, not even by an attack
            matrix[:, self.trainer.model.normalisation] = 0
        updates = Updates(matrix, torch.tensor(cohort, device=matrix.device), self.trainer.model.layout)
        following, decision = self.server.step(replace(state, personal=personal, attacker=attacker), updates)
        clock.lap("defend")
        accuracy, loss, success, success_all = self._evaluated(following)
        clock.lap("evaluate")
        result = decision.aggregate
        diagnosis = None if result.diagnosis is None else _recorded(result.diagnosis, matrix, ~decision.screened)
        clock.lap("record")
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
            attack_success_rate_all=success_all,
            false_positive_rate=metrics.false_positive_rate(cohort, malicious, rejected),
            false_negative_rate=metrics.false_negative_rate(cohort, malicious, rejected),
            diagnosis=diagnosis,
            seconds=clock.laps,
        )

    def _cohort(self, round: int) -> list[int]:
        """Ids of the clients of this round, ascending."""
        n, k = self.experiment.clients, self.experiment.clients_per_round
        if k == n:
            return list(range(n))
        drawn: list[int] = torch.randperm(n, generator=stream(self.experiment.seed, "cohort", round))[:k].tolist()
        return sorted(drawn)

    def _trained(self, cohort: list[int], state: ServerState) -> tuple[Tensor, Tensor | None]:
        """Everybody's honest update, and what clients then keep to themselves."""
        data = {i: self.clients[i] for i in cohort}
        if state.personal is None:
            return self.trainer.updates(state.params, data, state.round), None
        own = {i: state.personal[i] for i in cohort}
        honest = self.trainer.updates(state.params, data, state.round, own)
        coordinates, personal = self.trainer.model.normalisation, state.personal.clone()
        personal[cohort] = state.params[coordinates] + honest[:, coordinates]
        return honest, personal

    def _attacked(self, honest: Tensor, cohort: list[int], bad: Tensor, state: ServerState) -> tuple[Tensor, Any]:
        """The updates as sent, with the attack's rows in the malicious clients' places; and what the attacker keeps."""
        e = self.experiment
        # copies: what an attack writes to must be nobody else's
        params = state.params.clone()
        root = RootClient(self.root_trainer, self.attacker_root, self.n_classes, params, state.round)
        here = [i for i in cohort if i in self.malicious]
        poisoned, clean = ({i: data[i] for i in here} for data in (self.clients, self.clean))
        rehearsal = _Rehearsal(
            self.server.defense,
            self.trainer.model.layout,
            torch.tensor(here + [i for i in cohort if i not in self.malicious], device=honest.device),
            ServerView(
                state=state.attacker,
                round=state.round,
                n_malicious=e.assumed_malicious,
                generator=stream(e.seed, "rehearsal", state.round),
                global_params=params,
                root=root,
                network=self.server.network,
            ),
        )
        view = AttackView(
            round=state.round,
            own=honest[bad],
            others=honest[~bad] if e.knowledge == "full" else None,
            n_clients=len(honest),
            global_params=params,
            generator=stream(e.seed, "attack", state.round),
            layout=self.trainer.model.layout,
            members=torch.tensor([self.malicious.index(i) for i in here]),
            train=_Practice(self.trainer, poisoned, clean, state.round),
            root=root,
            rehearse=rehearsal if e.knows_defense else None,
        )
        crafted = self.attack.craft(view)
        if crafted.shape != view.own.shape:  # we can't know what a third party's attack returns
            raise FedSieveError(
                f"attack {e.attack.name} returned {list(crafted.shape)} instead of "
                f"{list(view.own.shape)}: one row per malicious client"
            )
        sent = honest.clone()
        sent[bad] = crafted.to(honest)
        if not rehearsal.asked or view.others is None:
            return sent, state.attacker
        return sent, rehearsal(torch.cat([sent[bad], view.others])).state

    def _evaluated(self, state: ServerState) -> tuple[float | None, float | None, float | None, float | None]:
        """Test accuracy, test loss and both attack success rates after a round; None where they are not due."""
        e = self.experiment
        if state.round % e.evaluate_every and state.round < e.rounds:
            return None, None, None, None
        params = state.params
        if state.personal is not None:
            benign = [i for i in range(e.clients) if i not in self.malicious]
            params = params.clone()
            params[self.trainer.model.normalisation] = state.personal[benign or slice(None)].mean(dim=0)
        right, losses = self._scores(params, self.test.x, self.test.y)
        scores = metrics.rate(right), _finite(losses)
        if self.triggered is None:
            return *scores, None, None
        hit, _ = self._scores(params, self.triggered.x, self.triggered.wanted)
        return *scores, metrics.rate(hit[~self.triggered.already]), metrics.rate(hit)

    def _scores(self, params: Tensor, x_all: Tensor, y_all: Tensor) -> tuple[Tensor, float]:
        """Which samples are classified right, and the mean loss."""
        # on a CPU, batches whose activations stay near the cache are twice as fast as large ones
        size = 100 if params.device.type == "cpu" and self.trainer.model.convolves else 4096
        right, loss = [y_all[:0].bool()], 0.0
        for x, y in zip(torch.split(x_all, size), torch.split(y_all, size), strict=True):
            if len(y):
                logits = self.trainer.model.logits(params, x)
                right.append(metrics.correct(logits, y))
                loss += metrics.total_loss(logits, y)
        return torch.cat(right), loss / max(1, len(y_all))


@dataclass(frozen=True)
class _Practice:
    """Training at the malicious clients, whose data are all it holds. Implements :class:`fedsieve.types.Training`."""

    trainer: Trainer
    poisoned: dict[int, ClientData]
    clean: dict[int, ClientData]
    round: int

    def __call__(self, start: Tensor, /, *, poisoned: bool = True, proximal: float = 0.0) -> Tensor:
        trainer = self.trainer
        if proximal:
            trainer = replace(trainer, settings=replace(trainer.settings, proximal=proximal))
        return trainer.updates(start, self.poisoned if poisoned else self.clean, self.round)


@dataclass
class _Rehearsal:
    """The server's defense as the attacker can run it: on its own data, with its own memory, twice the same.

    The memory is of clients by their ids, so a matrix of other clients than the round's is judged without.
    """

    defense: Defense
    layout: Layout
    ids: Tensor
    view: ServerView
    asked: bool = False

    def __call__(self, matrix: Tensor) -> Aggregate:
        self.asked = True
        view, ids = replace(self.view, generator=self.view.generator.clone_state()), self.ids
        if len(matrix) != len(ids):
            view, ids = replace(view, state=None), torch.arange(len(matrix), device=matrix.device)
        return self.defense(Updates(matrix, ids, self.layout), view)


def _recorded(diagnosis: Diagnosis, matrix: Float[Tensor, "n d"], finite: Bool[Tensor, " n"]) -> DiagnosisRecord:
    """Rounded to what an eye can see, since there is one a round; beside it, where the updates themselves lie."""

    def rows(x: Tensor, digits: int) -> list[tuple[float | None, ...]]:
        return [tuple(_finite(round(v, digits)) for v in row) for row in x.tolist()]

    sent = matrix[finite]
    with one_blas_thread():
        plane = gram_components(centred_gram(sent, finite[finite]), 2)
    raw: list[tuple[float | None, float | None]] = [(None, None)] * len(matrix)
    for row, (x, y) in zip(finite.nonzero().squeeze(1).tolist(), plane.tolist(), strict=True):
        raw[row] = (_finite(float(f"{x:.4g}")), _finite(float(f"{y:.4g}")))
    # components count parameters, so that whole ones are fine enough
    return DiagnosisRecord(
        coordinates=tuple((x, y) for x, y in rows(diagnosis.coordinates, 1)),
        root=None
        if diagnosis.root is None
        else (round(float(diagnosis.root[0]), 1), round(float(diagnosis.root[1]), 1)),
        layers=diagnosis.layers,
        kept=tuple(rows(diagnosis.kept, 3)),
        reasons=diagnosis.reasons,
        updates=tuple(raw),
    )


def _sample(parts: list[ClientData], like: ClientData, generator: torch.Generator) -> ClientData:
    """As many samples of ``parts``, drawn from all together, as ``like`` has, if there are so many."""
    x = torch.cat([part.x for part in parts] or [like.x[:0]])
    y = torch.cat([part.y for part in parts] or [like.y[:0]])
    rows = torch.randperm(len(y), generator=generator)[: len(like.y)].to(y.device)
    return ClientData(x[rows], y[rows])


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
        text = "; for text there is lstm" if data.vocabulary else ""
        raise ParameterError(
            f"model {name} can't take samples of shape {shape}: {str(error).splitlines()[0]}{text}"
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
