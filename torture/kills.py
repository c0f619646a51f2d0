"""Processes that are killed: at any moment, in the middle of writing a checkpoint, as parent, as worker, all at once.

Afterwards the same command goes on, and every record is that of a run that nothing happened to.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fedsieve.runs.grid import expand
from torture.common import SETTINGS, Command, Context, Row, Tally, command, expect, played, run_arguments, same

RUN: dict[str, Any] = {**SETTINGS, "rounds": 100, "evaluate_every": 20}
GRID: dict[str, Any] = {**RUN, "seed": [0, 1], "defense": ["median", "momentum"]}
INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def rows(context: Context) -> Iterator[Row]:
    """Run the chapter."""
    dice, straight = random.Random(context.seed), context.folder / "straight"
    played(RUN, context.folder / "warm")
    start = time.monotonic()
    ended = command(*run_arguments(RUN, straight, "--checkpoint-every", 0.02))
    expect(ended.code == 0, ended.text)
    seconds = time.monotonic() - start
    # at a random moment of a run that is killed several times before it may end
    yield _runs(context, "run, SIGKILL at any moment", straight, context.some(10, 2), lambda: _later(dice, seconds))
    calls = ("write", "fsync", "replace", "unlink")
    at = partial(_deadly_call, dice, calls)
    yield _runs(context, "run, SIGKILL inside a file operation", straight, context.some(10, 2), at)
    yield _interrupted_runs(context, straight, dice, seconds)
    if not context.smoke:
        yield from _sweeps(context, dice)


Way = tuple[float | None, Callable[[], object] | None]  # seconds until SIGKILL, or what kills the process from within


def _later(dice: random.Random, seconds: float) -> Way:
    return dice.uniform(0.02, 0.9) * seconds, None


def _deadly_call(dice: random.Random, calls: tuple[str, ...]) -> Way:
    """Kill the process in a call of a function of the operating system, before or after it has done its work."""
    name, number, after = dice.choice(calls), dice.randrange(1, 60), dice.random() < 0.5

    def plant() -> None:
        real, seen = getattr(os, name), iter(range(1, 10**9))

        def call(*args: Any, **more: Any) -> Any:
            last = next(seen) == number
            if last and name == "write" and len(args[1]) > 1:
                real(args[0], args[1][: dice.randrange(len(args[1]))])  # half of it
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **more)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(os, name, call)

    return None, plant


def _runs(context: Context, what: str, straight: Path, kills: int, way: Callable[[], Way]) -> Row:
    """Kill runs so many times, each directory up to three times, and let each end at last."""
    tally, done, number = Tally("kills", what, 300), 0, 0
    while done < kills and number < 3 * kills:
        number, out = number + 1, context.folder / f"{what.split()[-1]}-{number}"
        killed, more = 0, ()
        for _ in range(3):
            seconds, plant = way()
            process = Command(*run_arguments(RUN, out, "--checkpoint-every", 0.02, *more), before=plant)
            if seconds is not None:
                time.sleep(seconds)
                if process.running():
                    os.kill(process.pid, signal.SIGKILL)
            if process.wait().code != -signal.SIGKILL:
                break  # it was quicker
            killed, more = killed + 1, ("--resume",)
        for k in range(min(killed, kills - done)):
            tally.case(f"directory {number}, kill {k + 1} of {killed}", partial(_goes_on, out, straight))
        done += killed
    return tally.row()


def _goes_on(out: Path, straight: Path) -> None:
    ended = command(*run_arguments(RUN, out, "--resume"))
    expect(ended.code == 0, f"can't be resumed: {ended.text[-500:]}")
    same(out, straight)


def _interrupted_runs(context: Context, straight: Path, dice: random.Random, seconds: float) -> Row:
    tally = Tally("kills", "run, SIGINT, SIGTERM and SIGHUP")

    def interrupted(number: signal.Signals, out: Path) -> None:
        process = Command(*run_arguments(RUN, out))
        while process.running() and not _rounds(out):
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.3) * seconds)
        os.kill(process.pid, number)
        ended = process.wait()
        if ended.code != 0:
            expect(ended.code == INTERRUPTED[number], f"exit code {ended.code}: {ended.text[-500:]}")
            expect("interrupted; the same command" in ended.text, f"it said {ended.text!r}")
            expect("Traceback" not in ended.text, ended.text[-1000:])
            expect(_rounds(out) > 0 and (out / "checkpoint.safetensors").exists(), "no checkpoint was saved")
        _goes_on(out, straight)

    for k in range(context.some(6, 1)):
        number = list(INTERRUPTED)[k % 3]
        tally.case(f"{number.name} {k}", partial(interrupted, number, context.folder / f"interrupted-{k}"))
    return tally.row()


def _rounds(out: Path) -> int:
    file = out / "records.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


# --- Sweeps -------------------------------------------------------------------------------------------------


def _sweeps(context: Context, dice: random.Random) -> Iterator[Row]:
    """Kill sweeps: their parent, a worker, all of them."""
    cells, straight = expand(GRID), context.folder / "sweep"
    file = context.folder / "grid.yaml"
    file.write_text("\n".join(f"{key}: {value}" for key, value in GRID.items()))
    arguments = ("sweep", file, "--jobs", 2, "--device", "cpu", "--quiet", "--checkpoint-every", 0.02, "--out")
    ended = command(*arguments, straight, seconds=300)
    expect(ended.code == 0, ended.text)

    def sweep(whom: str, number: signal.Signals, out: Path) -> None:
        process = Command(*arguments, out)
        wanted, deadline = dice.randrange(1, 3 * RUN["rounds"]), time.monotonic() + 120
        while process.running() and sum(map(_rounds, out.glob("*"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        workers = _workers(process.pid)
        if whom == "all":
            os.killpg(process.pid, number)
        else:
            os.kill(dice.choice(workers) if whom == "worker" and workers else process.pid, number)
        ended = process.wait(300)
        expect("Traceback" not in ended.text, ended.text[-1000:])
        if whom == "worker":
            expect(ended.code == 0, f"a worker was killed and the sweep ended with {ended.code}: {ended.text[-500:]}")
        if number == signal.SIGTERM:
            expect(ended.code in (0, 143), f"exit code {ended.code}: {ended.text[-500:]}")
        deadline = time.monotonic() + 60
        while any(_alive(worker) for worker in workers):  # they save and end by themselves
            expect(time.monotonic() < deadline, "a worker was left behind")
            time.sleep(0.05)
        ended = command(*arguments, out, seconds=300)
        expect(ended.code == 0, f"the same command again ended with {ended.code}: {ended.text[-500:]}")
        for cell in cells:
            same(out / cell.key, straight / cell.key)
        shutil.rmtree(out)

    ways = [("parent", signal.SIGKILL), ("worker", signal.SIGKILL), ("all", signal.SIGKILL), ("parent", signal.SIGTERM)]
    for whom, number in ways:
        tally = Tally("kills", f"sweep, {number.name} of {'all' if whom == 'all' else 'a ' + whom}", 700)
        for k in range(2 if whom == "all" or number != signal.SIGKILL else 4):
            tally.case(f"{whom} {k}", partial(sweep, whom, number, context.folder / f"{whom}-{number.name}-{k}"))
        yield tally.row()


def _workers(parent: int) -> list[int]:
    """Processes that a sweep has started to run cells."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
