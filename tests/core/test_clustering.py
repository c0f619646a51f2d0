"""The best split in two, against every possible split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsieve.core.clustering import best_cut


class TestBestCut:
    def within(self, values: list[float], above: list[bool]) -> float:
        """Sum of squares within the two parts."""
        total = 0.0
        for side in (True, False):
            group = [v for v, a in zip(values, above, strict=True) if a == side]
            assert group
            total += sum((v - sum(group) / len(group)) ** 2 for v in group)
        return total

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(values=st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=12).filter(lambda v: len(set(v)) > 1))
    def test_against_every_cut(self, values: list[float]) -> None:
        best = min(self.within(values, [v > cut for v in values]) for cut in sorted(set(values))[:-1])
        above = best_cut(np.array(values)).tolist()
        assert self.within(values, above) == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert min(v for v, a in zip(values, above, strict=True) if a) > max(
            v for v, a in zip(values, above, strict=True) if not a
        )

    def test_by_hand(self) -> None:
        assert best_cut(np.array([9.0, 1.0, 8.0, 0.0, 1.0])).tolist() == [True, False, True, False, False]
