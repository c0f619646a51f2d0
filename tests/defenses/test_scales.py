"""Updates of any length: results are finite, and one attacker of eleven does not keep a robust defense from moving."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.federation.server import defend

NAMES = registry.names("defenses")
# No defenses by themselves, and one that can't decide in its first round; what they do is up to the server's screening.
NOT_ROBUST = ("fedavg", "mean", "momentum", "fldetector")
ROBUST = tuple(name for name in NAMES if name not in NOT_ROBUST)
# The first two powers of ten are denormal in float32; squares of the float64 ones are beyond float64.
EXPONENTS = {torch.float32: (-45, -39, -38, -20, 20, 38), torch.float64: (-300, 300)}
CASES = [pytest.param(dtype, e, id=f"{dtype}-1e{e}") for dtype, found in EXPONENTS.items() for e in found]


def scaled(x: Tensor, exponent: int) -> Tensor:
    """``x`` with 3 times this power of ten as its largest absolute value."""
    result = (x.double() / x.double().abs().max() * 3 * 10.0**exponent).to(x.dtype)
    assert result.isfinite().all()
    assert result.any()
    return result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "exponent"), CASES)
def test_one_row_of_any_length(make: SimpleNamespace, name: str, dtype: torch.dtype, exponent: int) -> None:
    for sign in (1, -1):
        fed = make.federation(make.clients(name), 1, 1, dtype=dtype)
        row = fed.updates.matrix[0]
        row[:] = sign * scaled(row, exponent)
        screened = defend(make.build(name), fed.updates, make.view(fed.updates, f=1, root=fed.root))
        assert screened.applied
        assert screened.aggregate.update.isfinite().all()
        if name in ROBUST:  # without screening either
            result = make.build(name)(fed.updates, make.view(fed.updates, f=1, root=fed.root))
            make.well_formed(result, fed.updates.matrix)
            moved = result.update != 0  # sparsefed moves some coordinates, sign-majority all by the same
            update, aim = result.update[moved], fed.benign_mean[moved]
            assert torch.cosine_similarity(update, aim, dim=0) > 0.7
            assert update.norm() < 2 * aim.norm()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "exponent"), CASES)
def test_all_rows_of_any_length(make: SimpleNamespace, name: str, dtype: torch.dtype, exponent: int) -> None:
    fed = make.federation(make.clients(name), 0, 1, dtype=dtype)
    x = fed.updates.matrix
    x[:] = scaled(x, exponent)
    result = defend(make.build(name), fed.updates, make.view(fed.updates, f=1, root=fed.root)).aggregate
    assert result.update.isfinite().all()
