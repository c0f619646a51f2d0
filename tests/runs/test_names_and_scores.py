"""Clients' names, the final model's scores and the model itself, as a run writes them."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.scores import FinalScores, Scored
from fedsieve.report.load import read
from fedsieve.runs import files
from fedsieve.runs.directory import RunDirectory
from tests.federation.test_names import SITES, table
from tests.runs.conftest import ALL, KilledError, run_into, saved

SCORES = FinalScores(3, Scored(4, 0.5, 0.5, None, 0.25, 0.125), ())


def sites(folder: Path) -> dict[str, Any]:
    dataset = {"name": "csv", "file": table(folder), "label": "sick", "client": "site"}
    return {"dataset": dataset, "defense": "mean", "rounds": 3, "evaluate_every": 1, "root": {"size": 10}}


class TestNames:
    def test_there_and_back(self, tmp_path: Path) -> None:
        names = ("St. Anna", "Süd", "", 'a "quoted" one, with a comma', "日本")
        RunDirectory(tmp_path).write_names(names)
        assert json.loads((tmp_path / "clients.json").read_text()) == {"names": list(names)}
        assert RunDirectory(tmp_path).read_names() == names

    def test_a_strangers_are_safe_to_show(self, tmp_path: Path) -> None:
        RunDirectory(tmp_path).write_names(["red\x1b[31m\nline\u202e", "x" * 5000])
        first, second = RunDirectory(tmp_path).read_names()
        assert first == "red\\x1b[31m\\nline\\u202e"
        assert second == "x" * 97 + "..."

    def test_none_are_no_file(self, tmp_path: Path) -> None:
        RunDirectory(tmp_path).write_names(())
        assert list(tmp_path.iterdir()) == []
        assert RunDirectory(tmp_path).read_names() == ()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "null",
            '{"names": 3}',
            '{"names": [1]}',
            '{"names": null}',
            '{"other": []}',
            "[" * 10**5,
            "\x00",
        ],
    )
    def test_damaged(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "clients.json").write_text(text)
        assert RunDirectory(tmp_path).read_names() == ()

    def test_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "clients.json").write_bytes(b"\xff\xfe\x00")
        assert RunDirectory(tmp_path).read_names() == ()
        (tmp_path / "clients.json").unlink()
        (tmp_path / "clients.json").mkdir()
        assert RunDirectory(tmp_path).read_names() == ()

    def test_of_a_run(self, tmp_path: Path) -> None:
        run_into(sites(tmp_path), tmp_path / "run")
        found = read(tmp_path / "run")
        assert found.problems == ()
        assert found.names == tuple(sorted(SITES))
        assert (found.name(2), found.name(5), found.truth) == ("St. Anna", "client 5", False)
        # another run in its place leaves no names behind
        run_into({**sites(tmp_path), "partition": "iid", "clients": 5}, tmp_path / "run", fresh=True)
        found = read(tmp_path / "run")
        assert (found.names, found.name(2), found.truth) == ((), "client 2", False)

    def test_resumed(self, tmp_path: Path) -> None:
        with pytest.raises(KilledError):
            run_into(sites(tmp_path), tmp_path / "run", kill_after=0, checkpoint_every=0.0)
        (tmp_path / "run" / "clients.json").unlink()  # as of a run of an earlier version
        run_into(sites(tmp_path), tmp_path / "run", resume=True)
        assert read(tmp_path / "run").names == tuple(sorted(SITES))

    def test_simulated_truth(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path / "run")
        assert (read(tmp_path / "run").truth, read(tmp_path / "run").names) == (True, ())


class TestScores:
    def test_there_and_back(self, tmp_path: Path) -> None:
        RunDirectory(tmp_path).write_scores(SCORES)
        assert RunDirectory(tmp_path).read_scores(3) == SCORES
        assert RunDirectory(tmp_path).read_scores(4) is None  # of a model that was trained on

    @pytest.mark.parametrize(
        "text", ["", "{}", "[]", '{"rounds": 3}', "[" * 10**5, '{"rounds": 3, "test": {"n": "x"}}']
    )
    def test_damaged(self, tmp_path: Path, text: str) -> None:
        assert RunDirectory(tmp_path).read_scores(3) is None
        (tmp_path / "scores.json").write_text(text)
        assert RunDirectory(tmp_path).read_scores(3) is None

    def test_of_a_run(self, tmp_path: Path) -> None:
        records, summary = run_into(sites(tmp_path), tmp_path / "run")
        found = read(tmp_path / "run").scores
        assert found is not None
        assert found.test.accuracy == pytest.approx(summary["test_accuracy"], abs=1e-6)
        assert [c.name for c in found.clients] == sorted(SITES)
        assert found.rounds == len(records) == 3

    def test_only_a_whole_run_has_them(self, doubles: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(KilledError):
            run_into(ALL, tmp_path / "run", kill_after=2)
        assert read(tmp_path / "run").scores is None
        run_into(ALL, tmp_path / "run", resume=True)
        first = read(tmp_path / "run").scores
        assert first is not None
        assert first.rounds == 7
        # made longer: those of the shorter run are no longer shown, then replaced
        with pytest.raises(KilledError):
            run_into({**ALL, "rounds": 9}, tmp_path / "run", resume=True, kill_after=7)
        assert read(tmp_path / "run").scores is None
        run_into({**ALL, "rounds": 9}, tmp_path / "run", resume=True)
        second = read(tmp_path / "run").scores
        assert second is not None
        assert second.rounds == 9

    def test_a_finished_run_has_them_whenever_it_was_killed(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        append = RunDirectory.append

        def killed(self: RunDirectory, record: Any) -> bytes:
            line = append(self, record)
            if record.round == 6:
                raise KilledError
            return line

        monkeypatch.setattr(RunDirectory, "append", killed)
        with pytest.raises(KilledError):
            run_into(ALL, tmp_path / "run")
        assert RunDirectory(tmp_path / "run").n_records() == 7
        assert RunDirectory(tmp_path / "run").read_scores(7) is not None


class TestExport:
    def test_a_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        lines: list[str] = []
        run_into(ALL, tmp_path / "run", export=tmp_path / "m.safetensors", on_export=lines.append)
        flat = saved(tmp_path / "run")
        found = load_file(tmp_path / "m.safetensors")
        weights = next(tensor for tensor in flat.values() if tensor.dim() == 1 and len(tensor) == 15)
        assert [len(tensor.flatten()) for tensor in found.values()] == [3, 12]  # sorted by name
        assert sorted(weights.tolist()) == sorted(v for tensor in found.values() for v in tensor.flatten().tolist())
        (line,) = lines
        assert line.startswith("from safetensors.torch import load_file; from doubles import Linear; model = Linear(")

    def test_of_a_finished_run(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path / "run", export=tmp_path / "one.safetensors")
        before = (tmp_path / "run" / "records.jsonl").read_bytes()
        run_into(ALL, tmp_path / "run", resume=True, export=tmp_path / "two.safetensors")
        one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
        assert (tmp_path / "run" / "records.jsonl").read_bytes() == before
        for checkpoint in (tmp_path / "run").glob("checkpoint*"):
            checkpoint.unlink()
        with pytest.raises(ParameterError, match="has no checkpoint of the final model; choose another --out, or"):
            run_into(ALL, tmp_path / "run", resume=True, export=tmp_path / "two.safetensors")

    def test_a_wrong_path_costs_nothing(self, doubles: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="there is no folder"):
            run_into(ALL, tmp_path / "run", export=tmp_path / "no" / "m.safetensors")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_costs_the_model_only(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = files.write

        def full(path: Path, content: bytes, last: Path | None = None) -> None:
            if path.name == "m.safetensors":
                raise OSError(28, "No space left on device")
            write(path, content, last)

        monkeypatch.setattr(files, "write", full)
        with pytest.raises(FedSieveError, match=r"can't write .*m\.safetensors: No space left on device"):
            run_into(ALL, tmp_path / "run", export=tmp_path / "m.safetensors")
        assert read(tmp_path / "run").finished
