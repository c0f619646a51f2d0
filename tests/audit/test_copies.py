"""Rows of a site that stand at another."""

import numpy as np
import pandas as pd
import pytest

from fedsieve.audit.copies import copies


def table(n: int = 500, values: int = 1000, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    g = np.random.default_rng(seed)
    x = pd.DataFrame({f"x{k}": g.integers(values, size=n) for k in range(8)}).astype(object)
    return x, pd.Series(g.choice(list("abcd"), n))


def test_nobody_copies() -> None:
    x, site = table()
    assert [c.share for c in copies(x, site).values()] == [0.0] * 4


def test_copied_rows_with_gaps() -> None:
    x, site = table()
    source, here = np.flatnonzero(site == "a"), np.flatnonzero(site == "b")
    x.iloc[here] = x.iloc[np.random.default_rng(1).choice(source, len(here))].to_numpy()
    gaps = np.random.default_rng(2).random(x.shape) < 0.04
    x = x.mask(gaps)
    found = copies(x, site)
    assert found["b"].of == "a"
    assert found["b"].share > 0.95
    assert found["b"].unusual
    assert found["b"].in_words.endswith("stand at a, too (between other sites at most 0%)")
    assert not found["c"].unusual


def test_common_values_are_no_copies() -> None:
    x, site = table(values=2)  # 256 different rows, so that most stand at every site
    assert not any(c.unusual for c in copies(x, site).values())


def test_two_columns() -> None:
    x, site = table()
    assert not any(c.unusual for c in copies(x[["x0", "x1"]], site).values())


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_share_is_that_of_the_sites_rows(share: float) -> None:
    x, site = table(n=2000)
    source, here = np.flatnonzero(site == "a"), np.flatnonzero(site == "b")
    some = here[: int(share * len(here))]
    x.iloc[some] = x.iloc[source[: len(some)]].to_numpy()
    found = copies(x, site)["b"]
    assert found.share == pytest.approx(share, abs=0.01)
    assert found.unusual == (share > 0.3)
