"""Free-riders: what each kind sends, and what the last global step is."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.free_rider import FreeRider
from fedsieve.config import registry
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.runs.packing import pack, unpack


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# lengths 1, 2 and 4 of the attacker's own, 8 and 16 of the others'
OWN = torch.zeros(3, 50).index_put((torch.arange(3), torch.arange(3)), torch.tensor([1.0, 2.0, 4.0]))
OTHERS = torch.zeros(2, 50).index_put((torch.arange(2), torch.arange(2)), torch.tensor([8.0, 16.0]))


class TestCraft:
    def test_zeros(self, make_view: Callable[..., AttackView]) -> None:
        crafted = FreeRider().craft(make_view(OWN, OTHERS))
        assert torch.equal(crafted.updates, torch.zeros(3, 50))
        assert crafted.memory is None

    @pytest.mark.parametrize(("others", "length"), [(OTHERS, 4.0), (None, 2.0)], ids=["full", "partial"])
    def test_noise_has_the_median_length_of_what_is_known(
        self, make_view: Callable[..., AttackView], others: Tensor | None, length: float
    ) -> None:
        rows = FreeRider("noise").craft(make_view(OWN, others)).updates
        torch.testing.assert_close(rows.norm(dim=1), torch.full((3,), length))
        tiny = FreeRider("tiny").craft(make_view(OWN, others)).updates
        torch.testing.assert_close(tiny.norm(dim=1), torch.full((3,), 1e-3 * length))
        shorter = FreeRider("tiny", tiny=0.5).craft(make_view(OWN, others)).updates
        torch.testing.assert_close(shorter.norm(dim=1), torch.full((3,), 0.5 * length))

    def test_noise_is_gaussian_and_each_clients_own(self, make_view: Callable[..., AttackView]) -> None:
        n = 20000
        own = torch.ones(3, n)  # of length sqrt(n), so that the standard deviation is 1
        rows = FreeRider("noise").craft(make_view(own)).updates
        assert abs(float(rows.mean())) < 5 / math.sqrt(3 * n)  # five standard errors
        assert abs(float(rows.pow(4).mean()) - 3) < 5 * math.sqrt(96 / (3 * n))
        assert (torch.corrcoef(rows) - torch.eye(3)).abs().max() < 5 / math.sqrt(n)

    @pytest.mark.parametrize("what", ["zeros", "tiny", "noise", "last-step"])
    def test_statistics_stay_as_they_came(self, make_view: Callable[..., AttackView], what: Any) -> None:
        layout = Layout.of({"bn.weight": torch.zeros(48)}, {"bn.running_var": torch.zeros(2)})
        rows = FreeRider(what).craft(make_view(OWN, OTHERS, layout=layout)).updates
        assert torch.equal(rows[:, 48:], torch.zeros(3, 2))

    def test_last_step(self, make_view: Callable[..., AttackView]) -> None:
        models, memory = normal(3, 50), None
        for k in range(3):
            view = make_view(OWN, OTHERS, round=k, global_params=models[k].clone(), memory=memory)
            crafted = FreeRider("last-step").craft(view)
            view.global_params.fill_(9.0)  # another attack may write to what it is shown
            step = models[k] - models[k - 1] if k else torch.zeros(50)
            assert torch.equal(crafted.updates, step.expand(3, -1))
            tensors: dict[str, Tensor] = {}
            memory = unpack(pack(crafted.memory, "memory", tensors), tensors)  # as a checkpoint keeps it


class TestSimulation:
    def test_last_step(self, play: Callable[..., Any]) -> None:
        sent = play({"name": "free-rider", "what": "last-step"})
        assert not sent[0].bad.any()
        for before, now in pairwise(sent):
            assert torch.equal(now.bad, (now.params - before.params).expand(3, -1))
            assert now.bad.norm() > 0

    def test_zeros_only_shorten_the_step(self, play: Callable[..., Any]) -> None:
        one, two = play("free-rider", rounds=2)
        assert not one.bad.any()
        # of eight clients; the server's learning rate is a half
        torch.testing.assert_close(two.params - one.params, 0.5 * one.good.sum(dim=0) / 8, rtol=1e-4, atol=1e-6)

    def test_noise(self, play: Callable[..., Any]) -> None:
        honest = play("none", rounds=1)[0]
        length = torch.cat([honest.bad, honest.good]).norm(dim=1).sort().values[3:5].mean()
        (sent,) = play({"name": "free-rider", "what": "noise"}, rounds=1)
        torch.testing.assert_close(sent.bad.norm(dim=1), length.expand(3))


def test_default() -> None:
    assert registry.build("attacks", "free-rider", {}) == FreeRider() == FreeRider("zeros", tiny=1e-3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"what": "tiny", "tiny": 0.0},
            "free-rider: tiny must be between 0 and 1, got 0.0; what has zeros and noise, too",
        ),
        (
            {"what": "tiny", "tiny": 1.5},
            "free-rider: tiny must be between 0 and 1, got 1.5; what has zeros and noise, too",
        ),
        ({"tiny": 0.01}, "free-rider: tiny has no effect with what=zeros, got 0.01; set what=tiny"),
        (
            {"what": "nothing"},
            "attack free-rider: what: Input should be 'zeros', 'tiny', 'last-step' or 'noise', got 'nothing'",
        ),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        registry.complete("attacks", "free-rider", parameters)
    assert str(error.value) == message
