"""Pages: that what they point to is there, and that their code, settings and commands are right.

The blocks of a page are taken in order, in one folder and one namespace. A block that begins with the comment of a
file's name is that file. Python is run, and settings in YAML are built as a grid. Of a command, options are parsed;
``fedsieve run`` and ``fedsieve audit`` are run where their data are there. All federations have two rounds. The blocks
of ``docs/flower.md`` are run where Flower is, by ``tests/flower``.
"""

import importlib
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import fedsieve
from fedsieve.cli.app import app
from fedsieve.cli.options import given, nested_settings
from fedsieve.cli.swept import grid_of
from fedsieve.config.experiment import Experiment
from fedsieve.config.yaml_files import read_yaml
from fedsieve.notebook import running
from fedsieve.runs.grid import several

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
NOTEBOOKS = sorted(ROOT.glob("docs/tutorials/*.ipynb"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\b")
OFFLINE = ("digits", "csv", "npz")  # datasets that are read here, if their file is there
FOLLOWS = {ROOT / "docs/results/evening/README.md": ROOT / "docs/tonight.md"}  # whose files it has
NEEDS_FLOWER = ("docs/flower.md", "examples/flower/README.md")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


WITH_CODE = [
    page
    for page in PAGES
    if any(language in ("", "python", "yaml") for language, _ in blocks(page)) and name(page) not in NEEDS_FLOWER
]


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} is nowhere"
        assert not anchor or anchor in anchors(target), f"{link} has no such heading"


def test_pages_are_found() -> None:
    assert ROOT / "README.md" in PAGES
    assert len(PAGES) > 8
    assert {"README.md", "docs/first-run.md", "docs/own.md", "docs/usage.md"} <= {name(page) for page in WITH_CODE}
    assert len(NOTEBOOKS) == 2


class Reader:
    """Somebody who does what a page says, in an empty folder.

    Attributes:
        names: What Python's blocks have defined.
        audited: Files that were audited, each once.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names
        self.audited: set[str] = set()

    def python(self, text: str, where: str) -> None:
        if found := FILE.match(text):
            self.write(found[1], text)
            importlib.invalidate_caches()
            importlib.import_module(found[1].removesuffix(".py").replace("/", "."))
        else:
            exec(compile(text, where, "exec"), self.names)

    def yaml(self, text: str) -> None:
        found = FILE.match(text)
        file = self.write(found[1] if found else "block.yaml", text)
        assert grid_of(file, {"seed": 0}, allow_imports=True)  # seeds are valid or not whatever else there is

    def shell(self, text: str) -> None:
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["fedsieve"]:
                self.command(words[1:])
            elif words[:1] == ["make"]:
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            elif words and re.fullmatch(r"(.*/)?python[\d.]*", words[0]) and words[1].endswith(".py"):
                self.script(words[1:])
            elif "pip" in line and "install" in words:
                check_install(words)

    def command(self, words: list[str]) -> None:
        """Parse a command; run it where that takes little."""
        command, chosen = parsed(words)
        if command in ("run", "sweep"):
            settings = nested_settings(
                given(**{key: chosen[key] for key in OPTIONS if key in chosen}), chosen["settings"] or []
            )
            file = chosen["file"]
            if (file is None or file.exists()) and there(chosen["dataset"]):
                self.experiment(file, settings, chain=command == "run")
        if command == "audit" and Path(chosen["data"]).exists() and chosen["data"] not in self.audited:
            self.audited.add(chosen["data"])
            called([*words, "--seeds", "1", "--rounds", "2", "--quiet"])

    def experiment(self, file: Path | None, settings: dict[str, Any], chain: bool) -> None:
        """Build all experiments that a command asks for, and run one of them for two rounds."""
        if (file and several(read_yaml(file))) or several(settings):
            assert grid_of(file, settings, allow_imports=True, chain=chain)
            return
        e = Experiment.read(file, settings, True) if file else Experiment.of(settings)
        offline = e.dataset.name in OFFLINE or ":" in e.dataset.name
        if offline and not e.knows_defense:  # an attacker who simulates the defense takes long
            assert len(fedsieve.run(e.model_dump(mode="json")).rounds) == 2

    def script(self, words: list[str]) -> None:
        """Find a script of ours, and run the one that makes an example's data, of which 500 rows are enough here."""
        script = ROOT / words[0]
        assert script.exists(), f"{script} is nowhere"
        if script.name == "hospitals.py":
            before, sys.argv = sys.argv, words
            try:
                runpy.run_path(str(script), run_name="__main__")
            finally:
                sys.argv = before
            table = Path(words[1])
            self.write(words[1], "".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:501]))

    @staticmethod
    def write(path: str, text: str) -> Path:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file


WRONG_USE = typer.BadParameter.__mro__[1]  # UsageError of the click that this version of typer has
OPTIONS = ("dataset", "model", "attack", "defense", "clients", "malicious", "rounds", "seed")


def there(dataset: str | None) -> bool:
    """Whether a dataset is a name, or a file that is there."""
    return dataset is None or not re.search(r"[/.]", dataset) or ":" in dataset or Path(dataset).exists()


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and values of a command, as its parser reads them; raises for an option that does not exist."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            assert not words or words[0] in [option for param in command.params for option in param.opts], words
            return "", {}
        command = command.commands[words.pop(0)]
    return command.name, command.make_context(command.name, words).params


def called(words: list[str]) -> None:
    """Run a command, as the command line does."""
    command: Any = typer.main.get_command(app)
    command.main(words, prog_name="fedsieve", standalone_mode=False)


def check_install(words: list[str]) -> None:
    """That extras of ours are those that there are."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        if found := re.fullmatch(r"(?:fedsieve|\.)\[([\w,]+)\]", word):
            assert set(found[1].split(",")) <= set(extras), word


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FEDSIEVE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(fedsieve, "run", few(running.run), raising=False)
    main = ModuleType("__main__")  # where a notebook's classes are
    monkeypatch.setitem(sys.modules, "__main__", main)
    before = set(sys.modules)
    yield Reader(vars(main))
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        if any(Path(place).is_relative_to(tmp_path) for place in places if place):
            del sys.modules[name]
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def few(run: Callable[..., Any]) -> Callable[..., Any]:
    """``fedsieve.run`` with two rounds, on the CPU."""

    def wrapped(*given: Any, **settings: Any) -> Any:
        short = {"rounds": 2, "evaluate_every": 1, "device": "cpu", "progress": False}
        return run(*given, **{**settings, **short})

    return wrapped


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code(page: Path, reader: Reader) -> None:
    for _, text in blocks(FOLLOWS.get(page, page)):
        if found := FILE.match(text):
            reader.write(found[1], text)
    for k, (language, text) in enumerate(blocks(page)):
        if language == "python":
            reader.python(text, f"{name(page)}, block {k + 1}")
        elif language == "yaml":
            reader.yaml(text)
        elif language in ("", "sh", "console"):
            reader.shell(text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_commands_in_the_text(page: Path) -> None:
    """Options of commands in running text exist; what a sentence does not need, such as a name, may be left out."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for line in re.findall(r"`(fedsieve [^`|]+)`", text):
        if "--" in line:
            try:
                parsed(shlex.split(line)[1:])
            except WRONG_USE as error:
                if type(error).__name__ != "MissingParameter":
                    raise


@pytest.mark.parametrize("line", ["run --attac min-max", "nothing", "report", "list defenses --color", "--versio"])
def test_a_wrong_command_is_seen(line: str) -> None:
    with pytest.raises((WRONG_USE, KeyError, AssertionError)):
        parsed(line.split())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks(notebook: Path, reader: Reader) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 3
    for k, cell in enumerate(code):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        reader.python("".join(cell["source"]), f"{name(notebook)}, cell {k + 1}")
