"""Global generators are seeded for a forward pass, and go on afterwards as if there had been none."""

import contextlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient
from fedsieve.models.build import build_module
from fedsieve.models.flat import FlatModel
from fedsieve.models.forward import random_states, reason, seeded

CPU = torch.device("cpu")
CLASSES = 3


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002


def states() -> list[Any]:
    """Torch's and numpy's; Python's moves with every type that is checked in tests."""
    return [random_states(CPU)[k] for k in (0, 2)]


class TestSeeded:
    def test_the_seed_decides(self) -> None:
        found = []
        for seed in (3, 4, 3):
            with seeded(seed, CPU):
                found.append(draws())
        assert found[0] == found[2]
        assert not set(found[0]) & set(found[1])

    def test_generators_go_on_where_they_were(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        expected = draws(), draws()
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        found = [draws()]
        with contextlib.suppress(ZeroDivisionError), seeded(5, CPU):
            draws()
            raise ZeroDivisionError
        found.append(draws())
        assert tuple(found) == expected

    @pytest.mark.parametrize(
        "draw",
        [lambda: torch.rand(1), random.random, lambda: np.random.normal()],  # noqa: NPY002
        ids=["torch", "random", "numpy"],
    )
    def test_a_draw_is_noticed(self, draw: Any) -> None:
        with seeded(5, CPU):
            before = random_states(CPU)
            assert random_states(CPU) == before
            draw()
            assert random_states(CPU) != before


class Noisy(nn.Module):
    """Draws from ``source`` in training and in evaluation."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.fc, self.source = nn.Linear(6, CLASSES), source

    def forward(self, x: Tensor) -> Any:
        match self.source:
            case "dropout":
                x = nn.functional.dropout(x, 0.5)
            case "randn_like":
                x = x + torch.randn_like(x)
            case "bernoulli":
                x = x * torch.bernoulli(torch.full_like(x, 0.5))
            case "random":
                x = x * random.random()
            case "numpy":
                x = x * float(np.random.rand())  # noqa: NPY002
        return self.fc(x)


every_source = pytest.mark.parametrize("source", ["dropout", "randn_like", "bernoulli", "random", "numpy"])


@every_source
class TestNoise:
    def fixed(self, source: str) -> tuple[FlatModel, Tensor, Tensor, Tensor]:
        with seeded(1, CPU):
            model, flat = FlatModel.of(Noisy(source))
            return model, flat, torch.randn(8, 6), torch.arange(8) % CLASSES

    def test_is_a_function_of_the_seed(self, source: str) -> None:
        model, flat, x, y = self.fixed(source)
        before = states()
        first = [model.logits(flat, x), *model.gradient(flat, x, y), model.losses(flat[None], x, y)[0]]
        assert states() == before
        draws()
        again = [model.logits(flat, x), *model.gradient(flat, x, y), model.losses(flat[None], x, y)[0]]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(model.gradient(flat, x, y, seed=1)[1], first[2])
        assert torch.equal(model.losses(flat[None], x, y, seed=7)[0], model.gradient(flat, x, y, seed=7)[0])

    @pytest.mark.parametrize("vectorize", [None, False, True])
    def test_cohorts(self, source: str, vectorize: bool | None) -> None:
        """The default engine is a batched one, which says that it can't draw; but what Python draws it can't see."""
        model, flat, x, y = self.fixed(source)
        cohort = {0: ClientData(x[:5], y[:5]), 1: ClientData(x[3:], y[3:]), 4: ClientData(x[:5], y[:5])}
        trainer = Trainer(model, LocalTraining(learning_rate=0.1, batch_size=3, epochs=1), 0, vectorize)
        before = states()
        found = trainer.updates(flat, cohort, 2)
        assert states() == before
        draws()
        assert torch.equal(trainer.updates(flat, cohort, 2), found)
        if source not in ("random", "numpy") or vectorize is False:
            for row, client in zip(found, cohort, strict=True):
                torch.testing.assert_close(trainer.updates(flat, {client: cohort[client]}, 2)[0], row)

    def test_root_data(self, source: str) -> None:
        model, flat, x, y = self.fixed(source)
        trainer = Trainer(model, LocalTraining(), 0)
        root = RootClient(trainer, ClientData(x, y), CLASSES, flat, 3)
        loss, gradient = root.gradient(flat)
        draws()
        assert torch.equal(root.gradient(flat)[1], gradient)
        torch.testing.assert_close(root.loss(flat), loss)
        later = RootClient(trainer, ClientData(x, y), CLASSES, flat, 4)
        assert not torch.equal(later.gradient(flat)[1], gradient)


def test_initial_weights_from_any_generator() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.tensor(draws()))

        def forward(self, x: Tensor) -> Any:
            return x @ self.weights

    before = states()
    one, two = (build_module(Drawn, (3,), 1, torch.Generator().manual_seed(7), {}) for _ in range(2))
    assert states() == before
    assert torch.equal(one.weights, two.weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("first\nsecond"), "first"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("pixel"), "KeyError: 'pixel'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_reason(error: Exception, said: str) -> None:
    assert reason(error) == said
