"""Tests on the real datasets run where FEDSIEVE_DATA says that they are there."""

import os

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("real_data") and not os.environ.get("FEDSIEVE_DATA"):
        pytest.skip("FEDSIEVE_DATA is not set")
