"""Whether a model fits into memory, before it is made."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsieve.core.errors import ParameterError
from fedsieve.models.cnn import CNN
from fedsieve.models.lstm import LSTM
from fedsieve.models.mlp import MLP
from fedsieve.models.size import available_memory, check_size

DIGITS: dict[str, Any] = {"input_shape": (64,), "n_classes": 10, "vocabulary": ()}


class Stubborn(nn.Module):
    """Reads its own weights while it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = self.layer.weight.norm().item()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_numbers() -> None:
    """64 * 8 + 8 + 8 * 10 + 10 = 610 parameters of 4 bytes, for the model and three times for each of 5 clients."""
    check_size("mlp", MLP, {**DIGITS, "hidden": (8,)}, clients=5, memory=610 * 4 * 16)
    with pytest.raises(ParameterError, match="model mlp has 610 parameters: a round with 5 clients needs at least"):
        check_size("mlp", MLP, {**DIGITS, "hidden": (8,)}, clients=5, memory=610 * 4 * 16 - 1)


@pytest.mark.parametrize("hidden", [(10**9,), (10**6, 10**6), (10**5,) * 5])
def test_what_no_machine_holds(hidden: tuple[int, ...]) -> None:
    start = time.process_time()
    with pytest.raises(ParameterError, match="GB; make the model smaller, or clients_per_round") as error:
        check_size("mlp", MLP, {**DIGITS, "hidden": hidden}, clients=30)
    assert time.process_time() - start < 1
    assert "\n" not in str(error.value)


def test_what_fits_is_not_touched() -> None:
    state = torch.get_rng_state()
    for factory, shape in ((MLP, (64,)), (CNN, (1, 28, 28)), (LSTM, (30,))):
        check_size("it", factory, {"input_shape": shape, "n_classes": 10, "vocabulary": ("a", "b")}, clients=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.zeros(1).device.type == "cpu"


def test_what_cannot_be_checked_passes() -> None:
    check_size("it", Stubborn, {}, clients=10, memory=1)
    check_size("it", MLP, {"input_shape": (64,)}, clients=10, memory=1)


def test_memory_of_this_machine() -> None:
    assert 10**8 < available_memory() < 10**14
