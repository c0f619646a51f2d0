"""The precision of local training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.simulation import Simulation
from fedsieve.models.flat import FlatModel
from fedsieve.models.precision import check_precision, computed_in
from tests.federation.conftest import MODULES, ROUND, SEED, federation, made

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CUT = LocalTraining(learning_rate=0.1, batch_size=4, precision="bfloat16")


def test_a_cpu_has_no_tf32() -> None:
    experiment = Experiment.of({"local": {"precision": "tf32"}})
    message = r"local.precision=tf32 needs a GPU, and the device is cpu; there it can be float32 or bfloat16$"
    with pytest.raises(ParameterError, match=message):
        Simulation.of(experiment, Path("none"), CPU)


def test_a_gpu_has_no_bfloat16() -> None:
    message = r"local.precision=bfloat16 needs a CPU, and the device is cuda; there it can be float32 or tf32$"
    with pytest.raises(ParameterError, match=message):
        check_precision("bfloat16", GPU)
    check_precision("tf32", GPU)


def test_a_model_in_float64_stays_so() -> None:
    check_precision("float32", CPU, torch.float64)
    with pytest.raises(ParameterError, match=r"local.precision=bfloat16 is for models in float32, and this one is in"):
        check_precision("bfloat16", CPU, torch.float64)


@pytest.mark.parametrize("outside", [False, True])
def test_products_on_a_cpu(outside: bool) -> None:
    a = torch.randn(30, 30)
    with torch.autocast("cpu", torch.bfloat16, enabled=outside):
        with computed_in("float32", CPU):
            assert (a @ a).dtype == torch.float32
        with computed_in("bfloat16", CPU):
            assert (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_training_in_bfloat16(name: str, vectorize: bool) -> None:
    """Close to float32 and not equal, twice the same to the bit, and what is kept is float32.

    Noise of bfloat16's size on the output of each layer changes resnet20's gradient by 23 % in float32, too, with the
    four images of 8 x 8 that are a batch here.
    """
    module, shape = made(name)
    model, params = FlatModel.of(module.float())
    clients = {
        client: ClientData(data.x.float(), data.y) for client, data in federation(shape, {5: 9, 2: 11, 7: 6}).items()
    }
    cut, again = (Trainer(model, CUT, SEED, vectorize).updates(params, clients, ROUND).clone() for _ in range(2))
    full = Trainer(model, replace(CUT, precision="float32"), SEED, vectorize).updates(params, clients, ROUND)
    assert cut.dtype == torch.float32
    assert torch.equal(cut, again)
    assert 1e-4 * full.norm() < (cut - full).norm() < (0.4 if name == "resnet20" else 0.05) * full.norm()


def test_a_run_in_bfloat16_learns() -> None:
    """As one in float32 does; and what evaluates a model is float32 in both."""
    settings = {"dataset": "digits", "clients": 8, "malicious": 0, "rounds": 80, "defense": "mean", "attack": "none"}
    runs = [
        Simulation.of(Experiment.of({**settings, "local": {"precision": precision}}), Path("none"), CPU)
        for precision in ("float32", "bfloat16")
    ]
    scores, shown = [], runs[0].holdings.test.x
    for run in runs:
        *_, (state, record) = run.rounds()
        scores.append(record.test_accuracy)
        logits = [other.trainer.model.logits(state.server.params, shown) for other in runs]
        assert torch.equal(*logits)
    assert min(scores) > 0.85, scores
    assert max(scores) - min(scores) < 0.03, scores


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("outside", [False, True])
def test_what_is_set_outside_does_not_matter(outside: bool) -> None:
    a = torch.randn(300, 300, device=GPU)
    exact = (a.double() @ a.double()).float()
    torch.backends.cuda.matmul.allow_tf32 = outside
    try:
        with computed_in("float32", GPU):
            full = a @ a
        with computed_in("tf32", GPU):
            cut = a @ a
        assert torch.backends.cuda.matmul.allow_tf32 == outside
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert (full - exact).norm() < 1e-6 * exact.norm()
    assert 1e-5 * exact.norm() < (cut - exact).norm() < 1e-2 * exact.norm()
