"""A deployment as processes on loopback: who is let in, who is rejected, what survives a kill, what is cleaned up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).parent / "deployment"
SCENARIO = [sys.executable, str(HARNESS / "scenario.py")]
TEST = "FEDSIEVE_TEST_OF_DEPLOYMENT"  # what is started here has it in its environment


def left(value: str) -> list[str]:
    """Command lines of living processes that this test has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{TEST}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


class TestProcesses:
    """What ends them, without Flower."""

    @pytest.fixture
    def processes(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        monkeypatch.syspath_prepend(HARNESS)
        import processes

        made = processes.Processes(dict(os.environ))
        yield made
        made.end()

    FAMILY = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session={}); "
        "print('up', flush=True); time.sleep(60)"
    )

    def family(self, processes: Any, folder: Path, apart: bool) -> "subprocess.Popen[bytes]":
        """A process with a child, in a session of its own or not."""
        log = folder / "log"
        started = processes.start([sys.executable, "-c", self.FAMILY.format(apart)], log, folder, {})
        end = time.monotonic() + 30
        while len([*processes.ours()]) < 2 or "up" not in log.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        return started

    @pytest.mark.parametrize("apart", [False, True])
    def test_all_are_ended_also_those_in_sessions_of_their_own(
        self, processes: Any, tmp_path: Path, apart: bool
    ) -> None:
        self.family(processes, tmp_path, apart)
        processes.end()
        assert [*processes.ours()] == []

    def test_a_kill_takes_children_along_and_nobody_else(self, processes: Any, tmp_path: Path) -> None:
        first, second = (self.family(processes, tmp_path, apart=True) for _ in range(2))
        processes.kill(first)
        assert first.returncode == -signal.SIGKILL
        assert second.poll() is None
        end = time.monotonic() + 10
        while len([*processes.ours()]) != 2:
            assert time.monotonic() < end
            time.sleep(0.05)

    def test_another_deployment_is_left_alone(self, processes: Any, tmp_path: Path) -> None:
        other = type(processes)(dict(os.environ))
        self.family(other, tmp_path, apart=False)
        processes.end()
        assert len([*other.ours()]) == 2
        other.end()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("flwr")
    folder = tmp_path_factory.mktemp("deployment")
    command = [*SCENARIO, "--folder", str(folder), "--json", str(folder / "outcome.json"), "--timeout", "90"]
    if page := os.environ.get("FEDSIEVE_DEPLOYMENT_PAGE"):
        command += ["--page", page]
    done = subprocess.run(
        command, text=True, timeout=3600, env={**os.environ, TEST: "under attack"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return dict(json.loads((folder / "outcome.json").read_text()))


@pytest.mark.slow
class TestUnderAttack:
    def of(self, outcome: dict[str, Any], role: str) -> list[dict[str, Any]]:
        found = [outcome["verdicts"][node] for node, its in outcome["roles"].items() if its == role]
        assert found
        return found

    def test_training_ends_as_well_as_without_an_attack(self, outcome: dict[str, Any]) -> None:
        assert outcome["clean"] > 0.88
        assert outcome["accuracy"] > outcome["clean"] - 0.02

    def test_no_round_is_lost_or_played_twice_when_the_server_app_is_killed(self, outcome: dict[str, Any]) -> None:
        assert outcome["rounds"] == 10
        assert max(v["answered"] for v in outcome["verdicts"].values()) == 10

    def test_the_malicious_are_rejected(self, outcome: dict[str, Any]) -> None:
        malicious = self.of(outcome, "label-flip")
        assert len(malicious) == 2
        for v in malicious:
            assert v["rejected"] >= v["answered"] - 2
            assert v["since"] is not None
            assert v["since"] <= 3
            assert v["reasons"]

    def test_garbage_is_dropped_and_named(self, outcome: dict[str, Any]) -> None:
        (v,) = self.of(outcome, "garbage")
        assert v["accepted"] == 0
        assert v["dropped"] == v["answered"] > 0
        assert len(v["reasons"]) >= 5
        assert any(reason.startswith("not finite") for reason in v["reasons"])

    @pytest.mark.parametrize("role", ["honest", "slow", "killed and restarted"])
    def test_nobody_else_is(self, outcome: dict[str, Any], role: str) -> None:
        for v in self.of(outcome, role):
            assert v["dropped"] == 0
            assert v["rejected"] <= 1
            assert v["since"] is None
            assert v["accepted"] >= 4

    def test_who_is_late_or_dead_is_not_in_the_round(self, outcome: dict[str, Any]) -> None:
        for role in ("slow", "killed and restarted"):
            (v,) = self.of(outcome, role)
            assert v["answered"] < 10

    def test_an_unknown_key_is_not_let_in(self, outcome: dict[str, Any]) -> None:
        assert outcome["refused"]
        assert len(outcome["verdicts"]) == len(outcome["roles"]) == 8

    def test_nothing_is_left_running(self, outcome: dict[str, Any]) -> None:
        assert left("under attack") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    value = f"signal {number}"
    process = subprocess.Popen([*SCENARIO, "--folder", str(tmp_path)], env={**os.environ, TEST: value})
    try:
        end = time.monotonic() + 120
        while not any("flower-superlink" in command for command in left(value)):
            assert time.monotonic() < end
            time.sleep(0.2)
        time.sleep(2)
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    finally:
        process.kill()
    assert left(value) == []
