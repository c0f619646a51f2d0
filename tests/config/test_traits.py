"""The traits that `fedsieve list` prints are complete, agree with the source file, and hold for the code."""

import ast
import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.core.attack import craft
from fedsieve.core.defense import Aggregate, Aggregator, Bounded, Detector, PreAggregator, Root, ServerView, Updates
from fedsieve.core.errors import BoundError, MissingDataError, ParameterError
from fedsieve.core.layout import Layout
from fedsieve.core.traits import Need
from fedsieve.models.build import build_module

DEFENSES = tuple(name for name in registry.names("defenses") if name != "fedavg")
ATTACKS = registry.names("attacks")
ALLOWED = {
    "attacks": {"defense", "benign updates"},
    "defenses": {"root data", "network", "f", "state"},
    "datasets": set(),
    "models": {"images", "text"},
    "partitions": set(),
}
EVERY = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]


def docstring(kind: str, name: str) -> str:
    """The docstring of the file with the class, on one line."""
    module = importlib.import_module(registry.load(kind, name).__module__)
    return " ".join((ast.get_docstring(ast.parse(inspect.getsource(module))) or "").split())


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_summary_and_needs(kind: str, name: str) -> None:
    traits = registry.traits(kind, name)
    assert 10 < len(traits.summary) <= 110
    assert not traits.summary.endswith(".")
    assert set(traits.needs) <= ALLOWED[kind]
    assert set().union(*ALLOWED.values()) == set(get_args(Need))


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, n in EVERY if k in ("attacks", "defenses") and n not in ("none", "fedavg")]
)
class TestDocstrings:
    """A fact stands in the traits or in the docstring, not in both: the docstring has the source and what departs."""

    def test_source(self, kind: str, name: str) -> None:
        text, paper = docstring(kind, name), registry.traits(kind, name).paper
        head = text.partition(" Variant: ")[0]
        if paper:
            author, year = re.split(r" and | et al|,", paper)[0], paper.split()[-1]
            assert letters(author) in letters(head)
            assert year in head
        else:
            assert "No publication" in head

    def test_variant_and_departs(self, kind: str, name: str) -> None:
        text = docstring(kind, name)
        assert re.search(r" Variant: \S.* Departs: \S", text)
        assert not re.search(r"\b(Needs|Breaks at|Cost): ", text)


@pytest.mark.parametrize("name", DEFENSES)
class TestDefenses:
    def test_limits_and_cost_are_stated(self, name: str) -> None:
        traits = registry.traits("defenses", name)
        assert traits.breaks_at
        assert re.search(r"O\([^)]+\)|\bn\b", traits.cost)

    def test_bound_is_checked_where_f_is_needed(self, name: str) -> None:
        stage, traits = registry.build("defenses", name, {}), registry.traits("defenses", name)
        assert isinstance(stage, Bounded) == ("f" in traits.needs) == bool(traits.bound)
        if isinstance(stage, Bounded):
            with pytest.raises(BoundError, match=f"^{re.escape(f'{name} needs {traits.bound}, got n=2 ')}"):
                stage.check(2, 1)
            stage.check(1, 0)


class Counting:
    """Root data and a network that count the calls of their methods.

    Properties are not counted: ``isinstance(counting, Root)``, with which types are checked, reads them.
    """

    input_shape = (3,)
    n_classes = 2

    def __init__(self) -> None:
        self.calls = 0

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 2

    def loss(self, flat: Tensor, /) -> Tensor:
        self.calls += 1
        return flat.square().sum()

    def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), 2 * flat

    def update(self) -> Tensor:
        self.calls += 1
        return torch.ones(8)

    def train(self, datasets: Sequence[tuple[Tensor, Tensor]], /) -> Tensor:
        self.calls += 1
        return torch.randn(len(datasets), 8, generator=torch.Generator().manual_seed(1))

    def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
        self.calls += 1
        return x @ flat[:6].view(2, 3).T + flat[6:]


LAYOUT = Layout.of({"out.weight": torch.zeros(2, 3), "out.bias": torch.zeros(2)})


def aggregate(name: str, root: Any, network: Any, f: int = 1, seed: int = 0) -> Aggregate:
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(seed))
    view = ServerView(0, f, torch.Generator().manual_seed(0), torch.zeros(8), None, root, network)
    return registry.build_defense(name, {})(Updates(x, torch.arange(9), LAYOUT), view)


def has_state(state: Any) -> bool:
    return any(has_state(part) for part in state) if isinstance(state, tuple) else state is not None


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_needs_what_it_says_and_nothing_else(name: str) -> None:
    needs = registry.traits("defenses", name).needs
    root, network = Counting(), Counting()
    assert isinstance(root, Root)
    result = aggregate(name, root, network)
    assert (root.calls > 0) == ("root data" in needs)
    assert (network.calls > 0) == ("network" in needs)
    assert has_state(result.state) == ("state" in needs)
    pairs = [[aggregate(name, root, network, f, seed).update for f in (0, 1)] for seed in range(5)]
    assert any(not torch.equal(*pair) for pair in pairs) == ("f" in needs)
    for need, given in (("root data", (None, network)), ("network", (root, None))):
        if need in needs:
            with pytest.raises(MissingDataError, match=name):
                aggregate(name, *given)
        else:
            aggregate(name, *given)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_needs_what_it_says_and_nothing_else(name: str, doubles: ModuleType) -> None:
    calls = []

    def simulate_defense(matrix: Tensor) -> Aggregate:
        calls.append(matrix.shape)
        return Aggregate(matrix.mean(dim=0), torch.full((len(matrix),), 1 / len(matrix)))

    attack = registry.build("attacks", name, {})
    own, others = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).split([3, 5])
    view = doubles.attack_view(own, others)
    craft(attack, replace(view, simulate_defense=simulate_defense), name)
    needed = "defense" in registry.needs("attacks", name, registry.complete("attacks", name, {}))
    assert bool(calls) == needed
    if needed:
        with pytest.raises(ParameterError, match=name):
            craft(attack, view, name)
    else:
        craft(attack, view, name)
    alone = replace(view, benign_updates=None, simulate_defense=simulate_defense)
    if "benign updates" in registry.needs("attacks", name, registry.complete("attacks", name, {})):
        with pytest.raises(ParameterError, match=name):
            craft(attack, alone, name)
    else:
        craft(attack, alone, name)


@pytest.mark.parametrize("name", registry.names("models"))
def test_a_model_needs_what_it_says_and_nothing_else(name: str) -> None:
    needs = registry.traits("models", name).needs

    def build(shape: tuple[int, ...], vocabulary: tuple[str, ...]) -> None:
        build_module(registry.load("models", name), shape, 3, torch.Generator(), {}, vocabulary)

    if "images" in needs:
        build((1, 12, 12), ())
        with pytest.raises(ParameterError, match=f"^{name} needs images"):
            build((7,), ())
    elif "text" in needs:
        build((7,), ("_", "?", "a"))
        with pytest.raises(ParameterError, match=f"^{name} needs text"):
            build((7,), ())
    else:
        build((7,), ())
        build((1, 12, 12), ())


def test_everything_was_looked_at() -> None:
    assert len(DEFENSES) >= 21
    assert len(ATTACKS) >= 17
    stages = [registry.build("defenses", name, {}) for name in DEFENSES]
    assert sum(isinstance(stage, Detector) for stage in stages) >= 5
    assert sum(isinstance(stage, PreAggregator) for stage in stages) >= 2
    assert sum(isinstance(stage, Aggregator) for stage in stages) >= 13
    assert {need for name in DEFENSES for need in registry.traits("defenses", name).needs} == ALLOWED["defenses"]
