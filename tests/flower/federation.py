"""A federation without a SuperLink: nodes as functions from a message to a reply."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedsieve.flower import Defended
from tests.flower.messages import as_a_server

FIRST = 2**63 + 5  # ids are unsigned integers of 64 bits
Reply = Callable[[Message], Any]


class Nodes(Grid):
    """Asks each node at once, in the order of the messages."""

    def __init__(self, ids: Sequence[int], reply: Reply) -> None:
        as_a_server()
        self.ids, self.reply = list(ids), reply

    def get_node_ids(self) -> list[int]:
        return list(self.ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Any]:
        found = (self.reply(message) for message in messages)
        return [reply for reply in found if reply is not None]

    def _nothing(self, *given: Any, **named: Any) -> Any:
        raise NotImplementedError

    run = property(_nothing)
    set_run = create_message = push_messages = pull_messages = _nothing


def ids(n: int) -> list[int]:
    return [FIRST + k for k in range(n)]


def small() -> dict[str, Tensor]:
    """A model of two parameters."""
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([0.5, -0.5])}


def normalised() -> nn.Module:
    """A model with BatchNorm: statistics, and a counter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def content(arrays: dict[str, Tensor], samples: Any = 10, **metrics: Any) -> RecordDict:
    return RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": samples, "loss": 1.0, **metrics})}
    )


def trained(message: Message, noise: float = 0.1) -> dict[str, Tensor]:
    """What an honest node sends: the model it got, moved by numbers that follow from node and round."""
    (sent,) = message.content.array_records.values()
    (config,) = message.content.config_records.values()
    node, number = message.metadata.dst_node_id, config["server-round"]
    draws = torch.Generator().manual_seed((node - FIRST) % 100_003 * 1000 + int(number))
    moved = {}
    for name, array in sent.items():
        old = torch.from_numpy(np.array(array.numpy()))
        if old.is_floating_point():
            moved[name] = old + noise * torch.randn(old.shape, generator=draws).to(old) + (0.05 if old.dim() else 0)
        else:
            moved[name] = old + 1
    return moved


def honest(message: Message) -> Message:
    if message.metadata.message_type == "evaluate":
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
    return Message(content(trained(message)), reply_to=message)


def one_round(
    defended: Defended, arrays: dict[str, Tensor], replies: Callable[[list[Message]], list[Any]], n: int = 5
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model and the metrics after a round in which ``replies`` makes the nodes' replies of the messages."""
    as_a_server()
    grid = Nodes(ids(n), honest)
    messages = list(defended.configure_train(1, ArrayRecord(arrays), ConfigRecord(), grid))
    model, metrics = defended.aggregate_train(1, replies(sorted(messages, key=lambda m: m.metadata.dst_node_id)))
    assert model is not None
    assert metrics is not None
    return dict(model.to_torch_state_dict()), dict(metrics)


def everyone(messages: list[Message]) -> list[Any]:
    return [honest(message) for message in messages]


def quiet(**options: Any) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_evaluate_nodes=0, **options)


def raw(dtype: str, shape: Sequence[int], data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype, tuple(shape), stype, data)
