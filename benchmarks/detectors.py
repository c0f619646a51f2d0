"""SkyMask's mask stage against its floor, and sieve's part of a round against an earlier version, on a CPU."""

import math
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import Figure, Measured, in_turn, seconds
from inputs import Rounds, real, simulation
from rounds import plain_loop
from torch import Tensor

import fedsieve
from fedsieve import Simulation, Updates
from fedsieve.core.defense import Root
from fedsieve.core.direct import finite
from fedsieve.core.linalg import column_blocks
from fedsieve.federation.server import ServerState

HERE = Path(__file__).resolve().parent
STEPS = 20
BUDGET = {"seconds": 20.0, "least": 5}
BEFORE = "e8e215f"  # the version that sieve's goal is relative to


def measure(small: bool) -> Measured:
    """The figures; with ``small``, of tiny updates measured once."""
    sizes = {"small": True, "clients": 6} if small else {}
    budget = {"seconds": 0.0} if small else BUDGET
    figures = []

    simulated, updates, state = a_round("skymask", **sizes)
    root = simulated.server.root(state.params, state.round)
    candidates = torch.cat([updates.matrix, root.update()[None]])
    steps = 2 if small else STEPS
    works = {
        "masks": lambda: masks(candidates, state.params, root, steps),
        "floor": lambda: floor(candidates, state.params, root, steps),
    }
    times = in_turn(works, **budget)
    ratio = times.ratio("masks", "floor")
    what = f"skymask's mask stage, n = {len(candidates)}, d = {candidates.shape[1]:,}, {steps} steps"
    shown = f"{seconds(times.of('masks'))} against {seconds(times.of('floor'))}"
    figures.append(Figure(what, shown, "masks", ratio, f"{ratio:.2f} x its floor"))

    old, why = (math.nan, "small") if small else units_of(BEFORE)
    for name in ("sieve", "skymask"):
        own, units = defending(name, sizes, budget)
        what = f"{name}'s part of a round of fashion-mnist/cnn, 100 clients"
        shown = f"{seconds(own)}, {units:.2f} x the plain loop's training"
        if name == "skymask":
            figures.append(Figure(what, shown))
        elif why:
            figures.append(Figure(what, f"{shown}; not compared: {why}", "sieve"))
        else:
            ratio = units / old
            said = f"{ratio:.2f} x version {BEFORE} ({old:.2f} x the plain loop's training)"
            figures.append(Figure(what, shown, "sieve", ratio, said))
    data = "Fashion-MNIST" if real("fashion-mnist") else "random images of Fashion-MNIST's shape"
    return Measured(figures, notes=[f"Updates of the fourth round on {data}, 20 of 100 clients with flipped labels."])


def defending(name: str, sizes: Mapping[str, Any], budget: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of a defense's part of a round, and these over the seconds of the plain loop's training, in turn."""
    simulated, updates, state = a_round(name, **sizes)
    loop = plain_loop(simulated)
    times = in_turn({"defend": lambda: simulated.server.step(state, updates), "loop": loop.train}, **budget)
    return times.of("defend"), times.ratio("defend", "loop")


def units_of(version: str) -> tuple[float, str]:
    """The second result of :func:`defending` for sieve at a commit, in a process of its own; or why there is none."""
    with TemporaryDirectory() as folder:
        git = subprocess.run(
            ["git", "-C", str(HERE.parent), "archive", version, "src"], capture_output=True, check=False
        )
        if git.returncode:
            return math.nan, f"git has no commit {version} here"
        with tarfile.open(fileobj=BytesIO(git.stdout)) as archive:
            archive.extractall(folder, filter="data")
        done = subprocess.run(
            [sys.executable, str(HERE / "detectors.py")],
            env={**os.environ, "PYTHONPATH": f"{folder}/src"},
            capture_output=True,
            text=True,
            check=False,
        )
        path, _, found = done.stdout.strip().rpartition(" ")
        if done.returncode or not path.startswith(folder):
            said = done.stderr.strip().splitlines() or [f"{path} was measured instead"]
            return math.nan, f"version {version} does not run: {said[-1][:200]}"
        return float(found), ""


def a_round(defense: str, **settings: Any) -> tuple[Simulation, Updates, ServerState]:
    """A simulation after three rounds, what its clients send in the fourth, and the server's state before it."""
    rounds = Rounds(simulation("fashion-mnist", defense=defense, evaluate_every=1_000_000, **settings))
    rounds.play(1 if settings.get("small") else 3)
    simulated, state = rounds.simulation, rounds.state.server
    cohort = dict(simulated.holdings.clients)
    matrix = simulated.trainer.updates(state.params, cohort, state.round)
    return simulated, Updates(matrix, torch.tensor(list(cohort)), simulated.trainer.model.layout), state


def masks(candidates: Tensor, params: Tensor, root: Root, steps: int) -> None:
    """SkyMask's mask training, which must not stop early."""
    from fedsieve.detectors.skymask.masks import train_blocks  # units_of runs this file with a version without it

    how = {"learning_rate": 1e7, "clip": 1e-7, "max_steps": steps, "tolerance": 0.0}
    found, taken = train_blocks([candidates], params, root, **how)
    if taken != steps or not all(map(finite, found)):
        raise RuntimeError(f"mask training took {taken} of {steps} steps")


def floor(x: Tensor, params: Tensor, root: Root, steps: int) -> None:
    """What no mask training does without: a backward pass on root data, two reads and one write of n x d, a sigmoid."""
    mean, gates = x.mean(dim=0), torch.ones_like(x)
    blocks = list(column_blocks(x))
    room = torch.empty_like(x[:, blocks[0]])
    for step in range(steps):
        root.gradient(params + mean * (1 + 1e-3 * step))  # another model in each step: a result is kept for the last
        for block in blocks:
            part = room[:, : block.stop - block.start]
            torch.sigmoid(gates[:, block], out=part)
            torch.add(x[:, block], part, out=gates[:, block])


if __name__ == "__main__":
    print(fedsieve.__file__, defending("sieve", {}, BUDGET)[1])
