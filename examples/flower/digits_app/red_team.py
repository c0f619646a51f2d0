"""For exercises only: nodes that misbehave. Nothing happens unless the run is started with `red-team=true`.

In a simulation the first `attackers` share of the partitions misbehave as `attack` says, and act together. In a
deployment each node is told for itself, `flower-supernode --node-config 'attack="label-flip" ...'`, and acts alone. A
real attacker runs what it likes; that the app carries these is so that a defense can be tried before it is needed.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

FAULTS = ("garbage", "slow")


def attack(context: Context) -> str:
    """What this node does in this run: "none", unless it is malicious."""
    run, node = context.run_config, context.node_config
    if not run["red-team"]:
        return "none"
    if "attack" in node:
        return str(node["attack"])
    return str(run["attack"]) if int(node["partition-id"]) < _malicious(context) else "none"


def poisoned(x: Tensor, y: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """The node's training data, as an attack on data has them; unchanged for everybody else."""
    if attack(context) in ("none", *FAULTS):
        return x, y
    return _attack_mod(context).poisoned(x, y, context, n_classes=10)


def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower's hook around a client: the reply is changed, delayed or replaced here."""
    name = attack(context)
    server_round = int(message.content["config"]["server-round"])
    if name == "slow" and server_round % 6 == 0:
        time.sleep(1.3 * float(context.run_config["round-timeout"]))
    if name in ("none", "slow"):
        return call_next(message, context)
    if name == "garbage":
        return garbage(call_next(message, context), message, server_round)
    return _attack_mod(context)(message, context, call_next)


def _malicious(context: Context) -> int:
    return round(float(context.run_config["attackers"]) * int(context.node_config["num-partitions"]))


def _attack_mod(context: Context) -> Any:
    """The mod of this package for any attack by name; imported only where it is used."""
    from fedsieve.flower import attack_mod

    if "attack" in context.node_config:
        return attack_mod(attack(context), i_am_testing=True)
    together = Path(tempfile.gettempdir()) / "digits-app-red-team"
    return attack_mod(
        attack(context),
        i_am_testing=True,
        malicious=range(_malicious(context)),
        knowledge="partial",
        shared=together,
    )


def garbage(reply: Message, message: Message, server_round: int) -> Message:
    """A malformed reply, of another kind in each round."""
    if reply.has_error():
        return reply
    arrays = {name: array.numpy() for name, array in reply.content["arrays"].items()}
    metrics = dict(reply.content["metrics"])
    first = next(iter(arrays))
    match server_round % 8:
        case 0:
            raise RuntimeError("the client crashed")
        case 1:
            arrays = {name: np.full_like(array, np.nan) for name, array in arrays.items()}
        case 2:
            arrays[first] = arrays[first].reshape(-1)[:3]
        case 3:
            arrays = {f"module.{name}": array for name, array in arrays.items()}
        case 4:
            arrays = {name: np.full_like(array, 1e30) for name, array in arrays.items()}
        case 5:
            metrics["num-examples"] = [1, 2, 3]
            del arrays[first]
        case 6:
            arrays = {name: array.astype(np.int64) for name, array in arrays.items()}
            metrics["num-examples"] = 10**9
        case _:
            return Message(content=RecordDict(), reply_to=message)
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return Message(content=RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)
