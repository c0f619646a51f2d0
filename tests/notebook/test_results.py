"""`fedsieve.load`, and what a run is in a notebook."""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest

import fedsieve
from fedsieve import FedSieveError
from fedsieve.core.errors import MissingPackageError
from fedsieve.notebook.results import Result
from fedsieve.report.load import read
from tests.report.conftest import make_run, record  # noqa: F401 (a fixture)

Make = Callable[..., Path]


@pytest.fixture
def result(make_run: Make) -> Result:  # noqa: F811
    records = [record(k, a, attack_success_rate=0.5) for k, a in enumerate((0.25, None, 0.75))]
    return Result(read(make_run("<b>$x", [], records, rounds=3, attack="scaling", defense="median")))


class TestResult:
    def test_numbers(self, result: Result) -> None:
        assert result.summary["test_accuracy"] == 0.75
        assert [r.round for r in result.records] == [0, 1, 2]
        assert list(result.rounds["round"]) == [1, 2, 3]
        assert list(result.rounds["test_accuracy"].dropna()) == [0.25, 0.75]
        clients = result.clients()
        assert len(clients) == 12
        assert list(clients["rejected"][:4]) == [True, False, False, False]

    def test_in_one_line(self, result: Result) -> None:
        assert repr(result) == (
            "scaling against median, digits, seed 0: rounds 3, test accuracy 75.0 %, attack success 50.0 %, "
            f"benign rejected 0.0 %, malicious missed 0.0 %, directory {result.path}"
        )

    def test_html(self, result: Result) -> None:
        html = result._repr_html_()
        assert html.startswith("<b>scaling against median, digits, seed 0</b><table>")
        assert "<tr><td>test accuracy</td><td>75.0 %</td></tr>" in html
        assert "/&lt;b&gt;$x</td>" in html

    def test_unfinished(self, make_run: Make) -> None:  # noqa: F811
        assert "rounds 1 of 4, test accuracy 50.0 %" in repr(Result(read(make_run("a", [0.5], rounds=4))))

    def test_without_settings(self, make_run: Make) -> None:  # noqa: F811
        path = make_run("a", [0.5])
        (path / "experiment.yaml").write_text("no: settings")
        assert repr(Result(read(path))).startswith(f"{path}: rounds 1, test accuracy 50.0 %")

    def test_plot(self, result: Result) -> None:
        matplotlib.use("Agg")
        axes = result.plot()
        lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.get_lines()}  # type: ignore[union-attr]
        assert lines == {
            "test accuracy": [[1.0, 25.0], [3.0, 75.0]],
            "attack success": [[k, 50.0] for k in (1.0, 2.0, 3.0)],
            "benign rejected": [[k, 0.0] for k in (1.0, 2.0, 3.0)],
            "malicious missed": [[k, 0.0] for k in (1.0, 2.0, 3.0)],
        }
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "%")
        assert result.plot(axes) is axes
        matplotlib.pyplot.close("all")

    def test_without_matplotlib(self, result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPackageError, match=r"a plot needs matplotlib: pip install 'fedsieve\[report\]'"):
            result.plot()


class TestLoad:
    def test_frames(self, make_run: Make) -> None:  # noqa: F811
        folder = make_run("a", [0.5, 0.75], seed=1).parent
        make_run("b", [0.25, 0.5], attack="min-max", defense="median")
        (make_run("c", [0.1]) / "records.jsonl").write_text("nonsense\n")
        found = fedsieve.load(folder)
        assert len(found) == 3
        assert list(found.runs["attack"]) == ["none", "min-max", "none"]
        assert list(found.runs["finished"]) == [True, True, False]
        assert list(found.runs["test_accuracy"].dropna()) == [0.75, 0.5]
        assert list(found.rounds["test_accuracy"]) == [0.5, 0.75, 0.25, 0.5]
        assert len(found.clients()) == 16
        assert found[1].summary["test_accuracy"] == 0.5
        assert [r.path.name for r in found] == ["a", "b", "c"]
        said = "3 runs, 1 of them unfinished or damaged: 1 dataset, 2 attacks, 2 defenses; "
        assert repr(found) == f"{said}.runs and .rounds are data frames"

    def test_one_directory_or_several(self, make_run: Make) -> None:  # noqa: F811
        a, b = make_run("a", [0.5]), make_run("b", [0.5])
        assert [len(fedsieve.load(*paths)) for paths in ((str(a),), (a, b), (a.parent,))] == [1, 2, 2]

    def test_runs_by_default(self, make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        make_run("a", [0.5])
        monkeypatch.chdir(tmp_path)
        assert len(fedsieve.load()) == 1

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FedSieveError, match="no run in"):
            fedsieve.load(tmp_path)
