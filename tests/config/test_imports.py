"""`module:Class` is loaded where the user asked for it, after a check, and said."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsieve.config import imports, registry
from fedsieve.config.experiment import Experiment
from fedsieve.config.imports import announced, named_in
from fedsieve.config.yaml_files import yaml_text
from fedsieve.core.errors import FedSieveError, ParameterError, UnknownNameError
from fedsieve.runs.grid import expand

MODULE = """
import torch
from pathlib import Path
Path("marker").write_text("imported")
class Evil:
    def __init__(self, args=()):
        Path("marker").write_text("called")
    def craft(self, view): ...
    def __call__(self, updates, view): ...
class Fine:
    def craft(self, view): return view.malicious_updates
class Static:
    @staticmethod
    def craft(view): ...
class OfTheClass:
    @classmethod
    def craft(cls, view): ...
class Inherits(Fine): ...
class Optional:
    def craft(self, view, /, more=1, *rest, **others): ...
class TooFew:
    def craft(self): ...
class TooMany:
    def craft(self, view, more): ...
class Keyword:
    def craft(self, *, view): ...
class OneIsWrong(Fine):
    def poison(self, x, y): ...
class Number:
    craft = 3
class Parts(Fine):
    parts = 3
class Spec(Fine):
    traits = "mine"
class Meta(type):
    def craft(self, view): ...
class OfMeta(metaclass=Meta): ...
class Closed(int):
    def __call__(self, updates, view): ...
class NoForward(torch.nn.Module): ...
class Forward(torch.nn.Module):
    def forward(self): ...
class NotTorch:
    def forward(self, x): ...
    def named_parameters(self): ...
class Raises(Fine):
    def __init__(self): raise RuntimeError("no\\nway \\x1b[2J")
class Open(Fine):
    def __init__(self, x: int = 1, *rest, **others): self.all = (x, rest, others)
function = Fine().craft
instance = Fine()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module ``planted`` that nobody has loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("planted", None)


def marker() -> str:
    return Path("marker").read_text() if Path("marker").exists() else ""


def written(settings: Any) -> Path:
    Path("e.yaml").write_text(yaml_text(settings))
    return Path("e.yaml")


EVIL = {"name": "planted:Evil", "args": ["touch", "marker"]}
# Every place of a file in which a name leads to a class.
PLACES: dict[str, dict[str, Any]] = {
    "attack": {"attack": EVIL},
    "defense": {"defense": "planted:Evil"},
    "dataset": {"dataset": "planted:Evil"},
    "model": {"model": "planted:Evil"},
    "partition": {"partition": "planted:Evil"},
    "the end of a chain": {"defense": "norm-clipping,planted:Evil"},
    "the start of a chain": {"defense": "planted:Evil , mean"},
    "a list": {"defense": ["norm-clipping", EVIL]},
    "parts": {"attack": {"name": "mixture", "attacks": ["label-flip", "planted:Evil"]}},
    "parts of parts": {"attack": {"name": "mixture", "attacks": [{"name": "mixture", "attacks": [EVIL]}]}},
    "one part": {"attack": {"name": "split-layers", "attack": EVIL}},
}


class TestFiles:
    @pytest.mark.parametrize("place", PLACES)
    def test_load_nothing_by_themselves(self, place: str) -> None:
        path = written({"dataset": "digits", **PLACES[place]})
        with pytest.raises(ParameterError) as error:
            Experiment.read(path)
        kind = next(iter(PLACES[place]))
        assert str(error.value) == (
            f"{kind}: e.yaml names planted:Evil, and loading that runs the code of module planted; "
            "if you trust both, add --allow-imports"
        )
        assert (marker(), "planted" in sys.modules) == ("", False)

    @pytest.mark.parametrize("place", PLACES)
    def test_nor_does_a_grid(self, place: str) -> None:
        grid = {key: value if isinstance(value, dict) else [value] for key, value in PLACES[place].items()}
        with named_in(Path("g.yaml"), grid), pytest.raises(ParameterError, match=r"--allow-imports$"):
            expand({**grid, "seed": [0, 1]})
        assert (marker(), "planted" in sys.modules) == ("", False)

    def test_of_a_server_optimizer(self) -> None:
        path = written({"server": {"optimizer": EVIL}})
        for allowed in (False, True):
            with pytest.raises(ParameterError, match="unknown optimizer 'planted:Evil'; try"):
                Experiment.read(path, allow_imports=allowed)
        assert marker() == ""

    def test_with_permission(self) -> None:
        e = Experiment.read(written({"attack": "planted:Fine", "seed": 3}), allow_imports=True)
        assert (e.attack.name, e.seed, marker()) == ("planted:Fine", 3, "imported")

    def test_what_the_user_types_is_loaded(self) -> None:
        path = written({"attack": "elsewhere:Evil", "seed": 3})
        assert Experiment.read(path, {"attack": "planted:Fine"}).attack.name == "planted:Fine"
        assert Experiment.of({"attack": "planted:Fine"}).attack.name == "planted:Fine"

    def test_what_the_user_replaces_is_not(self) -> None:
        assert Experiment.read(written({"attack": EVIL, "seed": 3}), {"attack": "none"}).seed == 3
        assert marker() == ""

    def test_what_both_name_is_loaded(self) -> None:
        path = written({"defense": "mean", "attack": "planted:Fine"})
        assert Experiment.read(path, {"attack": {"name": "planted:Fine"}}).attack.name == "planted:Fine"

    def test_a_typed_name_permits_no_other(self) -> None:
        path = written({"attack": "planted:Evil"})
        with pytest.raises(ParameterError, match="--allow-imports"):
            Experiment.read(path, {"defense": "planted:EvilTwin"})
        assert marker() == ""

    def test_a_datasets_own_defaults_are_its_code(self, doubles: Any) -> None:
        e = Experiment.read(written({"seed": 3}), {"dataset": "doubles:Tiny"})
        assert e.model.name == "doubles:Linear"

    def test_permission_ends(self) -> None:
        with pytest.raises(FedSieveError):
            Experiment.read(written({"attack": EVIL}))
        assert registry.load("attacks", "planted:Fine").__name__ == "Fine"

    def test_a_path_in_another_setting_is_no_name(self) -> None:
        path = written(
            {
                "dataset": {"name": "csv", "file": "C:data.csv", "label": "a:b"},
                "attack": {"name": "phrase", "phrase": "a:b c"},
            }
        )
        assert Experiment.read(path).dataset.parameters["label"] == "a:b"


KINDS = ("attack", "defense", "dataset", "model", "partition")
LIBRARY = [
    "subprocess:Popen",
    "os:system",
    "builtins:eval",
    "builtins:exec",
    "builtins:type",
    "builtins:object",
    "pathlib:Path",
    "collections:Counter",
    "fedsieve.runs.run:run",
    "fedsieve.core.defense:Aggregator",
    "pickle:Unpickler",
    "importlib.metadata:EntryPoint",
    "ctypes:CDLL",
    "torch.nn:Module",
    "threading:Timer",
    "weakref:finalize",
    "planted:function",
    "planted:instance",
    "planted:OfMeta",
    "planted:Meta",
]


class TestProtocols:
    """What is no component is refused before it is called."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", LIBRARY)
    def test_of_the_library(self, kind: str, name: str) -> None:
        settings = {kind: {"name": name, "args": ["touch", "called"]}}
        with pytest.raises(UnknownNameError, match=f"^can't load {kind} '{name}': it") as error:
            Experiment.read(written(settings), allow_imports=True)
        assert "\n" not in str(error.value)
        assert not Path("called").exists()

    @pytest.mark.parametrize("name", ["Fine", "Static", "OfTheClass", "Inherits", "Optional", "Open"])
    def test_attacks(self, name: str) -> None:
        assert registry.load("attacks", f"planted:{name}").__name__ == name

    @pytest.mark.parametrize(
        ("kind", "name", "why"),
        [
            ("attacks", "TooFew", "its method craft does not take (view)"),
            ("attacks", "TooMany", "its method craft does not take (view)"),
            ("attacks", "Keyword", "its method craft does not take (view)"),
            ("attacks", "OneIsWrong", "its method poison does not take (x, y, view)"),
            ("attacks", "Number", "its method craft does not take (view)"),
            ("attacks", "Parts", "its parts are a int, not a Mapping"),
            ("attacks", "Spec", "its traits are a str, not a Traits"),
            ("defenses", "Fine", "it has no method detect or preaggregate or __call__"),
            ("partitions", "Evil", "its method __call__ does not take (y, owners, n_clients, n_classes, generator)"),
            ("datasets", "Fine", "it has no method load"),
            ("models", "Fine", "it has no method forward"),
            ("models", "NoForward", "it has no method forward"),
            ("models", "Forward", "its method forward does not take (x)"),
            ("models", "NotTorch", "it is no torch.nn.Module"),
        ],
    )
    def test_that_do_not_fit(self, kind: str, name: str, why: str) -> None:
        with pytest.raises(UnknownNameError) as error:
            registry.load(kind, f"planted:{name}")
        assert str(error.value) == f"can't load {kind[:-1]} 'planted:{name}': {why}"

    def test_whose_parameters_are_unknown(self) -> None:
        with pytest.raises(UnknownNameError, match="can't use defense Closed: its parameters are not known"):
            Experiment.of({"defense": "planted:Closed"})

    def test_that_raise(self) -> None:
        with pytest.raises(ParameterError) as error:
            registry.build("attacks", "planted:Raises", {})
        assert str(error.value) == r"attack planted:Raises: RuntimeError('no\nway \x1b[2J')"

    def test_that_take_anything(self) -> None:
        built = registry.build("attacks", "planted:Open", {"x": "3", "y": 4})
        assert built.all == (3, (), {"y": 4})

    @pytest.mark.parametrize(
        "code", ["1/0", "raise SystemExit(3)", "def (", "import nowhere", "raise KeyError('a\\nb')"]
    )
    def test_of_modules_that_fail(self, folder: Path, code: str) -> None:
        (folder / "failing.py").write_text(code)
        with pytest.raises(UnknownNameError, match="can't load attack 'failing:A': ") as error:
            Experiment.of({"attack": "failing:A"})
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "name",
        [":A", "a:", "a.:B", ".a:B", "a:B:C", "a:B.C", "a b:C", "a:B\n", "../a:B", "a;b:C", "a::B", " planted:Fine"],
    )
    def test_names_that_are_none(self, name: str) -> None:
        with pytest.raises(UnknownNameError, match=r"can't load attack .*: package\.module:Class was expected"):
            registry.load("attacks", name)


class TestAnnouncement:
    def test_before_anything_runs_and_once(self, folder: Path) -> None:
        said: list[str] = []
        with announced(lambda line: said.append(line + marker())):
            for _ in range(2):
                registry.load("attacks", "planted:Fine")
            registry.load("attacks", "planted:Static")
        assert said[0] == f"loading planted:Fine from {folder / 'planted.py'}"
        assert said[1:] == [f"loading planted:Static from {folder / 'planted.py'}imported"]

    def test_of_what_fails(self, folder: Path) -> None:
        said: list[str] = []
        (folder / "failing.py").write_text("1/0")
        with announced(said.append):
            for name in ("failing:A", "nowhere:A"):
                with pytest.raises(UnknownNameError):
                    registry.load("attacks", name)
        assert said == [f"loading failing:A from {folder / 'failing.py'}"]

    def test_in_the_log_of_a_program(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "fedsieve")
        registry.load("attacks", "planted:Fine")
        assert caplog.messages == [f"loading planted:Fine from {folder / 'planted.py'}"]

    def test_sources_are_found_without_an_import(self, folder: Path) -> None:
        (folder / "package").mkdir()
        (folder / "package" / "__init__.py").write_text("raise AssertionError")
        (folder / "package" / "inner.py").write_text("raise AssertionError")
        with imports._current_folder_last():
            assert imports.source("package.inner") == folder / "package" / "inner.py"
        assert "package" not in sys.modules
        with pytest.raises(ModuleNotFoundError):
            imports.source("package")


class TestCurrentFolder:
    def test_is_searched_last_and_only_then(self, folder: Path) -> None:
        before = list(sys.path)
        (folder / "yaml.py").write_text("class Shadow:\n    def craft(self, view): ...")
        with pytest.raises(UnknownNameError, match="has no attribute 'Shadow'"):
            registry.load("attacks", "yaml:Shadow")
        registry.load("attacks", "planted:Fine")
        with pytest.raises(UnknownNameError):
            registry.load("attacks", "nowhere:Fine")
        assert sys.path == before

    def test_neighbours_are_found(self, folder: Path) -> None:
        (folder / "neighbour.py").write_text("from planted import Fine\nclass Mine(Fine): ...")
        assert registry.load("attacks", "neighbour:Mine").__name__ == "Mine"
        sys.modules.pop("neighbour")

    def test_new_processes_do_not_search_it(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        (folder / "pickle.py").write_text("print('shadow')")
        command = [sys.executable, "-c", "import pickle"]
        with imports.new_process():
            assert subprocess.run(command, capture_output=True, text=True).stdout == ""
        assert "PYTHONSAFEPATH" not in os.environ
        assert subprocess.run(command, capture_output=True, text=True).stdout == "shadow\n"
