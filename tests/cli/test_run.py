"""`fedsieve run`."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from fedsieve import cli
from fedsieve.config.experiment import Experiment
from fedsieve.core.records import RoundRecord
from fedsieve.runs import run as run_module
from fedsieve.runs.directory import RunDirectory
from tests.cli.conftest import QUICK, Command, assert_mistake, words
from tests.federation.test_names import SITES, table

# Blocks modules that `fedsieve run` must do without, and says which of ours it has imported.
PORTABLE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("fedsieve.runs.sweep", "fedsieve.runs.ray_cluster"):
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
sys.argv = ["fedsieve", "run", "--rounds", "1", "--defense", "mean", "--quiet", "--json"]
from fedsieve.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print(*(name for name in sys.modules if name.startswith("fedsieve.runs")))
"""


class TestRun:
    def test_needs_no_workers(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PORTABLE], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        result, modules = done.stdout.splitlines()
        assert json.loads(result)["rounds"] == 1
        assert "fedsieve.runs.run" in modules.split()
        assert {"fedsieve.runs.sweep", "fedsieve.runs.cell"}.isdisjoint(modules.split())

    def test_the_default_defense_is_skymask(self, fedsieve_: Command) -> None:
        assert Experiment.of({}).defense.name == "skymask"
        assert Experiment.of({}).defense.parameters["preset"] == "paper"
        options = words(fedsieve_("run", "--help").out.replace("│", " "))
        for said in ("[default: (digits)]", "[default: (skymask)]", "[default: (none)]", "[default: (50)]"):
            assert said in options

    def test_the_summary(self, fedsieve_: Command) -> None:
        result = fedsieve_("run", *QUICK, "--attack", "label-flip", "--out", "here")
        assert result.code == 0
        seen = words(result.out)
        assert "label-flip (6 of 30 clients malicious) against mean, digits, mlp, 2 rounds, seed 0" in seen
        assert "Test accuracy" in seen
        assert "Detection mean rejects no client" in seen
        assert "Run directory here" in seen
        assert "round 2 of 2: accuracy" in result.err

    def test_damage_and_flags(self, fedsieve_: Command) -> None:
        settings = ("--rounds", "3", "--attack", "scaling", "--defense", "multi-krum", "--out", "here", "--quiet")
        result = fedsieve_("run", *settings)
        flag = "flag undecided-rates: rates are of the 3 of 3 rounds in which the defense took a decision [here]"
        assert (result.code, result.err) == (0, f"{flag}; see docs/flags/undecided-rates.md\n")
        found = json.loads(fedsieve_("run", *settings, "--resume", "--json").out)
        assert found["flags"] == [
            {
                "name": "undecided-rates",
                "text": "rates are of the 3 of 3 rounds in which the defense took a decision",
                "page": "docs/flags/undecided-rates.md",
                "runs": ["here"],
            }
        ]
        records = RunDirectory(Path("here")).records()
        lost = sum(len(set(r.rejected or ()) - set(r.malicious)) for r in records)
        share = found["benign_share_lost"]
        assert (found["rounds_decided"], found["malicious_client_rounds"]) == (3, 18)
        assert (found["benign_client_rounds_lost"], share) == (lost, lost / 72)
        worst = max(r.attack_success_rate or 0 for r in records)
        assert found["worst_attack_success_rate"] == worst
        seen = words(result.out)
        assert f"Benign client-rounds lost {lost} ({100 * share:.1f} %)" in seen
        at = found["worst_attack_success_round"] + 1
        assert f"at the end, {100 * worst:.1f} % at worst (round {at})" in seen
        assert "First malicious client rejected" in seen
        assert "Largest fall below the best" in seen

    def test_quiet(self, fedsieve_: Command) -> None:
        loud = fedsieve_("run", *QUICK, "--json")
        quiet = fedsieve_("run", *QUICK, "--json", "--quiet", "--fresh")
        assert quiet.code == loud.code == 0
        assert "round 2 of 2: accuracy" in loud.err
        assert quiet.err == ""
        assert len(quiet.out.splitlines()) == len(loud.out.splitlines()) == 1
        same = {k: v for k, v in json.loads(loud.out).items() if "second" not in k}
        assert same == {k: v for k, v in json.loads(quiet.out).items() if "second" not in k}

    def test_options(self, fedsieve_: Command) -> None:
        result = fedsieve_(
            "run", "--dataset", "digits", "--model", "logistic-regression", "--attack", "scaling", "--defense",
            "trimmed-mean", "--clients", "12", "--malicious", "3", "--rounds", "2", "--seed", "7", "--device", "cpu",
            "--set", "attack.factor=2.5", "--set", "root.size=50", "--out", "here", "--json",
        )  # fmt: skip
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert (found["model"], found["defense"], found["run_dir"]) == ("logistic-regression", "trimmed-mean", "here")
        assert 0 <= found["attack_success_rate"] <= 1
        assert (found["false_positive_rate"], found["late_false_negative_rate"]) == (None, None)
        e = Experiment.read(Path("here/experiment.yaml"))
        assert (e.clients, e.malicious, e.rounds, e.seed, e.root.size) == (12, 3, 2, 7, 50)
        assert (e.attack.name, e.attack.parameters["factor"]) == ("scaling", 2.5)

    def test_options_override_the_file(self, fedsieve_: Command, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text(
            "attack: {name: scaling, factor: 2, share: 0.25}\ndefense: mean\nrounds: 30\nclients: 10\nseed: 4\n"
        )
        result = fedsieve_("run", "e.yaml", "--rounds", "1", "--set", "attack.factor=5", "--json", "--out", "here")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert (found["attack"], found["rounds"], found["n_clients"], found["seed"]) == ("scaling", 1, 10, 4)
        e = Experiment.read(Path("here/experiment.yaml"))
        assert (e.attack.parameters["factor"], e.attack.parameters["share"]) == (5, 0.25)
        # and another attack on top of the file's
        result = fedsieve_("run", "e.yaml", "--rounds", "1", "--attack", "label-flip", "--json", "--out", "there")
        assert json.loads(result.out)["attack"] == "label-flip"

    def test_the_settings_in_a_run_directory_run_again(self, fedsieve_: Command) -> None:
        first = json.loads(fedsieve_("run", *QUICK, "--json", "--seed", "3").out)
        again = json.loads(fedsieve_("run", f"{first['run_dir']}/experiment.yaml", "--json", "--out", "again").out)
        assert again["test_accuracy"] == first["test_accuracy"]
        assert Path("again/experiment.yaml").read_text() == Path(first["run_dir"], "experiment.yaml").read_text()

    def test_a_users_own_attack(self, fedsieve_: Command, doubles: ModuleType) -> None:
        result = fedsieve_("run", *QUICK, "--dataset", "doubles:Tiny", "--attack", "doubles:Spy", "--json")
        assert result.code == 0, result.err
        assert json.loads(result.out)["attack"] == "doubles:Spy"
        assert len(doubles.seen) == 3  # the data, and an attack in each of two rounds

    def test_resume(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ("run", "--rounds", "4", "--defense", "mean", "--out", "here", "--json", "--quiet")
        straight = json.loads(fedsieve_(*arguments[:-3], "straight", "--json", "--quiet").out)
        full = Path("straight/records.jsonl").read_text().splitlines()
        real = run_module.run

        def killed(*args: Any, **options: Any) -> Any:
            def stop(record: RoundRecord) -> None:
                if record.round == 1:
                    raise RuntimeError("killed")

            return real(*args, **{**options, "on_round": stop, "checkpoint_every": 0.0})

        with monkeypatch.context() as patch:
            patch.setattr("fedsieve.runs.run.run", killed)
            patch.setattr(sys, "argv", ["fedsieve", *arguments])
            with pytest.raises(RuntimeError, match="killed"):
                cli.main()
        first = Path("here/records.jsonl").read_text().splitlines()
        assert len(first) == 2
        resumed = json.loads(fedsieve_(*arguments, "--resume").out)
        lines = Path("here/records.jsonl").read_text().splitlines()
        assert lines[:2] == first
        assert [json.loads(a) | {"seconds": 0} for a in lines] == [json.loads(a) | {"seconds": 0} for a in full]
        assert resumed["test_accuracy"] == straight["test_accuracy"]
        other = fedsieve_(*arguments, "--resume", "--seed", "5")
        assert_mistake(other, "can't resume: here holds another run (seed: 0 there, 5 asked for)")


class TestOwnData:
    def test_a_table(self, fedsieve_: Command, tmp_path: Path) -> None:
        rows = [f"{k % 3},{(k % 3) * 5 + k % 7},{'ab'[k % 2]},{k % 4}" for k in range(120)]
        (tmp_path / "table.csv").write_text("\n".join(["kind,size,colour,owner", *rows]) + "\n")
        settings = ("--clients", "4", "--malicious", "1", "--rounds", "3", "--set", "root.size=9", "--json", "--quiet")
        columns = ("--set", "dataset.label=kind", "--set", "dataset.client=owner")
        table = str(tmp_path / "table.csv")
        result = fedsieve_("run", "--dataset", table, *columns, *settings, "--set", "partition=natural")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert (found["dataset"], found["model"]) == ("csv", "logistic-regression")
        assert found["test_accuracy"] > 0.5
        assert_mistake(fedsieve_("run", "--dataset", table, *settings), "the columns are kind, size, colour, owner")
        wrong = fedsieve_("run", "--dataset", table, "--set", "dataset.label=knid", *settings)
        assert_mistake(wrong, "label column 'knid' is not in")

    def test_arrays(self, fedsieve_: Command, tmp_path: Path) -> None:
        y = np.arange(90) % 3
        np.savez(tmp_path / "own.npz", x=np.eye(3)[y] + 0.1, y=y)
        settings = ("--clients", "3", "--malicious", "1", "--rounds", "3", "--set", "root.size=9", "--json", "--quiet")
        result = fedsieve_("run", "--dataset", str(tmp_path / "own.npz"), *settings)
        assert result.code == 0, result.err
        assert json.loads(result.out)["dataset"] == "npz"

    def test_texts(self, fedsieve_: Command, tmp_path: Path) -> None:
        rows = [f"{k % 2}\t{('so good', 'so bad')[k % 2]} a day {k}" for k in range(60)]
        (tmp_path / "tweets.tsv").write_text("\n".join(rows))
        columns = ("--set", "dataset.header=false", "--set", "dataset.label=0", "--set", "dataset.text=1")
        run = ("run", "--dataset", str(tmp_path / "tweets.tsv"), *columns, "--clients", "3", "--malicious", "1")
        settings = ("--rounds", "2", "--set", "root.size=6", "--json", "--quiet")
        attack = ("--attack", "phrase", "--set", "attack.phrase=a day")
        result = fedsieve_(*run, "--model", "lstm", *attack, "--defense", "invariant", *settings)
        assert result.code == 0, result.err
        assert 0 <= json.loads(result.out)["attack_success_rate"] <= 1
        assert_mistake(fedsieve_(*run, *settings), "; for text there is lstm")


class TestChain:
    def test_runs(self, fedsieve_: Command, tmp_path: Path) -> None:
        settings = ("--rounds", "2", "--json", "--quiet", "--set", "defense.trimmed-mean.trim=3")
        result = fedsieve_("run", "--attack", "min-max", "--defense", "norm-clipping,trimmed-mean", *settings)
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert found["defense"] == "norm-clipping,trimmed-mean"
        kept = yaml.safe_load((tmp_path / found["run_dir"] / "experiment.yaml").read_text())
        assert kept["defense"] == {
            "name": "norm-clipping,trimmed-mean", "norm-clipping": {"max_norm": None}, "trimmed-mean": {"trim": 3}
        }  # fmt: skip

    def test_in_a_file(self, fedsieve_: Command, tmp_path: Path) -> None:
        file = tmp_path / "chain.yaml"
        file.write_text("rounds: 2\ndefense: [norm-clipping, {name: trimmed-mean, trim: 3}]\n")
        found = json.loads(fedsieve_("run", str(file), "--json", "--quiet").out)
        assert found["defense"] == "norm-clipping,trimmed-mean"

    def test_an_aggregator_before_the_end(self, fedsieve_: Command) -> None:
        assert_mistake(fedsieve_("run", "--defense", "median,skymask"), "median is an aggregator, so it must come last")


class TestSites:
    """A table with a column of sites: clients have names, and nobody is called benign or malicious."""

    def command(self, folder: Path, *more: str) -> tuple[str, ...]:
        dataset = ("--dataset", table(folder), "--set", "dataset.label=sick", "--set", "dataset.client=site")
        return ("run", *dataset, "--set", "root.size=10", "--rounds", "2", "--defense", "multi-krum", *more)

    def test_terminal(self, fedsieve_: Command, tmp_path: Path) -> None:
        result = fedsieve_(*self.command(tmp_path, "--out", "here", "--quiet"))
        assert result.code == 0, result.err
        seen = words(result.out)
        assert seen.startswith("5 clients, multi-krum, csv, logistic-regression, 2 rounds, seed 0")
        assert re.search(r"Rejected [\d.]+ % of all updates: (Mitte|Nord|Süd|St\. Anna|West) in [12] of 2 rounds", seen)
        assert "Final model on the test data" in seen
        assert all(re.search(rf"{name} \d+ [\d.]+ ", seen) for name in SITES)
        assert not re.search("benign|malicious|FPR|FNR", result.out + result.err)
        again = fedsieve_(*self.command(tmp_path, "--out", "here", "--resume"))
        assert "Final model on the test data" in words(again.out)

    def test_json(self, fedsieve_: Command, tmp_path: Path) -> None:
        found = json.loads(fedsieve_(*self.command(tmp_path, "--json", "--quiet")).out)
        assert (found["n_malicious"], found["malicious_client_rounds"], found["false_positive_rate"]) == (None,) * 3
        assert {one["name"] for one in found["most_rejected"]} <= set(SITES)
        assert found["client_rounds_rejected"] == sum(one["rounds_rejected"] for one in found["most_rejected"]) > 0
        scores = found["scores"]
        assert scores["test"]["accuracy"] == pytest.approx(found["test_accuracy"], abs=1e-6)
        assert [one["name"] for one in scores["clients"]] == sorted(SITES)
        assert [one["name"] for one in scores["classes"]] == ["no", "yes"]
        assert found["export"] is None

    def test_weighting(self, fedsieve_: Command, tmp_path: Path) -> None:
        more = ("--set", "server.weighting=samples")
        assert_mistake(
            fedsieve_(*self.command(tmp_path, *more)), "multi-krum ends in MultiKrum, which decides by itself"
        )
        mean = fedsieve_(*self.command(tmp_path, *more, "--defense", "mean", "--out", "here", "--json", "--quiet"))
        assert json.loads(mean.out)["defense"] == "mean"
        (record, _) = RunDirectory(Path("here")).records()
        assert record.weights == pytest.approx((0.2,) * 5, abs=0.01)
        assert len(set(record.weights)) > 1  # the root data leave one site a sample less than another
        settings = yaml.safe_load(Path("here/experiment.yaml").read_text())
        assert (settings["server"]["weighting"], settings["server"]["weight_cap"]) == ("samples", 3.0)


class TestExport:
    def test_the_printed_line_works(self, fedsieve_: Command, tmp_path: Path) -> None:
        result = fedsieve_("run", *QUICK, "--export", "my model.safetensors", "--quiet")
        assert result.code == 0, result.err
        *_, said, line = result.out.splitlines()
        assert said == "my model.safetensors holds the final model; in Python:"
        found: dict[str, Any] = {}
        exec(line, found)
        assert sum(p.numel() for p in found["model"].parameters()) == 64 * 64 + 64 + 64 * 10 + 10

    def test_json(self, fedsieve_: Command) -> None:
        found = json.loads(fedsieve_("run", *QUICK, "--export", "m.safetensors", "--quiet", "--json").out)["export"]
        assert found["file"] == "m.safetensors"
        assert "load_state_dict" in found["load"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--export", "m.pt"), "as .safetensors, got m.pt: try m.safetensors"),
            (("--export", "no/m.safetensors"), "there is no folder no"),
            (("--export", "m.safetensors", "--seed", "1", "--set", "rounds=[1, 2]"), "several"),
        ],
    )
    def test_mistakes(self, fedsieve_: Command, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
        assert_mistake(fedsieve_("run", *QUICK, *words), said)
        assert list(tmp_path.iterdir()) == []
