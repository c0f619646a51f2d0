"""Folders and files from a stranger: no command runs what they name, and none is led by what they contain."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsieve.config.experiment import Experiment
from fedsieve.config.yaml_files import yaml_text
from fedsieve.reproduce import SUITES
from tests.cli.conftest import Command, assert_mistake, words

TINY = {"dataset": "digits", "clients": 4, "malicious": 1, "rounds": 2, "defense": "mean"}
EVIL = """
from pathlib import Path
Path("marker").touch()
class Evil:
    def craft(self, view): ...
    def __call__(self, updates, view): ...
"""
POPEN = {"name": "subprocess:Popen", "args": ["touch", "marker"]}
NAMES: dict[str, dict[str, Any]] = {
    "attack": {"attack": {"name": "evil:Evil"}},
    "program": {"attack": POPEN, "defense": POPEN, "dataset": POPEN, "model": POPEN, "partition": POPEN},
    "chain": {"defense": {"name": "norm-clipping,evil:Evil", "evil:Evil": {"a": 1}}},
    "parts": {"attack": {"name": "mixture", "attacks": [{"name": "evil:Evil"}, POPEN]}},
    "dataset": {"dataset": {"name": "evil:Evil"}, "model": {"name": "evil:Evil"}, "partition": {"name": "evil:Evil"}},
    "optimizer": {"server": {"learning_rate": 0.5, "optimizer": POPEN}},
}


@pytest.fixture
def plant(make_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a run that names strange things, where Python would find them."""

    def planted(name: str, settings: dict[str, Any]) -> Path:
        (tmp_path / "evil.py").write_text(EVIL)
        path = make_run(name, [0.5, 0.6])
        found = {**Experiment.of(TINY).model_dump(mode="json"), **settings}
        (path / "experiment.yaml").write_text(yaml_text(found))
        return path

    return planted


def untouched(folder: Path) -> bool:
    return not (folder / "marker").exists()


@pytest.mark.parametrize("names", NAMES)
class TestRecords:
    def test_report(self, fedsieve_: Command, plant: Callable[..., Path], names: str, tmp_path: Path) -> None:
        result = fedsieve_("report", str(plant("a", NAMES[names]).parent), "--out", "out")
        assert result.code == 0, result.err
        assert "1 runs, " in words(result.out)
        assert untouched(tmp_path)

    def test_watch(self, fedsieve_: Command, plant: Callable[..., Path], names: str, tmp_path: Path) -> None:
        result = fedsieve_("watch", str(plant("a", NAMES[names])), "--once")
        assert (result.code, result.err) == (0, "")
        assert "round 2 of 2, finished" in result.out
        assert untouched(tmp_path)

    def test_resume(self, fedsieve_: Command, plant: Callable[..., Path], names: str, tmp_path: Path) -> None:
        path = plant("a", NAMES[names])
        result = fedsieve_(
            "run", "--resume", "--out", str(path), "--rounds", "2", "--clients", "4", "--defense", "mean"
        )
        assert result.code in (1, 2)
        assert len(result.err.splitlines()) == 1, result.err
        assert untouched(tmp_path)

    def test_run_from_it(self, fedsieve_: Command, plant: Callable[..., Path], names: str, tmp_path: Path) -> None:
        result = fedsieve_("run", str(plant("a", NAMES[names]) / "experiment.yaml"), "--quiet")
        assert_mistake(result, "server: unknown optimizer" if names == "optimizer" else "--allow-imports")
        assert untouched(tmp_path)

    def test_a_grid_of_it(self, fedsieve_: Command, plant: Callable[..., Path], names: str, tmp_path: Path) -> None:
        result = fedsieve_("sweep", str(plant("a", NAMES[names]) / "experiment.yaml"), "--set", "seed=[0,1]", "--quiet")
        assert_mistake(result, "server: unknown optimizer" if names == "optimizer" else "--allow-imports")
        assert untouched(tmp_path)


@pytest.mark.parametrize("names", ["program", "parts"])
def test_a_sweep_beside_it(fedsieve_: Command, plant: Callable[..., Path], names: str, tmp_path: Path) -> None:
    """The run stands, complete, where a cell of the grid belongs."""
    plant(Experiment.of(TINY).key, NAMES[names])
    (tmp_path / "grid.yaml").write_text(yaml_text(TINY))
    result = fedsieve_("sweep", "grid.yaml", "--out", "runs", "--jobs", "1", "--json", "--quiet")
    (cell,) = json.loads(result.out)["cells"]
    assert (result.code, cell["state"]) == (1, "failed")
    assert len(cell["error"].splitlines()) == 1
    assert untouched(tmp_path)


def test_reproduce_from_it(fedsieve_: Command, plant: Callable[..., Path], tmp_path: Path) -> None:
    name = min(SUITES, key=lambda name: SUITES[name].plan("smoke").size)
    key = next(iter(SUITES[name].plan("smoke").cells().values())).key
    plant(key, NAMES["attack"])
    result = fedsieve_("reproduce", name, "--scale", "smoke", "--tables-only", "--runs", "runs", "--out", "out")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert untouched(tmp_path)


class TestPermission:
    @pytest.fixture(autouse=True)
    def _module(self, tmp_path: Path) -> None:
        code = "from fedsieve.attacks.sign_flip import SignFlip\nclass Mine(SignFlip): ...\n"
        (tmp_path / "module_of_mine.py").write_text(code)
        (tmp_path / "e.yaml").write_text(yaml_text({**TINY, "attack": "module_of_mine:Mine"}))

    def test_in_a_command(self, process: Command, tmp_path: Path) -> None:
        result = process("run", "e.yaml", "--allow-imports", "--quiet", "--out", "run")
        assert result.code == 0, result.err
        assert words(result.err) == f"loading module_of_mine:Mine from {tmp_path / 'module_of_mine.py'}"
        assert "module_of_mine:Mine" in result.out
        result = process("watch", "run", "--once")
        assert (result.code, result.err) == (0, "")

    def test_of_a_name_that_is_typed(self, process: Command, tmp_path: Path) -> None:
        (tmp_path / "grid.yaml").write_text(yaml_text({**TINY, "seed": [0, 1]}))
        result = process("sweep", "grid.yaml", "--set", "attack=module_of_mine:Mine", "--quiet", "--jobs", "1")
        assert result.code == 0, result.err
        assert words(result.err) == f"loading module_of_mine:Mine from {tmp_path / 'module_of_mine.py'}"

    def test_without(self, fedsieve_: Command) -> None:
        said = "attack: e.yaml names module_of_mine:Mine, and loading that runs the code of module module_of_mine"
        assert_mistake(fedsieve_("run", "e.yaml"), said)
        assert_mistake(fedsieve_("sweep", "e.yaml"), said)


SHADOWS = ("yaml", "torch", "numpy", "pydantic", "rich", "multiprocessing", "pickle", "signal", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("report", "runs", "--out", "out"), ("sweep", "grid.yaml", "--jobs", "1", "--quiet", "--out", "swept")],
    ids=lambda arguments: arguments[0],
)
def test_modules_in_the_current_folder_hide_nothing(
    process: Command, make_run: Callable[..., Path], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Neither in the command nor in the processes that it starts; an entry point there is none."""
    make_run("a", [0.5])
    for name in (*SHADOWS, "evil"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath('marker').touch()\n")
    (tmp_path / "evil-1.dist-info").mkdir()
    (tmp_path / "evil-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (tmp_path / "evil-1.dist-info" / "entry_points.txt").write_text(
        "[fedsieve.attacks]\nnone = evil:A\nevil = evil:A\n"
    )
    (tmp_path / "grid.yaml").write_text(yaml_text({**TINY, "rounds": 1}))
    result = process(*arguments)
    assert (result.code, "evil" in result.out) == (0, False), result.err
    assert untouched(tmp_path)


# As names of stages, notes and reasons.
NASTY = [
    "[/]",
    "[bold]x",
    "\x1b[2J\x1b]0;x\x07",
    "a\r\nb",
    "\u202egnp.exe",
    "x" * 2000,
    ":smile:",
    "\\",
    "[link=http://x]y[/link]",
]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
class TestTexts:
    def test_watch(self, fedsieve_: Command, plant: Callable[..., Path], text: str) -> None:
        name = text[:1000]
        path = plant("a", {kind: {"name": name} for kind in ("attack", "defense", "dataset", "model")})
        line = json.loads((path / "records.jsonl").read_text().splitlines()[1])
        reasons = {"reasons": [text] * 4, "coordinates": [[0, 0]] * 4, "root": None, "layers": [], "kept": [[]] * 4}
        line |= {"note": text, "applied": False, "diagnosis": reasons}
        with (path / "records.jsonl").open("a") as file:
            file.write(json.dumps({**line, "round": 2}) + "\n")
        result = fedsieve_("watch", str(path), "--once")
        assert (result.code, result.err) == (0, "")
        plain = "".join(c for c in result.out if c != "\n")
        assert plain.isprintable()
        shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
        assert shown[:60].replace(" ", "") in plain.replace(" ", "")

    def test_error_of_a_setting(self, fedsieve_: Command, tmp_path: Path, text: str) -> None:
        (tmp_path / "e.yaml").write_text(yaml_text({text: 1}))
        result = fedsieve_("run", "e.yaml")
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: unknown setting ")
        assert len(result.err.splitlines()) == 1
        assert result.err.removesuffix("\n").isprintable()


def test_numbers_that_no_machine_holds(fedsieve_: Command) -> None:
    for setting in ("clients=1e9", "clients=1000000", "rounds=1e9", f"seed={'9' * 80}", f"root.size={10**9}"):
        result = fedsieve_("run", "--set", setting)
        assert_mistake(result, "Input should be less than")
    assert_mistake(fedsieve_("run", "--set", f"seed={'9' * 5000}"), "a number of 5000 characters, more than 100")
    assert_mistake(fedsieve_("run", "--set", "clients=010"), "write 10 for a decimal number")


def test_a_share_of_malicious_clients(fedsieve_: Command) -> None:
    options = ("--clients", "4", "--attack", "sign-flip", "--defense", "mean", "--rounds", "1", "--quiet", "--json")
    result = fedsieve_("run", "--malicious", "0.5", *options)
    assert json.loads(result.out)["n_malicious"] == 2
    assert_mistake(fedsieve_("run", "--malicious", "2.5"), "malicious: Input should be a valid integer")
    assert_mistake(fedsieve_("run", "--malicious", "nan"), "--malicious takes a number, or several as in 0,1,2; got")


def test_out_of_memory_is_one_line(fedsieve_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        MemoryError(),
        MemoryError("Unable to allocate 7.45 GiB for an array"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.\nmore"
        ),
    ):

        def full(*_: Any, _error: Exception = error, **__: Any) -> None:
            raise _error

        monkeypatch.setattr("fedsieve.config.experiment.Experiment.of", full)
        result = fedsieve_("run")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("error: out of memory: ")
        assert len(result.err.splitlines()) == 1


def test_a_pipe_is_no_run(fedsieve_: Command, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "experiment.yaml")
    assert_mistake(fedsieve_("watch", "a", "--once"), "a/experiment.yaml is not a file")
