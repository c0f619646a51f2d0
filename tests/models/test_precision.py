"""The precision of local training."""

from pathlib import Path

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.federation.simulation import Simulation
from fedsieve.models.precision import computed_in


def test_a_cpu_has_no_tf32() -> None:
    experiment = Experiment.of({"local": {"precision": "tf32"}})
    message = "local.precision=tf32 needs a GPU, and the device is cpu; float32 is the other one"
    with pytest.raises(ParameterError, match=message):
        Simulation.of(experiment, Path("none"), torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("outside", [False, True])
def test_what_is_set_outside_does_not_matter(outside: bool) -> None:
    device = torch.device("cuda")
    a = torch.randn(300, 300, device=device)
    exact = (a.double() @ a.double()).float()
    torch.backends.cuda.matmul.allow_tf32 = outside
    try:
        with computed_in("float32", device):
            full = a @ a
        with computed_in("tf32", device):
            cut = a @ a
        assert torch.backends.cuda.matmul.allow_tf32 == outside
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert (full - exact).norm() < 1e-6 * exact.norm()
    assert 1e-5 * exact.norm() < (cut - exact).norm() < 1e-2 * exact.norm()
