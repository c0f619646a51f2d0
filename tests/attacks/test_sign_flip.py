"""Sign flipping, by hand."""

from collections.abc import Callable

import pytest
import torch

from fedsieve.attacks.sign_flip import SignFlip
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError


def test_factor_is_1_by_default(make_view: Callable[..., AttackView]) -> None:
    own = torch.tensor([[1.0, -2.0, 0.0], [0.5, 3.0, -1.0]])
    sent = SignFlip().craft(make_view(own, torch.ones(3, 3)))
    assert torch.equal(sent, torch.tensor([[-1.0, 2.0, 0.0], [-0.5, -3.0, 1.0]]))


def test_factor(make_view: Callable[..., AttackView]) -> None:
    own = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    sent = SignFlip(factor=4.0).craft(make_view(own))
    assert sent.tolist() == [[-4, 8]]
    assert sent.dtype == torch.float64


def test_each_client_sends_its_own_update(make_view: Callable[..., AttackView]) -> None:
    own = torch.eye(3)
    assert torch.equal(SignFlip().craft(make_view(own)), -own)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_out_of_range(factor: float) -> None:
    with pytest.raises(ParameterError) as error:
        SignFlip(factor=factor)
    assert str(error.value) == f"sign-flip: factor must be positive, got {factor}"
