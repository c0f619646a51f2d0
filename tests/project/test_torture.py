"""The torture's own tests: that it tells lost from right from told, and that its chapters run."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsieve.core.errors import CorruptDataError, FedSieveError
from torture import __main__ as torture
from torture.common import Command, Ended, LostError, Row, Tally, expect, same, told

ROOT = Path(__file__).parents[2]
LINE = '{"round":%d,"applied":true,"seconds":{"train":%s}}\n'


def fail(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def counted(action: Callable[[], object], seconds: float = 60) -> tuple[int, int, int, str]:
    tally = Tally("chapter", "what", seconds)
    tally.case("a case", action)
    row = tally.row()
    assert (row.chapter, row.what, row.tried) == ("chapter", "what", 1)
    return row.lost, row.right, row.told, row.worst


class TestTally:
    def test_a_case_that_returns_is_right(self) -> None:
        assert counted(lambda: None)[:3] == (0, 1, 0)

    def test_one_line_is_told(self) -> None:
        assert counted(fail(CorruptDataError("one line")))[:3] == (0, 0, 1)

    @pytest.mark.parametrize("text", ["", "two\nlines", "x" * 7000], ids=["nothing", "two lines", "endless"])
    def test_anything_but_one_line_is_lost(self, text: str) -> None:
        assert counted(fail(FedSieveError(text)))[:3] == (1, 0, 0)

    def test_any_other_error_is_lost(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert counted(fail(KeyError("rounds"))) == (1, 0, 0, "a case: KeyError: 'rounds'")
        assert "LOST chapter, what, a case" in capsys.readouterr().err

    def test_what_must_hold_and_does_not_is_lost(self) -> None:
        assert counted(lambda: expect(False, "it changed"))[3] == "a case: LostError: it changed"

    def test_a_hang_is_lost(self) -> None:
        assert counted(lambda: time.sleep(60), 0.05) == (1, 0, 0, "a case: HangError: no end after 0.05 s")


class TestCommands:
    def test_a_forked_command_is_the_command_line(self) -> None:
        ended = Command("list", "nonsense").wait()
        assert ended.code == 2
        with pytest.raises(FedSieveError, match="can't list 'nonsense'"):
            told(ended)

    @pytest.mark.parametrize(
        "ended",
        [
            Ended(1, "Traceback (most recent call last):\nerror: x\n"),
            Ended(2, "no line of errors"),
            Ended(2, "error: one\nerror: two\n"),
            Ended(-11, "error: x\n"),
            Ended(3, "error: x\n"),
        ],
        ids=["traceback", "silent", "two lines", "crash", "code"],
    )
    def test_other_ends_are_lost(self, ended: Ended) -> None:
        with pytest.raises(LostError):
            told(ended)

    def test_a_command_that_works_is_neither(self) -> None:
        told(Ended(0, "fine\n"))


class TestSame:
    @pytest.mark.parametrize(
        ("records", "equal"),
        [
            (LINE % (0, "0.5") + LINE % (1, "7"), True),
            (LINE % (0, "0.1"), False),
            (LINE % (1, "0.1") + LINE % (0, "0.1"), False),
            ((LINE % (0, "0.1")).replace("true", "false") + LINE % (1, "0.1"), False),
            (None, False),
        ],
        ids=["other seconds", "one gone", "swapped", "edited", "no file"],
    )
    def test_records_are_compared_but_for_the_seconds(self, tmp_path: Path, records: str | None, equal: bool) -> None:
        for name, text in (("straight", LINE % (0, "0.1") + LINE % (1, "0.1")), ("out", records)):
            (tmp_path / name).mkdir()
            if text is not None:
                (tmp_path / name / "records.jsonl").write_text(text)
        if equal:
            same(tmp_path / "out", tmp_path / "straight")
        else:
            with pytest.raises(LostError):
                same(tmp_path / "out", tmp_path / "straight")


def test_a_chapter_that_crashes_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torture.CHAPTERS, "nonsense", 1)
    (row,) = torture._process("nonsense", 0, smoke=True)
    assert (row["lost"], row["worst"]) == (1, "it ended with code 2")


def test_the_table_adds_up() -> None:
    rows = [vars(Row("kills", "a | b", 3, 0, 2, 1, "slow")), vars(Row("disk", "c", 2, 1, 1, 0, "why"))]
    table = torture._table(rows).splitlines()
    assert table[2] == "| kills | a / b | 3 | 0 | 2 | 1 | slow |"
    assert table[-1] == "| **all** |  | 5 | 1 | 3 | 1 |  |"


def test_a_chapter_from_the_command_line() -> None:
    call = [sys.executable, "-m", "torture", "--smoke", "--only", "stages"]
    ended = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("torture with seed 0\n")
    assert ended.stdout.endswith("nothing lost\n")
    assert "| stages | detectors of others, through Server.step |" in ended.stdout
