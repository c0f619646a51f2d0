"""What is done with data before round 0: partition them, poison the malicious clients' part."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import Attack, Backdoor, PoisonView, Task, Triggered, poison
from fedsieve.core.errors import ParameterError
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.data.partition import root_indices
from fedsieve.federation.clients import ClientData


@dataclass(frozen=True)
class Holdings:
    """All data of a simulation, by holder.

    Attributes:
        clients: Training data by client id; malicious clients' already poisoned.
        malicious: Ids of the malicious clients, in the attacker's own order: the ground truth.
        clean: Malicious clients' data before it was poisoned, by id.
        root: The server's root dataset.
        attacker_root: A sample of all clean data together, of the root dataset's size if there is enough; empty without
            malicious clients.
        test: Evaluation data.
        triggered: Samples on which the backdoor's success is measured; None without a backdoor.
    """

    clients: dict[int, ClientData]
    malicious: tuple[int, ...]
    clean: dict[int, ClientData]
    root: ClientData
    attacker_root: ClientData
    test: ClientData
    triggered: Triggered | None


def distribute(e: Experiment, data: Dataset, attack: Attack, folder: Path, device: torch.device) -> Holdings:
    """Distribute ``data`` over the clients and the server, and poison the malicious clients' part.

    Args:
        e: The experiment.
        data: The dataset.
        attack: May poison data and may have a backdoor.
        folder: Folder of data files, from which an attack may read samples of its own.
        device: Where to put all data.
    """
    root_rows, parts = _rows(e, data)
    task = Task(data.n_classes, folder, data.encode)
    malicious = tuple(torch.randperm(e.clients, generator=stream(e.seed, "malicious"))[: e.n_malicious].tolist())
    clients = {
        client: ClientData(data.x_train[rows].to(device), data.y_train[rows].to(device))
        for client, rows in enumerate(parts)
    }
    clean = {client: clients[client] for client in malicious}
    for member, client in enumerate(malicious):
        rows = parts[client]
        view = PoisonView(task, member, stream(e.seed, "poison", client=client))
        x, y = poison(attack, data.x_train[rows], data.y_train[rows], view)
        clients[client] = ClientData(x.to(device), y.to(device))
    root = ClientData(data.x_train[root_rows].to(device), data.y_train[root_rows].to(device))
    triggered = attack.triggered(data.x_test, data.y_test, task) if isinstance(attack, Backdoor) else None
    if triggered is not None:
        triggered = Triggered(*(t.to(device) for t in (triggered.x, triggered.wanted, triggered.already)))
    return Holdings(
        clients=clients,
        malicious=malicious,
        clean=clean,
        root=root,
        attacker_root=_sample(list(clean.values()), root, stream(e.seed, "attacker root")),
        test=ClientData(data.x_test.to(device), data.y_test.to(device)),
        triggered=triggered,
    )


def _rows(e: Experiment, data: Dataset) -> tuple[Tensor, list[Tensor]]:
    """Rows of the training data: those of the root dataset and those of each client, all disjoint."""
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


def _sample(parts: list[ClientData], like: ClientData, generator: torch.Generator) -> ClientData:
    """A sample of ``parts``, pooled, of the size of ``like``, or all of them if there are fewer."""
    x = torch.cat([part.x for part in parts] or [like.x[:0]])
    y = torch.cat([part.y for part in parts] or [like.y[:0]])
    rows = torch.randperm(len(y), generator=generator)[: len(like.y)].to(y.device)
    return ClientData(x[rows], y[rows])
