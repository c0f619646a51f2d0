"""Tests on the real datasets run where FEDSIEVE_DATA says that they are there."""

import importlib
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest


def pytest_configure() -> None:
    """Signals as in a terminal: what ``nohup`` or a script's ``&`` ignores would be ignored by what tests start."""
    for number, usual in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


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
