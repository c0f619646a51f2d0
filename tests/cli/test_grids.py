"""Several values on the command line, a grid where one experiment is expected, and what a grid would take."""

import json
from pathlib import Path

import pytest

from fedsieve.cli import swept
from fedsieve.cli.options import given, out, torch_device
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.runs.events import Event
from fedsieve.runs.grid import expand
from tests.cli.conftest import Command, assert_mistake, words


class TestNumbers:
    def test_one_or_several(self) -> None:
        assert given(seed="3", malicious="0.2", rounds=5, attack=None) == {"seed": 3, "malicious": 0.2, "rounds": 5}
        assert given(seed="0,1, 2", malicious="0.2,6") == {"seed": [0, 1, 2], "malicious": [0.2, 6]}

    @pytest.mark.parametrize("text", ["x", "", "1,", "true", "[0,1]", "1;2", "nan", "1.5.2"])
    def test_no_number(self, text: str) -> None:
        with pytest.raises(ParameterError, match="--seed takes a number, or several as in 0,1,2; got"):
            given(seed=text)


class TestDevice:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("gpu", "can't compute on device 'gpu'; did you mean cuda?"),
            ("GPU:1", "can't compute on device 'GPU:1'; did you mean cuda:1?"),
            ("tpu", "can't compute on device 'tpu'; there are auto, cpu, cuda (a GPU of NVIDIA or AMD), mps"),
            ("meta", "can't compute on device 'meta': "),
        ],
    )
    def test_suggestions(self, name: str, said: str) -> None:
        with pytest.raises(ParameterError) as error:
            torch_device(name)
        assert str(error.value).startswith(said)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Experiment], dict[str, object]]]:
    """The grids that would have been run."""
    found: list[tuple[list[Experiment], dict[str, object]]] = []

    def run(experiments: list[Experiment], names: dict[str, str], directory: Path, **how: object) -> dict[str, Event]:
        found.append((experiments, {**how, "names": list(names.values()), "directory": directory}))
        return {e.key: Event(e.key, "done", e.rounds) for e in experiments}

    monkeypatch.setattr(swept, "swept", run)
    return found


Played = list[tuple[list[Experiment], dict[str, object]]]


class TestSeveralRuns:
    def test_seeds_of_a_run(self, fedsieve_: Command, played: Played) -> None:
        result = fedsieve_("run", "--seed", "0,1,2", "--malicious", "0.2", "--defense", "mean", "--rounds", "2")
        assert (result.code, result.err) == (0, "")
        assert words(result.out) == "3 of 3 runs are finished fedsieve report runs makes a report"
        ((experiments, how),) = played
        assert [(e.seed, e.malicious, e.rounds, e.defense.name) for e in experiments] == [
            (k, 6, 2, "mean") for k in range(3)
        ]
        assert (how["directory"], how["jobs"]) == (Path("runs"), 1)
        assert how["names"] == [f"none / mean, seed {k}" for k in range(3)]

    def test_over_a_file(self, fedsieve_: Command, tmp_path: Path, played: Played) -> None:
        (tmp_path / "e.yaml").write_text("{attack: min-max, defense: [sieve, trimmed-mean], rounds: 3}")
        assert fedsieve_("run", "e.yaml", "--malicious", "0.2,0.4", "--out", "o").code == 0
        ((experiments, how),) = played
        assert [(e.defense.name, e.malicious) for e in experiments] == [
            ("sieve,trimmed-mean", 6),
            ("sieve,trimmed-mean", 12),
        ]
        assert how["directory"] == Path("o")

    def test_a_sweep_without_a_file(self, fedsieve_: Command, played: Played) -> None:
        assert fedsieve_("sweep", "--seed", "0,1", "--set", "attack=[none,lie]", "--rounds", "2").code == 0
        ((experiments, how),) = played
        assert [(e.attack.name, e.seed) for e in experiments] == [("none", 0), ("lie", 0), ("none", 1), ("lie", 1)]
        assert how["jobs"] == 2

    def test_the_options_replace_the_lists_of_the_file(
        self, fedsieve_: Command, tmp_path: Path, played: Played
    ) -> None:
        (tmp_path / "g.yaml").write_text("{attack: [none, lie], seed: [0, 1], rounds: 2}")
        assert fedsieve_("sweep", "g.yaml", "--seed", "7", "--attack", "ipm").code == 0
        assert [(e.attack.name, e.seed) for e in played[0][0]] == [("ipm", 7)]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("run", "g.yaml"), "g.yaml is a grid, with a list for attack, local.steps: fedsieve sweep g.yaml runs it"),
            (("run", "g.yaml", "--attack", "none"), "g.yaml is a grid"),
            (("run", "--seed", "0,1", "--fresh"), "--fresh replaces one run, and the lists for seed make several"),
            (("run", "--seed", "0,x"), "--seed takes a number, or several as in 0,1,2; got '0,x'"),
            (("run", "--malicious", "half"), "--malicious takes a number"),
            (("sweep",), "a sweep needs a grid: a YAML file with lists of values, or options such as --seed 0,1,2"),
        ],
    )
    def test_mistakes(
        self, fedsieve_: Command, tmp_path: Path, played: Played, arguments: tuple[str, ...], said: str
    ) -> None:
        (tmp_path / "g.yaml").write_text("{attack: [none, min-max], local: {steps: [1, 5]}}")
        assert_mistake(fedsieve_(*arguments), said)
        assert played == []


class TestNames:
    def test_what_differs(self) -> None:
        grid = expand(
            {"attack": ["none", {"name": "scaling", "factor": 3}], "local": {"steps": [1, 5]}, "seed": [0, 1]}
        )
        names = list(swept.short_names(grid).values())
        assert names[0] == "none / skymask, local steps default, seed 0"
        assert names[-1] == "scaling (factor=3.0) / skymask, local steps 5, seed 1"
        assert len(set(names)) == 8

    def test_several_datasets(self) -> None:
        grid = expand({"dataset": ["digits", "har"], "clients": 10, "defense": "mean"})
        assert next(name.split(", ")[:2] for name in swept.short_names(grid).values()) == ["none / mean", "digits"]


class TestDryRun:
    GRID = "{clients: 4, malicious: 1, rounds: 10, attack: [none, lie], defense: mean, seed: [0, 1], local: {steps: [1, 2]}}"  # noqa: E501

    def test_cells_and_time(self, fedsieve_: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(out, "_width", 200)
        (tmp_path / "g.yaml").write_text(self.GRID)
        result = fedsieve_("sweep", "g.yaml", "--dry-run", "--device", "cpu", "--jobs", "3")
        assert result.code == 0
        lines = result.out.splitlines()
        assert words(lines[0]) == "settings attack defense seeds rounds clients state time left from memory"
        assert len(lines) == 6
        assert words(lines[1]).startswith("digits, local steps default none mean 0, 1 10 4 not begun")
        assert lines[-1].startswith("8 of 8 runs are not finished. About ")
        assert "on cpu, 1 thread each, one after another; --jobs 3 shares it out" in lines[-1]
        assert "estimating" in result.err
        assert {path.name for path in tmp_path.iterdir()} <= {"g.yaml", "data"}  # nothing is run there

    def test_json(self, fedsieve_: Command, tmp_path: Path) -> None:
        (tmp_path / "g.yaml").write_text(self.GRID)
        result = fedsieve_("sweep", "g.yaml", "--dry-run", "--json", "--quiet", "--device", "cpu", "--seed", "5")
        assert result.err == ""
        found = json.loads(result.out)
        assert [cell["rounds_left"] for cell in found["cells"]] == [10] * 4
        expected = Experiment.of({"clients": 4, "malicious": 1, "rounds": 10, "defense": "mean", "seed": 5})
        assert found["cells"][0]["keys"] == [expected.key]
        assert found["seconds_left"] == pytest.approx(sum(cell["seconds_left"] for cell in found["cells"]))
        assert 0 < found["seconds_left"] < 60
