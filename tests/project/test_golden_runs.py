"""Short runs of every kind of defense, on two datasets, against what they decided and reached before."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location("make_golden_runs", Path(__file__).with_name("make_golden_runs.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
make: ModuleType = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)
GOLDEN: dict[str, Any] = json.loads(make.FILE.read_text(encoding="utf-8"))
real_data = [pytest.mark.real_data]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=real_data if name.startswith("har") else []) for name in make.CASES]
)
def test_same_as_before(name: str) -> None:
    found = make.play(make.CASES[name], Path(os.environ.get("FEDSIEVE_DATA", ".")))
    assert len(found) == len(GOLDEN[name])
    for now, before in zip(found, GOLDEN[name], strict=True):
        for key in ("clients", "malicious", "rejected"):
            assert now[key] == before[key], key
        # another processor's rounding is amplified a little over rounds
        for key in ("weights", "scores"):
            assert (now[key] is None) == (before[key] is None)
            assert now[key] is None or now[key] == pytest.approx(before[key], rel=1e-2, abs=1e-4), key
        for key in ("update_norm", "test_loss"):
            assert now[key] == pytest.approx(before[key], rel=1e-3), key
        assert now["test_accuracy"] == pytest.approx(before["test_accuracy"], abs=0.01)


def test_every_kind_is_there() -> None:
    assert set(GOLDEN) == set(make.CASES)
    assert {settings["dataset"] for settings in make.CASES.values()} == {"digits", "har"}
    rejected = [played["rejected"] for rounds in GOLDEN.values() for played in rounds]
    assert sum(bool(some) for some in rejected) >= 10
