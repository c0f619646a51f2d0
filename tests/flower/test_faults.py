"""docs/results/flower/faults.md is true of the code, and no single reply harms a defended federation."""

import importlib
import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("flwr")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results" / "flower" / "faults.md").read_text(encoding="utf-8")
STOCK = ("FedAvg", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan")
OURS = ("mean", "trimmed-mean", "krum", "multi-krum", "skymask", "sieve")
BAD = ("NaN", "1e30", "wrong shape", "no num-examples")
NUMBER = r"\d+\.?\d*(?:e[+-]?\d+)?"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("flower_faults")


def row(strategy: str) -> list[str]:
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {strategy} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_page_has_all(faults: ModuleType) -> None:
    assert tuple(faults.STRATEGIES) == (*STOCK, *(f"Defended, {name}" for name in OURS))
    for strategy in faults.STRATEGIES:
        assert len(row(strategy)) == len(faults.FAULTS) == 6


@pytest.mark.parametrize("strategy", [*STOCK, *(f"Defended, {name}" for name in OURS)])
def test_the_page_is_true(faults: ModuleType, strategy: str) -> None:
    if f"Flower {version('flwr')}" not in PAGE and not strategy.startswith("Defended"):
        pytest.skip("the page is of another version of Flower")
    for fault, there in zip(faults.FAULTS, row(strategy), strict=True):
        found = faults.outcome(strategy, fault).text
        assert re.sub(NUMBER, "#", found) == re.sub(NUMBER, "#", there), fault
        for a, b in zip(re.findall(NUMBER, found), re.findall(NUMBER, there), strict=True):
            assert float(a) == pytest.approx(float(b), rel=1e-4)


@pytest.mark.parametrize("name", ["mean", "trimmed-mean", "krum", "multi-krum", "sieve"])
def test_no_reply_harms_the_defended(faults: ModuleType, name: str) -> None:
    for fault in faults.FAULTS:
        found = faults.outcome(f"Defended, {name}", fault)
        assert not found.harmed
        assert found.changed
        assert bool(found.dropped) == (fault in BAD)
        assert abs(found.share) < 0.12


@pytest.mark.parametrize("name", STOCK)
def test_each_stock_strategy_is_harmed_by_some(faults: ModuleType, name: str) -> None:
    assert any(faults.outcome(name, fault).harmed for fault in BAD)
    assert not faults.outcome(name, "none").harmed
