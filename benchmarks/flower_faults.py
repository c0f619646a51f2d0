"""Five faults against Flower's own strategies and ours, side by side: `python benchmarks/flower_faults.py`.

Needs Flower, so it runs in the environment of `make flower-test`. Eleven nodes train a linear model on the digits; the
attacker is one of them, answers first, and takes part in one round through the strategy's own `start`. It is measured
by a weight that the data of no node move, since its pixel is black in all images: what stands there after the round
was put there by the attacker.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from fedsieve import RunDirectory
from fedsieve.flower import Defended

NODES, MALICIOUS, ROOT, SAMPLES, OWN = 11, 2, 300, 136, 0.01
FAULTS = ("none", "NaN", "1e30", "wrong shape", "no num-examples", "1e9 examples")
PAGE = Path(__file__).parents[1] / "docs" / "results" / "flower" / "faults.md"


@cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits, in a random order."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]


def model() -> nn.Module:
    """The model before the round, the same in each call."""
    torch.manual_seed(0)
    return nn.Linear(64, 10)


@cache
def trained(node: int) -> dict[str, Any]:
    """The model of an honest node, as arrays."""
    own, (x, y) = model(), data()
    x, y = x[ROOT + node :: NODES], y[ROOT + node :: NODES]
    optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
    for _ in range(10):
        optimizer.zero_grad()
        functional.cross_entropy(own(x), y).backward()
        optimizer.step()
    return {name: tensor.detach().numpy().copy() for name, tensor in own.state_dict().items()}


def faulty(fault: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attacker's arrays and metrics: those of an honest node but for the fault, and for its own weight."""
    arrays = {name: array.copy() for name, array in trained(0).items()}
    arrays["weight"][0, 0] += OWN
    metrics: dict[str, Any] = {"loss": 0.1, "num-examples": SAMPLES}
    match fault:
        case "NaN":
            arrays = {name: np.full_like(array, np.nan) for name, array in arrays.items()}
        case "1e30":
            arrays = {name: np.full_like(array, 1e30) for name, array in arrays.items()}
        case "wrong shape":
            arrays["weight"] = arrays["weight"][:5]
        case "no num-examples":
            del metrics["num-examples"]
        case "1e9 examples":
            metrics["num-examples"] = 10**9
    return arrays, metrics


class OneRound(Grid):
    """Stands for the network: eleven nodes that answer at once, the attacker first."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        with suppress(ImportError):  # from Flower 1.41 or so, a process that makes messages must be a ServerApp's
            identity = import_module("flwr.supercore.task_identity").TaskIdentity
            identity.run_id = identity.node_id = identity.task_id = 1

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies of all nodes that were asked."""
        return [self._reply(message) for message in sorted(messages, key=lambda m: m.metadata.dst_node_id)]

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id - 1
        arrays, metrics = faulty(self.fault) if node == 0 else (trained(node), {"loss": 0.1, "num-examples": SAMPLES})
        record = ArrayRecord({name: Array(array.copy()) for name, array in arrays.items()})
        return Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)

    def get_node_ids(self) -> list[int]:
        """Their ids."""
        return list(range(1, NODES + 1))

    def set_run(self, run: Any) -> None:
        """Nothing to do."""

    @property
    def run(self) -> Any:
        """None."""
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Nobody asks for one."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Nobody asks for it."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Nobody asks for it."""
        raise NotImplementedError


def _defended(defense: str) -> Callable[[Path], Strategy]:
    def make(folder: Path) -> Strategy:
        x, y = data()
        inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
        needs = {"root": (x[:ROOT], y[:ROOT]), "module": model()} if defense in ("skymask", "sieve") else {}
        local = {"local": {"learning_rate": 0.5, "steps": 10, "batch_size": ROOT}} if needs else {}
        return Defended(inner, defense=defense, out=folder, assumed_malicious=MALICIOUS, seed=0, **needs, **local)

    return make


def _stock(kind: type[FedAvg], **options: Any) -> Callable[[Path], Strategy]:
    sizes = {"fraction_evaluate": 0.0, "min_train_nodes": NODES, "min_available_nodes": NODES}
    return lambda folder: kind(**sizes, **options)


STRATEGIES: dict[str, Callable[[Path], Strategy]] = {
    "FedAvg": _stock(FedAvg),
    "FedMedian": _stock(FedMedian),
    "FedTrimmedAvg": _stock(FedTrimmedAvg, beta=0.2),
    "Krum": _stock(Krum, num_malicious_nodes=MALICIOUS),
    "MultiKrum": _stock(MultiKrum, num_malicious_nodes=MALICIOUS, num_nodes_to_select=NODES - MALICIOUS),
    "Bulyan": _stock(Bulyan, num_malicious_nodes=MALICIOUS),
    **{
        f"Defended, {name}": _defended(name)
        for name in ("mean", "trimmed-mean", "krum", "multi-krum", "skymask", "sieve")
    },
}


@dataclass(frozen=True)
class Outcome:
    """What one round with one faulty reply did.

    Attributes:
        error: The exception that ended the run, or "".
        largest: Largest absolute value of the model afterwards; NaN if one is.
        changed: Whether the model is another one than before.
        share: The attacker's share of the new model, where that can be told.
        dropped: Why the attacker's reply was dropped, as the record of the round has it, or "".
        rejected: Whether the defense rejected the attacker.
        note: What the record says of the round, or "".
    """

    error: str
    largest: float
    changed: bool
    share: float
    dropped: str
    rejected: bool
    note: str

    @property
    def text(self) -> str:
        """In a few words."""
        if self.error:
            return f"**run ends**: {self.error}"
        if np.isnan(self.largest):
            return "**model NaN**"
        if self.largest > 1e3:
            return f"**model at {self.largest:.0e}**"
        if self.dropped:
            return f"dropped: {self.dropped}"
        if not self.changed:
            return f"model unchanged: {self.note}"
        if self.rejected:
            return "rejected"
        share = f"attacker's share {100 * self.share:.8g} %" if self.share else "no effect"
        return f"**{share}**" if self.share > 0.5 else share

    @property
    def harmed(self) -> bool:
        """Whether the faulty reply ended the run, destroyed the model, or is most of it."""
        return bool(self.error) or not self.largest < 1e3 or self.share > 0.5


@cache
def outcome(strategy: str, fault: str) -> Outcome:
    """Play one round."""
    before = {name: tensor.numpy().copy() for name, tensor in model().state_dict().items()}
    arrays, error, dropped, rejected, note = before, "", "", False, ""
    with tempfile.TemporaryDirectory() as name, np.errstate(all="ignore"):
        folder = Path(name) / "run"
        try:
            initial = ArrayRecord({name: Array(array) for name, array in before.items()})
            result = STRATEGIES[strategy](folder).start(OneRound(fault), initial, num_rounds=1)
            arrays = {name: array.numpy() for name, array in result.arrays.items()} or before
        except Exception as raised:
            error = type(raised).__name__
        if folder.exists():
            found = RunDirectory(folder)
            names, (record,) = found.read_names(), found.records()
            attacker = names.index("node 1")
            reasons = dict(zip(record.screened, record.screened_reasons, strict=True))
            dropped, rejected = reasons.get(attacker, ""), attacker in (record.rejected or ())
            note = record.note
    largest = float(max(np.abs(array).max() for array in arrays.values()))
    changed = any(not np.array_equal(arrays[name], before[name]) for name in before)
    share = float((arrays["weight"][0, 0] - before["weight"][0, 0]) / OWN) if largest < 1e3 else np.nan
    return Outcome(error, largest, changed, share if abs(share) > 1e-4 else 0.0, dropped, rejected, note)


def table() -> str:
    """All strategies against all faults, in Markdown."""
    lines = ["| strategy | " + " | ".join(FAULTS) + " |", "|---" * (len(FAULTS) + 1) + "|"]
    rows = ([strategy, *(outcome(strategy, fault).text for fault in FAULTS)] for strategy in STRATEGIES)
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def page() -> str:
    """The page, with what was measured now."""
    return f"""# One bad reply

Made by `benchmarks/flower_faults.py`, with Flower {version("flwr")}; `tests/flower/test_faults.py` holds the table to
the code. One round of {NODES} nodes, of which {MALICIOUS} are assumed to be malicious and one is faulty: its reply
comes first, and has one fault, in the first column none. In the last column its arrays look honest, and it claims a
billion examples where the others say {SAMPLES}. Stock strategies are Flower's own (`flwr.serverapp.strategy`); ours
wrap FedAvg. The attacker's share is what a weight tells that only the attacker moves; an honest node's share of a plain
mean is {100 / NODES:.2g} %. Bold: one reply ended the run, destroyed the model, or is most of it.

{table()}
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PAGE)
    out = parser.parse_args().out
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    text = page()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
