"""What needs Flower is not collected where Flower is not installed: it wants other versions of what we need."""

from importlib.util import find_spec

NEEDS_FLOWER = ("src/fedsieve/flower/*", "tests/flower/*", "examples/flower/*")
collect_ignore_glob = [] if find_spec("flwr") else list(NEEDS_FLOWER)


def pytest_report_header() -> str:
    """A line for who wonders where these tests are."""
    return (
        "tests/flower: not collected, flwr is not installed; `make flower-test` runs them"
        if collect_ignore_glob
        else ""
    )
