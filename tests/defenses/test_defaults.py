"""Default parameters of every defense: what an experiment that names a defense and nothing else runs."""

import dataclasses
import inspect
import sys
from typing import Any

import pytest

from fedsieve.aggregators.invariant import invariant
from fedsieve.config import registry

SKYMASK: dict[str, Any] = {
    "preset": "paper",
    "clusters": None,
    "loss": None,
    "reduction": "mean",
    "mask_learning_rate": 1e7,
    "mask_clip": 1e-7,
    "mask_steps": 20,
    "tolerance": None,
    "early_stop": None,
    "tau": 0.5,
    "n_components": 2,
    "gap_references": None,
    "update_scale": None,
    "slices": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "bulyan": {},
    "deepsight": {"seeds": 3, "samples": 256, "tau": 1 / 3, "min_cluster_size": 2},
    "fedavg": {},
    "flame": {"noise": 0.001, "angles": "models"},
    "fldetector": {"window": 10, "start": 20, "references": 10, "forget_after": 1000},
    "fltrust": {},
    "geometric-median": {"iterations": 100, "smoothing": 1e-6, "tolerance": 1e-10},
    "invariant": {"preset": "paper", "tau": None, "alpha": None, "strict": None, "mask": True, "trim": True},
    "krum": {},
    "mean": {},
    "median": {},
    "momentum": {"beta": 0.9, "forget_after": 100},
    "multi-krum": {"keep": None},
    "norm-clipping": {"max_norm": None},
    "root-only": {},
    "sieve": {"least_evidence": 2.0, "minority": 0.15, "memory": 0.9, "forget_after": 1000},
    "sign-majority": {"step": None},
    "skymask": SKYMASK,
    "skymask-nr": SKYMASK,
    "sparsefed": {"keep": 0.1, "max_norm": None, "momentum": None},
    "tolpegin": {"label": None, "layer": "output"},
    "trimmed-mean": {"trim": None},
    "weak-dp": {"max_norm": None, "noise": None, "sigma": None},
}


@pytest.mark.parametrize("name", registry.names("defenses"))
def test_of_a_defense(name: str) -> None:
    assert dataclasses.asdict(registry.load("defenses", name)()) == DEFAULTS[name]


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", [name for name in registry.names("defenses") if name != "invariant"])
def test_plain_functions_have_the_same(name: str) -> None:
    module = sys.modules[registry.load("defenses", name).__module__]
    functions = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    for function in functions:
        shared = {key: value for key, value in defaults(function).items() if key in DEFAULTS[name]}
        assert shared == {key: DEFAULTS[name][key] for key in shared}, function.__name__


def test_invariants_plain_function_is_the_paper() -> None:
    assert defaults(invariant) == {"tau": 0.2, "trim": 0.25, "strict": True}
