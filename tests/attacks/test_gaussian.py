"""Gaussian noise: its moments, and what it depends on."""

import math
from collections.abc import Callable

import pytest
import torch

from fedsieve.attacks.gaussian import Gaussian
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError


@pytest.mark.parametrize("std", [200.0, 0.1])
def test_moments(make_view: Callable[..., AttackView], std: float) -> None:
    k = 3 * 20000
    sent = Gaussian(std).craft(make_view(torch.full((3, 20000), 7.0))) / std
    assert abs(float(sent.mean())) < 5 / math.sqrt(k)  # five standard errors
    assert abs(float(sent.square().mean()) - 1) < 5 * math.sqrt(2 / k)
    assert abs(float(sent.pow(4).mean()) - 3) < 5 * math.sqrt(96 / k)  # that of a uniform distribution is 1.8


def test_the_papers_deviation_is_the_default() -> None:
    assert Gaussian().std == 200


def test_clients_are_independent(make_view: Callable[..., AttackView]) -> None:
    sent = Gaussian(1.0).craft(make_view(torch.zeros(3, 20000)))
    assert (torch.corrcoef(sent) - torch.eye(3)).abs().max() < 5 / math.sqrt(20000)


def test_depends_on_the_generator_and_not_on_updates(make_view: Callable[..., AttackView]) -> None:
    one = Gaussian().craft(make_view(torch.zeros(2, 5), seed=1))
    same = Gaussian().craft(make_view(torch.ones(2, 5), torch.ones(4, 5), seed=1))
    other = Gaussian().craft(make_view(torch.zeros(2, 5), seed=2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_out_of_range(std: float) -> None:
    with pytest.raises(ParameterError) as error:
        Gaussian(std=std)
    assert str(error.value) == f"gaussian: std must be positive, got {std}"
