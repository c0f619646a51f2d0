"""Tests on the real datasets run where FEDSIEVE_DATA says that they are there."""

import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real_data") and not os.environ.get("FEDSIEVE_DATA"):
        pytest.skip("FEDSIEVE_DATA is not set")


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module ``doubles``, importable by name, with nothing seen yet."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    module = importlib.import_module("doubles")
    module.reset()
    return module
