"""How time grows with clients and parameters; memory of a thousand clients, and of a million registered ones."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import Figure, Measured, in_turn
from rules import ALIASES, FEW_PASSES, Case, work

from fedsieve.config import registry

# What each defense does beside passes over the matrix; all others pass over it alone.
SORTING = ("median", "trimmed-mean", "invariant", "fldetector")
PAIRS = ("krum", "multi-krum", "bulyan", "geometric-median", "flame", "sieve", "skymask", "skymask-nr", "tolpegin")
SIZES_N, SIZES_D = (50, 100, 200, 400), (100_000, 200_000, 400_000, 800_000)
FIXED_N, FIXED_D = 100, 200_000
# As many times as many columns for rules that take no longer than to read the matrix: 40 MB may lie in a processor's
# cache, from which they are read three times as fast as 320 MB; 160 MB and 1.3 GB are read alike.
LARGER = 4
# A fixed number of steps, so that sizes differ in nothing else.
PARAMETERS: dict[str, dict[str, Any]] = {
    "skymask": {"mask_steps": 5, "tolerance": 0.0},
    "skymask-nr": {"mask_steps": 5, "tolerance": 0.0},
    "tolpegin": {"layer": "all"},
}


def measure(small: bool) -> Measured:
    """The figures; with ``small``, of small matrices and few clients."""
    ns, ds, n, d = sizes = ((11, 22), (500, 1000), 11, 500) if small else (SIZES_N, SIZES_D, FIXED_N, FIXED_D)
    budget = 0.0 if small else 3.0
    names = [name for name in registry.names("defenses") if name not in ALIASES]
    figures, fitted = exponents(FEW_PASSES, ns, [LARGER * size for size in ds], n, LARGER * d, budget)
    others = exponents([name for name in names if name not in FEW_PASSES], *sizes, budget)
    figures, fitted = figures + others[0], fitted | others[1]
    numbers = (40,) if small else (1_000, 100_000, 1_000_000)
    figures += [
        skymask_memory(20 if small else 1000),
        registered("drawn", numbers),
        *([] if small else [registered("dealt", numbers, numbers[-1])]),
    ]
    notes = [
        f"Exponents are slopes of log seconds over log n ({sizes[0][0]} to {sizes[0][-1]} clients, d = {sizes[3]:,}) "
        f"and over log d ({sizes[1][0]:,} to {sizes[1][-1]:,} at n = {sizes[2]}), fitted to the medians; f = n / 5. "
        f"{', '.join(FEW_PASSES)}: with {LARGER} times as many parameters, more than a processor's cache holds.",
        "Memory is the largest resident set of a process of its own. Registered clients draw their samples from the "
        "same 60,000 (partition bootstrap), or have one each of a million (iid); a fifth of them flip labels.",
    ]
    return Measured(figures, notes=notes, details={"seconds": fitted})


# --- Exponents ---------------------------------------------------------------------------------------------


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through (log size, log value).

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def exponents(
    names: Sequence[str], ns: Sequence[int], ds: Sequence[int], n: int, d: int, budget: float
) -> tuple[list[Figure], dict[str, Mapping[str, list[float]]]]:
    """The exponents of n and d of these defenses, and the seconds that they are fitted to."""
    by_n = {size: _seconds(Case.of(size, d, size // 5), names, budget) for size in ns}
    by_d = {size: _seconds(Case.of(n, size, n // 5), names, budget) for size in ds}
    figures = []
    for name in names:
        goal = "growth n sorting" if name in SORTING else "growth n pairs" if name in PAIRS else "growth n"
        times = [by_n[size][name] for size in ns]
        of_n = exponent(ns, times)
        figures.append(
            Figure(name, f"n^{of_n:.2f}", goal, of_n, f"{times[-1] / times[0]:.1f} x for {ns[-1] / ns[0]:g} n")
        )
        times = [by_d[size][name] for size in ds]
        of_d = exponent(ds, times)
        figures.append(
            Figure(name, f"d^{of_d:.2f}", "growth d", of_d, f"{times[-1] / times[0]:.1f} x for {ds[-1] / ds[0]:g} d")
        )
    fitted = {name: {"n": [by_n[s][name] for s in ns], "d": [by_d[s][name] for s in ds]} for name in names}
    return figures, fitted


def _seconds(case: Case, names: Sequence[str], budget: float) -> dict[str, float]:
    return {
        name: in_turn({name: work(case, name, PARAMETERS.get(name))}, seconds=budget / 4, most=5).of(name)
        for name in names
    }


# --- Memory ------------------------------------------------------------------------------------------------


def skymask_memory(n: int) -> Figure:
    """Peak memory of SkyMask for n clients of ResNet20; masks take the same memory in every step, so two are enough."""
    what = f"skymask, n = {n:,}, resnet20: peak memory"
    found, error = in_process("skymask_memory", n)
    if error:
        return Figure(what, error, "skymask memory", math.inf)
    matrix, peak = found["matrix"], found["peak"]
    shown = f"{peak / 1e9:.1f} GB"
    return Figure(
        what, shown, "skymask memory", peak / 1e9, f"{(peak - found['before']) / matrix:.1f} matrices of updates"
    )


def registered(task: str, numbers: Sequence[int], *others: int) -> Figure:
    """Peak memory of rounds of 100 clients from more and more registered ones, on the same data."""
    what = f"{numbers[-1]:,} registered clients, samples {task}: peak memory"
    peaks = []
    for number in numbers:
        found, error = in_process(task, number, *others)
        if error:
            return Figure(what, f"{number:,} clients: {error}", "registered", math.inf)
        peaks.append(found["peak"])
    shown = ", ".join(f"{peak / 1e6:.0f} MB of {number:,}" for peak, number in zip(peaks, numbers, strict=True))
    ratio = peaks[-1] / peaks[0]
    return Figure(what, shown, "registered", ratio, f"{ratio:.2f} x that of {numbers[0]:,}")


def in_process(task: str, *numbers: int) -> tuple[dict[str, float], str]:
    """What a task of ``memory.py`` prints in a process of its own; or why it failed, in one line."""
    script = Path(__file__).with_name("memory.py")
    command = [sys.executable, str(script), task, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        return {}, (done.stderr.strip().splitlines() or ["killed"])[-1][:200]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found, ""
