"""Jitter: the length and the place of the noise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.jitter import Jitter
from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.min_max import MinMax, MinSum
from fedsieve.attacks.none import NoAttack
from fedsieve.config import registry
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("share", [1e-3, 0.05, 2.0])
@pytest.mark.parametrize("attack", [MinMax(), MinSum(), LabelFlip()], ids=["min-max", "min-sum", "label-flip"])
def test_length(make_view: Callable[..., AttackView], attack: Any, share: float) -> None:
    own, others = normal(3, 400).double(), normal(8, 400, seed=1).double()
    view = make_view(own, others)
    inner = own if isinstance(attack, LabelFlip) else attack.craft(view)
    noise = Jitter(attack, share).craft(view).updates - inner
    torch.testing.assert_close(noise.norm(dim=1), share * inner.norm(dim=1))


def test_is_gaussian_and_each_clients_own(make_view: Callable[..., AttackView]) -> None:
    own = torch.zeros(3, 20000)
    own[:, 0] = 1000.0  # with noise of length 1000 / sqrt(20000) times sqrt(20000)
    noise = (Jitter(NoAttack(), share=math.sqrt(20000) / 1000).craft(make_view(own)).updates - own)[:, 1:]
    k = noise.numel()
    assert abs(float(noise.mean())) < 5 / math.sqrt(k)  # five standard errors
    assert abs(float(noise.square().mean()) - 1) < 5 * math.sqrt(2 / k)
    assert abs(float(noise.pow(4).mean()) - 3) < 5 * math.sqrt(96 / k)
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 5 / math.sqrt(20000)


def test_statistics_stay_and_do_not_count(make_view: Callable[..., AttackView]) -> None:
    layout = Layout.of({"bn.weight": torch.zeros(3)}, {"bn.running_var": torch.zeros(2)})
    own = torch.tensor([[3.0, 0.0, 4.0, 1e6, 1e6], [0.0, 0.0, 0.0, 1.0, 1.0]])
    sent = Jitter(NoAttack(), share=0.1).craft(make_view(own, layout=layout)).updates
    assert torch.equal(sent[:, 3:], own[:, 3:])
    torch.testing.assert_close((sent - own).norm(dim=1), torch.tensor([0.5, 0.0]))


def test_no_two_are_equal_in_a_simulation(play: Callable[..., Any]) -> None:
    bare = play("min-max", rounds=1)[0].bad
    (sent,) = play({"name": "jitter", "attack": "min-max"}, rounds=1)
    assert torch.equal(bare[0], bare[1])
    assert torch.cdist(sent.bad, sent.bad).add(torch.eye(3)).min() > 0
    torch.testing.assert_close((sent.bad - bare).norm(dim=1), 0.05 * bare.norm(dim=1), rtol=1e-3, atol=0)
    assert not torch.equal(*(rows.bad - bare for rows in play({"name": "jitter"}, rounds=2)))


def test_default() -> None:
    assert registry.build("attacks", "jitter", {}) == Jitter() == Jitter(MinMax(), share=0.05)


@pytest.mark.parametrize("share", [0.0, -1.0, math.nan, math.inf])
def test_out_of_range(share: float) -> None:
    with pytest.raises(ParameterError) as error:
        Jitter(share=share)
    assert str(error.value) == f"jitter: share must be positive and finite, got {share}"
