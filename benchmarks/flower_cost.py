"""What a defended strategy costs beside Flower's own: time of a round and peak memory, on the same replies.

Runs in an environment that has Flower and this package (``make flower-bench``), and writes a page. The strategies take
turns in one process, so that all of them see the same machine; each one's memory is measured in a process of its own.

Usage: flower_cost.py [--smoke] [--out PAGE]
"""

import argparse
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedTrimmedAvg, Krum, MultiKrum
from harness import markdown, seconds
from memory import peak

from fedsieve.flower import Defended
from fedsieve.models.cnn import CNN

MOST_MEMORY = 2.5  # times the stacked updates
TURNS = 3
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Size:
    """So many replies, of a model of these arrays.

    Attributes:
        n: Number of replies.
        f: Number of malicious clients that defenses assume.
        shapes: Of the model's arrays, by name.
        module: Whether the server has the module, and root data.
    """

    n: int
    f: int
    shapes: Mapping[str, tuple[int, ...]]
    module: bool = False

    @property
    def d(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


def cnn() -> dict[str, tuple[int, ...]]:
    """This package's ``cnn`` for images of 28 x 28 pixels: 139,960 parameters."""
    return {name: tuple(t.shape) for name, t in CNN((1, 28, 28), 10).state_dict().items()}


def resnet18() -> dict[str, tuple[int, ...]]:
    """The parameters of ResNet-18 (He et al., CVPR 2016) for ten classes: 11,181,642."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "bn1.bias": (64,)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            found[f"{name}.conv1.weight"] = (width, before, 3, 3)
            found[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norms = ["bn1", "bn2"]
            if before != width:
                found[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                norms.append("downsample.1")
            found |= {f"{name}.{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
            before = width
    return {**found, "fc.weight": (10, 512), "fc.bias": (10,)}


def sizes(smoke: bool) -> dict[str, Size]:
    """The sizes, by name."""
    if smoke:
        return {"cnn": Size(8, 1, cnn(), True)}
    return {"cnn": Size(100, 20, cnn(), True), "resnet18": Size(20, 4, resnet18())}


# --- The strategies ----------------------------------------------------------------------------------------


def strategies(size: Size) -> dict[str, tuple[Callable[[], Any], str]]:
    """How each strategy is made, and Flower's own with which it is compared; "" for Flower's own."""
    n, f = size.n, size.f
    nodes: dict[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": n, "min_available_nodes": n}

    def ours(defense: str, **more: Any) -> Callable[[], Any]:
        return lambda: Defended(FedAvg(**nodes), defense, assumed_malicious=f, seed=0, **more)

    found: dict[str, tuple[Callable[[], Any], str]] = {
        "FedAvg": (lambda: FedAvg(**nodes), ""),
        "Defended mean": (ours("mean"), "FedAvg"),
        "Krum": (lambda: Krum(num_malicious_nodes=f, **nodes), ""),
        "Defended krum": (ours("krum"), "Krum"),
        "MultiKrum": (lambda: MultiKrum(num_malicious_nodes=f, num_nodes_to_select=n - f, **nodes), ""),
        "Defended multi-krum": (ours("multi-krum"), "MultiKrum"),
        "FedTrimmedAvg": (lambda: FedTrimmedAvg(beta=f / n, **nodes), ""),
        "Defended trimmed-mean": (ours("trimmed-mean"), "FedTrimmedAvg"),
        "Defended median": (ours("median"), "FedTrimmedAvg"),
        "Defended invariant": (ours("invariant"), "FedAvg"),
    }
    if size.n < 10:
        return {name: found[name] for name in ("FedAvg", "Defended mean", "Krum", "Defended krum")}
    if size.module:
        torch.manual_seed(0)
        module, x = CNN((1, 28, 28), 10), torch.rand(100, 1, 28, 28)
        given = {"module": module, "root": (x, torch.arange(100) % 10)}
        found |= {f"Defended {name}": (ours(name, **given), "FedAvg") for name in ("fltrust", "sieve", "skymask")}
    return found


class Nodes(Grid):
    """Connected nodes; strategies ask for no more."""

    def __init__(self, n: int) -> None:
        self.ids = [2**63 + 7 * k for k in range(n)]  # of 64 bits, as Flower draws them

    def get_node_ids(self) -> list[int]:
        """All of them."""
        return self.ids

    def _nothing(self, *given: Any, **named: Any) -> Any:
        raise NotImplementedError

    run = property(_nothing)
    set_run = create_message = get_nodes = push_messages = pull_messages = send_and_receive = _nothing


def as_a_server() -> None:
    """Messages are made by a server that has a run."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def model(size: Size) -> ArrayRecord:
    """The global model."""
    rng = np.random.default_rng(0)
    return ArrayRecord(
        {name: Array(rng.normal(0, 0.05, shape).astype(np.float32)) for name, shape in size.shapes.items()}
    )


def trained(size: Size, sent: ArrayRecord, k: int) -> dict[str, Array]:
    """What client k sends: what it got, moved in a common direction and one of its own; the first f move backwards."""
    common, own = np.random.default_rng(1), np.random.default_rng(2 + k)
    sign = -3.0 if k < size.f else 1.0
    found = {}
    for name, array in sent.items():
        step = common.normal(0, 1e-3, array.shape) * sign + own.normal(0, 1e-3, array.shape)
        found[name] = Array((array.numpy() + step).astype(np.float32))
    return found


def replies_to(messages: Sequence[Message], bodies: Sequence[Mapping[str, Array]], nodes: Nodes) -> list[Message]:
    """What the nodes answer, in records of their own: Flower's trimmed mean takes the arrays out of them."""
    places, replies = {node: k for k, node in enumerate(nodes.ids)}, []
    for message in messages:
        body = ArrayRecord(dict(bodies[places[message.metadata.dst_node_id] % len(bodies)]))
        content = RecordDict({"arrays": body, "metrics": MetricRecord({"num-examples": 100, "loss": 0.5})})
        replies.append(Message(content, reply_to=message))
    return replies


def round_of(strategy: Any, size: Size, sent: ArrayRecord, bodies: Sequence[Mapping[str, Array]], at: int) -> float:
    """Seconds of CPU time that a strategy takes to make the messages of a round and to aggregate the replies."""
    nodes, start = Nodes(size.n), time.process_time()
    messages = list(strategy.configure_train(at, sent, ConfigRecord(), nodes))
    took = time.process_time() - start
    replies = replies_to(messages, bodies, nodes)
    start = time.process_time()
    arrays, _ = strategy.aggregate_train(at, replies)
    assert arrays is not None
    return took + time.process_time() - start


# --- Time and memory ---------------------------------------------------------------------------------------


def timed(size: Size, sent: ArrayRecord, bodies: Sequence[Mapping[str, Array]], turns: int) -> dict[str, list[float]]:
    """Seconds of each strategy's rounds, in turn."""
    made = {name: make() for name, (make, _) in strategies(size).items()}
    found: dict[str, list[float]] = {name: [] for name in made}
    for at in range(1, turns + 1):
        for name, strategy in made.items():
            found[name].append(round_of(strategy, size, sent, bodies, at))
    return found


def memory(size: Size, sent: ArrayRecord, bodies: list[dict[str, Array]], name: str) -> float:
    """Peak memory of a round, in stacked updates, above what the process had with all replies in it.

    It is run by a child of this process, which goes on from the same memory: libraries are loaded, replies are made.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            strategy, nodes = strategies(size)[name][0](), Nodes(size.n)
            replies = replies_to(list(strategy.configure_train(1, sent, ConfigRecord(), nodes)), bodies, nodes)
            bodies.clear()  # so that arrays that a strategy lets go of are freed
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
            before = peak()
            arrays, _ = strategy.aggregate_train(1, replies)
            assert arrays is not None
            os.write(writing, str((peak() - before) / (4 * size.n * size.d)).encode())
        finally:
            os._exit(0)  # the rest is the parent's
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = float(pipe.read())
    os.waitpid(child, 0)
    return found


# --- The page ----------------------------------------------------------------------------------------------


def page(smoke: bool) -> str:
    """All measurements as Markdown."""
    parts = [
        "# What a defended Flower strategy costs",
        f"Made by `make flower-bench` on {datetime.now(UTC):%Y-%m-%d}: Flower {version('flwr')}, PyTorch "
        f"{torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads.",
        "A strategy's own time in a round is the CPU time of `configure_train` and `aggregate_train` on the same "
        "replies, in turn in one process; ratios are medians over the turns. Memory is the high-water mark of "
        "`aggregate_train` above what the process held with all replies in it, in sizes of the stacked updates (n x d "
        f"float32), each in a process of its own; the goal is at most {MOST_MEMORY}.",
    ]
    for which, size in sizes(smoke).items():
        sent = model(size)
        bodies = [trained(size, sent, k) for k in range(size.n)]
        round_of(strategies(size)["FedAvg"][0](), size, sent, bodies, 1)  # untimed: libraries are loaded
        times = timed(size, sent, bodies, 1 if smoke else TURNS)
        lines = [("strategy", "a round", "ratio", "beside", "memory")]
        for name, (_, beside) in strategies(size).items():
            ratio = median(a / b for a, b in zip(times[name], times[beside], strict=True)) if beside else None
            extra = memory(size, sent, bodies, name)
            lines.append(
                (
                    name,
                    seconds(median(times[name])),
                    "" if ratio is None else f"{ratio:.2f}",
                    beside,
                    f"{extra:.2f}" + (" **missed**" if beside and extra > MOST_MEMORY else ""),
                )
            )
        parts += [f"## {size.n} replies of {size.d:,} parameters ({which}), f = {size.f}", markdown(lines)]
    parts.append(
        "Every Defended row checks each reply, screens the updates, aggregates, averages the metrics and makes the "
        "round's record. Flower's own check no shapes, types or values. Of Defended's memory, the stacked updates are "
        "1; what `sieve` and `skymask` take beyond is their own (reference updates, masks) and is the same in the "
        "simulator."
    )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one small size, little time, nothing written")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/results/flower/cost.md")
    given = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    as_a_server()
    text = page(given.smoke)
    if given.smoke:
        print(text)
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)


if __name__ == "__main__":
    main()
