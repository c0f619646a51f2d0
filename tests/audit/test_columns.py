"""Columns of one site against those of the others."""

import numpy as np
import pandas as pd
import pytest

from fedsieve.audit.columns import Shift, shifts


def table(seed: int = 0, n: int = 1000) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Two normal columns, of which the second depends on the class; five sites."""
    g = np.random.default_rng(seed)
    site, label = pd.Series(g.choice(list("abcde"), n)), pd.Series(g.choice(["no", "yes"], n))
    x = pd.DataFrame({"pressure": g.normal(120, 10, n), "lactate": np.exp(g.normal(0, 0.3, n)) + (label == "yes")})
    return x, site, label


def flagged(found: dict[str, list[Shift]]) -> dict[str, list[str]]:
    return {site: names for site, all_ in found.items() if (names := [s.column for s in all_ if s.unusual])}


def test_sites_alike() -> None:
    for seed in range(20):
        assert flagged(shifts(*table(seed))) == {}


def test_a_unit() -> None:
    x, site, label = table()
    x.loc[site == "c", "lactate"] *= 9
    found = shifts(x, site, label)
    assert flagged(found) == {"c": ["lactate"]}
    first = found["c"][0]
    assert first.factor == pytest.approx(9, rel=0.2)
    assert first.in_words.startswith("its lactate is ")
    assert "times as large" in first.in_words


def test_a_shift_in_deviations() -> None:
    x, site, label = table()
    x.loc[site == "b", "pressure"] -= 20
    found = shifts(x, site, label)
    assert flagged(found) == {"b": ["pressure"]}
    assert found["b"][0].deviations == pytest.approx(-2, abs=0.25)
    assert found["b"][0].in_words.startswith("its pressure is shifted by 2")


def test_a_site_of_one_class_is_not_accused() -> None:
    x, site, label = table(n=3000)
    keep = (site != "d") | (label == "yes")
    x, site, label = (of[keep].reset_index(drop=True) for of in (x, site, label))
    assert flagged(shifts(x, site, label)) == {}


def test_few_rows_say_nothing() -> None:
    x, site, label = table()
    few = site[site == "e"].index
    keep = site.index.difference(few[7:])
    x, site, label = (of.loc[keep].reset_index(drop=True) for of in (x, site, label))
    x.loc[site == "e", "pressure"] += 100
    assert flagged(shifts(x, site, label)) == {}


def test_sites_that_all_differ_accuse_nobody() -> None:
    x, site, label = table(n=3000)
    x["pressure"] += site.map(dict(zip("abcde", [-30, -15, 0, 15, 30], strict=True)))
    assert flagged(shifts(x, site, label)) == {}


def test_missing_values_and_constant_columns() -> None:
    x, site, label = table()
    x.loc[::3, "pressure"] = np.nan
    x["constant"] = 1.0
    assert flagged(shifts(x, site, label)) == {}
