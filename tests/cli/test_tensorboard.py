"""`--tensorboard`: scalars of every round."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsieve.cli import app
from fedsieve.core.errors import FedSieveError
from fedsieve.report.tensorboard import TensorBoard
from fedsieve.runs.directory import RunDirectory


class TestTensorBoard:
    @pytest.mark.filterwarnings("ignore")
    def test_scalars(self, tmp_path: Path) -> None:
        loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        settings = ["--rounds", "4", "--attack", "scaling", "--out", str(tmp_path), "--tensorboard", "--quiet"]
        done = CliRunner().invoke(app, ["run", *settings])
        assert done.exit_code == 0, done.output
        found = loader.EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        kept = RunDirectory(tmp_path).records()
        assert len(kept) == 4
        for name, field in (
            ("accuracy/test", "test_accuracy"),
            ("detection/false_negative_rate", "false_negative_rate"),
        ):
            assert [e.step for e in found.Scalars(name)] == [0, 1, 2, 3]
            assert [e.value for e in found.Scalars(name)] == pytest.approx([getattr(r, field) for r in kept])
        assert "attack/success" in found.Tags()["scalars"]

    @pytest.mark.filterwarnings("ignore")
    def test_a_sweep_and_a_run_that_goes_on(self, tmp_path: Path) -> None:
        loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        grid = tmp_path / "grid.yaml"
        grid.write_text("{dataset: digits, clients: 6, rounds: 3, defense: [mean, median]}")
        done = CliRunner().invoke(
            app, ["sweep", str(grid), "--out", str(tmp_path / "runs"), "--tensorboard", "--quiet"]
        )
        assert done.exit_code == 0, done.output
        cells = [path.parent for path in (tmp_path / "runs").glob("*/records.jsonl")]
        assert len(cells) == 2
        records = RunDirectory(cells[0]).records()
        display = TensorBoard(cells[0])  # a run that goes on at round 1 plays what comes then again
        for again in records[1:]:
            display.show(replace(again, test_accuracy=0.5))
        display.close()
        found = loader.EventAccumulator(str(cells[0] / "tensorboard"))
        found.Reload()
        events = found.Scalars("accuracy/test")
        assert [e.step for e in events] == [0, 1, 2]
        assert [e.value for e in events] == pytest.approx([records[0].test_accuracy, 0.5, 0.5])

    def test_without_tensorboard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(FedSieveError, match=r"pip install fedsieve\[tensorboard\]"):
            TensorBoard(tmp_path)
