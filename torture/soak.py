"""Ten thousand rounds: memory and time per round stay what they were, with client ids that never come back."""

import gc
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fedsieve
from fedsieve.config import registry
from fedsieve.core.defense import Updates
from fedsieve.core.records import RoundRecord
from fedsieve.federation.root import RootClient
from fedsieve.federation.server import Server, ServerState
from torture.common import Command, Context, Row, Tally, expect, played, told

# Those with a state, and some without.
RULES = (
    "mean",
    "median",
    "momentum",
    "momentum,trimmed-mean",
    "fldetector",
    "sieve",
    "sparsefed",
    "norm-clipping,krum",
)
N = 8
MEBIBYTE = 2**20
MOST_GROWTH, MOST_SLOWER = 8 * MEBIBYTE, 1.4
RUN: dict[str, Any] = {
    "dataset": "digits",
    "model": "logistic-regression",
    "clients": 4,
    "attack": "none",
    "defense": "median",
}


def rows(context: Context) -> Iterator[Row]:
    """Run the chapter."""
    torch.manual_seed(context.seed)
    rounds = context.some(10_000, 200)
    tally = Tally("soak", f"a server, {rounds} rounds, fresh ids in each", 600)
    for name in RULES[:: context.some(1, 4)]:
        tally.case(name, partial(served, name, rounds, context.smoke))
    yield tally.row()
    tally = Tally("soak", f"a run, {rounds} rounds, and its report", 900)
    out = context.folder / "run"
    tally.case(
        "run", partial(run, {**RUN, "rounds": rounds, "evaluate_every": rounds // 10}, out, rounds, context.smoke)
    )
    short = context.folder / "short"
    played({**RUN, "rounds": rounds // 20, "evaluate_every": rounds // 20}, short)
    tally.case("report", partial(reported, out, short, context.folder / "page"))
    yield tally.row()


class Gauge:
    """Memory after a fifth of the rounds and after all, and the processor's time per round early and late. Mutable."""

    def __init__(self, rounds: int) -> None:
        self._rounds, self._early, self._last = rounds, rounds // 5, time.process_time()
        self._seconds: list[float] = []
        self._memory = 0

    def round(self, number: int) -> None:
        """Call this after each round."""
        now = time.process_time()
        self._seconds.append(now - self._last)
        if number + 1 == self._early:
            self._memory = resident()
        self._last = time.process_time()

    def check(self, smoke: bool) -> None:
        """Raise LostError if memory or time have grown; too short a run only shows that it can be measured."""
        grown, tenth = resident() - self._memory, self._rounds // 10
        expect(len(self._seconds) == self._rounds, f"{len(self._seconds)} rounds")
        early, late = (statistics.median(part) for part in (self._seconds[tenth : 2 * tenth], self._seconds[-tenth:]))
        if not smoke:
            expect(grown < MOST_GROWTH, f"{grown / MEBIBYTE:.1f} MiB more than after {self._early} rounds")
            expect(late < MOST_SLOWER * early, f"{1000 * late:.2f} ms a round at the end, {1000 * early:.2f} at first")


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def served(name: str, rounds: int, smoke: bool) -> None:
    """A server of this defense, whose clients come once and never again."""
    x = torch.randn(30, 8)
    root = fedsieve.root_data(nn.Linear(8, 3), x, torch.arange(30) % 3, learning_rate=0.1)
    defense = registry.build_defense(name, registry.complete("defenses", name, {}))

    def seen(params: torch.Tensor, number: int) -> RootClient:
        return RootClient(root.trainer, root.samples, root.n_classes, params, number)

    server = Server(defense, root.layout, assumed_malicious=1, learning_rate=0.01, root=seen)
    state, gauge = ServerState(root.params), Gauge(rounds)
    common = 0.01 * torch.randn(len(root.params))
    for number in range(rounds):
        matrix = common + 0.01 * torch.randn(N, len(common))
        state, _ = server.step(state, Updates(matrix, torch.arange(N) + N * number, root.layout))
        gauge.round(number)
    expect(bool(torch.isfinite(state.params).all()), "the model is not finite")
    gauge.check(smoke)


def run(settings: dict[str, Any], out: Path, rounds: int, smoke: bool) -> None:
    """A run, with its records and checkpoints."""
    gauge = Gauge(rounds)

    def after(record: RoundRecord) -> None:
        gauge.round(record.round)

    played(settings, out, after)
    gauge.check(smoke)
    expect((out / "records.jsonl").read_bytes().count(b"\n") == rounds, "records are missing")


def reported(out: Path, short: Path, page: Path) -> None:
    """The report of it takes hardly more memory than that of a run a twentieth as long."""
    peaks = []
    for number, folder in enumerate((short, out)):
        process, peak = Command("report", folder, "--out", page / str(number), "--quiet"), 0
        while process.running():
            peak = max(peak, _peak(process.pid))
            time.sleep(0.01)
        told(process.wait())
        peaks.append(peak)
    expect(
        peaks[1] < peaks[0] + 64 * MEBIBYTE,
        f"{peaks[1] / MEBIBYTE:.0f} MiB, {peaks[0] / MEBIBYTE:.0f} for the short one",
    )


def _peak(pid: int) -> int:
    """Bytes of a process in memory."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
