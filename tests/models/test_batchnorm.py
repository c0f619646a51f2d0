"""BatchNorm layers that get a single value per channel use their running statistics and leave them unchanged."""

import copy
import math
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsieve.config.experiment import Experiment
from fedsieve.core.seeding import stream
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.simulation import Simulation
from fedsieve.models.flat import FlatModel

SEED, ROUND, CLASSES = 5, 3, 3
CPU = torch.device("cpu")


class Vectors(nn.Module):
    """BatchNorm1d on [b, c]."""

    shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Sequences(nn.Module):
    """BatchNorm1d on [b, c, length]."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.shape = (2, length)
        self.conv, self.norm, self.fc = nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.Linear(4 * length, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.norm(self.conv(x)).tanh().flatten(1))


class Images(nn.Module):
    """BatchNorm2d on maps of ``side`` x ``side``, then on maps of 1 x 1; the second layer alone gets single values."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.shape = (2, side, side)
        self.conv1, self.norm1 = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3)
        self.conv2, self.norm2 = nn.Conv2d(3, 4, side), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.norm2(self.conv2(self.norm1(self.conv1(x)).tanh())).tanh().flatten(1))


class Volumes(nn.Module):
    """BatchNorm3d on volumes of one voxel."""

    shape = (2, 1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv3d(2, 4, 1), nn.BatchNorm3d(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.norm(self.conv(x)).tanh().flatten(1))


# Modules, and which of their BatchNorm layers get a single value per channel from a single sample.
KINDS: dict[str, tuple[nn.Module, set[str]]] = {
    "vectors": (Vectors(), {"layers.1"}),
    "sequences of one": (Sequences(1), {"norm"}),
    "sequences": (Sequences(3), set()),
    "pixels": (Images(1), {"norm1", "norm2"}),
    "images": (Images(2), {"norm2"}),
    "voxels": (Volumes(), {"norm"}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str) -> tuple[nn.Module, set[str]]:
    """The module in float64 with weights and running statistics that are zero or one nowhere."""
    module, single = copy.deepcopy(KINDS[kind][0]).double(), KINDS[kind][1]
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=noise, dtype=torch.float64))
    return module, single


def drawn(module: Any, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(k, *module.shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (k,), generator=generator)


def by_torch(module: nn.Module, single: set[str], x: Tensor, y: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy after one training pass and backward; the ``single`` layers in evaluation mode if there is one sample."""
    module = copy.deepcopy(module).train()
    for name, layer in module.named_modules():
        if name in single and len(x) == 1:
            layer.eval()
    loss = cross_entropy(module(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    return module, loss.detach()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class TestOneBatch:
    @every_kind
    @pytest.mark.parametrize("k", [1, 2])
    def test_gradient_and_statistics(self, kind: str, k: int) -> None:
        module, single = made(kind)
        model, flat = FlatModel.of(module)
        x, y = drawn(module, k)
        expected, expected_loss = by_torch(module, single, x, y)
        loss, gradient = model.gradient(flat, x, y)
        close(loss, expected_loss)
        close(model.losses(flat[None], x, y)[0], expected_loss)
        trained = {name: p.grad for name, p in expected.named_parameters()}
        found = model.layout.unflatten(gradient)
        for name, value in trained.items():
            assert value is not None
            close(found[name], value)
        _, moved = model.gradient_and_statistics(flat, x, y)
        statistics = dict(expected.named_buffers())
        names = [s.name for s in model.layout.segments if s.start >= model.layout.n_parameters]
        close(moved, torch.cat([statistics[name].flatten() for name in names]))

    @every_kind
    def test_statistics_of_single_values_stay(self, kind: str) -> None:
        module, single = made(kind)
        model, flat = FlatModel.of(module)
        parameters, statistics = model.split(model.tensors(flat))
        _, moved = model.training_loss(parameters, statistics, *drawn(module, 1))
        for name, value in moved.items():
            assert torch.equal(value, statistics[name]) == (name.rpartition(".")[0] in single)

    @every_kind
    def test_a_single_sample_does_not_change_the_next_batch(self, kind: str) -> None:
        module, _ = made(kind)
        model, flat = FlatModel.of(module)
        fresh = model.gradient_and_statistics(flat, *drawn(module, 5))
        model.gradient_and_statistics(flat, *drawn(module, 1))
        after = model.gradient_and_statistics(flat, *drawn(module, 5))
        assert all(torch.equal(a, b) for a, b in zip(fresh, after, strict=True))

    @every_kind
    def test_of_vectors_and_pixels_it_is_evaluation(self, kind: str) -> None:
        module, single = made(kind)
        model, flat = FlatModel.of(module)
        x, y = drawn(module, 1)
        in_evaluation = cross_entropy(model.logits(flat, x), y)
        norms = {name for name, layer in module.named_modules() if "BatchNorm" in type(layer).__name__}
        assert torch.allclose(model.losses(flat[None], x, y)[0], in_evaluation, rtol=1e-9) == (single == norms)

    def test_the_architecture_can_be_sent_to_another_process(self) -> None:
        module, _ = made("vectors")
        model, flat = FlatModel.of(module)
        sent = pickle.loads(pickle.dumps(model))  # noqa: S301
        x, y = drawn(module, 1)
        assert torch.equal(sent.gradient(flat, x, y)[1], model.gradient(flat, x, y)[1])


class TestCohorts:
    @every_kind
    @pytest.mark.parametrize("vectorize", [True, False])
    @pytest.mark.parametrize(
        ("settings", "sizes"),
        [
            (LocalTraining(learning_rate=0.1, batch_size=4, steps=3), {0: 1, 1: 1, 2: 6}),  # clients of one sample
            (LocalTraining(learning_rate=0.1, batch_size=4, epochs=2), {0: 9, 1: 5, 2: 8}),  # last batches of one
            (LocalTraining(learning_rate=0.1, batch_size=1, steps=2, momentum=0.9), {0: 3, 1: 2}),
        ],
        ids=["clients", "last-batches", "batches"],
    )
    def test_both_engines_train_as_torch(
        self, kind: str, vectorize: bool, settings: LocalTraining, sizes: dict[int, int]
    ) -> None:
        module, single = made(kind)
        model, flat = FlatModel.of(module)
        data = {k: ClientData(*drawn(module, size, seed=k)) for k, size in sizes.items()}
        found = Trainer(model, settings, SEED, vectorize).updates(flat, data, ROUND)
        for row, (client, samples) in zip(found, data.items(), strict=True):
            plain = copy.deepcopy(module)
            optimizer = torch.optim.SGD(plain.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
            for batch in settings.batches(len(samples.y), stream(SEED, "batches", ROUND, client)):
                after, _ = by_torch(plain, single, samples.x[batch], samples.y[batch])
                for p, q in zip(plain.parameters(), after.parameters(), strict=True):
                    p.grad = q.grad
                plain.load_state_dict({**dict(plain.named_parameters()), **dict(after.named_buffers())})
                optimizer.step()
            expected = FlatModel.of(plain)[1] - flat
            torch.testing.assert_close(row, expected, rtol=1e-7, atol=1e-10)


class SmallNormed(nn.Module):
    """Linear layers with BatchNorm between them, on flattened samples."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, n_classes),
        )

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class TestFederations:
    @pytest.fixture
    def settings(self, doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setattr(doubles, "SmallNormed", SmallNormed, raising=False)
        return {
            "dataset": "digits",
            "model": "doubles:SmallNormed",
            "clients": 8,
            "malicious": 2,
            "attack": "label-flip",
            "rounds": 2,
            "local": {"learning_rate": 0.1},
        }

    def run(self, settings: dict[str, Any]) -> list[Any]:
        records = [record for _, record in Simulation.of(Experiment.of(settings), Path("none"), CPU).rounds()]
        assert all(record.test_loss is not None and record.test_loss < 10 for record in records)
        assert not any(record.screened for record in records)
        return records

    @pytest.mark.parametrize(
        ("defense", "size"),
        [
            ("sieve", 1),
            ("sieve", 10),
            ("sieve", 15),
            ("skymask", 1),
            ("skymask", 10),
            ("skymask-nr", 1),
            ("fltrust", 1),
        ],
    )
    def test_one_root_sample_of_a_class(self, settings: dict[str, Any], defense: str, size: int) -> None:
        """Of ten samples each class has one, of 15 some have one and others two; one is a single sample in all."""
        records = self.run({**settings, "defense": defense, "root": {"size": size}})
        assert len(records) == 2
        assert all(record.applied or record.rejected for record in records)

    def test_last_batches_of_one_sample(self, settings: dict[str, Any]) -> None:
        # 1,438 training samples less 100 root samples, in parts of 167 and 168 for 8 clients
        local = {"learning_rate": 0.1, "batch_size": 83, "epochs": 2}
        records = self.run({**settings, "defense": "mean", "partition": "iid", "local": local})
        assert records[-1].test_accuracy > records[0].test_accuracy > 0.1

    def test_clients_of_one_sample(self, settings: dict[str, Any]) -> None:
        partition = {"name": "dirichlet", "alpha": 0.05, "min_samples": 1}
        e = Experiment.of({**settings, "defense": "mean", "clients": 30, "malicious": 6, "partition": partition})
        simulation = Simulation.of(e, Path("none"), CPU)
        assert min(len(data.y) for data in simulation.holdings.clients.values()) == 1
        assert all(record.applied for _, record in simulation.rounds())
