"""Models as people write them: what can be trained is, the same in every run; what can't is said before round 0."""

import copy
import random
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from fedsieve.core.errors import FedSieveError
from fedsieve.federation import trial
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.simulation import Simulation
from fedsieve.models.flat import FlatModel
from fedsieve.models.forward import random_states
from tests.federation.conftest import CLASSES, CPU, MODULES, federation, made, simulation

WIDTH = 5
# 1,338 samples in parts of 148 and 149; the last batches of an epoch have 16 and 17, those of the 100 root samples 12
DIGITS: dict[str, Any] = {
    "dataset": "digits", "clients": 9, "malicious": 2, "rounds": 3, "defense": "mean", "partition": "iid",
    "attack": "sign-flip", "local": {"learning_rate": 0.1, "batch_size": 44, "epochs": 1},
}  # fmt: skip


class Plain(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(torch.Size(input_shape).numel(), WIDTH), nn.Linear(WIDTH, n_classes)

    def hidden(self, x: Tensor) -> Any:
        return self.first(x.flatten(1)).tanh()

    def forward(self, x: Tensor) -> Any:
        return self.last(self.hidden(x))


class FunctionalDropout(Plain):
    def forward(self, x: Tensor) -> Any:
        return self.last(dropout(self.hidden(x), 0.3, self.training))


class AlwaysDropout(Plain):
    def forward(self, x: Tensor) -> Any:
        return self.last(dropout(self.hidden(x), 0.3))


class Noise(Plain):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.last(h + 0.1 * torch.randn_like(h))


class StochasticDepth(Plain):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.last(h if self.training and random.random() < 0.5 else 2 * h)


class NumpyDepth(Plain):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.last(h if self.training and np.random.rand() < 0.5 else 2 * h)  # noqa: NPY002


class Branch(Plain):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.last(h / h.max() if h.max() > 0.5 else h)


class Assertion(Plain):
    def forward(self, x: Tensor) -> Any:
        assert x.max() <= 1, "pixels are in 0 to 1"
        return super().forward(x)


class Item(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) / max(0.5, x.max().item())


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Signs(Plain):
    def forward(self, x: Tensor) -> Any:
        return self.last(StraightThrough.apply(self.hidden(x)))  # type: ignore[no-untyped-call]


class WeightNorm(Plain):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.first = nn.utils.parametrizations.weight_norm(self.first)


class SpectralNorm(Plain):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.first = nn.utils.parametrizations.spectral_norm(self.first)


class Lazy(Plain):
    def __init__(self, n_classes: int) -> None:
        nn.Module.__init__(self)
        self.first, self.last = nn.LazyLinear(WIDTH), nn.LazyLinear(n_classes)


class Counting(Plain):
    """Counts and keeps its last features, which nothing depends on."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Any:
        self.steps += 1
        self.features = self.hidden(x)
        return self.last(self.features)


class Output(Plain):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


class Autocast(Plain):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class TwoNorms(Plain):
    """BatchNorm on vectors, where a last batch of one sample has no variance."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.norm = nn.SyncBatchNorm(WIDTH)

    def hidden(self, x: Tensor) -> Any:
        return self.norm(self.first(x.flatten(1))).tanh()


class Masked(Plain):
    """Rows of the image attend to those before them; a mask of -inf and an index of positions."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.qkv, self.last, self.bias = nn.Linear(8, 24), nn.Linear(64, n_classes), nn.Parameter(torch.zeros(15))
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.register_buffer("index", torch.arange(8)[:, None] - torch.arange(8) + 7)

    def hidden(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x.squeeze(1)).chunk(3, dim=-1)
        return ((q @ k.transpose(1, 2) + self.bias[self.index] + self.mask).softmax(dim=-1) @ v).flatten(1)


class FrozenBody(Plain):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.first.requires_grad_(False)


class Average(Plain):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.register_buffer("average", torch.zeros(WIDTH))

    def hidden(self, x: Tensor) -> Any:
        h = super().hidden(x)
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.9).add_(h.mean(dim=0), alpha=0.1)
        return h - self.average


class OwnNorm(Plain):
    """Running statistics in an attribute, as a textbook writes them."""

    moving: Any = 0.0

    def hidden(self, x: Tensor) -> Any:
        h = super().hidden(x)
        if self.training:
            self.moving = 0.9 * self.moving + 0.1 * h.detach().mean(dim=0)
            return h - h.mean(dim=0)
        return h - self.moving


class OwnGenerator(Plain):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Any:
        if not self.training:
            return super().forward(x)
        return super().forward(x + torch.randn(x.shape, generator=self.generator))


class Grows(Plain):
    def forward(self, x: Tensor) -> Any:
        if self.training and not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(WIDTH))
        return super().forward(x)


class Two(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), self.hidden(x)


class Squeezed(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).squeeze()


class EvenOnly(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.reshape(-1, 2, *x.shape[1:]).flatten(0, 1))


class FewerInTraining(Plain):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits[:, :4] if self.training else logits


class FailsInTraining(Plain):
    def forward(self, x: Tensor) -> Any:
        if self.training:
            raise KeyError("labels")
        return super().forward(x)


class Unbuildable(Plain):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        raise OSError("no weights.bin")


class Detached(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).detach()


class NoStatistics(Plain):
    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__(input_shape, n_classes)
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)

    def hidden(self, x: Tensor) -> Any:
        return self.norm(self.first(x.flatten(1))).tanh()


class NotANumber(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * torch.nan


@pytest.fixture
def models(doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above, as ``doubles:Name``."""
    for name, value in vars(sys.modules[__name__]).items():
        if isinstance(value, type) and issubclass(value, Plain):
            monkeypatch.setattr(doubles, name, value, raising=False)


def built(name: str, **more: Any) -> Simulation:
    return simulation({**DIGITS, "model": f"doubles:{name}"}, **more)


TRAINED = {  # and whether clients are trained together
    "Plain": True, "FunctionalDropout": False, "AlwaysDropout": False, "Noise": False, "StochasticDepth": False,
    "NumpyDepth": False, "Branch": False, "Assertion": False, "Item": False, "Signs": False, "WeightNorm": True,
    "SpectralNorm": False, "Lazy": True, "Counting": True, "Output": True, "Autocast": True, "TwoNorms": True,
    "Masked": True, "FrozenBody": True,
}  # fmt: skip


@pytest.mark.usefixtures("models")
class TestTrained:
    @pytest.mark.parametrize("name", TRAINED)
    def test_the_same_in_every_run_and_after_a_resume(self, name: str) -> None:
        sim = built(name)
        assert sim.trainer.vectorized(CPU) == TRAINED[name]
        assert sim.adversary.root[0].vectorized(CPU) == TRAINED[name]
        states, records = zip(*sim.rounds(), strict=True)
        assert not any(record.screened for record in records)
        assert all(state.server.params.isfinite().all() for state in states)
        assert not torch.equal(states[-1].server.params, sim.initial.server.params)
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        resumed = [state for state, _ in built(name).rounds(states[0])]
        assert torch.equal(resumed[-1].server.params, states[-1].server.params)

    @pytest.mark.parametrize("name", ["AlwaysDropout", "Branch", "SpectralNorm", "TwoNorms", "Masked"])
    def test_learns(self, name: str) -> None:
        local = {"batch_size": 44, "learning_rate": 1.0, "epochs": 2}
        settings = {"rounds": 6, "clients": 3, "malicious": 0, "attack": "none", "server": {"learning_rate": 1.0}}
        *_, (_, record) = built(name, local=local, **settings).rounds()
        assert record.test_accuracy > 0.5
        assert not record.screened

    @pytest.mark.parametrize(
        ("name", "defense"), [("FunctionalDropout", "skymask"), ("Branch", "fltrust"), ("TwoNorms", "sieve")]
    )
    def test_defenses_that_train_themselves(self, name: str, defense: str) -> None:
        settings: dict[str, Any] = {"rounds": 2, "defense": defense, "clients": 4, "malicious": 1, "root": {"size": 20}}
        one, two = ([state.server.params for state, _ in built(name, **settings).rounds()][-1] for _ in range(2))
        assert torch.equal(one, two)
        assert one.isfinite().all()

    def test_an_attacker_moves_no_frozen_body(self) -> None:
        sim = built("FrozenBody", attack={"name": "sign-flip", "factor": 1000})
        body = {name: value.clone() for name, value in sim.trainer.model.constants.items()}
        assert set(body) == {"first.weight", "first.bias"}
        *_, (state, _) = sim.rounds()
        assert [s.name for s in sim.trainer.model.layout.segments] == ["last.weight", "last.bias"]
        assert len(state.server.params) == (WIDTH + 1) * 10
        assert all(torch.equal(sim.trainer.model.constants[name], value) for name, value in body.items())
        x, head = sim.holdings.test.x, sim.trainer.model.layout.unflatten(state.server.params)
        hidden = (x.flatten(1) @ body["first.weight"].T + body["first.bias"]).tanh()
        expected = hidden @ head["last.weight"].T + head["last.bias"]
        torch.testing.assert_close(sim.trainer.model.logits(state.server.params, x), expected)

    def test_clients_trained_alone_or_together(self) -> None:
        """A branch that is never taken changes nothing."""
        together, alone = (built(name).trainer for name in ("Plain", "Item"))
        assert together.vectorized(CPU)
        assert not alone.vectorized(CPU)
        sim = built("Plain")
        cohort, params = sim.holdings.clients, sim.initial.server.params
        found = together.updates(params, cohort, 0)
        one_by_one = Trainer(together.model, together.settings, together.seed, vectorize=False)
        torch.testing.assert_close(one_by_one.updates(params, cohort, 0), found, rtol=1e-4, atol=1e-6)


REFUSED = {
    "Average": "model doubles:Average changes average while it trains, on which its outputs depend, but only "
    "parameters and the running statistics of torch's normalisation layers travel between clients and server",
    "OwnNorm": "model doubles:OwnNorm keeps something of each batch in an attribute while it trains, on which its ",
    "OwnGenerator": "model doubles:OwnGenerator gives different results for the same batch and seed, so no run could ",
    "Grows": "model doubles:Grows makes scale while it trains; make it when the model is built",
    "Two": "model doubles:Two can't take samples of shape [1, 8, 8]: forward returned a tuple of 2 (float32 [2, 10], "
    "float32 [2, 5]); a floating-point tensor of logits was expected, alone or as logits in a dictionary or an object",
    "EvenOnly": "model doubles:EvenOnly can't train on samples of shape [1, 8, 8]: shape '[-1, 2, 1, 8, 8]' is invalid "
    "for input of size 1088 (test_trial.py, line ",
    "FewerInTraining": "model doubles:FewerInTraining gives outputs of shape [100, 4] for 100 samples; [100, 10] was "
    "expected, a logit for each of 10 classes",
    "FailsInTraining": "model doubles:FailsInTraining can't train on samples of shape [1, 8, 8]: KeyError: 'labels' (",
    "Unbuildable": "model doubles:Unbuildable can't be built for samples of shape [1, 8, 8]: OSError: no weights.bin (",
    "Detached": "model doubles:Detached can't train on samples of shape [1, 8, 8]: element 0 of tensors does not ",
}


@pytest.mark.usefixtures("models")
class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_before_round_0(self, name: str) -> None:
        with pytest.raises(FedSieveError) as error:
            built(name)
        assert str(error.value).startswith(REFUSED[name])
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("settings", "name", "said"),
        [
            # 148 = 3 * 49 + 1
            ({"local": {"batch_size": 49, "epochs": 1}}, "NoStatistics", "; batch of 1"),
            ({"local": {"batch_size": 49, "epochs": 1}}, "Squeezed", "shape [10] for 1 samples"),
            ({"local": {"batch_size": 149, "epochs": 1}}, "EvenOnly", "; batch of 149"),  # a client's only batch
            ({"local": {"batch_size": 50}, "root": {"size": 51}}, "EvenOnly", "; batch of 51"),  # all root data
            (
                {"local": {"batch_size": 148}},
                "EvenOnly",
                "model doubles:EvenOnly can't take samples",
            ),  # 359 of the test
        ],
    )
    def test_by_a_batch_size_that_comes_later(self, settings: dict[str, Any], name: str, said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            built(name, **settings)
        assert said in str(error.value)

    def test_a_client_that_is_never_first(self) -> None:
        """What only one client's data do to the model is said with its id and the round, in one line."""
        sim = built("Assertion")
        cohort = {i: ClientData(sim.holdings.clients[i].x + (i == 4), sim.holdings.clients[i].y) for i in range(9)}
        with pytest.raises(FedSieveError) as error:
            sim.trainer.updates(sim.initial.server.params, cohort, 17)
        assert str(error.value).startswith(
            "model doubles:Assertion can't train on samples of shape [1, 8, 8]: AssertionError: pixels are in 0 to 1 ("
        )
        assert str(error.value).endswith("; batch of 44, of client 4 in round 17")

    def test_a_loss_that_is_not_finite_is_no_error(self) -> None:
        sim = built("NotANumber")
        assert sim.trainer.vectorized(CPU)
        state, record = next(sim.rounds())
        assert len(record.screened) == 9
        assert torch.equal(state.server.params, sim.initial.server.params)


class TestTrial:
    def tried(
        self, module: nn.Module, shape: tuple[int, ...], vectorize: bool | None = None
    ) -> tuple[Trainer, Trainer]:
        model, params = FlatModel.of(module)
        trainer = Trainer(model, LocalTraining(batch_size=4, epochs=1), 0, vectorize)
        data = federation(shape, {0: 9, 1: 7, 2: 3})
        batches = trial.batch_sizes(trainer, data.values())
        assert sorted({size for size, _ in batches}) == [1, 3, 4]
        return trainer, trial.tried(trainer, params, batches, [data[0].x], CLASSES)

    @pytest.mark.parametrize("name", MODULES)
    def test_our_own_models_are_trained_as_before(self, name: str) -> None:
        trainer, found = self.tried(*made(name))
        assert found is trainer
        if name not in ("cnn", "resnet20"):
            assert found.vectorized(CPU)

    @pytest.mark.parametrize("vectorize", [True, False])
    def test_a_choice_is_kept_where_it_works(self, vectorize: bool) -> None:
        trainer, found = self.tried(*made("cnn"), vectorize)
        assert found is trainer

    def test_of_a_convolution_that_cannot_be_batched(self) -> None:
        """As on a GPU, where convolutions are trained together by default."""

        class Branching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(2, CLASSES)

            def forward(self, x: Tensor) -> Any:
                h = self.conv(x).amax(dim=(2, 3))
                return self.fc(h / h.max() if h.max() > 1 else h)

        _, found = self.tried(Branching().double(), (1, 5, 5), vectorize=True)
        assert not found.vectorized(CPU)

    def test_wrong_numbers_are_not_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        together = Trainer.together
        monkeypatch.setattr(Trainer, "together", lambda *args: (2 * together(*args)[0], together(*args)[1]))
        _, found = self.tried(*made("mlp"))
        assert not found.vectorized(CPU)

    def test_nothing_is_changed(self) -> None:
        class Writing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.seen = nn.Linear(6, CLASSES).double(), 0
                self.fixed = nn.Parameter(torch.zeros(CLASSES), requires_grad=False)
                self.register_buffer("steps", torch.zeros(1))

            def forward(self, x: Tensor) -> Any:
                self.steps += 1
                self.fixed.data += 1  # unseen by autograd
                self.seen += 1
                return self.fc(x)

        module = Writing()
        model, params = FlatModel.of(module)
        before = copy.deepcopy(dict(model.constants)), params.clone(), random_states(CPU)[0], random_states(CPU)[2]
        trainer = Trainer(model, LocalTraining(batch_size=4), 0)
        data = federation((6,), {0: 9})
        trial.tried(trainer, params, trial.batch_sizes(trainer, data.values()), [data[0].x], CLASSES)
        assert all(torch.equal(model.constants[name], value) for name, value in before[0].items())
        assert torch.equal(params, before[1])
        assert (random_states(CPU)[0], random_states(CPU)[2]) == before[2:]
        assert model.module.seen == 0

    def test_each_batch_size_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module, shape = made("mlp")
        model, params = FlatModel.of(module)
        trainer = Trainer(model, LocalTraining(batch_size=4), 0)
        sizes: list[int] = []
        step = trial._step
        monkeypatch.setattr(trial, "_step", lambda *args: sizes.append(len(args[2])) or step(*args))  # type: ignore[func-returns-value]
        data = federation(shape, {k: 20 - k % 2 for k in range(50)})
        trial.tried(trainer, params, trial.batch_sizes(trainer, data.values()), [], CLASSES)
        assert sizes == [4]

    def test_a_batch_that_does_not_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*args: Any, **named: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nprocess 7")

        monkeypatch.setattr(FlatModel, "_trained", full)
        with pytest.raises(FedSieveError) as error:
            self.tried(*made("mlp"))
        assert str(error.value) == (
            "the model and one batch of 4 samples don't fit into the memory of cpu; make local.batch_size smaller"
        )


class TestBatchSizes:
    @pytest.mark.parametrize(
        ("settings", "n", "expected"),
        [
            (LocalTraining(batch_size=32), 100, {32}),
            (LocalTraining(batch_size=32, steps=5), 7, {7}),
            (LocalTraining(batch_size=32, epochs=2), 96, {32}),
            (LocalTraining(batch_size=32, epochs=2), 97, {32, 1}),
            (LocalTraining(batch_size=32, epochs=1), 7, {7}),
            (LocalTraining(batch_size=32, epochs=1), 0, set()),
        ],
    )
    def test_are_those_of_the_batches(self, settings: LocalTraining, n: int, expected: set[int]) -> None:
        assert settings.batch_sizes(n) == expected
        if n:
            assert {len(batch) for batch in settings.batches(n, torch.Generator())} == expected


class TestLateFallback:
    """A batch that can't be computed for several clients at once is computed for each; others are not affected."""

    class Rare(nn.Module):
        """Branches on data only where samples are large."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, CLASSES, dtype=torch.float64)

        def forward(self, x: Tensor) -> Any:
            return self.fc(x + torch.randn_like(x)) if x.shape[0] == 3 else self.fc(x)

    def test_is_the_same_from_any_round_on(self) -> None:
        model, params = FlatModel.of(self.Rare())
        data = federation((6,), {0: 7, 1: 8, 2: 11})  # batches of 4; the last of 3, 4 and 3
        settings = LocalTraining(learning_rate=0.1, batch_size=4, epochs=1)
        trainer = Trainer(model, settings, 0)
        assert trainer.vectorized(CPU)
        first = trainer.updates(params, data, 0)
        second = trainer.updates(params + first.mean(dim=0), data, 1)
        assert torch.equal(Trainer(model, settings, 0).updates(params + first.mean(dim=0), data, 1), second)
        alone = Trainer(model, settings, 0, vectorize=False).updates(params, data, 0)
        torch.testing.assert_close(first, alone, rtol=1e-9, atol=1e-12)
