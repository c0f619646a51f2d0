"""Models, data and simulations that the tests of several files use."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsieve.config.experiment import Experiment
from fedsieve.core.records import RoundRecord
from fedsieve.core.seeding import stream
from fedsieve.federation.clients import ClientData, LocalTraining
from fedsieve.federation.simulation import Simulation
from fedsieve.models.cnn import CNN
from fedsieve.models.flat import FlatModel
from fedsieve.models.logistic_regression import LogisticRegression
from fedsieve.models.mlp import MLP
from fedsieve.models.resnet20 import ResNet20

# --- Simulations --------------------------------------------------------------------------------------------

CPU = torch.device("cpu")
NOWHERE = Path("no such folder")
TINY: dict[str, Any] = {"dataset": "doubles:Tiny", "defense": "mean", "rounds": 4, "evaluate_every": 1}
DIGITS: dict[str, Any] = {"dataset": "digits", "clients": 8, "malicious": 2, "rounds": 2, "defense": "mean"}


def simulation(settings: dict[str, Any], **more: Any) -> Simulation:
    return Simulation.of(Experiment.of({**settings, **more}), NOWHERE, CPU)


def timeless(records: list[RoundRecord]) -> list[RoundRecord]:
    """The records without their wall times."""
    assert all(record.seconds for record in records)
    return [dataclasses.replace(record, seconds={}) for record in records]


def records_of(settings: dict[str, Any], **more: Any) -> list[RoundRecord]:
    return timeless([record for _, record in simulation(settings, **more).rounds()])


# --- Local training -----------------------------------------------------------------------------------------

SEED, ROUND, CLASSES = 7, 3, 4
PLAIN = LocalTraining(learning_rate=0.3, batch_size=4, steps=3)
# clients with fewer samples than a batch, as many, and more
SIZES = {5: 9, 0: 3, 9: 4, 2: 11, 7: 2}


def normed() -> nn.Module:
    """BatchNorm on vectors, where a batch has no second axis to average over."""
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))


MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "logistic-regression": (lambda: LogisticRegression((6,), CLASSES), (6,)),
    "mlp": (lambda: MLP((6,), CLASSES, hidden=(7, 5)), (6,)),
    "batchnorm": (normed, (6,)),
    "cnn": (lambda: CNN((1, 10, 11), CLASSES, hidden=9), (1, 10, 11)),
    "resnet20": (lambda: ResNet20((2, 8, 8), CLASSES), (2, 8, 8)),
}


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The module, in float64, with weights that depend on nothing else."""
    build, shape = MODULES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build().double(), shape


def federation(shape: tuple[int, ...], sizes: Mapping[int, int]) -> dict[int, ClientData]:
    found = {}
    for client, size in sizes.items():
        g = stream(SEED, "test data", client=client)
        x = torch.randn(size, *shape, generator=g, dtype=torch.float64)
        found[client] = ClientData(x, torch.randint(CLASSES, (size,), generator=g))
    return found


def normalised_over_the_batch(logits: Tensor, y: Tensor) -> Tensor:
    """The loss ``batch`` from its formula: the softmax of each class's logits over the samples."""
    terms = []
    for k, c in enumerate(y.tolist()):
        column = logits[:, c]
        terms.append(column.exp().sum().log() - column[k])
    return torch.stack(terms).mean()


def by_hand(
    module: nn.Module, data: ClientData, settings: LocalTraining, client: int, round: int = ROUND
) -> dict[str, Tensor]:
    """One client's training as a PyTorch user would write it: the tensors afterwards minus those before."""
    loss = cross_entropy if settings.loss == "cross-entropy" else normalised_over_the_batch
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(
        module.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )
    generator = stream(SEED, "batches", round, client)
    n, size = len(data.y), settings.batch_size
    batches: list[Tensor] = []
    if settings.epochs is None:
        batches += [torch.randperm(n, generator=generator)[:size] for _ in range(settings.steps)]
    else:
        for _ in range(settings.epochs):
            order = torch.randperm(n, generator=generator)
            batches += [order[start : start + size] for start in range(0, n, size)]
    for batch in batches:
        optimizer.zero_grad()
        loss(module(data.x[batch]), data.y[batch]).backward()
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        if settings.clip_value is not None:
            torch.nn.utils.clip_grad_value_(module.parameters(), settings.clip_value)
        for name, p in module.named_parameters():  # the gradient of proximal / 2 |p - start|^2
            assert p.grad is not None
            p.grad += settings.proximal * (p.detach() - before[name])
        optimizer.step()
    return {k: v - before[k] for k, v in module.state_dict().items()}


def assert_by_hand(
    found: Float[Tensor, "n d"],
    model: FlatModel,
    module: nn.Module,
    data: Mapping[int, ClientData],
    settings: LocalTraining,
) -> None:
    assert len(found) == len(data) > 0
    for row, (client, own) in zip(found, data.items(), strict=True):
        expected = by_hand(module, own, settings, client)
        tensors = model.layout.unflatten(row)
        assert len(tensors) >= 2
        assert set(tensors) == {k for k in expected if not k.endswith("num_batches_tracked")}
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        assert row.norm() > 1e-3
