"""One experiment in the simulator and in Flower's simulation engine: writes how far apart they are.

Runs in an environment that has Flower and this package (``make flower-bench``); the experiment and the comparison are
those of ``tests/flower/test_parity.py``.

Usage: flower_parity.py [PAGE]
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from harness import markdown

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/results/flower/parity.md"
DEFENSES, ATTACK = ("mean", "fltrust", "krum", "skymask", "sieve", "invariant"), "min-max"


def rounds_in_the_engine(defense: str) -> list[dict[str, list[float]]]:
    """The rounds of Flower's engine, run by a process of its own."""
    app = ROOT / "tests/flower/parity_app.py"
    path = os.pathsep.join([str(app.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(app), defense, ATTACK, folder]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True)
        found: list[dict[str, list[float]]] = json.loads((Path(folder) / "rounds.json").read_text())
    return found


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.flower import parity_app

    lines = [("defense", "accepted clients, by round", "the same in Flower", "largest difference", "largest step")]
    for defense in DEFENSES:
        wanted, found = parity_app.in_the_simulator(defense, ATTACK), rounds_in_the_engine(defense)
        same = sum(here["accepted"] == there.accepted for here, there in zip(found, wanted, strict=True))
        here, there = (np.array([each["params"] for each in found]), np.array([each.params for each in wanted]))
        lines.append(
            (
                defense,
                ", ".join(str(len(each.accepted)) for each in wanted),
                f"{same} of {len(wanted)} rounds",
                f"{np.abs(here - there).max():.1e}",
                f"{np.abs(np.diff(there, axis=0)).max():.2f}",
            )
        )
    sim = parity_app.simulation(DEFENSES[0], ATTACK)
    bad = sorted(int(k) for k in sim.holdings.malicious)
    text = "\n\n".join(
        [
            "# The simulator and Flower's engine: the same experiment",
            f"Made by `make flower-bench` on {datetime.now(UTC):%Y-%m-%d} with Flower {version('flwr')}: the digits, "
            f"mlp of {sim.trainer.model.layout.size:,} parameters, {parity_app.CLIENTS} clients of a Dirichlet "
            f"partition, {ATTACK} with full knowledge by clients {', '.join(map(str, bad))}, {parity_app.ROUNDS} "
            "rounds, float32. In Flower, clients train as the simulator's do in a ClientApp, malicious ones have "
            "`attack_mod`, and the server has `Defended(FedAvg(...))` and the same root data; node ids are drawn anew "
            "in each run.",
            markdown(lines),
            "The largest difference is over all parameters and rounds; the largest step is the farthest that a "
            "parameter moved in a round in the simulator. Both sides add up in float32, in different orders. Defenses "
            "without a decision about single clients (mean, fltrust, krum, invariant) reject nobody.",
        ]
    )
    page = Path(sys.argv[1]) if sys.argv[1:] else PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text + "\n")


if __name__ == "__main__":
    main()
