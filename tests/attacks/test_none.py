"""No attack: data and updates stay as they are."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedsieve.attacks.none import NoAttack
from fedsieve.core.attack import AttackView, DataAttack, PoisonView, craft, poison


def test_data_and_updates_stay(
    samples: tuple[Tensor, Tensor],
    make_view: Callable[..., AttackView],
    make_poison_view: Callable[..., PoisonView],
) -> None:
    assert not isinstance(NoAttack(), DataAttack)
    x, y = poison(NoAttack(), *samples, make_poison_view(4))
    assert torch.equal(x, samples[0])
    assert torch.equal(y, samples[1])
    own = torch.randn(2, 5)
    assert torch.equal(craft(NoAttack(), make_view(own, torch.randn(3, 5)), "none").updates, own)
