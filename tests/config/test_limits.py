"""Numbers out of all proportion: one line with the number, at once, before anything is made."""

import time
from typing import Any

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.config.merging import override
from fedsieve.core.errors import FedSieveError
from fedsieve.core.escaping import shown

HUGE = 10**5000


@pytest.fixture(scope="module", autouse=True)
def _everything_is_imported() -> None:
    """So that times are those of the checks."""
    Experiment.of({"attack": "mixture", "server": {"optimizer": "SGD"}})
    torch.optim.SGD([torch.zeros(1)], fused=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clients": 10**6}, "clients_per_round: Input should be less than or equal to 100000, got 1000000"),
        ({"clients": 10**8}, "clients: Input should be less than or equal to 10000000, got 100000000"),
        ({"clients": 1e9}, "clients: Input should be less than or equal to 10000000, got 1000000000.0"),
        ({"clients": HUGE}, "clients: Input should be less than or equal to 10000000, got a number of 16610 bits"),
        ({"clients": HUGE, "malicious": 0.5}, "clients: Input should be less than or equal to 10000000"),
        ({"clients": -HUGE}, "clients: Input should be greater than or equal to 1, got a number of 16610 bits"),
        ({"malicious": HUGE}, "malicious: Input should be less than or equal to 10000000, got a number of 16610 bits"),
        ({"malicious": 10**8}, "malicious: Input should be less than or equal to 10000000, got 100000000"),
        ({"assumed_malicious": HUGE}, "assumed_malicious: Input should be less than or equal to 10000000"),
        ({"clients_per_round": 10**9}, "clients_per_round: Input should be less than or equal to 100000"),
        ({"rounds": 10**9}, "rounds: Input should be less than or equal to 1000000, got 1000000000"),
        ({"rounds": 1e300}, "rounds: Unable to parse input string as an integer, exceeded maximum size, got 1e+300"),
        ({"evaluate_every": 10**9}, "evaluate_every: Input should be less than or equal to 1000000"),
        ({"seed": 2**63}, "seed: Input should be less than 9223372036854775808, got 9223372036854775808"),
        ({"seed": HUGE}, "seed: Input should be less than 9223372036854775808, got a number of 16610 bits"),
        ({"local": {"steps": 10**9}}, "local.steps: Input should be less than or equal to 10000, got 1000000000"),
        ({"local": {"epochs": 10**9}}, "local.epochs: Input should be less than or equal to 10000, got 1000000000"),
        ({"local": {"batch_size": 10**9}}, "local.batch_size: Input should be less than or equal to 1000000"),
        ({"root": {"size": 10**9}}, "root.size: Input should be less than or equal to 1000000, got 1000000000"),
        ({"attack": {"name": "scaling", "size": HUGE}}, "attack scaling: size must be a number of at most 64 bits"),
        ({"model": {"name": "mlp", "hidden": [8, HUGE]}}, "model mlp: hidden must be a number of at most 64 bits"),
        ({"attack": {"name": "scaling", "factor": float("inf")}}, "attack scaling: factor must be finite, got inf"),
        ({"model": {"name": "mlp", "hidden": [float("nan")]}}, "model mlp: hidden must be finite, got nan"),
        ({"attack": "a" * 10**6}, "unknown attack 'aaaaaaaaaaaa"),
        ({"a" * 10**6: 1}, "unknown setting aaaaaaaaaaaa"),
        ({"attack": {"name": "scaling", "a" * 10**6: 1}}, "attack scaling has no parameter 'aaaaaaaaaaaa"),
        (
            {"attack": ["a"] * 10**5},
            "attack: a name, or a mapping with a name and parameters, was expected, got ['a', 'a'",
        ),
        ({"defense": "mean," * 10**5}, "chain 'mean,mean,mean"),
        ({"server": {"optimizer": {"name": "SGD", "momentum": HUGE}}}, "server.optimizer: SGD: momentum must be"),
        (
            {"server": {"optimizer": {"name": "SGD", "fused": True, "differentiable": True}}},
            "server: SGD: `fused` does",
        ),
        ({"x\x1b[2J\n": 1}, "unknown setting x\\x1b[2J\\n; there are"),
        ({"local": {"x\x1b[2J\n": 1}}, "unknown setting local.x\\x1b[2J\\n"),
    ],
    ids=lambda value: repr(value)[:40] if not isinstance(value, dict) else str(next(iter(value)))[:20],
)
def test_one_line(settings: dict[str, Any], said: str) -> None:
    start = time.process_time()
    with pytest.raises(FedSieveError) as error:
        Experiment.of(settings)
    assert time.process_time() - start < 2
    assert str(error.value).startswith(said)
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_one_mistake_is_one_message() -> None:
    """Other settings follow from the number of clients."""
    for clients in (10**6, 10**8):
        with pytest.raises(FedSieveError) as error:
            Experiment.of({"clients": clients})
        assert ";" not in str(error.value)


@pytest.mark.parametrize("drawn", [100_000, 1])
def test_the_most_clients(drawn: int) -> None:
    e = Experiment.of({"clients": 10_000_000, "clients_per_round": drawn, "defense": "mean"})
    assert (e.clients, e.clients_per_round, e.malicious) == (10_000_000, drawn, 2_000_000)


@pytest.mark.parametrize("settings", [{"clients": 100_000}, {"rounds": 1_000_000}, {"seed": 2**63 - 1}])
def test_at_the_bounds(settings: dict[str, int]) -> None:
    ((name, value),) = settings.items()
    assert getattr(Experiment.of({**settings, "defense": "mean"}), name) == value


def test_parts_within_parts_take_no_more_time() -> None:
    attack: dict[str, Any] = {"name": "label-flip"}
    for _ in range(20):
        attack = {"name": "mixture", "attacks": [attack]}
    start = time.process_time()
    assert Experiment.of({"attack": attack}).attack.name == "mixture"
    assert time.process_time() - start < 2


def test_keys_of_many_levels() -> None:
    with pytest.raises(FedSieveError, match="more than 50 levels"):
        override({}, "a." * 5000 + "a", 1)


def test_values_in_messages() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown(["x" * 50] * 1000)) == 100
    assert shown(True) == "True"
