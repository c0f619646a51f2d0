"""Sleepers: honest to the bit before their start, the attack from it on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.scaling import Scaling
from fedsieve.attacks.sign_flip import SignFlip
from fedsieve.attacks.sleeper import Sleeper
from fedsieve.config import registry
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import FedSieveError


def never(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("honest updates that are known are not trained again")


class TestBefore:
    def test_honest_updates_as_they_are(self, make_view: Callable[..., AttackView]) -> None:
        own = torch.randn(3, 5)
        for k in range(4):
            crafted = Sleeper(SignFlip(), start=4).craft(make_view(own, round=k, train=never, memory="kept"))
            assert torch.equal(crafted.updates, own)
            assert crafted.memory == "kept"

    @pytest.mark.parametrize("attack", [LabelFlip(), Scaling()], ids=["label-flip", "scaling"])
    def test_trained_on_clean_data_where_the_attack_poisons(
        self, make_view: Callable[..., AttackView], attack: Any
    ) -> None:
        view = make_view(torch.randn(3, 5), round=3)
        sent = Sleeper(attack, start=4).craft(view).updates
        assert torch.equal(sent, view.train(view.global_params, poisoned=False))
        assert not torch.equal(sent, view.malicious_updates)

    def test_zeros(self, make_view: Callable[..., AttackView]) -> None:
        sent = Sleeper(Scaling(), start=1, off="zeros").craft(make_view(torch.randn(3, 5), train=never)).updates
        assert torch.equal(sent, torch.zeros(3, 5))

    def test_shrunken(self, make_view: Callable[..., AttackView]) -> None:
        own = torch.randn(3, 5).double()
        view = make_view(own)
        assert torch.equal(Sleeper(SignFlip(), off="shrunken").craft(view).updates, 1e-3 * own)
        sent = Sleeper(LabelFlip(), off="shrunken", shrink=0.25).craft(view).updates
        assert torch.equal(sent, 0.25 * view.train(view.global_params, poisoned=False))


@pytest.mark.parametrize("off", ["honest", "zeros", "shrunken"])
def test_attacks_for_ever(make_view: Callable[..., AttackView], off: Any) -> None:
    own = torch.randn(3, 5)
    for k in (4, 5, 400):
        assert torch.equal(Sleeper(SignFlip(), start=4, off=off).craft(make_view(own, round=k)).updates, -own)
    assert torch.equal(Sleeper(SignFlip(), start=0, off=off).craft(make_view(own)).updates, -own)


class TestSimulation:
    @pytest.mark.parametrize(
        "attack",
        ["label-flip", "scaling", "min-max", {"name": "mixture", "attacks": ["label-flip", "sign-flip"]}],
        ids=["label-flip", "scaling", "min-max", "mixture"],
    )
    def test_no_attack_until_it_starts(self, play: Callable[..., Any], attack: Any) -> None:
        # several epochs, so that batches of every size occur
        local = {"epochs": 2, "momentum": 0.5}
        honest = play("none", local=local)
        sent = play({"name": "sleeper", "attack": attack, "start": 2}, local=local)
        for k in range(3):
            assert torch.equal(sent[k].params, honest[k].params)
            assert torch.equal(sent[k].good, honest[k].good)
            assert torch.equal(sent[k].bad, honest[k].bad) == (k < 2)
        assert not torch.equal(sent[3].params, honest[3].params)

    def test_then_the_attack(self, play: Callable[..., Any]) -> None:
        sent = play({"name": "sleeper", "attack": "sign-flip", "start": 2})
        honest = play("none", rounds=3)
        assert torch.equal(sent[2].bad, -honest[2].bad)

    def test_some_clients_of_a_round(self, play: Callable[..., Any]) -> None:
        # rounds are those of the federation, whoever takes part
        some: dict[str, Any] = {"clients_per_round": 3, "rounds": 8}
        honest = play("none", **some)
        sent = play({"name": "sleeper", "attack": "label-flip", "start": 4}, **some)
        present = [len(rows.bad) for rows in sent]
        assert len(set(present[:4])) > 1
        first = next(k for k in range(4, 8) if present[k])
        for k in range(first + 1):
            assert torch.equal(sent[k].params, honest[k].params)
            assert torch.equal(sent[k].bad, honest[k].bad) == (k < first)


def test_default() -> None:
    found = registry.build("attacks", "sleeper", {})
    assert found == Sleeper() == Sleeper(Scaling(), start=30, off="honest", shrink=1e-3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"start": -1}, "sleeper: start must be at least 0, got -1"),
        (
            {"off": "shrunken", "shrink": 0.0},
            "sleeper: shrink must be above 0 and below 1, got 0.0; for these two, set off to zeros or honest",
        ),
        (
            {"off": "shrunken", "shrink": 1.0},
            "sleeper: shrink must be above 0 and below 1, got 1.0; for these two, set off to zeros or honest",
        ),
        ({"shrink": 0.5}, "sleeper: shrink has no effect with off=honest, got 0.5; set off=shrunken"),
        (
            {"off": "zero"},
            "attack sleeper: off: Input should be 'honest', 'zeros' or 'shrunken', got 'zero'",
        ),
        (
            {"start": 2.5},
            "attack sleeper: start: Input should be a valid integer, got a number with a fractional part, got 2.5",
        ),
        ({"attack": "scalling"}, "unknown attack 'scalling'; did you mean scaling?"),
        ({"attack": {"name": "scaling", "share": 2}}, "scaling: share must be in (0, 1], got 2.0"),
        ({"begin": 3}, "attack sleeper has no parameter 'begin'; it has attack, start, off, shrink"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(FedSieveError) as error:
        registry.complete("attacks", "sleeper", parameters)
    assert str(error.value) == message
