"""Reading a run directory's settings: what was written, nothing else, and nothing that it names."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsieve.config import imports, installed, registry
from fedsieve.config.experiment import Experiment
from fedsieve.config.yaml_files import read_yaml, yaml_text
from fedsieve.core.errors import ParameterError
from tests.config.test_experiment import CHANGES

MORE: list[dict[str, Any]] = [
    {"attack": "mixture"},
    {"defense": ["norm-clipping", {"name": "trimmed-mean", "trim": 3}]},
    {"dataset": "table.csv"},
    {"dataset": {"name": "csv", "label": "1e5", "text": "no", "client": "1:30"}},
    {"model": {"name": "mlp", "hidden": []}},
]


def settings() -> dict[str, Any]:
    return Experiment.of({"defense": ["norm-clipping", "median"], "server": {"optimizer": "Adam"}}).model_dump(
        mode="json"
    )


def recorded(folder: Path, found: Any) -> Experiment:
    path = folder / "experiment.yaml"
    path.write_text(found if isinstance(found, str) else yaml_text(found))
    return Experiment.recorded(path)


@pytest.mark.parametrize("change", [{}, *CHANGES, *MORE])
def test_is_the_experiment_that_was_written(tmp_path: Path, change: dict[str, Any]) -> None:
    written = Experiment.of(change)
    found = recorded(tmp_path, written.to_yaml())
    assert found == written
    assert found.key == written.key
    assert found.to_yaml() == written.to_yaml()
    assert found.n_malicious == written.n_malicious


def test_equal_means_all_settings() -> None:
    assert Experiment.of({"model": {"name": "mlp", "hidden": (9,)}}) == Experiment.of(
        {"model": {"name": "mlp", "hidden": [9]}}
    )
    assert Experiment.of({"model": {"name": "mlp", "hidden": [9]}}) != Experiment.of(
        {"model": {"name": "mlp", "hidden": [8]}}
    )
    assert Experiment.of({}).model != "mlp"


def change(*path: str, value: Any = None) -> Callable[[dict[str, Any]], None]:
    def changed(found: dict[str, Any]) -> None:
        *above, last = path
        for key in above:
            found = found[key]
        if value is None:
            del found[last]
        else:
            found[last] = value

    return changed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (change("seed"), "no seed; was it written by another version of FedSieve?"),
        (change("attack"), "no attack; was it"),
        (change("local", "loss"), "local: no loss; was it written by another version"),
        (change("local"), "no local; was it written by another version"),
        (change("server", "optimizer"), "server: no optimizer; was it"),
        (change("evaluate_every"), "no evaluate_every; was it"),
        (change("odd", value={"kind": "noise", "clients": 3}), "odd: no amount; was it written by another version"),
        (change("odd", value={"kind": "noise", "clients": None, "amount": 0.3}), "odd: kind=noise needs clients"),
        (change("odd", value={"kind": "noise", "clients": 31, "amount": 0.3}), "odd.clients is 31, more than the 30"),
        (change("odd", value="noise"), "odd: Input should be an object, got 'noise'"),
        (change("root", "shift", value=0.5), "root.shift: Input should be a valid integer"),
        (change("sed", value=1), "unknown setting sed; did you mean seed"),
        (change("local", "step", value=1), "unknown setting local.step; did you mean steps"),
        (change("a\x1b[2J\n", value=1), "unknown setting a\\x1b[2J\\n; there are"),
        (change("clients", value="30"), "clients: Input should be a valid integer, got '30'"),
        (change("clients", value=10**8), "clients: Input should be less than or equal to 10000000, got 100000000"),
        (change("clients", value=0), "clients: Input should be greater than or equal to 1, got 0"),
        (change("malicious", value=31), "31 malicious clients are more than the 30 clients there are"),
        (change("clients_per_round", value=31), "clients_per_round is 31, more than the 30 clients there are"),
        (change("rounds", value=2.5), "rounds: Input should be a valid integer"),
        (change("seed", value=2**63), "seed: Input should be less than 9223372036854775808"),
        (change("seed", value=True), "seed: Input should be a valid integer, got True"),
        (change("knowledge", value="all"), "knowledge: Input should be 'full' or 'partial', got 'all'"),
        (change("knows_defense", value="yes"), "knows_defense: Input should be a valid boolean, got 'yes'"),
        (change("local", value=5), "local: Input should be an object, got 5"),
        (change("local", "learning_rate", value=-1.0), "local.learning_rate: Input should be greater than 0, got -1.0"),
        (change("defense", value=5), "defense: Input should be an object, got 5"),
        (change("defense", "name"), "defense.name: Field required"),
        (change("defense", "name", value=5), "defense.name: Input should be a valid string, got 5"),
        (change("defense", "name", value="x" * 1001), "defense.name: String should have at most 1000 characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_one_line(tmp_path: Path, changed: Callable[[dict[str, Any]], None], said: str) -> None:
    found = settings()
    changed(found)
    with pytest.raises(ParameterError) as error:
        recorded(tmp_path, found)
    assert str(error.value).startswith(f"{tmp_path / 'experiment.yaml'}: {said}")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text", ["", "- a", "a: &x [*x]", "seed: 1\nseed: 2", "[" * 10_000, "seed: " + "9" * 5000, "\0"]
)
def test_no_settings_at_all(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParameterError) as error:
        recorded(tmp_path, text)
    assert str(tmp_path / "experiment.yaml") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "experiment.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ParameterError, match="is not a file"):
        Experiment.recorded(path)


class TestNames:
    """Whatever a file names is a text."""

    @pytest.fixture(autouse=True)
    def _nothing_is_looked_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = settings()  # before it becomes impossible

        def looked_up(*_: Any, **__: Any) -> Any:
            raise AssertionError("reading a record looked a name up")

        for name in ("load", "complete", "build", "build_defense", "needs", "registered"):
            monkeypatch.setattr(registry, name, looked_up)
        monkeypatch.setattr(imports, "load_path", looked_up)
        monkeypatch.setattr(imports, "imported", looked_up)
        monkeypatch.setattr(installed, "registered", looked_up)
        monkeypatch.setattr("fedsieve.config.settings.optimizers", looked_up)
        self.settings = found

    @pytest.mark.parametrize("kind", ["attack", "defense", "dataset", "model", "partition"])
    @pytest.mark.parametrize("name", ["subprocess:Popen", "evil:Evil", "nowhere", "krum", "a:b,c:d", "[/]", "\x1b[2J"])
    def test_of_components(self, tmp_path: Path, kind: str, name: str) -> None:
        found = {**self.settings, kind: {"name": name, "args": ["touch", "marker"], "attacks": [{"name": "evil:Evil"}]}}
        e = recorded(tmp_path, found)
        assert getattr(e, kind).name == name
        assert getattr(e, kind).parameters["args"] == ["touch", "marker"]
        assert recorded(tmp_path, e.to_yaml()).key == e.key

    def test_of_optimizers(self, tmp_path: Path) -> None:
        found = self.settings
        found["server"]["optimizer"] = {"name": "subprocess:Popen", "args": ["touch", "marker"]}
        e = recorded(tmp_path, found)
        assert e.server.optimizer is not None
        assert e.server.optimizer.name == "subprocess:Popen"


def test_no_module_that_a_file_names_is_imported(tmp_path: Path) -> None:
    """In a folder where Python would find it, and of our own modules neither."""
    (tmp_path / "evil.py").write_text("open('marker', 'w')")
    found = settings()
    for kind in ("attack", "dataset", "model", "partition"):
        found[kind] = {"name": "evil:Evil"}
    found["defense"] = {"name": "flame,evil:Evil"}
    (tmp_path / "experiment.yaml").write_text(yaml_text(found))
    code = (
        "import sys; from pathlib import Path\n"
        "from fedsieve.config.experiment import Experiment\n"
        "print(Experiment.recorded(Path('experiment.yaml')).attack.name)\n"
        "assert not {'evil', 'fedsieve.aggregators.flame', 'fedsieve.models.mlp'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "evil:Evil\n"), done.stderr
    assert not (tmp_path / "marker").exists()
    assert read_yaml(tmp_path / "experiment.yaml")["attack"] == {"name": "evil:Evil"}
