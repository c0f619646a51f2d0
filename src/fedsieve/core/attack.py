"""What an attacker sees and does. Data attacks and update attacks are two protocols; an attack may be both."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.core.contract import check_state
from fedsieve.core.defense import Aggregate, Root
from fedsieve.core.direct import described
from fedsieve.core.errors import StageError
from fedsieve.core.escaping import shown
from fedsieve.core.layout import Layout
from fedsieve.core.rows import both


@dataclass(frozen=True)
class Task:
    """The learning task, as every client knows it.

    Attributes:
        n_classes: Classes are 0 to ``n_classes - 1``.
        folder: Where data files lie; an attack may bring samples of its own from there.
        encode: Raw samples in the form of the dataset's files (images: uint8 [k, height, width, channels]; text: a
            list of strings) to inputs of the model; None where the dataset has no such form.
        largest: Largest value in the training samples, such as 1 or 255 for a white pixel.
    """

    n_classes: int
    folder: Path
    encode: Callable[[Any], Tensor] | None = None
    largest: float = 1.0


@dataclass(frozen=True)
class PoisonView:
    """All that one malicious client knows when it poisons its data, before round 0.

    Attributes:
        task: The learning task.
        member: Index of the client among the malicious ones, from 0; the same in every round.
        generator: The only source of randomness.
    """

    task: Task
    member: int
    generator: torch.Generator


@runtime_checkable
class Training(Protocol):
    """Local training at the malicious clients, each on its own data."""

    def __call__(
        self, start: Float[Tensor, " d"], /, *, poisoned: bool = True, proximal: float = 0.0
    ) -> Float[Tensor, "m d"]:
        """``local_params - start`` of each malicious client, trained from ``start`` with the experiment's settings.

        Args:
            start: Model to start from, [d]; where BatchNorm layers are personal, each client has its own values there.
            poisoned: Whether to train on the data that :meth:`DataAttack.poison` returned, or on the original data;
                personal BatchNorm values on the latter are those that the client would have without the attack.
            proximal: Weight of half the squared distance to ``start``, added to the loss.
        """
        ...


@dataclass(frozen=True)
class AttackView:
    """All that the attacker may know in one round; what the threat model does not grant is None.

    Attributes:
        round: Counts from 0.
        malicious_updates: What the malicious clients would send if they trained as benign clients do (on data that
            :meth:`DataAttack.poison` may have changed), [m, d].
        benign_updates: The benign clients' updates, [b, d], if granted.
        n_clients: Clients in this round, malicious ones included.
        global_params: The model all clients received, [d].
        generator: The only source of randomness.
        layout: What the coordinates mean.
        members: :attr:`PoisonView.member` of each row of ``malicious_updates``, [m].
        train: Local training on the malicious clients' data.
        root: The malicious clients' clean data, pooled and cut to the size of the root dataset: the attacker's
            estimate of it.
        simulate_defense: The server's defense, if granted: its result for n updates, malicious ones first, with
            ``root`` as root data and random numbers of the attacker's own. It has a memory of earlier rounds if the
            attacker sees the benign updates.
        memory: What the attack returned as :attr:`Crafted.memory` in the last round in which it took part; None before.
        benign_ids: Client ids of the rows of ``benign_updates``, [b]; None where these are not granted.
        on_samples: What ``root`` offers (losses, gradients and training at the global model), for any samples
            [k, *input_shape] and classes [k] of the attacker's choice.
    """

    round: int
    malicious_updates: Float[Tensor, "m d"]
    benign_updates: Float[Tensor, "b d"] | None
    n_clients: int
    global_params: Float[Tensor, " d"]
    generator: torch.Generator
    layout: Layout
    members: Int[Tensor, " m"]
    train: Training
    root: Root
    simulate_defense: Callable[[Float[Tensor, "n d"]], Aggregate] | None = None
    memory: Any = None
    benign_ids: Int[Tensor, " b"] | None = None
    on_samples: Callable[[Tensor, Int[Tensor, " k"]], Root] | None = None

    @property
    def known_updates(self) -> Float[Tensor, "k d"]:
        """Every honestly trained update that the attacker has seen: malicious clients' first, then benign ones'."""
        if self.benign_updates is None:
            return self.malicious_updates
        return both(self.malicious_updates, self.benign_updates)


@runtime_checkable
class DataAttack(Protocol):
    """Changes the malicious clients' training data."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """The poisoned data of one malicious client, made before round 0 from ``x`` [k, ...] and ``y`` [k]."""
        ...


@dataclass(frozen=True)
class Crafted:
    """What an attack returns that remembers something from round to round.

    Attributes:
        updates: What the malicious clients send, one row each, [m, d].
        memory: Handed back in the next round's view: tensors, numbers, text and None in lists, tuples and dicts.
    """

    updates: Float[Tensor, "m d"]
    memory: Any = None


@runtime_checkable
class UpdateAttack(Protocol):
    """Changes the malicious clients' updates."""

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"] | Crafted:
        """What the malicious clients send, one row each; with a memory if the attack has one."""
        ...


Attack = DataAttack | UpdateAttack


@runtime_checkable
class Fitted(Protocol):
    """An attack with parameters that don't fit every model."""

    def check_layout(self, layout: Layout, /) -> None:
        """Raise :class:`fedsieve.core.errors.ParameterError` where they don't fit this one; asked before round 0."""
        ...


@runtime_checkable
class Identities(Protocol):
    """An attack whose malicious clients leave and come back under new client ids, as if they were new clients."""

    def identity(self, member: int, round: int, /) -> int:
        """How many client ids a malicious client has used up before ``round``; 0 is the id that it was given first.

        A function of its arguments alone; it never falls from round to round, and rises by at most 1.

        Args:
            member: :attr:`PoisonView.member` of the client.
            round: Counts from 0.
        """
        ...


def parts(attack: Attack) -> list[Attack]:
    """The attacks that an attack is made of: those which its class names in ``parts``. Most have none."""
    found: list[Attack] = []
    for name in getattr(type(attack), "parts", None) or ():
        part = getattr(attack, name, None)
        found += part if isinstance(part, list | tuple) else [] if part is None else [part]
    return found


def poison(attack: Attack, x: Tensor, y: Tensor, view: PoisonView, name: str = "") -> tuple[Tensor, Tensor]:
    """One malicious client's data under ``attack``; unchanged unless it is a data attack.

    Args:
        attack: The attack. It gets copies.
        x: Samples, [k, ...].
        y: Their classes, [k].
        view: What the client knows.
        name: Name of the attack for the error message; by default that of its class.

    Raises:
        StageError: If the attack returns other things than samples of the same shape and type, and their classes.
    """
    if not isinstance(attack, DataAttack):
        return x, y
    found, name = attack.poison(x.clone(), y.clone(), view), name or type(attack).__name__
    pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)
    if not pair or found[0].shape[1:] != x.shape[1:] or found[0].dtype != x.dtype or found[1].dtype != y.dtype:
        said = " and ".join(map(described, found)) if isinstance(found, tuple) else described(found)
        raise StageError(f"attack {name} returned {said}, expected samples {described(x)} and classes {described(y)}")
    samples, classes = found
    if not 0 < len(samples) == len(classes) or classes.dim() != 1:
        raise StageError(
            f"attack {name} returned samples {described(samples)} and classes {described(classes)}: one each, k > 0"
        )
    if not 0 <= int(classes.min()) <= int(classes.max()) < view.task.n_classes:
        raise StageError(
            f"attack {name} returned classes {int(classes.min())} to {int(classes.max())}, "
            f"there are 0 to {view.task.n_classes - 1}"
        )
    return samples.detach(), classes


def craft(attack: Attack, view: AttackView, name: str) -> Crafted:
    """What the malicious clients send under ``attack``; their honest updates unless it is an update attack.

    Args:
        attack: The attack.
        view: What the attacker knows.
        name: Name of the attack for the error message.

    Raises:
        StageError: If the attack returns something else than floats, one row per malicious client, or a memory that a
            checkpoint can't hold.
    """
    honest = view.malicious_updates
    if not isinstance(attack, UpdateAttack):
        return Crafted(honest)
    returned: Any = attack.craft(view)
    rows, memory = (returned.updates, returned.memory) if isinstance(returned, Crafted) else (returned, None)
    # one row would otherwise be broadcast to all clients
    if not isinstance(rows, Tensor) or rows.shape != honest.shape or not rows.is_floating_point():
        raise StageError(
            f"attack {name} returned {described(rows)} instead of {described(honest)}: one row per malicious client"
        )
    check_state(f"attack {name}", memory, "memory")
    return Crafted(rows.detach().to(honest), memory)


def identity(attack: Attack, member: int, round: int, name: str = "") -> int:
    """How many client ids a malicious client has used up before ``round``; 0 unless the attack changes ids.

    An attack that is made of others asks the one that acts for this client.

    Args:
        attack: The attack.
        member: :attr:`PoisonView.member` of the client.
        round: Counts from 0.
        name: Name of the attack for the error message; by default that of its class.

    Raises:
        StageError: If the attack returns something else than an integer in 0 to ``round``.
    """
    if not isinstance(attack, Identities):
        return 0
    used: Any = attack.identity(member, round)
    if not isinstance(used, int) or isinstance(used, bool) or not 0 <= used <= round:
        raise StageError(
            f"attack {name or type(attack).__name__} returned {shown(used)} as the number of ids that malicious client "
            f"{member} has used up before round {round}, expected an integer in 0 to {round}"
        )
    return used


@dataclass(frozen=True)
class Triggered:
    """Inputs on which the success of a backdoor is measured.

    Attributes:
        x: Samples with the trigger, [k, ...].
        wanted: The class the attacker wants for each, [k].
        already: Which of them belong to that class anyway, [k].
    """

    x: Tensor
    wanted: Int[Tensor, " k"]
    already: Bool[Tensor, " k"]


@runtime_checkable
class Backdoor(Protocol):
    """An attack that wants inputs with a trigger to be classified as a class of its choice."""

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered | None:
        """Samples to measure success on, made from the test data or brought along; None without a backdoor."""
        ...


def triggered(attack: Attack, x: Tensor, y: Int[Tensor, " k"], task: Task) -> Triggered | None:
    """Samples on which the success of ``attack`` is measured; None unless it is a backdoor."""
    return attack.triggered(x, y, task) if isinstance(attack, Backdoor) else None
