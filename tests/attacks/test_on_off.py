"""On-off attacks: the attack at the end of every period, and what is sent in between."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.on_off import OnOff
from fedsieve.attacks.scaling import Scaling
from fedsieve.attacks.sign_flip import SignFlip
from fedsieve.config import registry
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError

OWN = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def attacks(make_view: Callable[..., AttackView], rounds: int, **parameters: Any) -> list[int]:
    """The rounds in which signs are flipped; in the others the honest updates are sent."""
    attack, found = OnOff(SignFlip(), **parameters), []
    for k in range(rounds):
        crafted = attack.craft(make_view(OWN, round=k, memory="kept"))
        if torch.equal(crafted.updates, -OWN):
            found.append(k)
        else:
            assert torch.equal(crafted.updates, OWN)
            assert crafted.memory == "kept"
    return found


class TestPhases:
    @pytest.mark.parametrize(
        ("period", "duty", "found"),
        [
            (2, 1, [1, 3, 5, 7, 9]),
            (5, 1, [4, 9]),
            (5, 2, [3, 4, 8, 9]),
            (20, 1, []),
            (1, 1, list(range(10))),
            (4, 4, list(range(10))),
            (11, 2, [9]),
        ],
    )
    def test_at_the_end_of_each_period(
        self, make_view: Callable[..., AttackView], period: int, duty: int, found: list[int]
    ) -> None:
        assert attacks(make_view, 10, period=period, duty=duty) == found

    def test_default(self, make_view: Callable[..., AttackView]) -> None:
        assert registry.build("attacks", "on-off", {}) == OnOff() == OnOff(Scaling(), period=5, duty=1, off="honest")
        assert attacks(make_view, 15) == [4, 9, 14]


class TestOff:
    def test_zeros(self, make_view: Callable[..., AttackView]) -> None:
        attack = OnOff(SignFlip(), period=20, off="zeros")
        sent = [attack.craft(make_view(OWN, round=k)).updates for k in range(40)]
        for k, rows in enumerate(sent):
            assert torch.equal(rows, -OWN if k in (19, 39) else torch.zeros(3, 5))

    def test_shrunken(self, make_view: Callable[..., AttackView]) -> None:
        attack = OnOff(SignFlip(), period=2, off="shrunken", shrink=0.125)
        assert torch.equal(attack.craft(make_view(OWN, round=0)).updates, 0.125 * OWN)
        assert torch.equal(attack.craft(make_view(OWN, round=1)).updates, -OWN)

    def test_honest_on_clean_data(self, make_view: Callable[..., AttackView]) -> None:
        attack = OnOff(LabelFlip(), period=3)
        for k in range(6):
            view = make_view(OWN, round=k)
            clean = view.train(view.global_params, poisoned=False)
            assert torch.equal(attack.craft(view).updates, OWN if k % 3 == 2 else clean)


class TestSimulation:
    def test_zeros_and_then_the_scaled_backdoor(self, play: Callable[..., Any]) -> None:
        scaling = {"name": "scaling", "factor": 3.0}
        sent = play({"name": "on-off", "attack": scaling, "period": 3, "off": "zeros"}, rounds=6)
        for k, rows in enumerate(sent):
            lengths, usual = rows.bad.norm(dim=1), rows.good.norm(dim=1).mean()
            assert (lengths > usual).all() if k % 3 == 2 else not lengths.any()
        # zeros of three clients of eight only shorten the step; the server's learning rate is a half
        step = sent[1].params - sent[0].params
        torch.testing.assert_close(step, 0.5 * sent[0].good.sum(dim=0) / 8, rtol=1e-4, atol=1e-6)

    def test_signs_flipped_every_second_round(self, play: Callable[..., Any]) -> None:
        honest = play("none")
        sent = play({"name": "on-off", "attack": "sign-flip", "period": 2}, rounds=2)
        assert torch.equal(sent[0].bad, honest[0].bad)
        assert torch.equal(sent[1].bad, -honest[1].bad)

    def test_labels_flipped_every_third(self, play: Callable[..., Any]) -> None:
        honest = play("none")
        sent = play({"name": "on-off", "attack": "label-flip", "period": 3})
        assert [torch.equal(a.bad, b.bad) for a, b in zip(sent, honest, strict=True)] == [True, True, False, False]
        assert [torch.equal(a.params, b.params) for a, b in zip(sent, honest, strict=True)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"duty": 0}, "on-off: duty must be 1 to period = 5 rounds, got 0"),
        ({"duty": 6}, "on-off: duty must be 1 to period = 5 rounds, got 6"),
        ({"period": 0}, "on-off: duty must be 1 to period = 0 rounds, got 1"),
        (
            {"off": "shrunken", "shrink": -1.0},
            "on-off: shrink must be above 0 and below 1, got -1.0; for these two, set off to zeros or honest",
        ),
        (
            {"off": "zeros", "shrink": 0.01},
            "on-off: shrink has no effect with off=zeros, got 0.01; set off=shrunken",
        ),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        registry.complete("attacks", "on-off", parameters)
    assert str(error.value) == message
