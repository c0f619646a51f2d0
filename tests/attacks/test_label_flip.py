"""Label flipping: label k becomes C - k - 1; samples and updates stay as they are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.core.attack import AttackView, PoisonView, UpdateAttack, craft


@pytest.mark.parametrize(
    ("n_classes", "before", "after"),
    [(10, [0, 1, 4, 5, 9, 9], [9, 8, 5, 4, 0, 0]), (3, [0, 1, 2], [2, 1, 0]), (2, [0, 1, 1], [1, 0, 0]), (6, [0], [5])],
)
def test_by_hand(
    make_poison_view: Callable[..., PoisonView], n_classes: int, before: list[int], after: list[int]
) -> None:
    x, y = LabelFlip().poison(torch.zeros(len(before), 2), torch.tensor(before), make_poison_view(n_classes))
    assert y.tolist() == after
    assert y.dtype == torch.long
    assert x.tolist() == [[0, 0]] * len(before)


def test_number_of_classes_is_the_tasks_and_not_the_clients(make_poison_view: Callable[..., PoisonView]) -> None:
    y = LabelFlip().poison(torch.zeros(2, 1), torch.tensor([0, 1]), make_poison_view(10))[1]
    assert y.tolist() == [9, 8]


def test_twice_is_the_original(samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]) -> None:
    once = LabelFlip().poison(*samples, make_poison_view(4))
    twice = LabelFlip().poison(*once, make_poison_view(4))
    assert torch.equal(twice[0], samples[0])
    assert torch.equal(twice[1], samples[1])
    assert not torch.equal(once[1], samples[1])


def test_is_no_update_attack(make_view: Callable[..., AttackView]) -> None:
    own = torch.randn(2, 5)
    assert not isinstance(LabelFlip(), UpdateAttack)
    assert torch.equal(craft(LabelFlip(), make_view(own, torch.randn(3, 5)), "label-flip").updates, own)
