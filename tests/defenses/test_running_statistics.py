"""No registered defense lets running statistics pass unbounded, or decides by them about parameters."""

from types import SimpleNamespace

import pytest
import torch

from fedsieve.config import registry
from fedsieve.federation.server import defend

NAMES = registry.names("defenses")
# The undefended baseline averages running statistics too.
NOT_ROBUST = ("fedavg", "mean")
# Weights of these say what share each client has in the result over all coordinates, running statistics included; they
# decide nothing.
COORDINATE_WISE = {"bulyan", "median", "trimmed-mean"}
STATISTICS = 20
# Malicious clients.
M = 3


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_ROBUST])
@pytest.mark.parametrize("value", [1e4, -1e4])
@pytest.mark.parametrize("seed", range(2))
def test_huge_statistics_are_bounded(make: SimpleNamespace, name: str, value: float, seed: int) -> None:
    fed = make.federation(make.clients(name), M, 1, statistics=STATISTICS, seed=seed)
    u = fed.updates
    benign = u.statistics[M:].norm(dim=1).max()
    u.statistics[:M] = value
    result = defend(make.build(name), u, make.view(u, f=M, root=fed.root)).aggregate
    make.well_formed(result, u.matrix)
    assert result.update[u.layout.n_parameters :].norm() < 2 * benign


@pytest.mark.parametrize("name", NOT_ROBUST)
def test_control_the_mean_does_not_bound_statistics(make: SimpleNamespace, name: str) -> None:
    fed = make.federation(11, M, 1, statistics=STATISTICS)
    fed.updates.statistics[:M] = 1e4
    result = defend(make.build(name), fed.updates, make.view(fed.updates, f=M, root=fed.root)).aggregate
    assert result.update[fed.updates.layout.n_parameters :].norm() > 1e3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [1, -1, -1000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_statistics_decide_nothing_else(make: SimpleNamespace, name: str, factor: float, scale: float) -> None:
    found = []
    for replaced in (False, True):
        fed = make.federation(make.clients(name), M, factor, statistics=STATISTICS)
        u, p = fed.updates, fed.updates.layout.n_parameters
        if replaced:
            g = torch.Generator().manual_seed(9)
            u.statistics.copy_(scale * torch.randn(u.statistics.shape, generator=g))
            fed.root.sent[p:] = scale * torch.randn(STATISTICS, generator=g)
        found.append(make.build(name)(u, make.view(u, f=M, root=fed.root)))
    one, other = found
    assert torch.equal(one.update[:p], other.update[:p])
    assert name in COORDINATE_WISE or torch.equal(one.weights, other.weights)
    assert (one.accepted is None) == (other.accepted is None)
    assert one.accepted is None or other.accepted is None or torch.equal(one.accepted, other.accepted)
