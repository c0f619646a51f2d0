"""Rounds on a GPU: milliseconds by phase, whole runs, several experiments at once, and what a profiler counts.

Needs nothing but FedSieve's own dependencies, and no network. Each block stands for itself: one that fails is reported
and the others go on; what is measured is written at once.
"""

import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import memory
import torch
from harness import Figure, Measured, clock, keep, machine
from inputs import Rounds, experiment, real, simulation

from fedsieve.data.store import data_folder
from fedsieve.federation import simulation as simulations
from fedsieve.federation.adversary import Adversary
from fedsieve.federation.clients import Trainer
from fedsieve.federation.server import Server
from fedsieve.runs.events import Event
from fedsieve.runs.gpus import take_turns
from fedsieve.runs.run import run
from fedsieve.runs.sweep import sweep

PROFILED = 5  # rounds
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_COPIES = ("cudaMemcpyAsync", "cudaMemcpy")


def measure(device: str, small: bool, only: Sequence[str] = (), out: Path | None = None) -> dict[str, Measured]:
    """The figures of each block, written to ``out`` when it is done.

    Args:
        device: Where to compute; ``cpu`` too, to see that this runs.
        small: Tiny rounds and few of them.
        only: Names of blocks; by default all but ``profile``, which takes long to print.
        out: The file.
    """
    began, found = time.perf_counter(), {}
    for name in only or [name for name in BLOCKS if name != "profile"]:
        say(f"{time.perf_counter() - began:5.0f} s  {name}")
        measured = Measured([], machine(device))
        try:
            BLOCKS[name](device, small, measured)
        except Exception as error:
            traceback.print_exc()
            said = str(error).splitlines() or [""]
            measured.notes.append(f"{name} failed: {type(error).__name__}: {said[0]}")
        found[name] = measured
        if out is not None:
            keep(out, name, measured)
        if device != "cpu":
            torch.cuda.empty_cache()
    say(f"{time.perf_counter() - began:5.0f} s  done")
    return found


def kind(data: str, small: bool) -> str:
    """What the samples are, for a note."""
    return f"{'The real' if real(data) and not small else 'Random samples of the shape of'} {data}"


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def done(device: str) -> None:
    """Wait until the device has computed all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


# --- Rounds ------------------------------------------------------------------------------------------------


def fashion(device: str, small: bool, measured: Measured) -> None:
    """50 rounds of each defense after a warm-up, in turns of ten."""
    sizes = {"small": True, "clients": 4} if small else {}
    played = {
        name: Rounds(simulation("fashion-mnist", device, defense=name, **sizes))
        for name in ("mean", "sieve", "skymask")
    }
    for name, milliseconds in _in_blocks(played, device, *((1, 1, 1) if small else (10, 10, 5))).items():
        what = f"fashion-mnist/cnn, 100 clients, {name}: a round"
        measured.figures.append(_round(what, milliseconds, played[name], f"gpu {name}", measured))
    measured.notes.append(
        f"{kind('fashion-mnist', small)}: 50 rounds with an evaluation each, in turns of ten; "
        "what the card still computes when a phase ends counts for the next one."
    )


def cifar(device: str, small: bool, measured: Measured) -> None:
    """Eight rounds of each detector after a warm-up of two, in turns of two."""
    data, sizes = ("har", {"small": True, "clients": 4}) if small else ("cifar10", {})
    played = {name: Rounds(simulation(data, device, defense=name, **sizes)) for name in ("sieve", "skymask")}
    for name, milliseconds in _in_blocks(played, device, *((1, 1, 1) if small else (2, 2, 4))).items():
        what = f"cifar10/resnet20, 100 clients x 5 steps, {name}: a round"
        measured.figures.append(_round(what, milliseconds, played[name], f"gpu cifar {name}", measured))
        whole = milliseconds / 2
        measured.figures.append(
            Figure(f"the same with {name}: 500 rounds", f"{whole:.0f} s, from these", f"gpu cifar {name} 500", whole)
        )
    measured.notes.append(f"{kind('cifar10', small)}: eight rounds with an evaluation each, in turns of two.")


def _in_blocks(played: dict[str, Rounds], device: str, warm: int, block: int, blocks: int) -> dict[str, float]:
    """Milliseconds a round of each, medians over blocks that are played in turn."""
    for rounds in played.values():
        rounds.play(warm)
        rounds.phases.clear()
    times: dict[str, list[float]] = {name: [] for name in played}
    for _ in range(blocks):
        for name, rounds in played.items():
            done(device)
            times[name].append(clock(lambda r=rounds: (r.play(block), done(device))))
    return {name: 1000 * median(values) / block for name, values in times.items()}


def _round(what: str, milliseconds: float, rounds: Rounds, goal: str, measured: Measured) -> Figure:
    phases = {name: round(1000 * median(values), 2) for name, values in rounds.phases.items()}
    measured.details.setdefault("phases, ms", {})[goal] = phases
    shown = ", ".join(f"{name} {value:.1f}" for name, value in phases.items() if value >= 0.05)
    say(f"         {what} {milliseconds:.1f} ms: {shown}")
    return Figure(what, f"{milliseconds:.1f} ms ({shown})", goal, milliseconds)


def whole_runs(device: str, small: bool, measured: Measured) -> None:
    """2,500 rounds, from the rounds after the first of a run with records on disk and the usual evaluations."""
    rounds, sizes = (5, {"small": True, "clients": 4}) if small else (120, {})
    for name in ("mean", "sieve", "skymask"):
        e = experiment("fashion-mnist", defense=name, rounds=rounds, evaluate_every=25, **sizes)
        stamps: list[float] = []
        with TemporaryDirectory() as folder:
            run(
                e,
                out=Path(folder) / "run",
                data=data_folder(),
                device=torch.device(device),
                keep_records=False,
                on_round=lambda _: stamps.append(time.perf_counter()),  # noqa: B023
            )
        # from a pause between two rounds, in case records come several at a time
        start = max(range(rounds // 5, rounds // 2), key=lambda k: stamps[k + 1] - stamps[k])
        whole = 2500 * (stamps[-1] - stamps[start]) / (rounds - 1 - start)
        say(f"         {name}: {whole:.1f} s")
        what, shown = f"the same with {name}: 2,500 rounds", f"{whole:.1f} s, from {rounds - 1 - start} rounds"
        measured.figures.append(Figure(what, shown, f"gpu {name} 2500", whole))
    measured.notes.append(
        "2,500 rounds: from the later rounds of a run with records on disk, evaluated every 25 rounds."
    )


# --- Several experiments -----------------------------------------------------------------------------------


def at_once(device: str, small: bool, measured: Measured) -> None:
    """Seeds and attacks of one setting by ``sweep``: one of them alone, then eight at once."""
    jobs, rounds, sizes = (1, 3, {"small": True, "clients": 4}) if small else (8, 80, {})
    cells = [
        experiment(
            "fashion-mnist", defense="sieve", attack=attack, seed=seed, rounds=rounds, evaluate_every=25, **sizes
        )
        for seed in range(4)
        for attack in ("label-flip", "min-max")
    ][:jobs]
    rates = {count: _rate(cells[:count], device) for count in (1, jobs)}
    hourly = {count: 3600 * rate / 2500 for count, rate in rates.items()}  # cells of the paper's length
    shown = f"{hourly[jobs]:,.0f} cells of 2,500 rounds an hour against {hourly[1]:,.0f}"
    ratio = rates[jobs] / rates[1]
    what = f"{len(cells)} experiments at once (sweep), cells an hour"
    measured.figures.append(Figure(what, shown, "gpu sweep", ratio, f"{ratio:.2f} x"))
    shared = "is not" if take_turns(device, jobs) else "is"
    measured.notes.append(
        f"Several experiments: sieve, from the rounds in which all of them run. The GPU {shared} shared through "
        "NVIDIA's MPS, without which the kernels of several processes take turns."
    )
    say(f"         {shown}")


def _rate(cells: list[Any], device: str) -> float:
    """Rounds a second of all cells together, while all of them run."""
    stamps: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def watch(event: Event) -> None:
        if event.kind in ("round", "done"):
            stamps[event.key].append((time.perf_counter(), event.round))
        if event.kind == "failed":
            raise RuntimeError(event.text.strip().splitlines()[-1])

    with TemporaryDirectory() as folder:
        ends = sweep(cells, Path(folder), data_folder(), device, len(cells), watch)
    if not all(event.finished for event in ends.values()):
        raise RuntimeError(f"cells ended as {sorted({event.kind for event in ends.values()})}")
    begin, end = max(own[0][0] for own in stamps.values()), min(own[-1][0] for own in stamps.values())
    if begin >= end:
        raise RuntimeError("no moment at which all experiments ran")
    within = [[count for moment, count in own if begin <= moment <= end] for own in stamps.values()]
    return sum(own[-1] - own[0] for own in within) / (end - begin)


def thousand_clients(device: str, small: bool, measured: Measured) -> None:
    """Peak memory of SkyMask on a thousand updates of ResNet20."""
    n = 20 if small else 1000
    found = memory.skymask_memory(n, device)
    shown = f"{found['peak'] / 1e9:.2f} GB"
    ratio = f"{found['peak'] / found['matrix']:.1f} matrices of updates"
    what = f"skymask, n = {n:,}, resnet20: peak memory on the GPU"
    measured.figures.append(Figure(what, shown, "gpu memory", found["peak"] / 1e9, ratio))


# --- What a profiler counts --------------------------------------------------------------------------------


def profile(device: str, small: bool, measured: Measured) -> None:
    """Print launches, waits and the operations that take most CPU time of each phase, and keep the counts."""
    settings = [("fashion-mnist", name) for name in ("mean", "sieve", "skymask")]
    settings += [("cifar10", name) for name in ("sieve", "skymask")]
    settings = [("har", "sieve")] if small else settings
    for data, name in settings:
        sizes = {"small": True, "clients": 4} if small else {}
        rounds = Rounds(simulation(data, device, defense=name, **sizes))
        rounds.play(3)
        done(device)
        count = 1 if data == "cifar10" else PROFILED
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if device != "cpu" else []
        with phases(), torch.profiler.profile(activities=kinds) as profiler:
            rounds.play(count)
            done(device)
        found = by_phase(profiler.events(), count)
        measured.details.setdefault("profile, a round", {})[f"{data}, {name}"] = {
            phase: {k: v for k, v in row.items() if k != "operations"} for phase, row in found.items()
        }
        say(f"\n{data}, {name}: a round")
        for phase, row in found.items():
            numbers = ", ".join(
                f"{row[key]:,.0f} {key}" for key in ("operations called", "launches", "waits", "copies")
            )
            say(f"  {phase}: {row['ms']:.2f} ms, {row['kernels, ms']:.2f} ms of kernels, {numbers}")
            for operation, (milliseconds, calls) in row["operations"]:
                say(f"    {milliseconds:8.3f} ms {calls:8.0f} x  {operation[:80]}")


@contextmanager
def phases() -> Iterator[None]:
    """Names the phases of a round for the profiler, as its record does, while the block runs."""
    places: list[tuple[Any, str, str]] = [
        (Trainer, "updates", "train"),
        (Adversary, "send", "attack"),
        (Server, "step", "defend"),
        (simulations, "evaluate", "evaluate"),
        (simulations, "round_record", "record"),
    ]
    there = [(owner, name, phase, getattr(owner, name)) for owner, name, phase in places if hasattr(owner, name)]
    within = [0]

    def named(phase: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        within[0] += 1
        try:
            if within[0] > 1:  # a defense trains too
                return original(*args, **kwargs)
            with torch.profiler.record_function(f"phase {phase}"):
                return original(*args, **kwargs)
        finally:
            within[0] -= 1

    try:
        for owner, name, phase, original in there:
            call = partial(named, phase, original)
            setattr(owner, name, _method(call) if isinstance(owner, type) else call)
        yield
    finally:
        for owner, name, _, original in there:
            setattr(owner, name, original)


def _method(call: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self, *args, **kwargs)

    return method


def by_phase(events: Any, rounds: int) -> dict[str, dict[str, Any]]:
    """What a profiler saw in each phase, a round: milliseconds, launches, waits, copies, the 15 dearest operations."""
    spans = sorted(
        (e.time_range.start, e.time_range.end, e.name.removeprefix("phase "))
        for e in events
        if e.name.startswith("phase ") and _on_cpu(e)
    )
    names = list(dict.fromkeys(name for *_, name in spans))
    found: dict[str, Counter[str]] = {name: Counter() for name in [*names, "elsewhere"]}
    dearest: dict[str, dict[str, list[float]]] = {name: defaultdict(lambda: [0.0, 0.0]) for name in found}
    for start, end, name in spans:
        found[name]["ms"] += (end - start) / 1000
    starts = torch.tensor([start for start, *_ in spans], dtype=torch.float64)
    inner = [e for e in events if not e.name.startswith(("phase ", "ProfilerStep"))]
    places = torch.searchsorted(
        starts, torch.tensor([float(e.time_range.start) for e in inner], dtype=torch.float64), right=True
    )
    for e, place in zip(inner, places.tolist(), strict=True):
        inside = place > 0 and e.time_range.start <= spans[place - 1][1]
        name = spans[place - 1][2] if inside else "elsewhere"
        row = found[name]
        if not _on_cpu(e):
            row["kernels, ms"] += (e.time_range.end - e.time_range.start) / 1000
            continue
        for key, prefixes in (("launches", _LAUNCHES), ("waits", _WAITS), ("copies", _COPIES)):
            row[key] += e.name.startswith(prefixes)
        row["operations called"] += e.name.startswith("aten::")
        dearest[name][e.name][0] += e.self_cpu_time_total / 1000
        dearest[name][e.name][1] += 1
    keys = ("ms", "kernels, ms", "operations called", "launches", "waits", "copies")
    return {
        name: {key: round(row[key] / rounds, 3) for key in keys}
        | {
            "operations": [
                (operation, (total / rounds, calls / rounds))
                for operation, (total, calls) in sorted(dearest[name].items(), key=lambda item: -item[1][0])[:15]
            ]
        }
        for name, row in found.items()
        if row
    }


def _on_cpu(event: Any) -> bool:
    return event.device_type == torch.autograd.DeviceType.CPU


BLOCKS: dict[str, Callable[[str, bool, Measured], None]] = {
    "fashion": fashion,
    "whole": whole_runs,
    "cifar": cifar,
    "sweep": at_once,
    "memory": thousand_clients,
    "profile": profile,
}
