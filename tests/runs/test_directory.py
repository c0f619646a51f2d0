"""A run directory is complete, and every damage to it is found."""

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.core.metrics import summarize
from fedsieve.core.records import RoundRecord
from fedsieve.federation.server import ServerState
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs.directory import RunDirectory, environment
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
    without_seconds,
)


class TestContents:
    def test_files(self, doubles: ModuleType, tmp_path: Path) -> None:
        records, summary = run_into(ALL, tmp_path / "a" / "run")
        out = tmp_path / "a" / "run"
        assert sorted(path.name for path in out.iterdir()) == FILES
        assert Experiment.read(out / "experiment.yaml") == Experiment.of(ALL)
        found = json.loads((out / "environment.json").read_text())
        assert found == environment(CPU)
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
        assert (state.personal, state.adversary) == (None, None)

    def test_the_last_state_of_clients_and_attacker(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ATTACKER, tmp_path)
        state = RunDirectory(tmp_path).load(CPU)
        assert state is not None
        assert state.personal is not None
        assert state.personal.shape == (6, 20)
        momentum, below, mean = state.adversary  # of the chain that the attacker simulates
        assert (below, mean) == (4, None)
        assert momentum["momentum"].any()

    def test_an_earlier_run_is_replaced(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path)
        run_into({**ALL, "rounds": 2, "seed": 1}, tmp_path)
        assert len(without_seconds(tmp_path)) == 2
        assert Experiment.read(tmp_path / "experiment.yaml").seed == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == FILES

    def test_a_folder_that_cannot_be_made(self, doubles: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(FedSieveError, match=f"can't write the run directory {tmp_path}/file/run"):
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

    def test_another_experiment(self, doubles: ModuleType, tmp_path: Path) -> None:
        self.killed(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        other = {**ALL, "seed": 5}
        with pytest.raises(FedSieveError) as error:
            run_into(other, tmp_path, resume=True)
        keys = Experiment.of(ALL).key, Experiment.of(other).key
        assert str(error.value) == (
            f"can't resume: {tmp_path} holds experiment {keys[0]}, not {keys[1]}; "
            "choose another --out, or run without --resume"
        )
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_another_experiment_without_a_checkpoint(self, doubles: ModuleType, tmp_path: Path) -> None:
        self.killed(tmp_path)
        (tmp_path / "checkpoint.safetensors").unlink()
        with pytest.raises(FedSieveError, match="can't resume"):
            run_into({**ALL, "seed": 5}, tmp_path, resume=True)

    def test_fewer_records_than_rounds(self, doubles: ModuleType, tmp_path: Path) -> None:
        self.killed(tmp_path)
        path = tmp_path / "records.jsonl"
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]))
        with pytest.raises(FedSieveError) as error:
            run_into(ALL, tmp_path, resume=True)
        assert str(error.value) == f"can't resume: {tmp_path} has a checkpoint of round 4, but fewer records"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: b"",
            lambda content: b"rubbish",
            lambda content: content[:40],
            lambda content: content[: len(content) // 2],
            lambda content: content[:-1],
            lambda content: content.replace(b'"state"', b'"etats"'),
            lambda content: content.replace(b"params", b"smarap"),
            lambda content: content.replace(b"tensor", b"torsen"),
        ],
    )
    def test_a_broken_checkpoint(self, doubles: ModuleType, tmp_path: Path, damage: Any) -> None:
        self.killed(tmp_path)
        path = tmp_path / "checkpoint.safetensors"
        content = path.read_bytes()
        assert damage(content) != content
        path.write_bytes(damage(content))
        with pytest.raises(FedSieveError) as error:
            run_into(ALL, tmp_path, resume=True)
        assert str(error.value).startswith(f"{path} is not a FedSieve checkpoint: ")
        assert "\n" not in str(error.value)

    def test_a_checkpoint_is_replaced_whole(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = self.killed(tmp_path)
        before = (tmp_path / "checkpoint.safetensors").read_bytes()

        def fails(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
            path.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr("fedsieve.runs.directory.save_file", fails)
        with pytest.raises(OSError, match="disk full"):
            directory.save(SimulationState(ServerState(torch.zeros(15))))
        assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
