"""Memory of a round: at most 2.5 times the stacked updates, the replies among it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

ROUND = """
import gc, resource, sys
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from fedsieve.flower import Defended
from tests.flower.federation import Nodes, honest, ids
from tests.flower.messages import as_a_server

n, d, defense = 20, 2_000_000, sys.argv[1]
as_a_server()

def reply(message):
    draws = np.random.default_rng(message.metadata.dst_node_id % 1000)
    arrays = {k: Array(draws.standard_normal((d // 4), dtype=np.float32)) for k in "abcd"}
    metrics = MetricRecord({"num-examples": 5})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

def peak():  # of this process, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

defended, grid = Defended(FedAvg(), defense), Nodes(ids(n), honest)
small = ArrayRecord({k: Array(np.zeros(100, np.float32)) for k in "abcd"})
defended.configure_train(1, small, ConfigRecord(), grid)  # what is loaded once
model = ArrayRecord({k: Array(np.zeros(d // 4, np.float32)) for k in "abcd"})
defended, gone = Defended(FedAvg(), defense), defended
messages = defended.configure_train(1, model, ConfigRecord(), grid)
before = peak()
replies = [reply(message) for message in messages]
model, metrics = defended.aggregate_train(1, replies)
assert metrics["applied"] == 1, metrics
assert all(len(r.content) <= 2 for r in replies)
print((peak() - before) / (n * d * 4))
"""


@pytest.mark.parametrize("defense", ["mean", "median", "krum", "trimmed-mean", "tolpegin"])
def test_of_a_round(defense: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ROUND, defense],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2.5
