"""How the other sites' model reads a site's rows."""

import numpy as np

from fedsieve.audit.agreement import agreements


def found(right: dict[str, list[float]], rows: dict[str, list[int]]) -> dict[str, bool]:
    given = agreements({s: np.array(r, float) for s, r in right.items()}, {s: np.array(n) for s, n in rows.items()})
    return {site: a.unusual for site, a in given.items()}


def test_flipped_labels() -> None:
    rows = {s: [100, 100] for s in "abcd"}
    right = {"a": [80, 82], "b": [20, 18], "c": [79, 85], "d": [83, 80]}
    assert found(right, rows) == {"a": False, "b": True, "c": False, "d": False}


def test_a_third_of_the_labels() -> None:
    rows = {s: [300, 300] for s in "abcd"}
    right = {"a": [240, 246], "b": [180, 185], "c": [237, 255], "d": [249, 240]}
    assert found(right, rows)["b"]


def test_few_rows_are_not_enough() -> None:
    rows = {"a": [100, 100], "b": [5, 6], "c": [100, 100], "d": [100, 100]}
    right = {"a": [80, 82], "b": [3, 3], "c": [79, 85], "d": [83, 80]}
    assert not found(right, rows)["b"]


def test_of_one_class_nothing_is_said() -> None:
    """How many rows of one class are read right depends on the model's threshold."""
    rows = {"a": [100, 100], "b": [200, 0], "c": [100, 100], "d": [100, 100]}
    right = {"a": [80, 80], "b": [60, 0], "c": [82, 78], "d": [78, 81]}
    assert found(right, rows) == {"a": False, "b": False, "c": False, "d": False}


def test_a_class_that_a_site_lacks_is_left_out() -> None:
    rows = {"a": [100, 100, 100], "b": [100, 100, 0], "c": [100, 100, 100], "d": [100, 100, 100]}
    right = {"a": [80, 80, 10], "b": [79, 81, 0], "c": [82, 78, 12], "d": [78, 81, 11]}
    given = agreements({s: np.array(r, float) for s, r in right.items()}, {s: np.array(n) for s, n in rows.items()})
    assert given["b"].usual == 0.8
    assert not given["b"].unusual


def test_sites_that_all_differ_accuse_nobody() -> None:
    rows = {s: [100, 100] for s in "abcdef"}
    right = {s: [v, v] for s, v in zip("abcdef", [40, 55, 65, 75, 85, 95], strict=True)}
    assert not any(found(right, rows).values())


def test_with_one_other_site_nothing_is_said() -> None:
    assert not any(found({"a": [1, 1], "b": [99, 99]}, {"a": [100, 100], "b": [100, 100]}).values())
