"""FedSieve: federated learning that survives malicious clients."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsieve.config.experiment import Experiment
    from fedsieve.core.attack import (
        Attack,
        AttackView,
        Backdoor,
        DataAttack,
        PoisonView,
        Task,
        Triggered,
        UpdateAttack,
    )
    from fedsieve.core.defense import (
        Aggregate,
        Aggregator,
        Detection,
        Detector,
        Diagnosis,
        PreAggregated,
        PreAggregator,
        Root,
        ServerView,
        Updates,
    )
    from fedsieve.core.errors import FedSieveError
    from fedsieve.core.layout import Layout
    from fedsieve.core.metrics import summarize
    from fedsieve.core.records import RoundRecord
    from fedsieve.core.traits import Traits
    from fedsieve.federation.matrix import aggregate, detect, root_data
    from fedsieve.federation.server import Server, ServerState
    from fedsieve.federation.simulation import Simulation
    from fedsieve.notebook.results import Result, Runs, load
    from fedsieve.notebook.running import run
    from fedsieve.runs.directory import RunDirectory

# Module of every public name, imported on first use: torch takes seconds, and the command line's --help needs none.
_HOMES = {
    "Aggregate": "core.defense",
    "Aggregator": "core.defense",
    "Attack": "core.attack",
    "AttackView": "core.attack",
    "Backdoor": "core.attack",
    "DataAttack": "core.attack",
    "Detection": "core.defense",
    "Detector": "core.defense",
    "Diagnosis": "core.defense",
    "Experiment": "config.experiment",
    "FedSieveError": "core.errors",
    "Layout": "core.layout",
    "PoisonView": "core.attack",
    "PreAggregated": "core.defense",
    "PreAggregator": "core.defense",
    "Result": "notebook.results",
    "Root": "core.defense",
    "RoundRecord": "core.records",
    "RunDirectory": "runs.directory",
    "Runs": "notebook.results",
    "Server": "federation.server",
    "ServerState": "federation.server",
    "ServerView": "core.defense",
    "Simulation": "federation.simulation",
    "Task": "core.attack",
    "Traits": "core.traits",
    "Triggered": "core.attack",
    "UpdateAttack": "core.attack",
    "Updates": "core.defense",
    "aggregate": "federation.matrix",
    "detect": "federation.matrix",
    "load": "notebook.results",
    "root_data": "federation.matrix",
    "run": "notebook.running",
    "summarize": "core.metrics",
}

__all__ = [
    "Aggregate",
    "Aggregator",
    "Attack",
    "AttackView",
    "Backdoor",
    "DataAttack",
    "Detection",
    "Detector",
    "Diagnosis",
    "Experiment",
    "FedSieveError",
    "Layout",
    "PoisonView",
    "PreAggregated",
    "PreAggregator",
    "Result",
    "Root",
    "RoundRecord",
    "RunDirectory",
    "Runs",
    "Server",
    "ServerState",
    "ServerView",
    "Simulation",
    "Task",
    "Traits",
    "Triggered",
    "UpdateAttack",
    "Updates",
    "__version__",
    "aggregate",
    "detect",
    "load",
    "root_data",
    "run",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fedsieve")
    if name in _HOMES:
        return getattr(import_module(f"fedsieve.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'fedsieve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
