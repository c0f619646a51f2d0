"""Malicious clients for tests of a defense: a mod that changes what a Flower ClientApp sends.

It is for exercises in one's own federation. It does nothing unless it is told that this is a test, and it says in the
log, each time, that it attacks.
"""

import copy
import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from filelock import FileLock
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from jaxtyping import Float
from torch import Tensor

from fedsieve.config import registry
from fedsieve.core.attack import PoisonView, Task, poison
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.escaping import shown
from fedsieve.core.seeding import stream
from fedsieve.data.store import data_folder
from fedsieve.flower.attacker import Attacker, Knowledge, SentModel
from fedsieve.runs import files

ClientApp = Callable[[Message, Context], Message]

_LOG = logging.getLogger("flwr")
_STATE = "fedsieve.attack"  # in a client's state: what an attack remembers that knows its own update only
# Clients of this process whose data were poisoned: (run, partition).
_POISONED: set[tuple[int, int]] = set()


def attack_mod(
    name: str,
    /,
    *,
    i_am_testing: bool = False,
    malicious: Sequence[int] | None = None,
    knowledge: str = "own",
    shared: Path | str | None = None,
    seed: int = 0,
    **parameters: Any,
) -> "AttackMod":
    """A mod that makes a ClientApp malicious: ``ClientApp(mods=[attack_mod("sign-flip", i_am_testing=True)])``.

    The client trains as it always does; then the attack replaces the floats that it sends. Integers among the arrays
    (counters), metrics and other records stay. Clients are known by ``partition-id`` and ``num-partitions`` of their
    node's configuration, and rounds by the ``server-round`` that Flower's strategies send.

    A mod does not see the data. An attack that poisons them needs a line in the ClientApp: :meth:`AttackMod.poisoned`,
    called where the data are loaded.

    Args:
        name: An attack of ``fedsieve list attacks``, or ``package.module:Class``.
        i_am_testing: Must be True: this makes clients harm the model.
        malicious: Partition ids of the malicious clients; the others send what they trained. None: every client that
            has the mod, which then knows of no other.
        knowledge: ``own``: each malicious client knows its own honest update. ``partial``: those of all malicious
            clients; ``full``: those of all clients of the federation. For these two, the first malicious client of a
            round trains the others as well, by calling the ClientApp with their partition ids. It takes a ClientApp
            that can load any client's data, as in a simulation, and is exact where training depends on the
            partition, the round and the model alone.
        shared: Folder of this machine in which malicious clients leave what they send, so that they send it together;
            needed for ``partial`` and ``full``.
        seed: Decides the attack's random numbers.
        **parameters: Parameters of the attack.

    Raises:
        FedSieveError: If the attack does not exist, a parameter is wrong, the attack has no effect with what it knows,
            or a mod can't do it: one that trains or evaluates models by itself, simulates the defense, or takes new
            ids.
    """
    if i_am_testing is not True:
        raise ParameterError(
            f"attack_mod makes clients send the attack {shown(name)} in place of their updates; "
            "if the federation is yours and this is a test, pass i_am_testing=True"
        )
    if knowledge not in get_args(Knowledge):
        raise ParameterError(f"knowledge must be {', '.join(get_args(Knowledge))}, got {shown(knowledge)}")
    ids = None if malicious is None else tuple(malicious)
    if ids is not None and not (ids and len(set(ids)) == len(ids) and all(type(i) is int and i >= 0 for i in ids)):
        raise ParameterError(f"malicious must hold at least one partition id, from 0, each once; got {shown(ids)}")
    if knowledge == "own" and shared is not None:
        raise ParameterError("shared has no effect with knowledge=own; set knowledge=partial or full")
    if knowledge != "own" and (ids is None or shared is None):
        raise ParameterError(
            f"with knowledge={knowledge} malicious clients act together: give their partition ids as malicious, and as "
            "shared a folder of this machine for what they send"
        )
    needs = registry.needs("attacks", name, registry.complete("attacks", name, parameters))
    if "benign updates" in needs and knowledge != "full":
        raise ParameterError(f"attack {name} must see the benign updates; grant them with knowledge=full")
    if "defense" in needs:
        raise ParameterError(f"a mod can't do attack {name}: a client has no defense, model and data to try it on")
    attacker = Attacker(registry.build("attacks", name, parameters), name, ids, cast(Knowledge, knowledge), seed)
    attacker.check()
    return AttackMod(attacker, None if shared is None else Path(shared))


@dataclass(frozen=True)
class AttackMod:
    """The mod that :func:`attack_mod` makes.

    Attributes:
        attacker: Who controls the malicious clients.
        shared: Where they leave what they send; None if each acts alone.
    """

    attacker: Attacker
    shared: Path | None

    def __call__(self, message: Message, context: Context, call_next: ClientApp) -> Message:
        """Let the client answer; if it is malicious, replace what it trained.

        Raises:
            FedSieveError: If the node's configuration or the message lacks what the attack needs. Flower makes it an
                error reply of this client.
        """
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        client, n = _place(context)
        if self.attacker.member(client, n) is None:
            return call_next(message, context)
        model, at = SentModel.of(_arrays(message, "the message")), _round(message)
        given = copy.deepcopy(message) if self.shared else message  # a client may write to what it is given
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        name = self.attacker.name
        if self.attacker.poisons and (context.run_id, client) not in _POISONED:
            raise ParameterError(
                f"attack {name} poisons training data, which a mod does not see: call mod.poisoned(x, y, context, "
                "n_classes) where the ClientApp loads them"
            )
        trained = _arrays(reply, "the reply")
        honest = model.update(trained)

        def train(other: int) -> Float[Tensor, " d"]:
            """The honest update of another client."""
            if other == client:
                return honest
            stand_in = copy.copy(context)
            stand_in.node_config = {**context.node_config, "partition-id": other}
            stand_in.state = type(context.state)()
            found = call_next(copy.deepcopy(given), stand_in)
            if found.has_error():
                raise FedSieveError(f"attack {name} needs the update of client {other}: {found.error.reason}")
            return model.update(_arrays(found, "the reply"))

        if self.shared is None:
            row = self._alone(model, honest, client, n, at, context)
        else:
            row = self._together(model, train, client, n, at, context.run_id)
        _LOG.warning("red-team exercise: client %d sends attack %s in round %d", client, name, at + 1)
        if not torch.equal(row, honest):
            key = next(iter(reply.content.array_records))
            reply.content[key] = model.changed(trained, row)
        return reply

    def poisoned(self, x: Any, y: Any, context: Context, n_classes: int) -> tuple[Any, Any]:
        """The training data of a client, poisoned if it is malicious and the attack poisons data.

        Args:
            x: Samples, a tensor [k, ...].
            y: Their classes, a tensor [k].
            context: That of the ClientApp.
            n_classes: Classes are 0 to ``n_classes - 1``.

        Raises:
            FedSieveError: If the attack can't poison such data.
        """
        attacker, (client, n) = self.attacker, _place(context)
        member = attacker.member(client, n)
        if member is None or not attacker.poisons:
            return x, y
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and len(x) == len(y) > 0):
            raise ParameterError(
                f"poisoned takes tensors, samples x [k, ...] and classes y [k], got {type(x).__name__} of length "
                f"{len(x)} and {type(y).__name__} of length {len(y)}"
            )
        task = Task(n_classes, data_folder(), None, float(x.max()))
        view = PoisonView(task, member, stream(attacker.seed, "poison", client=client))
        found = poison(attacker.attack, x, y, view, attacker.name)
        _POISONED.add((context.run_id, client))
        return found

    def _alone(
        self, model: SentModel, honest: Float[Tensor, " d"], client: int, n: int, at: int, context: Context
    ) -> Float[Tensor, " d"]:
        """What a client sends that knows its own update only, [d]."""
        kept = context.state.config_records.get(_STATE)
        memory = None if kept is None else _loaded(kept["memory"])
        crafted = self.attacker.crafted(model, honest[None].clone(), [client], n, at, memory)
        if crafted.memory is not None:
            context.state[_STATE] = ConfigRecord({"memory": _saved(crafted.memory)})
        return crafted.updates[0]

    def _together(
        self, model: SentModel, train: Callable[[int], Tensor], client: int, n: int, at: int, run: int
    ) -> Float[Tensor, " d"]:
        """What a client sends that acts with others, [d]: the first one of a round crafts it for all."""
        assert self.shared is not None
        assert self.attacker.malicious is not None
        bad = sorted(self.attacker.malicious)
        who = hashlib.sha256(repr(self.attacker).encode()).hexdigest()[:16]
        file = self.shared.absolute() / f"{run}-{who}.pt"
        sent = hashlib.sha256(model.params.numpy().tobytes()).hexdigest()
        with files.one_line(f"use the shared folder {self.shared}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                known = _loaded(file.read_bytes()) if file.exists() else {}
                if (known.get("round"), known.get("model")) != (at, sent):
                    ids = [*bad, *(i for i in range(n) if i not in bad and self.attacker.knowledge == "full")]
                    rows = torch.stack([train(i) for i in ids])
                    crafted = self.attacker.crafted(model, rows, ids, n, at, known.get("memory"))
                    known = {"round": at, "model": sent, "rows": crafted.updates, "memory": crafted.memory}
                    files.write(file, _saved(known))
        row: Tensor = known["rows"][bad.index(client)]
        return row


def _place(context: Context) -> tuple[int, int]:
    """Partition id of a client, and the number of all clients."""
    found = [context.node_config.get(key) for key in ("partition-id", "num-partitions")]
    try:
        client, n = (int(str(value)) for value in found)
    except ValueError:
        client, n = -1, 0
    if not 0 <= client < n:
        raise ParameterError(
            "attack_mod knows clients by partition-id and num-partitions of their node's configuration, which are "
            f"{found[0]} and {found[1]}; start the node with --node-config 'partition-id=0 num-partitions=10'"
        )
    return client, n


def _round(message: Message) -> int:
    """The round of a message, from 0."""
    found = [record.get("server-round") for record in message.content.config_records.values()]
    numbers = [value for value in found if isinstance(value, int) and value > 0]
    if not numbers:
        raise ParameterError("attack_mod needs the round: the message has no server-round, as Flower's strategies send")
    return numbers[0] - 1


def _arrays(message: Message, what: str) -> ArrayRecord:
    """The one ArrayRecord of a message."""
    found = list(message.content.array_records.values())
    if len(found) != 1:
        raise ParameterError(f"attack_mod changes one ArrayRecord; {what} has {len(found)}")
    return found[0]


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _loaded(content: Any) -> Any:
    return torch.load(io.BytesIO(content), weights_only=True)
