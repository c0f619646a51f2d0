"""Published tables and figures as grids of experiments: rerun with one command, ours beside theirs."""

from fedsieve.suites.invariant import INVARIANT
from fedsieve.suites.plan import SCALES, Plan, Suite
from fedsieve.suites.skymask import SKYMASK

SUITES: dict[str, Suite] = {suite.name: suite for suite in (*SKYMASK, *INVARIANT)}
__all__ = ["SCALES", "SUITES", "Plan", "Suite"]
