"""What is done with data before round 0: partition them, make some odd, poison the malicious clients' part."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import Attack, PoisonView, Task, Triggered, poison, triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import printable
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.data.root_rows import DEFAULT_SIZE, root_indices
from fedsieve.federation.clients import ClientData
from fedsieve.federation.oddities import defects_in_words, odd_in_words, odd_rows, odd_samples, with_defects


@dataclass(frozen=True)
class Holdings:
    """All data of a simulation, by holder.

    Attributes:
        clients: Training data by client id; malicious clients' already poisoned.
        malicious: Ids of the malicious clients, in the attacker's own order: the ground truth.
        odd: Ids of the benign clients whose data are unlike the others', ascending.
        clean: Malicious clients' data before it was poisoned, by id.
        root: The server's root dataset; empty where there is none.
        attacker_root: A sample of all clean data together, of the root dataset's size if there is enough, or of its
            usual size where there is none; empty without malicious clients.
        test: Evaluation data.
        triggered: Samples on which the backdoor's success is measured; None without a backdoor.
        reading: How the data were read and dealt out, in one line.
    """

    clients: dict[int, ClientData]
    malicious: tuple[int, ...]
    odd: tuple[int, ...]
    clean: dict[int, ClientData]
    root: ClientData
    attacker_root: ClientData
    test: ClientData
    triggered: Triggered | None
    reading: str = ""


def distribute(e: Experiment, data: Dataset, attack: Attack, folder: Path, device: torch.device) -> Holdings:
    """Distribute ``data`` over the clients and the server, and poison the malicious clients' part.

    Args:
        e: The experiment.
        data: The dataset.
        attack: May poison data and may have a backdoor.
        folder: Folder of data files, from which an attack may read samples of its own.
        device: Where to put all data.

    Raises:
        FedSieveError: If the data can't be distributed as the experiment says.
    """
    root_rows, parts = _rows(e, data)
    task = Task(data.n_classes, folder, data.encode, float(data.x_train.max()))
    order: list[int] = torch.randperm(e.clients, generator=stream(e.seed, "malicious")).tolist()
    # from both ends, so that no attack changes who is odd
    malicious, odd = tuple(order[: e.n_malicious]), tuple(sorted(order[e.clients - (e.odd.clients or 0) :]))
    parts = odd_rows(e, data, parts, odd)
    clients = {
        client: ClientData(data.x_train[rows].to(device), data.y_train[rows].to(device))
        for client, rows in enumerate(parts)
    }
    for client in odd:
        clients[client] = ClientData(odd_samples(e, data, parts[client], client).to(device), clients[client].y)
    clean = {client: clients[client] for client in malicious}
    for member, client in enumerate(malicious):
        rows = parts[client]
        view = PoisonView(task, member, stream(e.seed, "poison", client=client))
        x, y = poison(attack, data.x_train[rows], data.y_train[rows], view, e.attack.name)
        clients[client] = ClientData(x.to(device), y.to(device))
    root = ClientData(*(t.to(device) for t in with_defects(e, data, root_rows)))
    shown = triggered(attack, data.x_test, data.y_test, task)
    if shown is not None:
        shown = Triggered(*(t.to(device) for t in (shown.x, shown.wanted, shown.already)))
    return Holdings(
        clients=clients,
        malicious=malicious,
        odd=odd,
        clean=clean,
        root=root,
        attacker_root=_sample(
            list(clean.values()), root, len(root_rows) or DEFAULT_SIZE, stream(e.seed, "attacker root")
        ),
        test=ClientData(data.x_test.to(device), data.y_test.to(device)),
        triggered=shown,
        reading=_reading(e, data, len(root_rows), len(torch.unique(torch.cat(parts))), odd, shown),
    )


def _rows(e: Experiment, data: Dataset) -> tuple[Tensor, list[Tensor]]:
    """Rows of the training data: those of the root dataset and those of each client, all disjoint."""
    root = _root_rows(e, data)
    rest = torch.ones(len(data.y_train), dtype=torch.bool)
    rest[root] = False
    rows = rest.nonzero().squeeze(1)
    partition = registry.build("partitions", e.partition.name, e.partition.parameters)
    owners = None if data.owners is None else data.owners[rows]
    parts = partition(data.y_train[rows], owners, e.clients, data.n_classes, stream(e.seed, "partition"))
    return root, [rows[part] for part in parts]


def _root_rows(e: Experiment, data: Dataset) -> Tensor:
    """Rows of the root dataset.

    It is taken whether the defense needs it or not, so that all defenses are compared on the same clients; where the
    data can't give it and nothing needs it, there is none.
    """
    needed = _needs_root(e)
    if e.root.label >= data.n_classes:
        raise ParameterError(f"root.label is {e.root.label}, the classes are 0 to {data.n_classes - 1}")
    if e.root.size == 0:
        if needed:
            raise ParameterError(f"root.size is 0, but defense {e.defense.name} needs root data; set it above 0")
        return torch.zeros(0, dtype=torch.long)
    given, name = (e.root.size, e.root.bias, e.root.label), data.class_name
    try:
        return root_indices(data.y_train, data.n_classes, *given, stream(e.seed, "root"), data.owners, name)
    except ParameterError as error:
        if needed or e.root.size is not None:
            why = f" (defense {e.defense.name} needs root data)" if needed else ""
            raise ParameterError(f"{error}{why}") from error
        return torch.zeros(0, dtype=torch.long)


def _needs_root(e: Experiment) -> bool:
    """Whether a stage of the defense needs root data."""
    stages = [stage.strip() for stage in e.defense.name.split(",")]
    given = e.defense.parameters
    of = {stages[0]: given} if len(stages) == 1 else {stage: given.get(stage, {}) for stage in stages}
    return any("root data" in registry.needs("defenses", stage, parameters) for stage, parameters in of.items())


def _reading(
    e: Experiment, data: Dataset, n_root: int, n_used: int, odd: tuple[int, ...], triggered: Triggered | None
) -> str:
    """:attr:`Dataset.reading`, and how the samples were dealt out."""
    name, owner = e.partition.name, printable(data.owned_by)
    clients = f"{e.clients} clients " + (f"by {owner}" if name == "natural" and owner else f"of partition {name}")
    total, noun = len(data.y_train), "rows" if data.x_train.dim() != 4 else "images"
    said = [data.reading, clients, f"{n_used + n_root} of {total} training {noun} used", f"{n_root} root samples"]
    if n_root and not _needs_root(e):
        said[-1] += f" (not needed by {e.defense.name}: root.size=0 leaves them to the clients)"
    said += [*defects_in_words(e, n_root), *odd_in_words(e, odd)]
    if triggered is not None:
        said.append("backdoor to " + ", ".join(map(data.class_name, sorted(set(triggered.wanted.tolist())))))
    return ", ".join(said)


def _sample(parts: list[ClientData], like: ClientData, size: int, generator: torch.Generator) -> ClientData:
    """A sample of ``size`` of ``parts``, pooled, or all of them if there are fewer; of none, empty as ``like``."""
    x = torch.cat([part.x for part in parts] or [like.x[:0]])
    y = torch.cat([part.y for part in parts] or [like.y[:0]])
    rows = torch.randperm(len(y), generator=generator)[:size].to(y.device)
    return ClientData(x[rows], y[rows])
