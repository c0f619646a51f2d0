"""Our rules and attacks on one fixed matrix, against what other libraries made of it (make_golden.py)."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedsieve.config import registry
from fedsieve.core.defense import ServerView, Updates
from fedsieve.core.layout import Layout

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
MATRIX, F = torch.tensor(GOLDEN.pop("matrix"), dtype=torch.float64), GOLDEN.pop("f")
CASES = [(source, name, values) for source, found in GOLDEN.items() for name, values in found.items()]
# its own smoothing, and thousands of iterations to the same point
LOOSE = {"geometric-median": 1e-6}


@pytest.mark.parametrize(("source", "name", "values"), CASES, ids=[f"{s}-{n}" for s, n, _ in CASES])
def test_golden(doubles: ModuleType, source: str, name: str, values: list[float]) -> None:
    if name in registry.names("attacks"):
        view = doubles.attack_view(MATRIX[F : 2 * F], MATRIX[2 * F :])
        found = registry.build("attacks", name, {}).craft(view)[0]
    else:
        updates = Updates(MATRIX, torch.arange(len(MATRIX)), Layout.of({"w": MATRIX[0]}))
        zero = torch.zeros_like(MATRIX[0])
        found = registry.build_defense(name, {})(updates, ServerView(0, F, torch.Generator(), zero)).update
    tolerance = LOOSE.get(name, 1e-12)
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=tolerance, atol=tolerance)


def test_there_are_golden_values() -> None:
    assert len(GOLDEN) == 2
    assert {name for _, name, _ in CASES} >= {"trimmed-mean", "median", "krum", "multi-krum", "bulyan", "ipm"}
    assert MATRIX.shape == (15, 6)
