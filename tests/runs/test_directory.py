"""A run directory is complete, and every damage to it is found."""

import errno
import json
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, StorageError
from fedsieve.core.metrics import summarize
from fedsieve.core.records import RoundRecord
from fedsieve.federation.simulation import Simulation
from fedsieve.runs.directory import CHECKPOINT, RunDirectory, environment
from fedsieve.runs.run import run
from tests.runs.conftest import (
    ALL,
    ATTACKER,
    CPU,
    DETECTOR,
    FILES,
    NOWHERE,
    KilledError,
    assert_same_run,
    run_into,
)


class TestContents:
    def test_files(self, doubles: ModuleType, tmp_path: Path) -> None:
        records, summary = run_into(ALL, tmp_path / "a" / "run")
        out = tmp_path / "a" / "run"
        assert sorted(path.name for path in out.iterdir()) == FILES
        assert Experiment.recorded(out / "experiment.yaml") == Experiment.of(ALL)
        found = json.loads((out / "environment.json").read_text())
        reading = Simulation.of(Experiment.of(ALL), NOWHERE, CPU).holdings.reading
        assert reading
        assert found == {**environment(CPU), "data": reading, "data_sha256": None}
        assert found["torch"] == torch.__version__
        assert set(found) >= {"python", "fedsieve", "numpy", "platform", "device", "threads"}
        assert len(records) == 7
        assert RunDirectory(out).records() == records
        assert summary == summarize(records)

    def test_records_are_json_without_nan(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into({**DETECTOR, "malicious": 6, "rounds": 3}, tmp_path)  # nothing but NaN is sent

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        lines = (tmp_path / "records.jsonl").read_text().splitlines()
        assert len(lines) == 3
        for k, line in enumerate(lines):
            found = json.loads(line, parse_constant=refuse)
            assert list(found) == list(RoundRecord.__dataclass_fields__)
            assert found["round"] == k
            assert found["applied"] is False
            assert all(math.isfinite(s) and s >= 0 for s in found["seconds"].values())

    def test_the_last_state_is_saved(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path)
        state = RunDirectory(tmp_path).load(CPU)
        assert state is not None
        assert state.round == 7
        assert state.server.params.shape == (15,)
        assert set(state.server.optimizer) >= {"step", "exp_avg", "exp_avg_sq"}
        assert state.server.defense["seen"] == [7, (None, "text")]
        assert torch.is_tensor(state.server.defense["mean"])
        assert (state.personal, state.adversary) == (None, {"attack": None, "defense": None})

    def test_the_last_state_of_clients_and_attacker(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ATTACKER, tmp_path)
        state = RunDirectory(tmp_path).load(CPU)
        assert state is not None
        assert state.personal is not None
        assert state.personal.shape == (6, 20)
        assert state.adversary["attack"] is None
        momentum, below, mean = state.adversary["defense"]  # of the chain that the attacker simulates
        assert (below, mean) == (4, None)
        assert momentum["momentum"].any()

    def test_a_folder_that_cannot_be_made(self, doubles: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(FedSieveError, match=f"can't lock run directories in {tmp_path}/file/.locks: "):
            run_into(ALL, tmp_path / "file" / "run")

    def test_every_round_is_reported(self, doubles: ModuleType, tmp_path: Path) -> None:
        reported: list[RoundRecord] = []
        records, _ = run(Experiment.of(ALL), out=tmp_path, data=NOWHERE, device=CPU, on_round=reported.append)
        assert reported == records


class TestDamage:
    def killed(self, out: Path) -> RunDirectory:
        with pytest.raises(KilledError):
            run_into(ALL, out, kill_after=3, checkpoint_every=0.0)
        return RunDirectory(out)

    def test_a_torn_last_line(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path / "straight")
        directory = self.killed(tmp_path / "killed")
        path = directory.path / "records.jsonl"
        path.write_text(path.read_text() + '{"round": 4, "clients": [0, 1')
        assert [record.round for record in directory.records()] == [0, 1, 2, 3]
        run_into(ALL, directory.path, resume=True)
        assert_same_run(directory.path, tmp_path / "straight")

    @pytest.mark.parametrize("line", ["{}", "not json", '{"round": "x"}', ""])
    def test_a_line_that_is_no_record(self, doubles: ModuleType, tmp_path: Path, line: str) -> None:
        directory = self.killed(tmp_path)
        path = tmp_path / "records.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(FedSieveError) as error:
            directory.records()
        assert str(error.value).startswith(f"{path}, line 2 is not a record: ")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: b"rubbish",
            lambda content: content[:40],
            lambda content: content[: len(content) // 2],
            lambda content: content[:-1],
            lambda content: content.replace(b'"sha256"', b'"sha265"'),
            lambda content: content.replace(b"params", b"smarap"),
            lambda content: content.replace(b"tensor", b"torsen"),
            lambda content: content + b"0",
        ],
        ids=["empty", "rubbish", "head", "half", "cut", "metadata", "names", "kinds", "longer"],
    )
    def test_a_broken_checkpoint(self, doubles: ModuleType, tmp_path: Path, damage: Any) -> None:
        directory = self.killed(tmp_path)
        path = tmp_path / "checkpoint.safetensors"
        content = path.read_bytes()
        assert damage(content) != content
        path.write_bytes(damage(content))
        with pytest.raises(FedSieveError) as error:
            directory.load(CPU)
        assert str(error.value).startswith(f"{path}: it is ")
        assert "\n" not in str(error.value)

    def test_a_checkpoint_is_replaced_whole(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = self.killed(tmp_path)
        state, before = directory.load(CPU), (tmp_path / CHECKPOINT).read_bytes()
        assert state is not None

        def full(file: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("fedsieve.runs.files.os.fsync", full)
        with pytest.raises(StorageError) as error:
            directory.save(state, Experiment.of(ALL), "")
        assert str(error.value) == f"can't write a checkpoint to {tmp_path}: No space left on device"
        assert (tmp_path / CHECKPOINT).read_bytes() == before
        assert not list(tmp_path.glob("*.new"))  # takes no room on the full disk
