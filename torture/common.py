"""What all chapters share: rows of the table, cases that are judged, the command line as a process, runs to compare."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.runs.run import run

# A small federation in which most parts have a state: sampled clients, an attack, momentum of each client.
SETTINGS: dict[str, Any] = {
    "dataset": "digits",
    "model": "logistic-regression",
    "clients": 8,
    "clients_per_round": 6,
    "malicious": 2,
    "attack": "sign-flip",
    "defense": "momentum,median",
    "rounds": 10,
    "evaluate_every": 3,
}
LONGEST_LINE = 6000  # a path may have 4,096 characters


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        chapter: Its chapter.
        what: What was tried.
        tried: Number of cases.
        lost: Cases in which something was lost, changed, left to hang, NaN, or ended in a traceback.
        right: Cases with the right result: for runs, that of an undisturbed run, to the byte.
        told: Cases that ended in one line that says why.
        worst: The first loss, or else the slowest case.
    """

    chapter: str
    what: str
    tried: int
    lost: int
    right: int
    told: int
    worst: str


@dataclass(frozen=True)
class Context:
    """What a chapter is given.

    Attributes:
        folder: An empty folder of its own.
        seed: Decides everything random.
        smoke: Try little, in a few seconds.
    """

    folder: Path
    seed: int
    smoke: bool

    def some(self, full: int, smoke: int) -> int:
        """How many cases to try."""
        return smoke if self.smoke else full


class LostError(Exception):
    """What must never happen has happened."""


class HangError(BaseException):
    """A case has not ended in time. Not an Exception, so that nothing on the way takes it for a usual error."""


def expect(holds: bool, otherwise: str) -> None:
    """Raise LostError unless it holds."""
    if not holds:
        raise LostError(otherwise)


class Tally:
    """Counts the cases of one row. Mutable.

    Args:
        chapter: Name of the chapter.
        what: What is tried.
        seconds: How long a case may take.
    """

    def __init__(self, chapter: str, what: str, seconds: float = 60) -> None:
        self._chapter, self._what, self._seconds = chapter, what, seconds
        self.tried = self.lost = self.right = self.told = 0
        self._first, self._slowest, self._slow = "", "", 0.0

    def case(self, name: str, action: Callable[[], object]) -> None:
        """Run one case: ``action`` returns if all is right, and raises FedSieveError if the user was told."""
        self.tried, start = self.tried + 1, time.monotonic()
        try:
            with time_limit(self._seconds):
                action()
            self.right += 1
        except FedSieveError as error:
            text = str(error)
            if text and "\n" not in text and len(text) <= LONGEST_LINE:
                self.told += 1
            else:
                self.lose(name, f"told in {len(text.splitlines())} lines of {len(text)} characters: {text[:200]!r}")
        except (Exception, HangError) as error:
            self.lose(name, f"{type(error).__name__}: {error}", error)
        if (took := time.monotonic() - start) > self._slow:
            self._slowest, self._slow = name, took

    def lose(self, name: str, why: str, error: BaseException | None = None) -> None:
        """Count a case as lost, and say so at once, with its traceback."""
        self.lost += 1
        self._first = self._first or " ".join(f"{name}: {why}".split())[:200]
        print(f"LOST {self._chapter}, {self._what}, {name}: {why[:1000]}", file=sys.stderr, flush=True)
        if error is not None and not isinstance(error, LostError):
            traceback.print_exception(error, limit=-6, file=sys.stderr)

    def row(self) -> Row:
        """The result."""
        worst = self._first or f"slowest, {self._slow:.1f} s: {self._slowest[:60]}"
        return Row(self._chapter, self._what, self.tried, self.lost, self.right, self.told, worst)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise HangError in the block once it has taken so long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- The command line as a process --------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal that ended it), and what it printed to both outputs."""

    code: int
    text: str


class Command:
    """``fedsieve`` with these arguments in a process of its own, forked so that nothing is imported anew. Mutable.

    Args:
        arguments: Of the command line.
        before: Called in the new process before the command.
    """

    def __init__(self, *arguments: object, before: Callable[[], object] | None = None) -> None:
        self._output, theirs = os.pipe()
        sys.stdout.flush()
        self._ended: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become([str(a) for a in arguments], theirs, before)
        os.close(theirs)

    def running(self) -> bool:
        """Whether it has not ended."""
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._ended = os.waitstatus_to_exitcode(status) if pid else None
        return self._ended is None

    def wait(self, seconds: float = 120) -> Ended:
        """How it has ended; raises HangError, and kills it, if it has not in so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            while self.running():
                if time.monotonic() > deadline:
                    raise HangError(f"the command has not ended after {seconds:g} s")
                time.sleep(0.005)
        except HangError:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        os.set_blocking(self._output, False)
        try:
            text = os.read(self._output, 1 << 16).decode(errors="replace")  # all of it: a pipe holds no more
        except BlockingIOError:
            text = ""
        os.close(self._output)
        assert self._ended is not None
        return Ended(self._ended, text)


def _become(arguments: list[str], output: int, before: Callable[[], object] | None) -> None:
    """Be the command from now on; never returns."""
    code = 0
    try:
        os.setsid()
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        sys.argv = ["fedsieve", *arguments]
        from fedsieve.cli import main

        if before:
            before()
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        for file in (sys.stdout, sys.stderr):
            try:
                file.flush()
            except (OSError, ValueError):
                code = code or 74
        os._exit(code)


def command(*arguments: object, before: Callable[[], object] | None = None, seconds: float = 120) -> Ended:
    """Run ``fedsieve`` with these arguments to its end."""
    return Command(*arguments, before=before).wait(seconds)


def told(ended: Ended, codes: tuple[int, ...] = (1, 2)) -> None:
    """Raise FedSieveError with the error line of a command that failed as it should; LostError if it failed otherwise.

    Returns if it did not fail.
    """
    if "Traceback" in ended.text or ended.code == 70:
        raise LostError(f"a traceback: {ended.text.strip().splitlines()[-1]}\n{ended.text[-2000:]}")
    if ended.code == 0:
        return
    expect(ended.code in codes, f"exit code {ended.code}: {ended.text[-300:]}")
    lines = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    expect(len(lines) == 1, f"{len(lines)} lines of errors with exit code {ended.code}: {ended.text[-300:]!r}")
    raise FedSieveError(lines[0])


def run_arguments(settings: dict[str, Any], out: Path, *more: object) -> list[object]:
    """The arguments of a run with these settings, on one thread, since records depend on the number of threads."""
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["run", *chosen, "--out", out, "--threads", 1, "--device", "cpu", "--quiet", *more]


# --- Runs to compare ----------------------------------------------------------------------------------------


def played(
    settings: dict[str, Any], out: Path, on_round: Callable[[RoundRecord], object] = lambda record: None, **how: Any
) -> None:
    """Play a run in this process. What it imports is there for all commands that are forked later."""
    experiment, device = Experiment.of(settings), torch.device("cpu")
    run(experiment, out=out, data=out.parent, device=device, on_round=on_round, keep_records=False, **how)  # type: ignore[arg-type]


def without_seconds(out: Path) -> list[str]:
    """The whole lines of the records, but for the one field that may differ."""
    file = out / "records.jsonl"
    lines = file.read_bytes().decode(errors="replace").split("\n")[:-1] if file.is_file() else []
    return [line.partition(',"seconds":{')[0] for line in lines]


def same(out: Path, straight: Path) -> None:
    """Raise LostError unless both have the same records but for the time."""
    found, wanted = without_seconds(out), without_seconds(straight)
    if found != wanted:
        at = next(
            (k for k, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(map(len, (found, wanted)))
        )
        raise LostError(f"{len(found)} records, {len(wanted)} expected, the first that differs is {at}")
