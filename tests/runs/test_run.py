"""A run is reproducible to the byte, and so is one that was killed and resumed."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.core.metrics import summarize
from fedsieve.runs.directory import PREVIOUS, RunDirectory
from fedsieve.runs.run import run
from tests.runs.conftest import (
    ALL,
    ATTACKER,
    CPU,
    DETECTOR,
    FILES,
    NOWHERE,
    PARTIAL,
    RETURNING,
    SKYMASK,
    KilledError,
    assert_same_run,
    run_into,
    without_seconds,
)


class TestSame:
    @pytest.mark.parametrize("settings", [ALL, DETECTOR, ATTACKER, RETURNING, PARTIAL, SKYMASK])
    def test_twice_to_the_byte(self, doubles: ModuleType, tmp_path: Path, settings: dict[str, Any]) -> None:
        run_into(settings, tmp_path / "one")
        torch.manual_seed(77)
        run_into(settings, tmp_path / "two")
        assert_same_run(tmp_path / "one", tmp_path / "two")

    @pytest.mark.parametrize("settings", [ALL, DETECTOR, ATTACKER, RETURNING, PARTIAL, SKYMASK])
    @pytest.mark.parametrize("kill_after", [0, 2])
    def test_resumed_equals_straight(
        self, doubles: ModuleType, tmp_path: Path, settings: dict[str, Any], kill_after: int
    ) -> None:
        straight, _ = run_into(settings, tmp_path / "straight")
        with pytest.raises(KilledError):
            run_into(settings, tmp_path / "killed", kill_after=kill_after, checkpoint_every=0.0)
        assert len(without_seconds(tmp_path / "killed")) == kill_after + 1
        reported: list[int] = []
        records, summary = run(
            Experiment.of(settings),
            out=tmp_path / "killed",
            data=NOWHERE,
            device=CPU,
            resume=True,
            on_round=lambda record: reported.append(record.round),
        )
        assert reported == list(range(kill_after + 1, len(straight)))  # what was done is not done again
        assert_same_run(tmp_path / "killed", tmp_path / "straight")
        assert len(records) == len(straight)
        assert summary == summarize(straight)
        # with the checkpoint before the last, if there was one
        assert {path.name for path in (tmp_path / "killed").iterdir()} - {PREVIOUS} == set(FILES)

    @pytest.mark.parametrize("settings", [RETURNING, PARTIAL], ids=["full", "partial"])
    def test_a_checkpoint_holds_the_attackers_memory(
        self, doubles: ModuleType, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        """Of the attack that remembers, and of its simulated defense if it sees the benign updates; ids go on."""
        records, _ = run_into(settings, tmp_path)
        state = RunDirectory(tmp_path).load(CPU)
        assert state is not None
        counts, simulating = state.adversary["attack"]
        bad = {i for record in records for i in record.malicious}
        assert simulating is None
        taken = counts[0]
        assert 0 < taken <= 5
        assert torch.is_tensor(counts[1])
        assert (state.adversary["defense"] is None) == (settings is PARTIAL)
        assert max(bad) == max(i for i in bad if i < 6) + 12  # rounds 4 and 5 are the third id's

    def test_killed_again_and_again(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path / "straight")
        for k in range(6):
            with pytest.raises(KilledError):
                run_into(ALL, tmp_path / "killed", kill_after=k, checkpoint_every=0.0, resume=True)
        run_into(ALL, tmp_path / "killed", resume=True)
        assert_same_run(tmp_path / "killed", tmp_path / "straight")

    def test_an_interruption_leaves_a_checkpoint(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path / "straight")
        with pytest.raises(KilledError):
            run_into(ALL, tmp_path / "killed", kill_after=3)  # long before the first one is due
        state = RunDirectory(tmp_path / "killed").load(CPU)
        assert state is not None
        assert state.round == 4
        run_into(ALL, tmp_path / "killed", resume=True)
        assert_same_run(tmp_path / "killed", tmp_path / "straight")

    @pytest.mark.parametrize("before", [None, 2])
    def test_rounds_after_the_checkpoint_are_run_again(
        self, doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None
    ) -> None:
        """A kill that leaves no time to save, with no checkpoint so far or with one of round ``before``."""
        run_into(ALL, tmp_path / "straight")
        out = tmp_path / "killed"
        if before is not None:
            with pytest.raises(KilledError):
                run_into(ALL, out, kill_after=before, checkpoint_every=0.0)
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "save", lambda *_: None)
            with pytest.raises(KilledError):
                run_into(ALL, out, kill_after=5, resume=True)
        state = RunDirectory(out).load(CPU)
        assert (None if state is None else state.round) == (None if before is None else before + 1)
        assert len(without_seconds(out)) == 6
        run_into(ALL, out, resume=True)
        assert_same_run(out, tmp_path / "straight")

    def test_a_finished_run_stays(self, doubles: ModuleType, tmp_path: Path) -> None:
        first, summary = run_into(ALL, tmp_path)
        before = (tmp_path / "records.jsonl").read_bytes()
        assert run_into(ALL, tmp_path, resume=True) == (first, summary)
        assert (tmp_path / "records.jsonl").read_bytes() == before

    def test_resume_of_nothing(self, doubles: ModuleType, tmp_path: Path) -> None:
        run_into(ALL, tmp_path / "straight")
        run_into(ALL, tmp_path / "new", resume=True)
        assert_same_run(tmp_path / "new", tmp_path / "straight")


@pytest.mark.slow
class TestThreads:
    @pytest.mark.parametrize("defense", [{"name": "skymask", "mask_steps": 3}, "sieve"], ids=["skymask", "sieve"])
    def test_decisions_do_not_depend_on_their_number(self, tmp_path: Path, defense: Any) -> None:
        """Sums are added up in another order, so scores may differ in their last digits; who is accepted may not."""
        settings = {**SKYMASK, "clients": 10, "malicious": 3, "attack": "label-flip", "defense": defense, "rounds": 5}
        before, found = torch.get_num_threads(), {}
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found[threads], _ = run_into(settings, tmp_path / str(threads))
                assert RunDirectory(tmp_path / str(threads)).read_environment()["threads"] == threads
        finally:
            torch.set_num_threads(before)
        for one, two in zip(found[1], found[2], strict=True):
            assert (one.rejected, one.applied, one.screened) == (two.rejected, two.applied, two.screened)
            assert one.test_accuracy == pytest.approx(two.test_accuracy, abs=0.01)
