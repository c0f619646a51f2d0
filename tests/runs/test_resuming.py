"""What `--resume` and `--fresh` do with what they find: nothing is replaced unasked, nothing foreign is continued."""

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import BusyError, CorruptDataError, FedSieveError, ParameterError
from fedsieve.core.metrics import summarize
from fedsieve.runs import files
from fedsieve.runs.checkpoint import encode
from fedsieve.runs.directory import CHECKPOINT, PREVIOUS, RunDirectory
from fedsieve.runs.lines import line_of
from fedsieve.runs.lock import claimed
from fedsieve.runs.run import run
from tests.runs.conftest import ALL, ATTACKER, CPU, DETECTOR, FILES, NOWHERE, KilledError, run_into, without_seconds

ELSE = "choose another --out, or --fresh to start anew"
SHORT = {**ALL, "rounds": 4}


def killed(out: Path, settings: dict[str, Any] = ALL, after: int = 3, every: float = 0.0) -> RunDirectory:
    """A run that ended after round ``after``; by default with a checkpoint of each round."""
    with pytest.raises(KilledError):
        run_into(settings, out, kill_after=after, checkpoint_every=every, fresh=True)
    return RunDirectory(out)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def refused(settings: dict[str, Any], out: Path, **more: Any) -> str:
    """The one line with which a run is refused; nothing in the directory has changed."""
    before = contents(out)
    with pytest.raises(FedSieveError) as error:
        run_into(settings, out, **more)
    assert "\n" not in str(error.value)
    assert contents(out) == before
    return str(error.value)


class TestNothingIsReplacedUnasked:
    def test_a_finished_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path)
        said = refused(ALL, tmp_path)
        assert said == (
            f"{tmp_path} holds a finished run of 7 rounds: --resume continues it, --fresh starts anew; "
            "or choose another --out"
        )
        assert "a finished run of 7 rounds: --resume" in refused({**ALL, "rounds": 9}, tmp_path)

    def test_an_interrupted_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        killed(tmp_path)
        assert "holds a run of 4 of 7 rounds: --resume continues it" in refused(ALL, tmp_path)

    def test_another_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        killed(tmp_path)
        assert refused({**ALL, "seed": 5}, tmp_path) == (
            f"{tmp_path} holds a run of 4 of 7 rounds, other than asked for (seed: 0 there, 5 asked for): {ELSE}"
        )

    def test_settings_that_a_user_has_written(self, doubles: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "experiment.yaml").write_text("defense: mean  # my notes\n")
        assert refused(ALL, tmp_path) == f"{tmp_path} holds an experiment.yaml of its own: {ELSE}"

    def test_settings_without_a_round_are_no_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "experiment.yaml").write_text(Experiment.of(ALL).to_yaml())  # it died before round 0
        run_into(ALL, tmp_path)
        assert len(without_seconds(tmp_path)) == 7

    def test_fresh(self, doubles: ModuleType, tmp_path: Path) -> None:
        killed(tmp_path)
        (tmp_path / "error.txt").write_text("of an earlier try")
        (tmp_path / "notes.txt").write_text("the user's")
        run_into({**ALL, "rounds": 2, "seed": 1}, tmp_path, fresh=True)
        assert len(without_seconds(tmp_path)) == 2
        assert Experiment.recorded(tmp_path / "experiment.yaml").seed == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "notes.txt"])

    def test_a_mistake_does_not_delete_the_run_that_fresh_would_replace(
        self, doubles: ModuleType, tmp_path: Path
    ) -> None:
        killed(tmp_path)
        refused({**ALL, "model": "doubles:Convolution"}, tmp_path, fresh=True)

    def test_fresh_and_resume_exclude_each_other(self, doubles: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="set one of them"):
            run_into(ALL, tmp_path, fresh=True, resume=True)


class TestNotes:
    def notes(self, settings: dict[str, Any], out: Path, **more: Any) -> list[str]:
        notes: list[str] = []
        run_into(settings, out, resume=True, on_note=notes.append, **more)
        return notes

    def test_nothing_to_resume(self, doubles: ModuleType, tmp_path: Path) -> None:
        out = tmp_path / "new"
        assert self.notes(ALL, out) == [f"nothing to resume in {out}, starting at round 0"]
        assert len(without_seconds(out)) == 7

    def test_a_finished_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        records, summary = run_into(ALL, tmp_path)
        before, seen = contents(tmp_path), len(doubles.seen)
        assert self.notes(ALL, tmp_path) == [f"the run in {tmp_path} is finished: it has all 7 rounds"]
        assert contents(tmp_path) == before
        assert len(doubles.seen) == seen  # no data were loaded
        reading: list[str] = []
        assert run_into(ALL, tmp_path, resume=True, on_start=reading.append) == (records, summary)
        assert reading == [json.loads(before["environment.json"])["data"]]

    def test_a_finished_run_without_its_checkpoint(self, doubles: ModuleType, tmp_path: Path) -> None:
        records, summary = run_into(ALL, tmp_path)
        (tmp_path / CHECKPOINT).unlink()
        assert run_into(ALL, tmp_path, resume=True) == (records, summary)

    def test_records_without_a_checkpoint(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path / "straight")
        out = killed(tmp_path / "out", every=60.0).path
        (out / CHECKPOINT).unlink()
        assert self.notes(ALL, out) == [f"no checkpoint in {out}, starting at round 0: its 4 rounds are run again"]
        assert without_seconds(out) == without_seconds(tmp_path / "straight")

    def test_other_threads_and_versions(self, doubles: ModuleType, tmp_path: Path) -> None:
        killed(tmp_path)
        file = tmp_path / "environment.json"
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, "threads": 61, "torch": "1.0"}))
        (note,) = self.notes(SHORT | {"rounds": 5}, tmp_path)
        assert note == (
            f"torch 1.0 before, {found['torch']} now, threads 61 before, {found['threads']} now: "
            "rounds from 4 on may differ in the last digits from an uninterrupted run's"
        )
        kept = json.loads(file.read_text())
        assert kept == {**found, "earlier": [{"until_round": 4, "torch": "1.0", "threads": 61}]}
        assert self.notes(ALL, tmp_path) == []  # said once

    @pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"threads": ', b"[" * 10000])
    def test_an_unreadable_environment(self, doubles: ModuleType, tmp_path: Path, content: bytes) -> None:
        killed(tmp_path)
        (tmp_path / "environment.json").write_bytes(content)
        assert self.notes(ALL, tmp_path) == []
        assert len(without_seconds(tmp_path)) == 7


class TestOtherLength:
    @pytest.mark.parametrize("settings", [ALL, DETECTOR, ATTACKER], ids=["all", "detector", "attacker"])
    @pytest.mark.parametrize("every", [1, 3], ids=["each", "third"])
    @pytest.mark.parametrize("first", [2, 4])
    def test_a_longer_run_equals_a_straight_one(
        self, doubles: ModuleType, tmp_path: Path, settings: dict[str, Any], every: int, first: int
    ) -> None:
        settings = {**settings, "evaluate_every": every}
        straight, summary = run_into({**settings, "rounds": 8}, tmp_path / "straight")
        run_into({**settings, "rounds": first}, tmp_path / "out")
        before = without_seconds(tmp_path / "out")
        reported: list[int] = []
        e = Experiment.of({**settings, "rounds": 8})
        records, found = run(
            e, out=tmp_path / "out", data=NOWHERE, device=CPU, resume=True, on_round=lambda r: reported.append(r.round)
        )
        assert reported == list(range(first, 8))
        assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "straight")
        assert before[:-1] == without_seconds(tmp_path / "out")[: first - 1]
        assert (tmp_path / "out" / "experiment.yaml").read_text() == e.to_yaml()
        assert found == summary == summarize(straight)
        assert len(records) == 8

    def test_evaluations_stay_where_they_were(self, doubles: ModuleType, tmp_path: Path) -> None:
        settings = {k: v for k, v in ALL.items() if k != "evaluate_every"} | {"rounds": 2}
        assert Experiment.of({**settings, "rounds": 250}).evaluate_every == 3
        run_into(settings, tmp_path)
        with pytest.raises(KilledError):
            run_into({**settings, "rounds": 250}, tmp_path, resume=True, kill_after=6)
        stored = Experiment.recorded(tmp_path / "experiment.yaml")
        assert (stored.rounds, stored.evaluate_every) == (250, 1)
        assert all(record.test_accuracy is not None for record in RunDirectory(tmp_path).records())
        assert refused({**settings, "rounds": 250, "evaluate_every": 2}, tmp_path, resume=True) == (
            f"can't resume: {tmp_path} holds another run (evaluate_every: 1 there, 2 asked for); {ELSE}"
        )

    def test_a_shorter_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into({**ALL, "rounds": 5}, tmp_path / "straight")
        killed(tmp_path / "out")
        run_into({**ALL, "rounds": 5}, tmp_path / "out", resume=True)
        assert without_seconds(tmp_path / "out") == without_seconds(tmp_path / "straight")
        assert Experiment.recorded(tmp_path / "out" / "experiment.yaml").rounds == 5

    def test_a_run_that_is_long_enough(self, doubles: ModuleType, tmp_path: Path) -> None:
        _, summary = run_into({**ALL, "rounds": 3}, tmp_path / "straight")
        killed(tmp_path / "out", after=2)
        _, found = run_into({**ALL, "rounds": 3}, tmp_path / "out", resume=True)  # round 2 was evaluated
        assert found == summary
        assert Experiment.recorded(tmp_path / "out" / "experiment.yaml").rounds == 3

    @pytest.mark.parametrize("rounds", [3, 4])
    def test_fewer_rounds_than_there_are(self, doubles: ModuleType, tmp_path: Path, rounds: int) -> None:
        killed(tmp_path)  # 4 rounds, of which only the third is evaluated
        assert refused({**ALL, "rounds": rounds}, tmp_path, resume=True) == (
            f"can't resume: {tmp_path} has 4 rounds already; ask for --rounds 5 or more, {ELSE}"
        )


class TestOtherSettings:
    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"seed": 5}, "seed: 0 there, 5 asked for"),
            ({"defense": "mean"}, "defense: doubles:Momentum there, mean asked for"),
            (
                {"attack": "none", "clients": 8},
                "attack: doubles:Noise there, none asked for; clients: 6 there, 8 asked for",
            ),
            ({"server": {"optimizer": "Adam"}}, "server.learning_rate: 0.05 there, 0.5 asked for"),
            ({"server": {"learning_rate": 0.05}}, "server.optimizer: Adam there, null asked for"),
            (
                {"seed": 1, "clients": 7, "malicious": 1, "clients_per_round": 5, "evaluate_every": 2},
                "clients: 6 there, 7 asked for; malicious: 2 there, 1 asked for; "
                "clients_per_round: 4 there, 5 asked for; seed: 0 there, 1 asked for; and 1 more",
            ),
        ],
        ids=["seed", "defense", "two", "nested", "missing", "many"],
    )
    @pytest.mark.parametrize("checkpoint", [True, False])
    def test_are_named(
        self, doubles: ModuleType, tmp_path: Path, other: dict[str, Any], said: str, checkpoint: bool
    ) -> None:
        directory = killed(tmp_path)
        if not checkpoint:
            for name in (CHECKPOINT, PREVIOUS):
                (directory.path / name).unlink()
        found = refused({**ALL, **other}, tmp_path, resume=True)
        assert found.startswith(f"can't resume: {tmp_path} holds another run (")
        assert said in found
        assert found.endswith(f"); {ELSE}")

    @pytest.mark.parametrize("torn", [b"", b"dataset: {na", b"\xff\xfe", b"- 1\n", b"seed: 1\n"])
    def test_settings_that_are_torn_are_restored(self, doubles: ModuleType, tmp_path: Path, torn: bytes) -> None:
        run_into(ALL, tmp_path / "straight")
        directory = killed(tmp_path / "out")
        (directory.path / "experiment.yaml").write_bytes(torn)
        assert "seed: 0 there, 5 asked for" in refused({**ALL, "seed": 5}, directory.path, resume=True)
        run_into(ALL, directory.path, resume=True)
        assert without_seconds(directory.path) == without_seconds(tmp_path / "straight")
        assert Experiment.recorded(directory.path / "experiment.yaml") == Experiment.of(ALL)

    def test_torn_settings_without_a_round(self, doubles: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "experiment.yaml").write_text("dataset: {na")
        run_into(ALL, tmp_path, resume=True)
        assert len(without_seconds(tmp_path)) == 7

    def test_neither_settings_nor_checkpoint(self, doubles: ModuleType, tmp_path: Path) -> None:
        directory = killed(tmp_path, every=60.0)
        (tmp_path / "experiment.yaml").unlink()
        (directory.path / CHECKPOINT).unlink()
        assert "its settings are unreadable" in refused(ALL, tmp_path, resume=True)

    def test_a_model_whose_code_has_changed(self, doubles: ModuleType, tmp_path: Path) -> None:
        directory = killed(tmp_path)
        state = directory.load(CPU)
        assert state is not None
        server = replace(state.server, params=torch.zeros(16, dtype=torch.float64))
        records = directory.covered(4)[0].hexdigest()
        directory.save(replace(state, server=server), Experiment.of(ALL), records)
        said = refused(ALL, tmp_path, resume=True)
        assert "the checkpoint has the model as [[16], torch.float64], this experiment as [[15], torch.float64]" in said

    @pytest.mark.parametrize("memory", [3, [None, 2], {"ids": torch.zeros(2)}], ids=["number", "list", "dict"])
    def test_a_memory_of_an_attacker_from_another_version(
        self, doubles: ModuleType, tmp_path: Path, memory: object
    ) -> None:
        directory = killed(tmp_path)
        state = directory.load(CPU)
        assert state is not None
        directory.save(replace(state, adversary=memory), Experiment.of(ALL), directory.covered(4)[0].hexdigest())
        assert refused(ALL, tmp_path, resume=True) == (
            "can't resume: the checkpoint has no attacker's memory as this version of fedsieve keeps it; "
            "choose another --out, or --fresh to start anew"
        )

    def test_a_memory_without_what_a_client_would_be_without_attack(self, doubles: ModuleType, tmp_path: Path) -> None:
        """Versions before these values existed wrote no such thing beside personal BatchNorm layers."""
        directory = killed(tmp_path, ATTACKER, after=1)
        state = directory.load(CPU)
        assert state is not None
        assert state.adversary.keys() == {"attack", "defense", "personal"}
        older = {key: state.adversary[key] for key in ("attack", "defense")}
        directory.save(replace(state, adversary=older), Experiment.of(ATTACKER), directory.covered(2)[0].hexdigest())
        assert refused(ATTACKER, tmp_path, resume=True).startswith(
            "can't resume: the checkpoint has no attacker's memory as this version of fedsieve keeps it"
        )

    def test_data_that_have_changed(self, tmp_path: Path) -> None:
        table = tmp_path / "table.csv"
        rows = [f"{k % 3},{(k % 3) * 5 + k % 7},{k % 4}" for k in range(120)]
        table.write_text("\n".join(["kind,size,other", *rows]) + "\n")
        settings = {
            "dataset": {"name": "csv", "file": str(table), "label": "kind"}, "clients": 4, "malicious": 1,
            "defense": "mean", "rounds": 3,
        }  # fmt: skip
        out = tmp_path / "out"
        with pytest.raises(KilledError):
            run_into(settings, out, kill_after=1)
        content = table.read_text()
        table.write_text(content.replace("1,6,", "1,9,", 1))
        assert refused(settings, out, resume=True) == (
            f"can't resume {out}: {table} has changed since the run was started; {ELSE}"
        )
        table.write_text(content)
        run_into(settings, out, resume=True)
        assert len(without_seconds(out)) == 3


class TestDamage:
    """Damaged, edited and foreign files: the last good state, or one line."""

    def goes_on(self, out: Path, straight: Path, said: str) -> None:
        """The run goes on from the checkpoint before the last, and says so."""
        notes: list[str] = []
        run_into(ALL, out, resume=True, on_note=notes.append)
        assert len(notes) == 1
        assert said in notes[0]
        assert notes[0].endswith("; going on from checkpoint.previous.safetensors, round 3")
        assert without_seconds(out) == without_seconds(straight)
        (finished,) = TestNotes().notes(ALL, out)  # all is well again
        assert "is finished" in finished

    @pytest.fixture
    def straight(self, doubles: ModuleType, tmp_path: Path) -> Path:
        run_into(ALL, tmp_path / "straight")
        return tmp_path / "straight"

    def test_a_checkpoint(self, straight: Path, tmp_path: Path) -> None:
        out = killed(tmp_path / "out").path
        content = bytearray((out / CHECKPOINT).read_bytes())
        content[-3] ^= 1  # in a tensor
        (out / CHECKPOINT).write_bytes(content)
        self.goes_on(out, straight, "checkpoint.safetensors: it is damaged: its checksum is wrong")

    def test_both_checkpoints(self, straight: Path, tmp_path: Path) -> None:
        out = killed(tmp_path / "out").path
        (out / CHECKPOINT).write_bytes(b"")
        (out / PREVIOUS).write_bytes((out / PREVIOUS).read_bytes()[:-1])
        said = refused(ALL, out, resume=True)
        assert said.startswith(f"can't resume {out}: {out / CHECKPOINT}: it is not a FedSieve checkpoint, or one of ")
        assert f"; {out / PREVIOUS}: it is damaged: its checksum is wrong; {ELSE}" in said

    def test_a_directory_in_its_place(self, straight: Path, tmp_path: Path) -> None:
        out = killed(tmp_path / "out").path
        (out / CHECKPOINT).unlink()
        (out / CHECKPOINT).mkdir()
        with pytest.raises(FedSieveError, match="Is a directory"):  # it can't be replaced either
            run_into(ALL, out, resume=True)
        (out / CHECKPOINT).rmdir()
        run_into(ALL, out, resume=True)
        assert without_seconds(out) == without_seconds(straight)

    def test_a_pipe_in_its_place(self, straight: Path, tmp_path: Path) -> None:
        out = killed(tmp_path / "out").path
        (out / CHECKPOINT).unlink()
        os.mkfifo(out / CHECKPOINT)
        self.goes_on(out, straight, "it is not a file")

    def test_a_checkpoint_that_cannot_be_read_now_may_be_good(
        self, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = killed(tmp_path / "out").path
        real = files.read

        def no_handles(path: Path) -> Any:
            if path.name == CHECKPOINT:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(path)

        with monkeypatch.context() as patch:
            patch.setattr("fedsieve.runs.files.read", no_handles)
            assert refused(ALL, out, resume=True) == f"can't read {out / CHECKPOINT}: Too many open files"
        state = RunDirectory(out).load(CPU)
        assert state is not None
        assert state.round == 4

    @pytest.mark.parametrize("target", ["nowhere", "/dev/full"])
    def test_a_link_in_its_place(self, straight: Path, tmp_path: Path, target: str) -> None:
        out = killed(tmp_path / "out").path
        (out / CHECKPOINT).unlink()
        (out / CHECKPOINT).symlink_to(target)
        self.goes_on(out, straight, "checkpoint.safetensors")

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"seed": 1}, "seed: 1 there, 0 asked for"),
            ({"attack": "doubles:Honest"}, "attack: doubles:Honest there, doubles:Noise asked for"),
            ({"defense": "mean"}, "defense: mean there, doubles:Momentum asked for"),
            ({"clients": 7}, "clients: 7 there, 6 asked for"),
        ],
        ids=["seed", "attack", "defense", "clients"],
    )
    def test_a_checkpoint_of_another_run(
        self, straight: Path, tmp_path: Path, other: dict[str, Any], said: str
    ) -> None:
        foreign, out = killed(tmp_path / "foreign", {**ALL, **other}).path, killed(tmp_path / "out").path
        (out / CHECKPOINT).write_bytes((foreign / CHECKPOINT).read_bytes())
        self.goes_on(out, straight, f"checkpoint.safetensors is of another run ({said})")

    @pytest.mark.parametrize("round", [-1, 3, 5, 100])
    def test_another_round(self, straight: Path, tmp_path: Path, round: int) -> None:
        """Of the state alone, and of the state and what is said of it."""
        for both in (True, False):
            directory = killed(tmp_path / f"out {both}")
            found = directory.read_checkpoint(CHECKPOINT, CPU)
            assert found is not None
            stamp, state = found
            state = replace(state, server=replace(state.server, round=round))
            content = encode(state, replace(stamp, round=round) if both else stamp)
            (directory.path / CHECKPOINT).write_bytes(content)
            self.goes_on(directory.path, straight, "can't resume" if round == 0 else "")

    @pytest.mark.parametrize("line", [0, 1, 2])
    @pytest.mark.parametrize("kind", ["edited", "duplicated", "swapped", "removed"])
    def test_records(self, straight: Path, tmp_path: Path, line: int, kind: str) -> None:
        out = killed(tmp_path / "out").path
        lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
        if kind == "edited":
            lines[line] = lines[line].replace(b'"update_norm":', b'"update_norm":1', 1)
        elif kind == "duplicated":
            lines.insert(line, lines[line])
        elif kind == "swapped":
            lines[line], lines[line + 1] = lines[line + 1], lines[line]
        else:
            del lines[line]
        (out / "records.jsonl").write_bytes(b"".join(lines))
        said = f"records.jsonl was changed: its first 4 rounds are not those of {CHECKPOINT}"
        if kind == "duplicated" and line == 2:
            # the first three are as they were
            self.goes_on(out, straight, said)
            return
        found = refused(ALL, out, resume=True)
        assert found.startswith(f"can't resume {out}: ")
        assert found.endswith(ELSE)
        assert ("has 3 rounds, fewer than 4" if kind == "removed" else said) in found

    def test_the_last_record(self, straight: Path, tmp_path: Path) -> None:
        out = killed(tmp_path / "out").path
        lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
        (out / "records.jsonl").write_bytes(b"".join([*lines[:3], lines[3].replace(b"true", b"false", 1)]))
        self.goes_on(out, straight, "records.jsonl was changed: its first 4 rounds")

    def test_lost_records(self, straight: Path, tmp_path: Path) -> None:
        out = killed(tmp_path / "out").path  # a power cut on a disk that lied about syncing
        lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
        (out / "records.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
        self.goes_on(out, straight, "records.jsonl has 3 rounds, fewer than 4")

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"{}\n", b"\n\n\n\n\n", b"[" * 5000 + b"\n"])
    def test_records_that_are_none(self, straight: Path, tmp_path: Path, content: bytes) -> None:
        out = killed(tmp_path / "out").path
        (out / "records.jsonl").write_bytes(content)
        assert "records.jsonl" in refused(ALL, out, resume=True)
        for name in (CHECKPOINT, PREVIOUS):
            (out / name).unlink()
        run_into(ALL, out, resume=True)  # no checkpoint: from the start
        assert without_seconds(out) == without_seconds(straight)

    @pytest.mark.parametrize("name", ["records.jsonl", "experiment.yaml"])
    def test_a_directory_for_a_file(self, straight: Path, tmp_path: Path, name: str) -> None:
        out = killed(tmp_path / "out").path
        (out / name).unlink()
        (out / name).mkdir()
        with pytest.raises(FedSieveError) as error:
            run_into(ALL, out, resume=True)
        assert name in str(error.value) or str(error.value).endswith(": Is a directory")
        assert "\n" not in str(error.value)
        (out / name).rmdir()

    def test_a_finished_run_whose_records_were_edited(self, straight: Path) -> None:
        path = straight / "records.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"test_accuracy":0', b'"test_accuracy":1', 1))
        assert "records.jsonl was changed: its first 7 rounds" in refused(ALL, straight, resume=True)
        (straight / CHECKPOINT).unlink()
        path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
        assert "records.jsonl is not rounds 0 to 6 in order" in refused(ALL, straight, resume=True)

    def test_every_seventh_byte_of_a_checkpoint(self, straight: Path, tmp_path: Path) -> None:
        directory = killed(tmp_path / "out")
        path = directory.path / CHECKPOINT
        whole = path.read_bytes()
        tried = range(0, len(whole), 7)
        assert len(tried) > 300
        for k in tried:
            for flip in (1, 0x80):
                path.write_bytes(whole[:k] + bytes([whole[k] ^ flip]) + whole[k + 1 :])
                with pytest.raises(CorruptDataError):
                    directory.load(CPU)
        path.write_bytes(whole)
        assert directory.load(CPU) is not None

    @pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.75, 0.9, 0.999])
    @pytest.mark.parametrize("damage", ["flip", "cut"])
    def test_a_damaged_checkpoint_is_not_gone_on_from(
        self, straight: Path, tmp_path: Path, where: float, damage: str
    ) -> None:
        out = killed(tmp_path / "out").path
        whole = (out / CHECKPOINT).read_bytes()
        k = int(where * len(whole))
        after = bytes([whole[k] ^ 4]) + whole[k + 1 :] if damage == "flip" else b""
        (out / CHECKPOINT).write_bytes(whole[:k] + after)
        self.goes_on(out, straight, f"{CHECKPOINT}: it is ")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["experiment.yaml", "environment.json", "records.jsonl", PREVIOUS])
    def test_a_byte_of_another_file(self, straight: Path, tmp_path: Path, name: str) -> None:
        """The run goes on as if nothing had happened, or is refused in one line."""
        whole = (killed(tmp_path / "count").path / name).read_bytes()
        for k in range(1, len(whole), len(whole) // 12):
            out = killed(tmp_path / str(k)).path
            content = bytearray((out / name).read_bytes())
            content[k % len(content)] ^= 1 << k % 8
            (out / name).write_bytes(content)
            said = ""
            try:
                run_into(ALL, out, resume=True)
            except FedSieveError as error:
                said = str(error)
            assert "\n" not in said, k
            assert said or without_seconds(out) == without_seconds(straight), k
            assert name in ("experiment.yaml", "records.jsonl") or not said, k

    def test_the_damaged_checkpoint_does_not_replace_the_good_one(self, straight: Path, tmp_path: Path) -> None:
        out = killed(tmp_path / "out").path
        (out / CHECKPOINT).write_bytes(b"rubbish")
        with pytest.raises(KilledError):
            run_into(ALL, out, resume=True, kill_after=4, checkpoint_every=0.0)
        directory = RunDirectory(out)
        rounds = []
        for name in (CHECKPOINT, PREVIOUS):
            found = directory.read_checkpoint(name, CPU)
            assert found is not None
            rounds.append(found[1].round)
        assert rounds == [5, 4]


class TestLock:
    def test_a_run_locks_its_directory(self, doubles: ModuleType, tmp_path: Path) -> None:
        out, held = tmp_path / "out", []

        def look(_: Any) -> None:
            with claimed(out) as mine:
                held.append(not mine)

        run(Experiment.of(ALL), out=out, data=NOWHERE, device=CPU, on_round=look)
        assert held == [True] * 7
        with claimed(out) as mine:
            assert mine

    def test_two_at_once(self, doubles: ModuleType, tmp_path: Path) -> None:
        for more in ({}, {"resume": True}, {"fresh": True}):
            with claimed(tmp_path / "out"), pytest.raises(BusyError) as error:
                run_into(ALL, tmp_path / "out", **more)
            assert str(error.value).startswith(f"another process runs in {tmp_path}/out")
            assert not (tmp_path / "out").exists()

    def test_by_another_name(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into({**ALL, "rounds": 1}, tmp_path / "out")
        (tmp_path / "link").symlink_to(tmp_path / "out")
        with claimed(tmp_path / "link"), pytest.raises(BusyError):
            run_into(ALL, tmp_path / "out" / ".." / "out", resume=True)

    def test_threads_of_one_process(self, doubles: ModuleType, tmp_path: Path) -> None:
        ends: list[str] = []

        def start() -> None:
            try:
                run_into(ALL, tmp_path / "out")
                ends.append("done")
            except FedSieveError as error:
                ends.append(type(error).__name__)

        threads = [threading.Thread(target=start) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends.count("done") == 1
        assert set(ends) <= {"done", "BusyError", "ParameterError"}
        assert [record.round for record in RunDirectory(tmp_path / "out").records()] == list(range(7))


def test_records_need_not_be_kept(doubles: ModuleType, tmp_path: Path) -> None:
    kept, summary = run_into(ALL, tmp_path / "kept")
    none, same = run_into(ALL, tmp_path / "none", keep_records=False)
    assert (none, same) == ([], summary)
    assert b"".join(map(line_of, kept)) == (tmp_path / "kept" / "records.jsonl").read_bytes()


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_no_time_between_checkpoints(doubles: ModuleType, tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ParameterError, match="checkpoint_every is a number of seconds, at least 0, got"):
        run_into(ALL, tmp_path / "out", checkpoint_every=seconds)
    assert not (tmp_path / "out").exists()
