"""Targeted label flipping: samples of one class get another's label, and success is measured on that class."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.targeted_flip import TargetedFlip
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task, UpdateAttack, craft
from fedsieve.core.errors import ParameterError
from tests.federation.conftest import DIGITS, records_of, simulation


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (3, 2), (2, 9)])
def test_poison_against_a_loop(
    make_poison_view: Callable[..., PoisonView], source: int, target: int, samples: tuple[Tensor, Tensor]
) -> None:
    before_x, before_y = samples
    x, y = TargetedFlip(source, target).poison(before_x, before_y, make_poison_view(10))
    assert y.tolist() == [target if k == source else k for k in before_y.tolist()]
    assert y.dtype == torch.long
    assert torch.equal(x, before_x)


def test_a_client_without_samples_of_the_class_is_honest(make_poison_view: Callable[..., PoisonView]) -> None:
    x, y = torch.randn(3, 2), torch.tensor([1, 2, 1])
    poisoned = TargetedFlip().poison(x, y, make_poison_view(3))
    assert torch.equal(poisoned[0], x)
    assert torch.equal(poisoned[1], y)
    sim = simulation(DIGITS, attack={"name": "targeted-flip", "source": 5, "target": 6})
    for client in sim.holdings.malicious:
        before, after = sim.holdings.clean[client], sim.holdings.clients[client]
        assert torch.equal(before.x, after.x)
        assert after.y.tolist() == [6 if k == 5 else k for k in before.y.tolist()]


def test_success_is_measured_on_clean_samples_of_the_class() -> None:
    x, y = torch.randn(5, 3), torch.tensor([2, 0, 1, 2, 3])
    attack = TargetedFlip(2, 1)
    assert isinstance(attack, Backdoor)
    found = attack.triggered(x, y, Task(4, Path()))
    assert torch.equal(found.x, x[[0, 3]])
    assert found.wanted.tolist() == [1, 1]
    assert found.already.tolist() == [False, False]


def test_is_no_update_attack(make_view: Callable[..., AttackView]) -> None:
    own = torch.randn(2, 5)
    assert not isinstance(TargetedFlip(), UpdateAttack)
    assert torch.equal(craft(TargetedFlip(), make_view(own), "targeted-flip").updates, own)


@pytest.mark.parametrize(("source", "target"), [(1, 1), (-1, 1), (1, -1), (-2, -2)])
def test_two_different_classes(source: int, target: int) -> None:
    with pytest.raises(ParameterError) as error:
        TargetedFlip(source, target)
    assert str(error.value) == (
        f"targeted-flip: source and target must be two different classes from 0 on, got {source} and {target}"
    )


@pytest.mark.parametrize(("source", "target"), [(4, 1), (1, 4), (9, 8)])
def test_classes_of_the_task(make_poison_view: Callable[..., PoisonView], source: int, target: int) -> None:
    x, y = torch.randn(4, 2), torch.arange(4)
    message = f"targeted-flip: source and target must be below the 4 classes, got {source} and {target}"
    for act in (
        lambda: TargetedFlip(source, target).poison(x, y, make_poison_view(4)),
        lambda: TargetedFlip(source, target).triggered(x, y, Task(4, Path())),
    ):
        with pytest.raises(ParameterError) as error:
            act()
        assert str(error.value) == message
    TargetedFlip(3, 2).poison(x, y, make_poison_view(4))


def test_nothing_to_measure_success_on() -> None:
    with pytest.raises(ParameterError) as error:
        TargetedFlip(0, 1).triggered(torch.randn(4, 2), torch.tensor([2, 3, 2, 1]), Task(4, Path()))
    assert str(error.value) == (
        "targeted-flip: none of the 4 test samples is of class 0, so that success can't be measured; set source to "
        "another class, such as 2"
    )


def test_the_mean_misreads_the_class() -> None:
    """More malicious clients, more misread; the other classes are read as before."""
    success = {}
    for malicious in (0, 6, 14):
        more = {"clients": 30, "malicious": malicious, "rounds": 20, "evaluate_every": 20}
        last = records_of({**DIGITS, **more}, attack={"name": "targeted-flip", "source": 1, "target": 7})[-1]
        assert last.test_accuracy is not None
        assert last.test_accuracy > 0.5
        assert last.attack_success_rate is not None
        success[malicious] = last.attack_success_rate
    assert success[0] < 0.05
    assert success[0] < success[6] < success[14]
    assert success[14] > 0.9
