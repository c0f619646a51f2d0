"""A run directory is complete, reproducible to the byte, and survives a kill at any moment."""

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fedsieve.experiment import Experiment
from fedsieve.metrics import summarize
from fedsieve.runs import RunDirectory, _pack, _unpack, environment, run
from fedsieve.server import ServerState
from fedsieve.types import FedSieveError, RoundRecord

CPU = torch.device("cpu")
NOWHERE = Path("no such folder")
# every kind of state: an optimizer's, a rule's with tensors, sampled clients, an attack that draws
ALL: dict[str, Any] = {
    "dataset": "doubles:Tiny",
    "attack": "doubles:Noise",
    "defense": "doubles:Momentum",
    "server": {"optimizer": "Adam", "learning_rate": 0.05},
    "clients": 6,
    "clients_per_round": 4,
    "malicious": 2,
    "rounds": 7,
    "evaluate_every": 3,
}
FILTER: dict[str, Any] = {**ALL, "defense": "doubles:Below", "attack": "doubles:Constant", "server": {}}
SKYMASK: dict[str, Any] = {"clients": 10, "rounds": 4, "attack": "min-max", "malicious": 2}
FILES = ["checkpoint.safetensors", "environment.json", "experiment.yaml", "records.jsonl"]


class KilledError(Exception):
    """What stops a run in these tests."""


def played(
    settings: dict[str, Any], out: Path, *, kill_after: int | None = None, **more: Any
) -> tuple[list[RoundRecord], dict[str, Any]]:
    def kill(record: RoundRecord) -> None:
        if record.round == kill_after:
            raise KilledError

    return run(Experiment.of(settings), out=out, data=NOWHERE, device=CPU, on_round=kill, **more)


def without_seconds(out: Path) -> list[str]:
    """The lines of the records, byte for byte but for the one field that may differ."""
    lines = (out / "records.jsonl").read_text().splitlines()
    assert lines
    result = []
    for line in lines:
        before, found, _ = line.partition(', "seconds": {')
        assert found
        result.append(before)
    return result


def saved(out: Path) -> dict[str, Tensor]:
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def assert_same_runs(one: Path, two: Path) -> None:
    assert without_seconds(one) == without_seconds(two)
    assert (one / "experiment.yaml").read_bytes() == (two / "experiment.yaml").read_bytes()
    a, b = saved(one), saved(two)
    assert set(a) == set(b) != set()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


class TestContents:
    def test_files(self, doubles: ModuleType, tmp_path: Path) -> None:
        records, summary = played(ALL, tmp_path / "a" / "run")
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
        played({**FILTER, "malicious": 6, "rounds": 3}, tmp_path)  # nothing but NaN is sent

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
        played(ALL, tmp_path)
        state = RunDirectory(tmp_path).load(CPU)
        assert state is not None
        assert state.round == 7
        assert state.params.shape == (15,)
        assert set(state.optimizer) >= {"step", "exp_avg", "exp_avg_sq"}
        assert state.defense["seen"] == [7, (None, "text")]
        assert torch.is_tensor(state.defense["mean"])

    def test_an_earlier_run_is_replaced(self, doubles: ModuleType, tmp_path: Path) -> None:
        played(ALL, tmp_path)
        played({**ALL, "rounds": 2, "seed": 1}, tmp_path)
        assert len(without_seconds(tmp_path)) == 2
        assert Experiment.read(tmp_path / "experiment.yaml").seed == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == FILES

    def test_a_folder_that_cannot_be_made(self, doubles: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(FedSieveError, match=f"can't write the run directory {tmp_path}/file/run"):
            played(ALL, tmp_path / "file" / "run")

    def test_every_round_is_told(self, doubles: ModuleType, tmp_path: Path) -> None:
        told: list[RoundRecord] = []
        records, _ = run(Experiment.of(ALL), out=tmp_path, data=NOWHERE, device=CPU, on_round=told.append)
        assert told == records


class TestSame:
    @pytest.mark.parametrize("settings", [ALL, FILTER, SKYMASK])
    def test_twice_to_the_byte(self, doubles: ModuleType, tmp_path: Path, settings: dict[str, Any]) -> None:
        played(settings, tmp_path / "one")
        torch.manual_seed(77)
        played(settings, tmp_path / "two")
        assert_same_runs(tmp_path / "one", tmp_path / "two")

    @pytest.mark.parametrize("settings", [ALL, FILTER, SKYMASK])
    @pytest.mark.parametrize("kill_after", [0, 2])
    def test_resumed_equals_straight(
        self, doubles: ModuleType, tmp_path: Path, settings: dict[str, Any], kill_after: int
    ) -> None:
        straight, _ = played(settings, tmp_path / "straight")
        with pytest.raises(KilledError):
            played(settings, tmp_path / "killed", kill_after=kill_after, checkpoint_every=0.0)
        assert len(without_seconds(tmp_path / "killed")) == kill_after + 1
        told: list[int] = []
        records, summary = run(
            Experiment.of(settings),
            out=tmp_path / "killed",
            data=NOWHERE,
            device=CPU,
            resume=True,
            on_round=lambda record: told.append(record.round),
        )
        assert told == list(range(kill_after + 1, len(straight)))  # what was done is not done again
        assert_same_runs(tmp_path / "killed", tmp_path / "straight")
        assert len(records) == len(straight)
        assert summary == summarize(straight)
        assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == FILES

    def test_killed_again_and_again(self, doubles: ModuleType, tmp_path: Path) -> None:
        played(ALL, tmp_path / "straight")
        for k in range(6):
            with pytest.raises(KilledError):
                played(ALL, tmp_path / "killed", kill_after=k, checkpoint_every=0.0, resume=True)
        played(ALL, tmp_path / "killed", resume=True)
        assert_same_runs(tmp_path / "killed", tmp_path / "straight")

    def test_an_interruption_leaves_a_checkpoint(self, doubles: ModuleType, tmp_path: Path) -> None:
        played(ALL, tmp_path / "straight")
        with pytest.raises(KilledError):
            played(ALL, tmp_path / "killed", kill_after=3)  # long before the first one is due
        state = RunDirectory(tmp_path / "killed").load(CPU)
        assert state is not None
        assert state.round == 4
        played(ALL, tmp_path / "killed", resume=True)
        assert_same_runs(tmp_path / "killed", tmp_path / "straight")

    @pytest.mark.parametrize("before", [None, 2])
    def test_rounds_after_the_checkpoint_are_played_again(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None
    ) -> None:
        """A kill that leaves no time to save, with no checkpoint so far or with one of round ``before``."""
        played(ALL, tmp_path / "straight")
        out = tmp_path / "killed"
        if before is not None:
            with pytest.raises(KilledError):
                played(ALL, out, kill_after=before, checkpoint_every=0.0)
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "save", lambda *_: None)
            with pytest.raises(KilledError):
                played(ALL, out, kill_after=5, resume=True)
        state = RunDirectory(out).load(CPU)
        assert (None if state is None else state.round) == (None if before is None else before + 1)
        assert len(without_seconds(out)) == 6
        played(ALL, out, resume=True)
        assert_same_runs(out, tmp_path / "straight")

    def test_a_finished_run_stays(self, doubles: ModuleType, tmp_path: Path) -> None:
        first, summary = played(ALL, tmp_path)
        before = (tmp_path / "records.jsonl").read_bytes()
        assert played(ALL, tmp_path, resume=True) == (first, summary)
        assert (tmp_path / "records.jsonl").read_bytes() == before

    def test_resume_of_nothing(self, doubles: ModuleType, tmp_path: Path) -> None:
        played(ALL, tmp_path / "straight")
        played(ALL, tmp_path / "new", resume=True)
        assert_same_runs(tmp_path / "new", tmp_path / "straight")


class TestDamage:
    def killed(self, out: Path) -> RunDirectory:
        with pytest.raises(KilledError):
            played(ALL, out, kill_after=3, checkpoint_every=0.0)
        return RunDirectory(out)

    def test_a_torn_last_line(self, doubles: ModuleType, tmp_path: Path) -> None:
        played(ALL, tmp_path / "straight")
        directory = self.killed(tmp_path / "killed")
        path = directory.path / "records.jsonl"
        path.write_text(path.read_text() + '{"round": 4, "clients": [0, 1')
        assert [record.round for record in directory.records()] == [0, 1, 2, 3]
        played(ALL, directory.path, resume=True)
        assert_same_runs(directory.path, tmp_path / "straight")

    @pytest.mark.parametrize("line", ["{}", "not json", '{"round": "x"}', ""])
    def test_a_line_that_is_no_record(self, doubles: ModuleType, tmp_path: Path, line: str) -> None:
        directory = self.killed(tmp_path)
        path = tmp_path / "records.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(FedSieveError) as error:
            directory.records()
        assert str(error.value).startswith(f"{path}, line 2 is no record: ")
        assert "\n" not in str(error.value)

    def test_another_experiment(self, doubles: ModuleType, tmp_path: Path) -> None:
        self.killed(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        other = {**ALL, "seed": 5}
        with pytest.raises(FedSieveError) as error:
            played(other, tmp_path, resume=True)
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
            played({**ALL, "seed": 5}, tmp_path, resume=True)

    def test_fewer_records_than_rounds(self, doubles: ModuleType, tmp_path: Path) -> None:
        self.killed(tmp_path)
        path = tmp_path / "records.jsonl"
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]))
        with pytest.raises(FedSieveError) as error:
            played(ALL, tmp_path, resume=True)
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
            played(ALL, tmp_path, resume=True)
        assert str(error.value).startswith(f"{path} is no checkpoint of ours: ")
        assert "\n" not in str(error.value)

    def test_a_checkpoint_is_replaced_whole(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = self.killed(tmp_path)
        before = (tmp_path / "checkpoint.safetensors").read_bytes()

        def fails(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
            path.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr("fedsieve.runs.save_file", fails)
        with pytest.raises(OSError, match="disk full"):
            directory.save(ServerState(torch.zeros(15)))
        assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


SHARED = torch.arange(6.0)


class TestState:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            3,
            2.5,
            float("inf"),
            "text",
            [],
            (),
            {},
            [1, (2, [None, "x"]), {"a": False}],
            {"tensor": {"value": 1}, "list": [1]},
            {3: torch.ones(2), 14: torch.zeros(2)},  # clients by id
            {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)},
            (torch.ones(2), {"x": [torch.zeros(0, 3), torch.tensor(4)]}),
            [torch.tensor([True, False]), torch.tensor([1.5], dtype=torch.float64), torch.tensor([2**40])],
            (SHARED.expand(2, 6), SHARED.view(2, 3).T),
            (SHARED, SHARED),
            (SHARED, SHARED[2:]),
        ],
        ids=repr,
    )
    def test_round_trip(self, tmp_path: Path, value: Any) -> None:
        def assert_equal(a: Any, b: Any) -> None:
            assert type(a) is type(b)
            if isinstance(a, Tensor):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
            elif isinstance(a, dict):
                assert list(a) == list(b)
                for key in a:
                    assert_equal(a[key], b[key])
            elif isinstance(a, list | tuple):
                assert len(a) == len(b)
                for x, y in zip(a, b, strict=True):
                    assert_equal(x, y)
            else:
                assert a == b

        tensors: dict[str, Tensor] = {}
        tree = json.loads(json.dumps(_pack(value, "state", tensors)))
        assert_equal(value, _unpack(tree, tensors))
        # and through the file
        directory = RunDirectory(tmp_path)
        state = ServerState(torch.arange(3.0), 5, value, {"step": torch.tensor(2.0)})
        directory.save(state)
        found = directory.load(CPU)
        assert found is not None
        assert_equal(found.defense, value)
        assert found.round == 5
        assert torch.equal(found.params, state.params)
        assert_equal(dict(found.optimizer), dict(state.optimizer))

    def test_a_state_that_shares_the_model(self, tmp_path: Path) -> None:
        params = torch.arange(3.0)  # what a rule keeps that remembers the last model, in a round that did not move it
        RunDirectory(tmp_path).save(ServerState(params, 1, {"last": params}))
        found = RunDirectory(tmp_path).load(CPU)
        assert found is not None
        assert torch.equal(found.defense["last"], params)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ({1, 2}, "can't checkpoint state: set is neither"),
            ({"a": [object()]}, "can't checkpoint state.a.0: object is neither"),
        ],
    )
    def test_what_cannot_be_kept(self, value: Any, said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            _pack(value, "state", {})
        assert str(error.value).startswith(said)

    def test_nothing_saved(self, tmp_path: Path) -> None:
        assert RunDirectory(tmp_path).load(CPU) is None
        assert RunDirectory(tmp_path).records() == []
