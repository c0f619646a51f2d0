"""What is done with data before round 0: partition them, make some odd, poison the malicious clients' part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import Attack, PoisonView, Task, Triggered, poison, triggered
from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import printable
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.data.parts import Draws, Parts, Split
from fedsieve.data.root_rows import DEFAULT_SIZE, root_indices
from fedsieve.federation.clients import ClientData
from fedsieve.federation.oddities import defects_in_words, odd_in_words, odd_rows, odd_samples, with_defects
from fedsieve.federation.population import Members, dealt, made_when_asked

_KEPT = 1 << 26  # bytes of client data that are kept at least, however small the dataset is


@dataclass(frozen=True)
class Holdings:
    """All data of a simulation, by holder.

    Clients' data are made when they are asked for; about twice the bytes of the dataset are kept.

    Attributes:
        clients: Training data by client id; malicious clients' already poisoned.
        sizes: Number of samples of each client, [n]; before poisoning where malicious clients have more samples
            together than there are, which are poisoned when they take part.
        malicious: Ids of the malicious clients, in the attacker's own order: the ground truth.
        odd: Ids of the benign clients whose data are unlike the others', ascending.
        clean: Malicious clients' data before it was poisoned, by id.
        examples: Data of some clients; every number of samples in ``sizes``, and of clean data, is among them.
        root: The server's root dataset; empty where there is none.
        attacker_root: A sample of all clean data together, of the root dataset's size if there is enough, or of its
            usual size where there is none; empty without malicious clients. Of the first malicious clients where all
            together have more samples than there are.
        test: Evaluation data.
        triggered: Samples on which the backdoor's success is measured; None without a backdoor.
        reading: How the data were read and dealt out, in one line.
        names: Name of each client, of partition ``natural`` where the data have names; empty otherwise.
        test_clients: The client of each test sample, -1 where it is none's; None where that is not known.
        class_names: Name of each class.
    """

    clients: Mapping[int, ClientData]
    sizes: Int[Tensor, " n"]
    malicious: Members
    odd: tuple[int, ...]
    clean: Mapping[int, ClientData]
    examples: tuple[ClientData, ...]
    root: ClientData
    attacker_root: ClientData
    test: ClientData
    triggered: Triggered | None
    reading: str = ""
    names: tuple[str, ...] = ()
    test_clients: Int[Tensor, " M"] | None = None
    class_names: tuple[str, ...] = ()

    @property
    def middle_sizes(self) -> tuple[int, int]:
        """The lower and the upper median of all clients' numbers of samples."""
        ranked, n = self.sizes.sort().values, len(self.sizes)
        return int(ranked[(n - 1) // 2]), int(ranked[n // 2])


def distribute(e: Experiment, data: Dataset, attack: Attack, folder: Path, device: torch.device) -> Holdings:
    """Distribute ``data`` over the clients and the server, and poison the malicious clients' part.

    All malicious clients are poisoned at once, so that what can't be poisoned is said before round 0, unless they have
    more samples together than there are training samples: then the first ones, and the others when they take part.

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
    order = torch.randperm(e.clients, generator=stream(e.seed, "malicious"))
    malicious = Members(order[: e.n_malicious], e.clients)
    # from both ends, so that no attack changes who is odd
    odd = tuple(sorted(order[e.clients - (e.odd.clients or 0) :].tolist()))
    changed = odd_rows(e, data, parts, odd)
    sizes, deal = parts.sizes, dealt(parts, data.x_train.to(device), data.y_train.to(device))
    oddities = {
        client: ClientData(odd_samples(e, data, rows, client).to(device), data.y_train[rows].to(device))
        for client, rows in changed.items()
    }
    most = max(_KEPT, 2 * (data.x_train.nbytes + data.y_train.nbytes))
    honest = made_when_asked(range(e.clients), lambda k: oddities[k] if k in oddities else deal(k), most)

    def poisoned(client: int) -> ClientData:
        own, view = honest[client], PoisonView(task, malicious.index(client), stream(e.seed, "poison", client=client))
        # on the CPU, where its random numbers are
        x, y = poison(attack, own.x.cpu(), own.y.cpu(), view, e.attack.name)
        return ClientData(x.to(device), y.to(device))

    bad = made_when_asked(malicious, poisoned, most)
    clients = made_when_asked(range(e.clients), lambda k: bad[k] if k in malicious else honest[k], 0)
    clean = made_when_asked(malicious, honest.__getitem__, 0)
    first = malicious.ids[_together(sizes[malicious.ids], len(data.y_train))].tolist()
    examples = [clean[i] for i in _one_of_each(sizes[malicious.ids], malicious.ids)]
    if changed or first:
        sizes = sizes.clone()
        for client in (*changed, *first):
            sizes[client] = len(clients[client].y)
    examples = [*(clients[i] for i in _one_of_each(sizes, torch.arange(e.clients))), *examples]
    root = ClientData(*(t.to(device) for t in with_defects(e, data, root_rows)))
    shown = triggered(attack, data.x_test, data.y_test, task)
    if shown is not None:
        shown = Triggered(*(t.to(device) for t in (shown.x, shown.wanted, shown.already)))
    owners = _owners(e, data, parts)
    return Holdings(
        clients=clients,
        sizes=sizes,
        malicious=malicious,
        odd=odd,
        clean=clean,
        examples=tuple(examples),
        root=root,
        attacker_root=_sample([(i, len(parts[i])) for i in first], clean, root, len(root_rows) or DEFAULT_SIZE, e.seed),
        test=ClientData(data.x_test.to(device), data.y_test.to(device)),
        triggered=shown,
        reading=_reading(e, data, len(root_rows), _use(data, parts, changed, len(root_rows)), odd, shown),
        names=tuple(data.owner_names[k] for k in owners.tolist()) if data.owner_names and owners is not None else (),
        test_clients=None if owners is None else _test_clients(data, owners),
        class_names=tuple(data.class_names[k] if data.class_names else str(k) for k in range(data.n_classes)),
    )


def _rows(e: Experiment, data: Dataset) -> tuple[Tensor, Parts]:
    """Rows of the training data: those of the root dataset and those of each client, all disjoint."""
    root = _root_rows(e, data) if data.root_rows is None else data.root_rows
    rest = torch.ones(len(data.y_train), dtype=torch.bool)
    rest[root] = False
    rows = rest.nonzero().squeeze(1)
    partition = registry.build("partitions", e.partition.name, e.partition.parameters)
    owners = None if data.owners is None else data.owners[rows]
    parts = partition(data.y_train[rows], owners, e.clients, data.n_classes, stream(e.seed, "partition"))
    return root, (parts if isinstance(parts, Split | Draws) else Split.listed(parts)).within(rows)


def _owners(e: Experiment, data: Dataset, parts: Parts) -> Int[Tensor, " n"] | None:
    """The natural client of each client; None where clients are others."""
    if e.partition.name != "natural" or data.owners is None or not isinstance(parts, Split):
        return None
    return data.owners[parts.pool[parts.ends - 1]]  # a natural client has samples, all its own


def _test_clients(data: Dataset, owners: Int[Tensor, " n"]) -> Int[Tensor, " M"] | None:
    """The client of each test sample, given the natural client of each client; see :attr:`Holdings.test_clients`."""
    if data.test_owners is None or not len(data.test_owners):
        return None
    client = torch.full((1 + int(max(owners.max(), data.test_owners.max())),), -1)
    client[owners] = torch.arange(len(owners))
    return client[data.test_owners]


def _together(sizes: Int[Tensor, " m"], most: int) -> slice:
    """The first clients that have at most so many samples together, or the first one alone."""
    return slice(max(1, int((sizes.cumsum(0) <= most).sum())))


def _one_of_each(sizes: Int[Tensor, " k"], clients: Int[Tensor, " k"]) -> list[int]:
    """The first client with each number of samples, in the order in which they are given."""
    _, first = np.unique(sizes.numpy(), return_index=True)
    return [int(clients[k]) for k in sorted(first)]


def _use(data: Dataset, parts: Parts, changed: Mapping[int, Tensor], n_root: int) -> str:
    """How many of the training samples are used, in words."""
    used = torch.zeros(len(data.y_train), dtype=torch.bool)
    used[parts.pool] = True
    if isinstance(parts, Split):
        for client in changed:
            used[parts[client]] = False
    for rows in changed.values():
        used[rows] = True
    of = f"of {len(used)} training {'rows' if data.x_train.dim() != 4 else 'images'}"
    if isinstance(parts, Draws):
        return f"{parts.samples} samples each drawn from {int(used.sum())} {of}"
    return f"{int(used.sum()) + n_root} {of} used"


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
    e: Experiment, data: Dataset, n_root: int, use: str, odd: Sequence[int], triggered: Triggered | None
) -> str:
    """:attr:`Dataset.reading`, and how the samples were dealt out."""
    name, owner = e.partition.name, printable(data.owned_by)
    clients = f"{e.clients} clients " + (f"by {owner}" if name == "natural" and owner else f"of partition {name}")
    said = [data.reading, clients, use, f"{n_root} root samples"]
    if n_root and not _needs_root(e):
        said[-1] += f" (not needed by {e.defense.name}: root.size=0 leaves them to the clients)"
    said += [*defects_in_words(e, n_root), *odd_in_words(e, odd)]
    if triggered is not None:
        said.append("backdoor to " + ", ".join(map(data.class_name, sorted(set(triggered.wanted.tolist())))))
    return ", ".join(said)


def _sample(
    holders: Sequence[tuple[int, int]], data: Mapping[int, ClientData], like: ClientData, size: int, seed: int
) -> ClientData:
    """A sample of ``size`` of the holders' data, pooled, or all of them if there are fewer; of none, empty as ``like``.

    Args:
        holders: Clients, each with its number of samples.
        data: Their data: only those that are drawn are looked at, since there may be hundreds of thousands.
        like: What the samples are like.
        size: Number of samples.
        seed: Of the experiment.
    """
    ends = torch.tensor([0, *(n for _, n in holders)]).cumsum(0)
    drawn = torch.randperm(int(ends[-1]), generator=stream(seed, "attacker root"))[:size]
    places = torch.searchsorted(ends, drawn, right=True) - 1
    found = [
        (data[holders[k][0]], row) for k, row in zip(places.tolist(), (drawn - ends[places]).tolist(), strict=True)
    ]
    x = torch.cat([like.x[:0], *(own.x[row : row + 1] for own, row in found)])
    return ClientData(x, torch.cat([like.y[:0], *(own.y[row : row + 1] for own, row in found)]))
