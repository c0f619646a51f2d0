"""`fedsieve run` in a directory where a run is already: `--resume`, `--fresh`, signals, and a disk that is full."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsieve.cli.progress import RunProgress
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import StorageError
from fedsieve.core.records import RoundRecord
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.lock import claimed
from fedsieve.runs.signals import interruptible
from tests.cli.conftest import Command, assert_mistake, words

MEAN = ("run", "--defense", "mean", "--clients", "6", "--quiet")


def lines(path: str) -> list[dict[str, Any]]:
    """The records but for their seconds."""
    found = [json.loads(line) for line in Path(path, "records.jsonl").read_text().splitlines()]
    return [{**line, "seconds": {}} for line in found]


@pytest.fixture
def at_round(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """What to do once a round is done, by its number."""
    actions: dict[int, Any] = {}

    def show(self: RunProgress, record: RoundRecord) -> None:
        actions.get(record.round, lambda: None)()

    monkeypatch.setattr(RunProgress, "show", show)
    return actions


class TestResume:
    def test_more_rounds(self, fedsieve_: Command) -> None:
        assert fedsieve_(*MEAN, "--rounds", "5", "--out", "straight").code == 0
        assert fedsieve_(*MEAN, "--rounds", "2", "--out", "here").code == 0
        more = fedsieve_(*MEAN, "--rounds", "5", "--out", "here", "--resume", "--json")
        assert (more.code, more.err) == (0, "")
        assert json.loads(more.out)["rounds"] == 5
        assert lines("here") == lines("straight")
        assert Experiment.recorded(Path("here/experiment.yaml")).rounds == 5

    def test_a_finished_run_prints_its_summary_again(self, fedsieve_: Command) -> None:
        first = fedsieve_(*MEAN, "--rounds", "2", "--out", "here", "--json")
        again = fedsieve_(*MEAN, "--rounds", "2", "--out", "here", "--json", "--resume")
        assert again.code == 0
        assert again.err == "the run in here is finished: it has all 2 rounds\n"
        a, b = json.loads(first.out), json.loads(again.out)
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
        assert b["data"].startswith("1797 images of 1 x 8 x 8")

    def test_nothing_to_resume(self, fedsieve_: Command) -> None:
        result = fedsieve_(*MEAN, "--rounds", "1", "--out", "here", "--resume")
        assert (result.code, result.err) == (0, "nothing to resume in here, starting at round 0\n")

    def test_the_run_under_another_name(self, fedsieve_: Command) -> None:
        assert fedsieve_(*MEAN, "--rounds", "2").code == 0
        assert fedsieve_(*MEAN, "--rounds", "3", "--seed", "1").code == 0
        (run,) = [path.parent for path in Path("runs").glob("*/experiment.yaml") if "rounds: 2" in path.read_text()]
        other = Path("runs", Experiment.of({"defense": "mean", "clients": 6, "rounds": 4}).key)
        assert_mistake(
            fedsieve_(*MEAN, "--rounds", "4", "--resume"),
            f"nothing to resume in {other}, but {run} holds this run with another number of rounds; "
            f"--out {run} continues it",
        )
        assert not other.exists()
        assert fedsieve_(*MEAN, "--rounds", "4", "--resume", "--out", str(run)).code == 0
        assert len(lines(str(run))) == 4

    def test_differences_are_named(self, fedsieve_: Command) -> None:
        assert fedsieve_(*MEAN, "--rounds", "1", "--out", "here").code == 0
        assert_mistake(
            fedsieve_(*MEAN, "--rounds", "1", "--out", "here", "--resume", "--seed", "1"),
            "can't resume: here holds another run (seed: 0 there, 1 asked for); choose another --out, or --fresh",
        )

    def test_threads(self, fedsieve_: Command, at_round: dict[int, Any]) -> None:
        before = torch.get_num_threads()
        try:
            at_round[0] = lambda: os.kill(os.getpid(), signal.SIGTERM)
            assert fedsieve_(*MEAN, "--rounds", "2", "--out", "here", "--threads", "2").code == 143
            assert json.loads(Path("here/environment.json").read_text())["threads"] == 2
            result = fedsieve_(*MEAN, "--rounds", "2", "--out", "here", "--threads", "1", "--resume")
            assert result.code == 0
            assert result.err.startswith("threads 2 before, 1 now: rounds from 1 on may differ in the last digits")
            assert len(result.err.splitlines()) == 1
        finally:
            torch.set_num_threads(before)
        for number in ("0", "1025", "many"):
            assert fedsieve_(*MEAN, "--threads", number).code == 2


class TestFresh:
    def test_a_run_is_not_replaced_unasked(self, fedsieve_: Command) -> None:
        assert fedsieve_(*MEAN, "--rounds", "2", "--out", "here").code == 0
        before = Path("here/records.jsonl").read_bytes()
        for more in ((), ("--seed", "3"), ("--rounds", "1")):
            result = fedsieve_(*MEAN, "--rounds", "2", "--out", "here", *more)
            assert_mistake(result, "here holds a finished run of 2 rounds")
            assert "--fresh" in result.err
        assert Path("here/records.jsonl").read_bytes() == before
        assert fedsieve_(*MEAN, "--rounds", "1", "--out", "here", "--fresh").code == 0
        assert len(lines("here")) == 1
        assert_mistake(fedsieve_(*MEAN, "--fresh", "--resume"), "set one of them")

    def test_another_process_runs_there(self, fedsieve_: Command) -> None:
        with claimed(Path("here")):
            for more in ("--fresh", "--resume", "--quiet"):
                assert_mistake(fedsieve_(*MEAN, "--out", "here", more), "another process runs in here; wait for it")


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=str
    )
    def test_the_checkpoint_is_saved(
        self, fedsieve_: Command, at_round: dict[int, Any], number: signal.Signals, code: int
    ) -> None:
        assert fedsieve_(*MEAN, "--rounds", "4", "--out", "straight").code == 0
        before = signal.getsignal(number)
        at_round[1] = lambda: os.kill(os.getpid(), number)
        result = fedsieve_(*MEAN, "--rounds", "4", "--out", "here")
        assert (result.code, result.out) == (code, "")
        assert result.err == "interrupted; the same command with --resume continues from here\n"
        assert signal.getsignal(number) == before
        at_round.clear()
        state = RunDirectory(Path("here")).load(torch.device("cpu"))
        assert state is not None
        assert state.round == 2
        result = fedsieve_(*MEAN, "--rounds", "4", "--out", "here", "--resume")
        assert (result.code, result.err) == (0, "")
        assert lines("here") == lines("straight")

    def test_a_second_one_does_not_disturb(
        self, fedsieve_: Command, at_round: dict[int, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_round[1] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        save = RunDirectory.save

        def slowly(self: RunDirectory, *args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            save(self, *args)

        monkeypatch.setattr(RunDirectory, "save", slowly)
        assert fedsieve_(*MEAN, "--rounds", "4", "--out", "here", "--fresh").code == 143
        state = RunDirectory(Path("here")).load(torch.device("cpu"))
        assert state is not None
        assert state.round == 2

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_what_is_raised_in_a_finalizer_is_not_lost(self, fedsieve_: Command, at_round: dict[int, Any]) -> None:
        class Dying:
            def __del__(self) -> None:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)  # the handler runs here, and Python drops what it raises

        at_round[0] = Dying
        result = fedsieve_(*MEAN, "--rounds", "4", "--out", "here")
        assert result.code == 143
        assert len(lines("here")) == 2

    def test_ignored_signals_stay_ignored(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        try:
            with interruptible() as interruption:
                os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.number == 0
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_fresh_is_not_repeated(self, fedsieve_: Command, at_round: dict[int, Any]) -> None:
        at_round[0] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        result = fedsieve_(*MEAN, "--rounds", "4", "--out", "here", "--fresh")
        assert "the same command with --resume in place of --fresh continues from here" in result.err

    @pytest.mark.slow
    def test_a_closed_terminal(self, tmp_path: Path) -> None:
        """As a user runs it: the terminal is gone, and with it standard error."""
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "fedsieve", "run", "--defense", "mean", "--rounds", "100000", "--out", "here"]
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        try:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=writer)
        finally:
            signal.signal(signal.SIGHUP, before)
        try:
            os.close(writer)
            while process.poll() is None and not _some_rounds(tmp_path / "here" / "records.jsonl"):
                time.sleep(0.05)
            os.close(reader)
            process.send_signal(signal.SIGHUP)
            assert process.wait(60) == 129
        finally:
            process.kill()
            process.wait()
        directory = RunDirectory(tmp_path / "here")
        state = directory.load(torch.device("cpu"))
        assert state is not None
        assert state.round == directory.n_records() > 0


def _some_rounds(path: Path) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") > 2


class TestToBeTold:
    def test_a_run_whose_updates_are_all_dropped(self, fedsieve_: Command) -> None:
        apart = ("--rounds", "4", "--set", "local.learning_rate=1e30", "--out", "here")
        result = fedsieve_(*MEAN, *apart, "--json")
        assert result.code == 0
        assert result.err == (
            "warning: 3 of 4 rounds left the model unchanged: no update was finite (3); "
            "updates dropped: not finite (18)\n"
        )
        found = json.loads(result.out)
        assert (found["rounds_not_applied"], found["updates_screened"]) == (3, 18)
        assert found["not_applied_reasons"] == {"no update was finite": 3}
        assert found["screened_reasons"] == {"not finite": 18}
        seen = words(fedsieve_(*MEAN, *apart, "--resume").out)
        assert "Model unchanged in 3 of 4 rounds: no update was finite (3)" in seen
        assert "Updates screened 18: not finite (18)" in seen

    def test_a_run_in_which_no_round_counts(self, fedsieve_: Command, tmp_path: Path) -> None:
        (tmp_path / "nobody.py").write_text(
            "class Detector:\n    def detect(self, updates, view):\n"
            "        from fedsieve.core.defense import Detection\n"
            "        return Detection(updates.client_ids < 0)\n"
        )
        result = fedsieve_("run", "--defense", "nobody:Detector", "--rounds", "2", "--quiet", "--json")
        assert result.code == 0, result.err
        assert "warning: no round changed the model: no client was accepted (2)" in result.err
        assert json.loads(result.out)["rounds_not_applied"] == 2

    def test_how_the_data_were_read(self, fedsieve_: Command) -> None:
        loud = fedsieve_("run", "--defense", "mean", "--clients", "6", "--rounds", "1", "--json")
        said = json.loads(loud.out)["data"]
        assert loud.err.splitlines()[0] == said
        assert said.startswith("1797 images of 1 x 8 x 8")
        assert json.loads(Path(json.loads(loud.out)["run_dir"], "environment.json").read_text())["data"] == said

    def test_markup_is_text(self, fedsieve_: Command, tmp_path: Path) -> None:
        result = fedsieve_(*MEAN, "--rounds", "1", "--out", "[bold]here[-]\x1b[2J")
        assert result.code == 0, result.err
        assert "Run directory [bold]here[-]\\x1b[2J" in words(result.out)


class TestStorage:
    def test_a_full_disk(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        real = RunDirectory.append

        def append(self: RunDirectory, record: RoundRecord) -> bytes:
            if record.round == 2:
                raise StorageError("can't write to here/records.jsonl: No space left on device")
            return real(self, record)

        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "append", append)
            result = fedsieve_(*MEAN, "--rounds", "4", "--out", "here")
        assert (result.code, result.out) == (1, "")
        assert result.err == "error: can't write to here/records.jsonl: No space left on device\n"
        assert len(lines("here")) == 2
        result = fedsieve_(*MEAN, "--rounds", "4", "--out", "here", "--resume")
        assert (result.code, result.err) == (0, "")
        assert len(lines("here")) == 4

    def test_output_that_cannot_be_written(self, tmp_path: Path) -> None:
        for words_, code in ((["list", "models"], 1), (["list", "no such kind"], 2)):
            with Path("/dev/full").open("w") as full:
                done = subprocess.run(
                    [sys.executable, "-m", "fedsieve", *words_], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
                    text=True, timeout=120,
                )  # fmt: skip
            assert done.returncode == code, done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert done.stderr.startswith("error: ")

    @pytest.mark.parametrize(("seconds", "saves"), [("0", 4), ("1000", 1)])
    def test_checkpoint_every(
        self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch, seconds: str, saves: int
    ) -> None:
        rounds: list[int] = []
        save = RunDirectory.save

        def counted(self: RunDirectory, state: Any, *more: Any) -> None:
            rounds.append(state.round)
            save(self, state, *more)

        monkeypatch.setattr(RunDirectory, "save", counted)
        assert fedsieve_(*MEAN, "--rounds", "4", "--checkpoint-every", seconds).code == 0
        assert rounds == [1, 2, 3, 4][-saves:]

    def test_checkpoint_every_nothing(self, fedsieve_: Command) -> None:
        for seconds in ("-1", "nan", "often"):
            result = fedsieve_(*MEAN, "--checkpoint-every", seconds)
            assert (result.code, result.out) == (2, "")
            assert "--checkpoint-every" in result.err
