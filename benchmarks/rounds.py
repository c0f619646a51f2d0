"""Whole rounds on a CPU: against a plain loop, against Flower's simulation, and on HAR."""

import copy
import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from harness import Figure, Measured, Timings, in_turn, seconds
from inputs import Rounds, real, simulation
from plain import PlainLoop

from fedsieve import Simulation

FLOWERS_PYTHON = Path(__file__).parents[1] / "build" / "others" / "bin" / "python"
_FLOWER_ROUNDS = 5
_NEVER = 1_000_000


def measure(small: bool) -> Measured:
    """The figures; with ``small``, of tiny rounds played once, to see that they run."""
    figures, notes = _images(small)
    return Measured(figures + _har(small), notes=notes)


# --- Fashion-MNIST -------------------------------------------------------------------------------------------


def _images(small: bool) -> tuple[list[Figure], list[str]]:
    sizes = {"small": True, "clients": 4} if small else {}
    training = Rounds(simulation("fashion-mnist", defense="mean", evaluate_every=_NEVER, **sizes))
    evaluating = Rounds(simulation("fashion-mnist", defense="mean", **sizes))
    loop = plain_loop(training.simulation)

    def loop_and_evaluation() -> None:
        loop.round()
        loop.evaluate()

    works = {
        "ours": training.play,
        "loop": loop.round,
        "ours, evaluated": evaluating.play,
        "loop, evaluated": loop_and_evaluation,
    }
    times = in_turn(works, **_long(small, 40))
    figures = [
        _against_loop("fashion-mnist/cnn, 100 clients, mean: a round", times, "ours", "loop"),
        _against_loop("the same with an evaluation on 10,000 images", times, "ours, evaluated", "loop, evaluated"),
    ]
    flower, why = ([], "small") if small else flower_seconds(training.simulation)
    what = "the same round in Flower's simulation"
    if flower:
        theirs, after = median(flower), in_turn({"ours": training.play}).of("ours")
        ours = (times.of("ours") + after) / 2  # before and after Flower's rounds
        shown = f"{seconds(ours)} against {seconds(theirs)}"
        figures.append(Figure(what, shown, "round flower", ours / theirs, f"{ours / theirs:.2f} x"))
    else:
        figures.append(Figure(what, f"not run: {why}", "round flower"))
    data = "Fashion-MNIST" if real("fashion-mnist") else "random images of Fashion-MNIST's shape"
    return figures, [f"Rounds on {data}, {times.repeats} repeats in turn, label flipping by 20 of the 100 clients."]


def plain_loop(simulated: Simulation) -> PlainLoop:
    """The plain loop on the data, the initial model and the settings of a simulation."""
    model, holdings, e = simulated.trainer.model, simulated.holdings, simulated.experiment
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        named = model.layout.unflatten(simulated.initial.server.params.clone())
        module.load_state_dict({name: tensor.clone() for name, tensor in named.items()}, strict=False)
    clients = [(holdings.clients[i].x, holdings.clients[i].y) for i in range(e.clients)]
    return PlainLoop(
        module,
        clients,
        (holdings.test.x, holdings.test.y),
        learning_rate=e.local.learning_rate,
        server_learning_rate=e.server.learning_rate,
        batch_size=e.local.batch_size,
    )


def _against_loop(what: str, times: Timings, ours: str, loop: str) -> Figure:
    ratio = times.ratio(ours, loop)
    shown = f"{seconds(times.of(ours))} against {seconds(times.of(loop))}"
    return Figure(what, shown, "round plain", ratio, f"{ratio:.2f} x")


def _long(small: bool, budget: float) -> dict[str, float | int]:
    return {"seconds": 0.0} if small else {"seconds": budget, "least": 5}


# --- Flower ------------------------------------------------------------------------------------------------


def flower_seconds(simulated: Simulation) -> tuple[list[float], str]:
    """Seconds of each round in Flower's simulation on the same data; or none, and why.

    Flower needs other versions of our dependencies, so it runs in an environment of its own: `make bench-others`.
    """
    if not FLOWERS_PYTHON.exists():
        return [], "Flower is not there; make bench-others installs it"
    clients = simulated.holdings.clients
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", torch.cat([c.x for c in clients.values()]).numpy())
        np.save(f"{folder}/y.npy", torch.cat([c.y for c in clients.values()]).numpy())
        starts = np.cumsum([0, *(len(c.y) for c in clients.values())])
        np.save(f"{folder}/starts.npy", starts)
        here = Path(__file__).parent
        environment = {
            **os.environ,
            "PYTHONPATH": str(here),
            "FLOWER_SIDE_FOLDER": folder,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": f"{folder}/flwr",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [str(FLOWERS_PYTHON), str(here / "flower_side.py"), str(len(clients)), str(_FLOWER_ROUNDS)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=240, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired:
            return [], "Flower did not end within four minutes"
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode or not lines:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return [], f"Flower failed: {said[-1][:200] if said else done.returncode}"
    return json.loads(lines[-1])[1:], ""  # the first round starts the actors


# --- HAR ---------------------------------------------------------------------------------------------------


def _har(small: bool) -> list[Figure]:
    """Milliseconds a round over blocks of rounds, each with as many evaluations as a run of 1,000 rounds has."""
    block, sizes = (2, {"small": True}) if small else (20, {})
    defenses = {
        name: Rounds(simulation("har", defense=name, evaluate_every=10, **sizes))
        for name in ("mean", "sieve", "skymask")
    }
    for rounds in defenses.values():
        rounds.play(block)
    times = in_turn({name: lambda r=rounds: r.play(block) for name, rounds in defenses.items()}, **_long(small, 15))
    return [
        Figure(
            f"HAR/logistic regression, 30 clients, {name}: a round",
            seconds(times.of(name) / block),
            f"har {name}",
            1000 * times.of(name) / block,
            "" if name == "mean" else f"{times.ratio(name, 'mean'):.1f} x mean",
        )
        for name in defenses
    ]
