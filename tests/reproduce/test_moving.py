"""What one machine has begun, another one finishes: run directories have no paths and no devices that bind them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.config.experiment import Experiment
from fedsieve.reproduce import SUITES
from fedsieve.reproduce.plan import Plan, Row, Suite
from fedsieve.runs.run import run

SETTINGS = {"dataset": "digits", "clients": 6, "malicious": 1, "rounds": 5, "attack": "min-max"}
GPU = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "platform": "Linux-elsewhere", "threads": 16}


def begin(e: Experiment, folder: Path, rounds: int) -> None:
    """Run so many rounds, as if on another machine, then be interrupted."""

    def stop(record: object) -> None:
        nonlocal rounds
        rounds -= 1
        if not rounds:
            raise KeyboardInterrupt

    if rounds < e.rounds:
        with pytest.raises(KeyboardInterrupt):
            run(e, out=folder / e.key, data=folder, device=torch.device("cpu"), on_round=stop)
    else:
        run(e, out=folder / e.key, data=folder, device=torch.device("cpu"))
    there = folder / e.key / "environment.json"
    there.write_text(json.dumps({**json.loads(there.read_text()), **GPU}))


def without_times(path: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


def test_finished_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(Row("g", str(k), {**SETTINGS, "rounds": 5 + k}) for k in (0, 1))
    plan = Plan(rows, {"sieve": {"defense": "sieve"}})  # a defense that remembers
    monkeypatch.setitem(SUITES, "tiny", Suite("tiny", "Tiny", lambda scale: plan, ("accuracy",)))
    finished, begun = plan.cells().values()
    first, second = tmp_path / "gpu" / "some" / "where", tmp_path / "cpu"
    begin(finished, first, finished.rounds)
    begin(begun, first, 3)
    begin(begun, tmp_path / "alone", begun.rounds)
    shutil.copytree(first, second / "runs")
    shutil.rmtree(tmp_path / "gpu")  # nothing there is needed any more
    before = {path: path.read_bytes() for path in (second / "runs").rglob("*") if path.is_file()}

    monkeypatch.chdir(second)
    ended = CliRunner().invoke(app, ["reproduce", "tiny", "--device", "cpu", "--dry-run", "--quiet"])
    assert ended.exit_code == 0, ended.output
    assert "1 of 2 runs are not finished" in ended.output
    assert "round 3" in ended.output
    ended = CliRunner().invoke(app, ["reproduce", "tiny", "--device", "cpu", "--quiet"])
    assert ended.exit_code == 0, ended.output

    for name in ("records.jsonl", "environment.json", "checkpoint.safetensors"):  # nothing is run again
        path = second / "runs" / finished.key / name
        assert path.read_bytes() == before[path]
    records = second / "runs" / begun.key / "records.jsonl"
    kept = before[records]
    assert kept.count(b"\n") == 3
    assert records.read_bytes().startswith(kept)  # the times of its rounds too: they were not run again
    assert without_times(records) == without_times(tmp_path / "alone" / begun.key / "records.jsonl")
    there = json.loads(records.with_name("environment.json").read_text())
    assert there["device"] == "cpu"
    assert there["earlier"] == [{"until_round": 3, **GPU}]
    page = (second / "reproduced" / "tiny-small" / "tiny.md").read_text()
    assert "Missing" not in page
    everything = b"".join(path.read_bytes() for path in (second / "runs").rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in everything
