"""Root data alone: no client moves the result, in a round or over a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedsieve.aggregators.root_only import RootOnly
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import MissingDataError
from fedsieve.core.records import RoundRecord
from fedsieve.federation.server import defend
from fedsieve.federation.simulation import Simulation

DIGITS = {"dataset": "digits", "clients": 10, "malicious": 0.4, "rounds": 5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-45, -1.0, 1e20, -3e38])
def test_is_the_root_update_whatever_clients_send(make: SimpleNamespace, dtype: torch.dtype, value: float) -> None:
    fed = make.federation(4, 0, 1, dtype=dtype)
    u = make.updates(torch.full_like(fed.updates.matrix, value))
    result = RootOnly()(u, make.view(u, f=2, root=fed.root))
    assert torch.equal(result.update, fed.root.sent)
    assert result.update.dtype == dtype
    assert result.weights.tolist() == [0.25] * 4
    assert (result.accepted, result.scores, result.state, result.diagnosis) == (None, None, None, None)


def test_result_has_the_type_of_the_updates(make: SimpleNamespace) -> None:
    u = make.updates(torch.ones(2, 3, dtype=torch.float64))
    result = RootOnly()(u, make.view(u, root=make.Quadratic(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))))
    assert result.update.dtype == result.weights.dtype == torch.float64
    assert result.update.tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [0.0, 1e4, -1e20, 3e38, torch.nan])
@pytest.mark.parametrize("m", [1, 4])
def test_the_server_takes_its_parameters_and_statistics(make: SimpleNamespace, value: float, m: int) -> None:
    """Screened or not, clients change neither."""
    fed = make.federation(10, m, -1000, statistics=20)
    fed.updates.statistics[:m] = value
    decision = defend(RootOnly(), fed.updates, make.view(fed.updates, f=m, root=fed.root))
    assert decision.applied
    assert torch.equal(decision.aggregate.update, fed.root.sent)


def test_control_other_defenses_take_the_clients_statistics(make: SimpleNamespace) -> None:
    fed = make.federation(10, 1, 1, statistics=20)
    found = defend(make.build("fltrust"), fed.updates, make.view(fed.updates, f=1, root=fed.root)).aggregate.update
    assert not torch.equal(found[-20:], fed.root.sent[-20:])


def test_no_root(make: SimpleNamespace) -> None:
    u = make.updates([[1.0]])
    with pytest.raises(MissingDataError) as error:
        RootOnly()(u, make.view(u))
    assert str(error.value) == "root-only needs root data, and the server has none"


def records(attack: str, **more: Any) -> list[RoundRecord]:
    settings = {**DIGITS, "defense": "root-only", "attack": attack, **more}
    simulation = Simulation.of(Experiment.of(settings), Path("none"), torch.device("cpu"))
    return [record for _, record in simulation.rounds()]


def test_an_attack_changes_nothing_over_a_run() -> None:
    quiet, attacked = records("none"), records("sign-flip")
    assert all(record.applied for record in (*quiet, *attacked))
    assert [r.test_accuracy for r in attacked] == [r.test_accuracy for r in quiet]
    assert [r.test_loss for r in attacked] == [r.test_loss for r in quiet]
    assert [r.update_norm for r in attacked] == [r.update_norm for r in quiet]
    assert quiet[-1].test_accuracy is not None
    assert quiet[0].test_accuracy is not None
    assert quiet[-1].test_accuracy > quiet[0].test_accuracy
    assert attacked[-1].rejected is None  # it judges nobody
    flipped = [r.test_accuracy for r in records("sign-flip", defense="mean")]  # which the attack does change
    assert flipped != [r.test_accuracy for r in records("none", defense="mean")]
