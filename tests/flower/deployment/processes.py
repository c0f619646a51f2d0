"""Processes that are started, watched and ended together."""

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

MARK = "FEDSIEVE_DEPLOYMENT"  # an environment variable that all descendants of our processes have


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], bool], seconds: float, what: str, pause: float = 0.2) -> None:
    """Wait for something, looking every ``pause`` seconds; raises TimeoutError that names it."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} seconds")
        time.sleep(pause)


class Processes:
    """Everything that one deployment runs. Flower starts some of its processes in sessions of their own, so that ending
    a process group is not enough: ours are found by a mark in their environment, which children inherit.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self.environment = {**environment, MARK: self.mark}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: list[str], log: Path, folder: Path, environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Start a command in a process group of its own; what it prints is added to ``log``."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**self.environment, **environment},
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def run(self, command: list[str], folder: Path, environment: dict[str, str], seconds: float = 60) -> str:
        """Run a command to its end; returns what it printed, raises RuntimeError with it if it fails."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**self.environment, **environment},
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def ours(self) -> Iterator[tuple[int, str]]:
        """Id and command line of every living process of this deployment, from Linux's /proc."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """End a process and all that it has started, at once, as a power cut would."""
        self.kill_id(process.pid)
        process.wait()

    def kill_id(self, pid: int) -> None:
        """As :meth:`kill`, by the process's id."""
        for each in (pid, *self._below(pid)):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def _below(self, pid: int) -> list[int]:
        """Ids of a process's descendants."""
        parents = {}
        for other, _ in self.ours():
            with suppress(OSError):
                parents[other] = int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1])
        found, new = [], {pid}
        while new:
            new = {other for other, parent in parents.items() if parent in new}
            found.extend(new)
        return found

    def end(self) -> None:
        """End everything: politely, then by force."""
        for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for pid, _ in self.ours():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            for process in self.started:
                with suppress(OSError):
                    process.send_signal(number)
            with suppress(TimeoutError):
                until(lambda: all(p.poll() is not None for p in self.started) and not [*self.ours()], seconds, "ending")
                return
