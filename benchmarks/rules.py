"""Every aggregator on one matrix: seconds, passes over the matrix, and ByzFL's same rule in turn."""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from harness import Figure, Measured, in_turn, seconds
from torch import Tensor, nn

import fedsieve
from fedsieve import Aggregator, ServerView, Updates
from fedsieve.config import registry
from fedsieve.core.seeding import stream
from fedsieve.federation.root import RootClient, RunnableModel

N, D, F = 100, 1_000_000, 20
INPUTS = 64  # of the model whose updates the matrix holds
# One pass is a plain mean: one read of the matrix. These sort nothing, compare no pairs and keep no matrix.
FEW_PASSES = ("mean", "fltrust", "root-only", "sign-majority", "norm-clipping", "weak-dp", "sparsefed")
ALIASES = ("fedavg",)


@dataclass(frozen=True)
class Case:
    """Updates of a model of two linear layers, and what the server knows.

    Attributes:
        updates: The updates, of which the first f are unlike the others.
        view: The server's view.
        root: The root data.
    """

    updates: Updates
    view: ServerView
    root: RootClient

    @classmethod
    def of(cls, n: int, d: int, f: int) -> "Case":
        """Updates of n clients, f of them malicious, of a model with about d parameters."""
        generator = torch.Generator().manual_seed(0)
        classes = 10
        hidden = max(1, round((d - classes) / (INPUTS + classes + 1)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        y = torch.arange(100) % classes
        samples = torch.randn(100, INPUTS, generator=generator) + torch.eye(classes, INPUTS)[y] * 3
        root = fedsieve.root_data(model, samples, y, learning_rate=0.1)
        direction = root.update()
        size = float(direction.norm()) / len(direction) ** 0.5
        x = direction + size * torch.randn(n, len(direction), generator=generator)
        x[:f] -= 3 * direction
        network = RunnableModel(root.trainer.model, (INPUTS,))
        view = ServerView(0, f, stream(0, "defense"), root.params, None, root, network)
        return cls(Updates(x, torch.arange(n), root.layout), view, root)

    def with_view(self, state: Any = None) -> ServerView:
        """The view of a round: its own random stream, and root data that no other call has trained on."""
        view, root = self.view, self.root
        root = RootClient(root.trainer, root.samples, root.n_classes, root.params, root.round)
        return replace(view, generator=view.generator.clone_state(), state=state, root=root)


def defense(name: str, parameters: Mapping[str, Any] | None = None) -> Aggregator:
    """A defense by its registered name; detectors and pre-aggregators with the mean behind them."""
    return registry.build_defense(name, parameters or {})


def work(case: Case, name: str, parameters: Mapping[str, Any] | None = None) -> Callable[[], Any]:
    """One round of a defense, the second one of a federation: after a first that left its state."""
    built = defense(name, parameters)
    state = built(case.updates, case.with_view()).state
    return lambda: built(case.updates, case.with_view(state))


def aggregators() -> list[str]:
    """Names of all aggregators and pre-aggregators."""
    names = [name for name in registry.names("defenses") if name not in ALIASES]
    return [name for name in names if registry.stage(name) != "detector"]


def measure(small: bool) -> Measured:
    """The figures; with ``small``, of a small matrix, once."""
    n, d, f = (11, 1000, 2) if small else (N, D, F)
    case, theirs, figures = Case.of(n, d, f), byzfl(), []
    x = case.updates.matrix
    counterparts = {} if theirs is None else counterpart_rules(theirs, f)
    for name in aggregators():
        works = {"ours": work(case, name), "pass": lambda: x.mean(dim=0)}
        if name in counterparts:
            works["byzfl"] = lambda rule=counterparts[name]: rule(x)
        times = in_turn(works, seconds=0.0 if small else 16.0, most=5)
        own, passes = times.of("ours"), times.ratio("ours", "pass")
        figures.append(Figure(name, seconds(own), "rule seconds", own, f"{passes:.1f} passes"))
        if name in FEW_PASSES:
            figures.append(Figure(name, f"{passes:.1f} passes", "rule passes", passes, f"{passes:.1f} x a plain mean"))
        if name in counterparts:
            ratio = times.ratio("ours", "byzfl")
            shown = f"{seconds(own)} against {seconds(times.of('byzfl'))}"
            figures.append(Figure(name, shown, "byzfl", ratio, f"{ratio:.2f} x ByzFL"))
        elif name in COUNTERPARTS:
            figures.append(Figure(name, "not run: ByzFL is not there; make bench-others installs it", "byzfl"))
    screened = in_turn(
        {"ours": lambda: fedsieve.aggregate(x, "mean"), "pass": lambda: x.mean(dim=0)}, seconds=0.0 if small else 4.0
    )
    passes = screened.ratio("ours", "pass")
    what = "fedsieve.aggregate(x, 'mean'): screening, checks and the mean"
    figures.append(Figure(what, seconds(screened.of("ours")), ratio=f"{passes:.1f} passes"))
    notes = [
        f"n = {n}, d = {x.shape[1]:,}, f = {f}, float32. Ours is what the server calls once updates are screened, with "
        "the state of an earlier round; a pass is torch's mean over the clients, in turn with it.",
        "ByzFL 0.0.11's rules with their own defaults: its geometric median takes three steps, ours goes on until it "
        "has converged. A mean is one read of the matrix on both sides. ByzFL has none of the other rules.",
    ]
    return Measured(figures, notes=notes)


# --- ByzFL -------------------------------------------------------------------------------------------------

COUNTERPARTS = {
    "mean": "Average",
    "median": "Median",
    "trimmed-mean": "TrMean",
    "krum": "Krum",
    "multi-krum": "MultiKrum",
    "geometric-median": "GeometricMedian",
}


def byzfl() -> ModuleType | None:
    """ByzFL's aggregators, from this environment or from that of `make bench-others`; None where there are none.

    The package itself would import torchvision and seaborn, which its rules don't use.
    """
    if "byzfl" not in sys.modules:
        spec = find_spec("byzfl")
        beside = Path(__file__).parents[1].glob("build/others/lib/python*/site-packages/byzfl")
        folders = list(spec.submodule_search_locations or []) if spec else [str(path) for path in beside]
        if not folders:
            return None
        package = ModuleType("byzfl")
        package.__path__ = folders
        sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def counterpart_rules(theirs: ModuleType, f: int) -> dict[str, Callable[[Tensor], Any]]:
    """ByzFL's rule for each of ours that it has."""
    return {
        name: getattr(theirs, rule)(f) if name in ("trimmed-mean", "krum", "multi-krum") else getattr(theirs, rule)()
        for name, rule in COUNTERPARTS.items()
    }
