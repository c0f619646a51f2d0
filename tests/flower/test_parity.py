"""One experiment, in the simulator and in Flower: the same clients are accepted, and the models are the same."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from tests.flower import parity_app
from tests.flower.federation import Nodes, Reply

DEFENSES = ("mean", "fltrust", "krum", "skymask", "sieve", "invariant")
ATTACKS = ("label-flip", "min-max", "gaussian")


class Shuffled(Nodes):
    """Nodes that are named, and that answer, in another order each time."""

    def __init__(self, ids: list[int], reply: Reply) -> None:
        super().__init__(ids, reply)
        self.draws = random.Random(1)

    def get_node_ids(self) -> list[int]:
        return self.draws.sample(self.ids, len(self.ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Any]:
        replies = super().send_and_receive(messages, timeout=timeout)
        return self.draws.sample(replies, len(replies))


def in_flowers_loop(defense: str, attack: str, folder: Path, ids: list[int]) -> list[parity_app.Round]:
    """The rounds of Flower's loop, without an engine; node ``ids[k]`` is the simulator's client k."""
    sim, states = parity_app.simulation(defense, attack), {node: RecordDict() for node in ids}
    strategy, app = parity_app.defended(sim), parity_app.client_app(defense, attack, folder)
    models: list[ArrayRecord] = []

    def reply(message: Message) -> Message:
        node = message.metadata.dst_node_id
        place: dict[str, Any] = {"partition-id": ids.index(node), "num-partitions": len(ids)}
        return app(message, Context(1, node, place, states[node], {}))

    def note(server_round: int, arrays: ArrayRecord) -> None:
        models.append(arrays)

    initial = ArrayRecord(parity_app.module_of(sim).state_dict())
    strategy.start(Shuffled(ids, reply), initial, parity_app.ROUNDS, evaluate_fn=note)
    clients = {node: k for k, node in enumerate(ids)}
    return parity_app.in_flower(strategy, models[1:], sim.trainer.model.layout, clients)


def check_same(found: list[parity_app.Round], wanted: list[parity_app.Round]) -> None:
    assert [each.accepted for each in found] == [each.accepted for each in wanted]
    for here, there in zip(found, wanted, strict=True):
        largest = max(1.0, np.abs(there.params).max())  # sums in float32 are rounded by the size of what is added up
        np.testing.assert_allclose(here.params, there.params, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("defense", DEFENSES)
def test_flowers_loop_does_what_the_simulator_does(defense: str, attack: str, tmp_path: Path) -> None:
    """Replies come in another order each round, from nodes whose ids are of 64 bits."""
    ids = [2**63 + 1000 * k for k in range(parity_app.CLIENTS)]
    wanted = parity_app.in_the_simulator(defense, attack)
    check_same(in_flowers_loop(defense, attack, tmp_path, ids), wanted)


@pytest.mark.parametrize("defense", DEFENSES)
def test_it_does_not_matter_which_id_a_node_has(defense: str, tmp_path: Path) -> None:
    ids = [random.Random(2 + k).getrandbits(64) for k in range(parity_app.CLIENTS)]
    check_same(in_flowers_loop(defense, "min-max", tmp_path, ids), parity_app.in_the_simulator(defense, "min-max"))


def test_the_experiment_can_tell_defenses_apart() -> None:
    """The defenses decide differently: otherwise the tests above would hold for anything."""
    sims = {d: parity_app.in_the_simulator(d, "min-max") for d in DEFENSES}
    for one, other in combinations(DEFENSES, 2):
        apart = np.abs(np.array(sims[one][-1].params) - np.array(sims[other][-1].params)).max()
        assert apart > 0.01, (one, other)
    bad = set(parity_app.simulation("sieve", "min-max").holdings.malicious)
    assert not bad & set(sims["sieve"][-1].accepted)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="flwr[simulation] is not installed")
@pytest.mark.parametrize("defense", DEFENSES)
def test_flowers_engine_does_what_the_simulator_does(defense: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, str(here / "parity_app.py"), defense, "min-max", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    rounds = [parity_app.Round(**each) for each in json.loads((tmp_path / "rounds.json").read_text())]
    check_same(rounds, parity_app.in_the_simulator(defense, "min-max"))
