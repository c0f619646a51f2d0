"""`fedsieve.run` from Python."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

import fedsieve
from fedsieve import Detection, Experiment, FedSieveError, ServerView, Simulation, Updates
from fedsieve.notebook import bar
from fedsieve.runs.run import run as low_level

TINY: dict[str, Any] = {"clients": 4, "malicious": 1, "rounds": 3, "defense": "median", "attack": "sign-flip"}


@dataclass(frozen=True)
class KeepsFirst:
    """Accepts some of the clients, the first ones."""

    keep: int = 2

    def detect(self, updates: Updates, view: ServerView, /) -> Detection:
        n = len(updates.parameters)
        kept = torch.arange(n) < self.keep
        return Detection(accepted=kept, scores=torch.zeros(n))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def without_times(records: Any) -> list[Any]:
    from dataclasses import replace

    return [replace(record, seconds={}) for record in records]


class TestRun:
    def test_the_folders_of_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = fedsieve.run(**TINY, device="cpu")
        key = Experiment.of(TINY).key
        assert result.path == Path("runs") / key
        assert (tmp_path / "runs" / key / "records.jsonl").is_file()
        assert result.experiment == Experiment.of(TINY)
        expected, summary = low_level(
            Experiment.of(TINY), out=tmp_path / "other", data=tmp_path, device=torch.device("cpu")
        )
        assert without_times(result.records) == without_times(expected)
        assert result.summary == summary
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("round 3 of 3: accuracy ")

    def test_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        first = fedsieve.run(**TINY, device="cpu", progress=False)
        before = (first.path / "records.jsonl").read_bytes()
        again = fedsieve.run(**TINY, device="cpu", progress=False)
        assert (again.path / "records.jsonl").read_bytes() == before
        assert again.summary == first.summary
        assert "is finished: it has all 3 rounds; fresh=True runs it again" in capsys.readouterr().err
        anew = fedsieve.run(**TINY, device="cpu", progress=False, fresh=True)
        assert without_times(anew.records) == without_times(first.records)
        assert (anew.path / "records.jsonl").read_bytes() != before  # other times

    def test_a_file_and_settings(self, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text(Experiment.of(TINY).to_yaml())
        for k, given in enumerate(("e.yaml", tmp_path / "e.yaml", TINY)):
            result = fedsieve.run(given, seed=3, out=f"here{k}", device=torch.device("cpu"), progress=False)
            assert result.path == Path(f"here{k}")
            assert result.experiment == Experiment.of({**TINY, "seed": 3})

    def test_an_experiment(self) -> None:
        e = Experiment(**TINY)
        assert fedsieve.run(e, device="cpu", progress=False).experiment == e

    def test_a_class_of_ones_own(self) -> None:
        result = fedsieve.run(**TINY | {"defense": {"name": KeepsFirst, "keep": 3}}, device="cpu", progress=False)
        assert [record.rejected for record in result.records] == [(3,)] * 3
        assert result.experiment is not None
        assert result.experiment.defense.name == f"{__name__}:KeepsFirst"

    def test_the_data_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen: list[Path] = []
        monkeypatch.setattr(
            "fedsieve.notebook.running.run_experiment", lambda *_, data, **__: seen.append(data) or sys.exit()
        )
        monkeypatch.setenv("FEDSIEVE_DATA", str(tmp_path / "mine"))
        for data in (None, "other"):
            with pytest.raises(SystemExit):
                fedsieve.run(**TINY, data=data)
        assert seen == [tmp_path / "mine", Path("other")]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"attack": "minmax"}, "unknown attack 'minmax'; did you mean min-max"),
            ({"rounds": "many"}, "rounds: Input should be a valid integer"),
            ({"lr": 0.1}, "unknown setting lr; there are dataset"),
            ({"learning_rate": 0.1}, "unknown setting learning_rate; did you mean local.learning_rate or server"),
            ({"seed": [0, 1]}, "a list for seed makes a grid: fedsieve sweep runs it"),
            ({"device": "gpu"}, "can't compute on device 'gpu'; did you mean cuda?"),
            ({"experiment": Experiment(), "rounds": 3}, "an Experiment has all settings: make it with rounds, too"),
            ({"experiment": "nowhere.yaml"}, "can't read nowhere.yaml"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            fedsieve.run(**arguments)
        assert str(error.value).startswith(said)
        assert list(tmp_path.iterdir()) == []

    def test_a_class_in_a_function(self) -> None:
        class Mine(KeepsFirst):
            pass

        with pytest.raises(FedSieveError, match="Mine is defined in a function; define it outside"):
            fedsieve.run(defense=Mine)

    def test_a_directory_with_another_run(self) -> None:
        fedsieve.run(**TINY, out="here", device="cpu", progress=False)
        with pytest.raises(FedSieveError, match="seed"):
            fedsieve.run(**TINY, seed=1, out="here", device="cpu", progress=False)


class Shown:
    """What a notebook would show."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def display(self, text: str, display_id: bool) -> "Shown":
        assert display_id
        self.texts.append(text)
        return self

    def update(self, text: str) -> None:
        self.texts.append(text)


def test_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown, module = Shown(), ModuleType("IPython.display")
    module.HTML, module.display = str, shown.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr(bar, "Console", lambda: type("InANotebook", (), {"is_jupyter": True}))
    fedsieve.run(**TINY, device="cpu")
    assert shown.texts[0] == "loading digits"
    assert shown.texts[-1].startswith('<progress value="3" max="3"></progress> round 3 of 3  accuracy ')
    assert capsys.readouterr() == ("", "")


def test_a_simulation_in_one_line() -> None:
    simulation = Simulation.of(Experiment(**TINY), Path(), torch.device("cpu"))
    assert repr(simulation) == ("<Simulation: sign-flip against median, digits, mlp, 4 clients, 1 malicious, 3 rounds>")
