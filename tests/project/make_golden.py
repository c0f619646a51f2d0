"""Writes golden.json: what ByzFL and Flower make of one fixed matrix. Needs `pip install fedsieve[agreement]`.

Not a test; test_golden.py holds our rules to the file, without these packages.
"""

import importlib
import importlib.util
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

N, D, F = 15, 6, 3


def matrix() -> list[list[float]]:
    """Fifteen updates of six coordinates, no two alike; the first three are reversed and four times as long."""
    honest = [[round(math.sin(1 + 3 * i + 7 * j * j) + j, 3) for j in range(D)] for i in range(N)]
    return [[round(-4 * v, 3) if i < F else v for v in row] for i, row in enumerate(honest)]


def main() -> None:
    package = ModuleType("byzfl")  # the package itself would import torchvision
    package.__path__ = list(importlib.util.find_spec("byzfl").submodule_search_locations)
    sys.modules["byzfl"] = package
    rules, attacks = (importlib.import_module(f"byzfl.{name}") for name in ("aggregators", "attacks"))
    flower = importlib.import_module("flwr.server.strategy.aggregate")
    rows = matrix()
    # ByzFL computes tensors in float32, numpy arrays in their own precision
    x = np.array(rows)
    honest = torch.tensor(rows[F:], dtype=torch.float64).numpy()

    def results() -> list[tuple[list[np.ndarray], int]]:
        return [([row.copy()], 1) for row in x]

    golden = {
        "matrix": rows,
        "f": F,
        f"byzfl {version('byzfl')}": {
            "trimmed-mean": rules.TrMean(F)(x),
            "median": rules.Median()(x),
            "geometric-median": rules.GeometricMedian(nu=1e-6, T=5000)(x),
            "ipm": attacks.InnerProductManipulation(0.5)(honest),
        },
        f"flwr {version('flwr')}": {
            "trimmed-mean": flower.aggregate_trimmed_avg(results(), (F + 0.5) / N)[0],
            "median": flower.aggregate_median(results())[0],
            "krum": flower.aggregate_krum(results(), F, 0)[0],
            "multi-krum": flower.aggregate_krum(results(), F, N - F)[0],
            "bulyan": flower.aggregate_bulyan(results(), F, flower.aggregate_krum, to_keep=0)[0],
        },
    }
    text = json.dumps(golden, default=lambda array: np.asarray(array, dtype=float).tolist(), indent=1)
    Path(__file__).with_name("golden.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
