"""Published tables and figures as grids of experiments: our numbers beside the paper's, with one command."""

from fedsieve.reproduce.claim import CLAIM
from fedsieve.reproduce.honest import HONEST
from fedsieve.reproduce.invariant import INVARIANT
from fedsieve.reproduce.plan import SCALES, Plan, Suite
from fedsieve.reproduce.sieve import DETECTION
from fedsieve.reproduce.skymask_figures import FIGURES
from fedsieve.reproduce.skymask_tables import TABLES
from fedsieve.reproduce.time import TIME

SUITES: dict[str, Suite] = {
    suite.name: suite for suite in (DETECTION, TIME, HONEST, CLAIM, *TABLES, *FIGURES, *INVARIANT)
}
__all__ = ["SCALES", "SUITES", "Plan", "Suite"]
