"""What `fedsieve list` says of attacks and defenses is what their files say and what they do."""

import ast
import importlib
import inspect
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve import registry
from fedsieve.types import (
    Aggregate,
    Bounded,
    BoundError,
    Defense,
    Filter,
    Layout,
    MissingDataError,
    Objective,
    ServerView,
    Traits,
    Updates,
    Witnesses,
)

DEFENSES = tuple(name for name in registry.names("defenses") if name != "fedavg")
ATTACKS = registry.names("attacks")
NEEDS = ("root data", "network", "f", "state")


def told(kind: str, name: str) -> dict[str, str]:
    """The fields of the file's docstring: Variant, Departs, Needs, Breaks at, Cost; and what stands above them."""
    module = importlib.import_module(registry.load(kind, name).__module__)
    text = ast.get_docstring(ast.parse(inspect.getsource(module))) or ""
    parts = re.split(r"\b(Variant|Departs|Needs|Breaks at|Cost): ", " ".join(text.split()))
    return {"head": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9^+]", "", text.lower())


@pytest.mark.parametrize("name", DEFENSES)
class TestDefenses:
    def test_file_and_traits_agree(self, name: str) -> None:
        fields, traits = told("defenses", name), registry.traits("defenses", name)
        assert fields["Variant"]
        assert fields["Departs"]
        needs = fields["Needs"].partition(".")[0]
        assert {n for n in needs.split(", ") if n != "nothing"} == set(traits.needs)
        assert fields["Breaks at"]
        costs = re.findall(r"O\([^)]*\)", traits.cost.replace(" ", "")) or [traits.cost.replace(" ", "")]
        assert all(cost in fields["Cost"].replace(" ", "") for cost in costs)

    def test_paper_is_the_files(self, name: str) -> None:
        head, paper = letters(told("defenses", name)["head"]), registry.traits("defenses", name).paper
        author, year = re.split(r" and | et al|,", paper)[0], paper.split()[-1]
        assert letters(author) in head
        assert year in head

    def test_bound_is_checked_where_f_is_needed(self, name: str) -> None:
        stage, traits = registry.build("defenses", name, {}), registry.traits("defenses", name)
        assert isinstance(stage, Bounded) == ("f" in traits.needs)
        if isinstance(stage, Bounded):
            assert traits.bound
            with pytest.raises(BoundError, match=re.escape(traits.bound)):
                stage.check(2, 1)
            stage.check(1, 0)


class Counting:
    """Root data and a network that note that they were asked."""

    input_shape = (3,)

    def __init__(self) -> None:
        self.asked = 0

    def loss(self, flat: Tensor, /) -> Tensor:
        self.asked += 1
        return flat.square().sum()

    def gradient(self, flat: Tensor, objective: Objective = "cross-entropy", /) -> tuple[Tensor, Tensor]:
        return self.loss(flat), 2 * flat

    def update(self) -> Tensor:
        self.asked += 1
        return torch.ones(8)

    def witnesses(self) -> Witnesses:
        self.asked += 1
        drawn = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)).split([1, 20, 5, 4])
        classes, folds = torch.arange(20) % 2, torch.arange(20) % 5
        return Witnesses(drawn[0][0], drawn[1], classes, folds, drawn[2], drawn[3], complete=True)

    def logits(self, flat: Tensor, x: Tensor, /) -> Tensor:
        self.asked += 1
        return x @ flat[:6].view(2, 3).T + flat[6:]


LAYOUT = Layout.of({"out.weight": torch.zeros(2, 3), "out.bias": torch.zeros(2)})


def aggregate(name: str, root: Any, network: Any, f: int = 1, seed: int = 0) -> Aggregate:
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(seed))
    view = ServerView(0, f, torch.Generator().manual_seed(0), torch.zeros(8), None, root, network)
    return registry.build_defense(name, {})(Updates(x, torch.arange(9), LAYOUT), view)


def has_state(state: Any) -> bool:
    return any(has_state(part) for part in state) if isinstance(state, tuple) else state is not None


@pytest.mark.parametrize("name", DEFENSES)
def test_needs_what_it_says_and_nothing_else(name: str) -> None:
    needs = registry.traits("defenses", name).needs
    assert set(needs) <= set(NEEDS)
    root, network = Counting(), Counting()
    result = aggregate(name, root, network)
    assert (root.asked > 0) == ("root data" in needs)
    assert (network.asked > 0) == ("network" in needs)
    assert has_state(result.state) == ("state" in needs)
    pairs = [[aggregate(name, root, network, f, seed).update for f in (0, 1)] for seed in range(5)]
    assert any(not torch.equal(*pair) for pair in pairs) == ("f" in needs)
    for need, given in (("root data", (None, network)), ("network", (root, None))):
        if need in needs:
            with pytest.raises(MissingDataError, match=name):
                aggregate(name, *given)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_say_where_they_are_from(name: str) -> None:
    fields, traits = told("attacks", name), registry.traits("attacks", name)
    assert traits.summary
    assert set(traits.needs) <= {"data", "updates", "defense"}
    if name == "none":
        return
    assert fields["Variant"]
    assert fields["Departs"]
    if traits.paper:
        head = letters(fields["head"])
        assert letters(re.split(r" and | et al|,", traits.paper)[0]) in head
        assert traits.paper.split()[-1] in head
    else:
        assert "publi" in fields["head"].lower()  # says that there is no publication


def test_everything_was_looked_at() -> None:
    assert len(DEFENSES) >= 20
    assert len(ATTACKS) >= 17
    kinds = [registry.build("defenses", name, {}) for name in DEFENSES]
    assert sum(isinstance(stage, Filter) for stage in kinds) >= 4
    assert sum(isinstance(stage, Defense) for stage in kinds) >= 13
    assert replace(Traits(summary="x"), bound="y").bound == "y"
