"""The round of ``rounds.py`` in Flower's simulation: prints the seconds of each round as JSON.

Runs in an environment that has flwr with its simulation, and torch; nothing of FedSieve. The app is as lean as Flower
allows: clients map the data from one file, keep their model between messages, train one batch in channels-last memory,
and report nothing but their number of samples.

Usage: flower_side.py CLIENTS ROUNDS, with the folder of x.npy, y.npy and starts.npy in FLOWER_SIDE_FOLDER.
"""

import json
import os
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.nn.functional import cross_entropy, max_pool2d, relu


class CNN(nn.Module):
    """FedSieve's ``cnn``: two convolutional and two linear layers, 139,960 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 30, 3), nn.Conv2d(30, 50, 3)
        self.fc1, self.fc2 = nn.Linear(1250, 100), nn.Linear(100, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images [k, 1, 28, 28]."""
        x = max_pool2d(relu(self.conv1(x)), 2)
        x = max_pool2d(relu(self.conv2(x)), 2)
        return self.fc2(relu(self.fc1(x.flatten(1))))


@cache
def model() -> CNN:
    """One model for all clients of a process."""
    return CNN().to(memory_format=torch.channels_last)


@cache
def data() -> tuple[np.ndarray, ...]:
    """Samples, classes, and where each client's begin; mapped, not read."""
    folder = Path(os.environ["FLOWER_SIDE_FOLDER"])
    return tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "starts"))


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One step of SGD on one batch."""
    x, y, starts = data()
    k = int(context.node_config["partition-id"])
    module = model()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    rows = starts[k] + torch.randperm(int(starts[k + 1] - starts[k]))[:32].numpy()
    batch = torch.from_numpy(x[rows]).contiguous(memory_format=torch.channels_last)
    loss = cross_entropy(module(batch), torch.from_numpy(y[rows]))
    parameters = list(module.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.sub_(gradient, alpha=0.5)
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


server = ServerApp()
stamps: list[float] = []


def stamp(server_round: int, arrays: ArrayRecord) -> None:
    """Called by Flower before the first round and after each."""
    stamps.append(time.perf_counter())


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over all clients."""
    clients, rounds = int(sys.argv[1]), int(sys.argv[2])
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model().state_dict()), num_rounds=rounds, evaluate_fn=stamp)


if __name__ == "__main__":
    import flower_side  # by name, so that the processes of the simulation keep what is cached

    run_simulation(
        server_app=flower_side.server,
        client_app=flower_side.client,
        num_supernodes=int(sys.argv[1]),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps([b - a for a, b in zip(flower_side.stamps, flower_side.stamps[1:], strict=False)]))
