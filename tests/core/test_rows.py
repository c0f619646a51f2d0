"""Rows of two matrices as one: a view where that is possible, and the same values where it is not."""

import pytest
import torch
from torch import Tensor

from fedsieve.core.rows import both

ROWS = torch.arange(24.0).reshape(6, 4)


@pytest.mark.parametrize(
    ("first", "second", "viewed"),
    [
        (ROWS[:2], ROWS[2:], True),
        (ROWS[1:2], ROWS[2:5], True),
        (ROWS[:0], ROWS[0:3], True),
        (ROWS[2:], ROWS[:2], False),
        (ROWS[:2], ROWS[3:], False),
        (ROWS[:3], ROWS[2:], False),
        (ROWS[:2, :2], ROWS[2:, :2], False),
        (ROWS.T[:2], ROWS.T[2:], False),
        (ROWS[::2], ROWS[1::2], False),
        (ROWS[:2], ROWS[2:].clone(), False),
        (ROWS[:2].clone(), ROWS[2:].clone(), False),
        (ROWS.flatten()[:8].view(2, 4), ROWS.flatten()[8:12].view(1, 4), True),
    ],
    ids=range(12),
)
def test_both(first: Tensor, second: Tensor, viewed: bool) -> None:
    found = both(first, second)
    assert torch.equal(found, torch.cat([first, second]))
    assert (found.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()) == viewed
