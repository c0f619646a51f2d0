"""The command line's contract: what is printed where, and how it exits."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

import fedsieve.runs
from fedsieve import cli, registry
from fedsieve.experiment import Experiment
from fedsieve.types import RoundRecord

KEYS = [
    "dataset", "model", "attack", "defense", "n_clients", "n_malicious", "rounds", "seed", "test_accuracy",
    "late_test_accuracy", "attack_success_rate", "attack_success_rate_all", "false_positive_rate",
    "false_negative_rate",
    "late_false_positive_rate", "late_false_negative_rate", "seconds", "rounds_per_second", "run_dir",
]  # fmt: skip
# Nothing answers there: neither published addresses nor a mirror can be reached.
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
OFFLINE |= {"NO_PROXY": "", "no_proxy": "", "FEDSIEVE_MIRROR": ""}


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def fedsieve_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command, in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIEVE_DATA", str(tmp_path / "data"))
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fedsieve.data.store.PAUSE", 0.0)

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["fedsieve", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        code = stop.value.code
        return Result(int(code) if code is not None else 0, out, err)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """The command, as a user runs it, in an empty folder."""

    def call(*words: str, module: str = "fedsieve") -> Result:
        env = {**os.environ, **OFFLINE, "FEDSIEVE_DATA": str(tmp_path / "data"), "PYTHONWARNINGS": "error"}
        done = subprocess.run(
            [sys.executable, "-m", module, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


def words(text: str) -> str:
    """Without line breaks and columns."""
    return " ".join(text.split())


def assert_mistake(result: Result, said: str) -> None:
    """A user's mistake: exit 2, one clear line on standard error, nothing else anywhere."""
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("error: ")
    assert said in result.err
    assert "Traceback" not in result.err


QUICK = ("--rounds", "2", "--defense", "mean")


class TestProcess:
    """Few, since each starts an interpreter."""

    def test_json(self, process: Command, tmp_path: Path) -> None:
        result = process("run", "--attack", "min-max", "--rounds", "3", "--clients", "10", "--json")
        assert result.code == 0, result.err
        (line,) = result.out.splitlines()
        found = json.loads(line)
        assert list(found) == KEYS
        assert (found["dataset"], found["model"], found["attack"]) == ("digits", "mlp", "min-max")
        assert (found["defense"], found["n_clients"], found["n_malicious"]) == ("skymask", 10, 2)
        assert (found["rounds"], found["seed"], found["attack_success_rate"]) == (3, 0, None)
        for key in ("test_accuracy", "late_test_accuracy", "false_positive_rate", "late_false_negative_rate"):
            assert 0 <= found[key] <= 1
        assert found["seconds"] > 0
        assert found["rounds_per_second"] > 0
        expected = Experiment.of({"attack": "min-max", "rounds": 3, "clients": 10})
        assert found["run_dir"] == f"runs/{expected.key}"
        assert (tmp_path / found["run_dir"] / "records.jsonl").is_file()
        assert "round" in result.err

    def test_a_mistake(self, process: Command, tmp_path: Path) -> None:
        assert_mistake(process("run", "--attack", "minmax"), "unknown attack 'minmax'; did you mean min-max")
        assert list(tmp_path.iterdir()) == []

    def test_missing_data(self, process: Command, tmp_path: Path) -> None:
        start = time.perf_counter()
        result = process("run", "--dataset", "fashion-mnist", *QUICK)
        assert time.perf_counter() - start < 30
        assert_mistake(result, f"{tmp_path}/data/fashion-mnist/train-images-idx3-ubyte.gz is missing")
        assert "`fedsieve data fetch fashion-mnist` tries again" in result.err

    def test_a_failure_of_ours(self, process: Command, tmp_path: Path) -> None:
        (tmp_path / "broken.py").write_text(
            "from fedsieve.attacks.none import NoAttack\n"
            "class Attack:\n"
            "    poison = NoAttack.poison\n"
            "    def craft(self, view): return 1 / 0\n"
        )
        result = process("run", "--attack", "broken:Attack", *QUICK, "--quiet", "--json")
        assert result.code == 1
        assert result.out == ""
        assert "ZeroDivisionError" in result.err

    def test_the_command_line_starts_without_torch(self, tmp_path: Path) -> None:
        heavy = "{'torch', 'sklearn', 'numpy', 'pydantic', 'fedsieve.experiment'}"
        code = f"import sys, fedsieve.cli; found = {heavy} & set(sys.modules); assert not found, found"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_help(self, process: Command) -> None:
        result = process("--help")
        assert result.code == 0
        for command in ("run", "list", "data"):
            assert command in result.out

    def test_the_installed_command(self) -> None:
        command = Path(sys.executable).with_name("fedsieve")
        done = subprocess.run([command, "list", "partitions"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "dirichlet" in done.stdout


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--attack", "minmax"), "unknown attack 'minmax'; did you mean min-max"),
            (("--defense", "skymsk"), "unknown defense 'skymsk'; did you mean skymask"),
            (("--dataset", "cifar"), "unknown dataset 'cifar'; did you mean cifar10"),
            (("--model", "resnet"), "unknown model 'resnet'; did you mean resnet20"),
            (("--attack", "nowhere:Attack"), "can't load attack 'nowhere:Attack': No module named 'nowhere'"),
            (
                ("--attack", "scaling", "--set", "attack.facto=5"),
                "attack scaling has no parameter 'facto'; did you mean factor?",
            ),
            (("--set", "local.step=5"), "unknown setting local.step; did you mean steps"),
            (("--set", "sed=5"), "unknown setting sed; did you mean seed"),
            (("--clients", "10", "--malicious", "11"), "11 malicious clients are more than the 10 clients there are"),
            (
                ("--defense", "trimmed-mean", "--clients", "10", "--malicious", "5"),
                "trimmed-mean needs n > 2f, got n=10 clients and f=5 assumed malicious",
            ),
            (("--rounds", "0"), "rounds: Input should be greater than or equal to 1, got 0"),
            (("--set", "seed"), "--set takes key=value, e.g. --set attack.factor=5, got 'seed'"),
            (("--set", "=3"), "--set takes key=value"),
            (("--set", "seed=[1"), "--set seed: '[1' is no YAML value"),
            (("--set", "seed=x"), "seed: Input should be a valid integer"),
            (("--set", "seed=1", "--set", "seed.a=1"), "can't set seed.a: seed is 1"),
            (("no such file.yaml",), "can't read no such file.yaml: No such file or directory"),
            (("--model", "cnn"), "cnn needs images of at least 10 x 10 pixels, got samples of shape [1, 8, 8]"),
            (("--set", "partition=natural"), "natural: this dataset has no natural clients"),
            (("--clients", "2000"), "2000 clients"),
            (("--device", "gpu"), "can't compute on device 'gpu'"),
            (("--device", "cuda:99"), "can't compute on device 'cuda:99'"),
            (("--device", "meta"), "can't compute on device 'meta'"),
            (("--dataset", "har"), "UCI HAR Dataset.zip is missing"),
            (("--out", "file/run"), "can't write the run directory file/run: Not a directory"),
            (("--set", "attack.factor=5"), "attack"),
        ],
    )
    def test_exit_with_two_and_one_line(
        self, fedsieve_: Command, tmp_path: Path, arguments: tuple[str, ...], said: str
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        assert_mistake(fedsieve_("run", *arguments), said)

    def test_a_bad_file(self, fedsieve_: Command, tmp_path: Path) -> None:
        (tmp_path / "e.yaml").write_text("attack: {name: [")
        assert_mistake(fedsieve_("run", "e.yaml"), "can't read e.yaml")
        (tmp_path / "e.yaml").write_text("")
        assert_mistake(fedsieve_("run", "e.yaml"), "e.yaml holds no settings")

    def test_markup_in_a_name_is_text(self, fedsieve_: Command) -> None:
        assert_mistake(fedsieve_("run", "--attack", "[red]x[/]"), "unknown attack '[red]x[/]'")

    def test_nothing_is_left_behind(self, fedsieve_: Command, tmp_path: Path) -> None:
        assert fedsieve_("run", "--malicious", "31").code == 2
        assert fedsieve_("run", "--device", "gpu").code == 2
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_option(self, fedsieve_: Command) -> None:
        result = fedsieve_("run", "--atack", "none")
        assert result.code == 2
        assert "--atack" in result.err
        assert result.out == ""

    def test_an_interruption(self, fedsieve_: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(fedsieve.runs, "run", interrupted)
        result = fedsieve_("run", "--quiet")
        assert result.code == 130
        assert "--resume goes on from" in result.err
        assert "Traceback" not in result.err


class TestRun:
    def test_what_a_person_sees(self, fedsieve_: Command) -> None:
        result = fedsieve_("run", *QUICK, "--attack", "label-flip", "--out", "here")
        assert result.code == 0
        seen = words(result.out)
        assert "label-flip (6 of 30 clients malicious) against mean, digits, mlp, 2 rounds, seed 0" in seen
        assert "Test accuracy" in seen
        assert "Detection mean rejects nobody" in seen
        assert "Run directory here" in seen
        assert "2/2" in result.err

    def test_quiet(self, fedsieve_: Command) -> None:
        loud = fedsieve_("run", *QUICK, "--json")
        quiet = fedsieve_("run", *QUICK, "--json", "--quiet")
        assert quiet.code == loud.code == 0
        assert "2/2" in loud.err
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
        result = fedsieve_("run", "e.yaml", "--rounds", "1", "--attack", "label-flip", "--json", "--out", "here")
        assert json.loads(result.out)["attack"] == "label-flip"

    def test_a_run_directorys_settings_run_again(self, fedsieve_: Command) -> None:
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
        straight = json.loads(fedsieve_(*arguments).out)
        full = Path("here/records.jsonl").read_text().splitlines()
        real = fedsieve.runs.run

        def killed(*args: Any, **options: Any) -> Any:
            def stop(record: RoundRecord) -> None:
                if record.round == 1:
                    raise RuntimeError("killed")

            return real(*args, **{**options, "on_round": stop, "checkpoint_every": 0.0})

        with monkeypatch.context() as patch:
            patch.setattr(fedsieve.runs, "run", killed)
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
        assert_mistake(other, "can't resume: here holds experiment")


class TestList:
    def test_everything(self, fedsieve_: Command) -> None:
        result = fedsieve_("list")
        assert (result.code, result.err) == (0, "")
        count = 0
        for kind in registry.KINDS:
            assert kind in result.out
            for name in registry.names(kind):
                assert name in result.out.split()
                count += 1
        assert count >= 20

    def test_json(self, fedsieve_: Command) -> None:
        result = fedsieve_("list", "--json")
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        assert list(found) == list(registry.KINDS)
        for kind, entries in found.items():
            assert [entry["name"] for entry in entries] == list(registry.names(kind))
            for entry in entries:
                keys = {"name", "summary", "paper", "needs", "bound", "cost", "parameters"}
                assert set(entry) == keys | ({"stage"} if kind == "defenses" else set())
                assert entry["summary"]
        by_name = {entry["name"]: entry for entry in found["defenses"]}
        assert by_name["trimmed-mean"]["bound"] == "n > 2f"
        assert by_name["skymask"]["needs"] == ["root data", "state"]
        assert [by_name[name]["stage"] for name in ("skymask", "momentum", "krum")] == ["filter", "transform", "rule"]
        assert by_name["skymask"]["parameters"]["mask_steps"] == 20
        assert found["models"][registry.names("models").index("mlp")]["parameters"] == {"hidden": [64]}

    @pytest.mark.parametrize("kind", registry.KINDS)
    def test_one_kind(self, fedsieve_: Command, kind: str) -> None:
        result = fedsieve_("list", kind, "--json")
        assert list(json.loads(result.out)) == [kind]
        table = fedsieve_("list", kind)
        assert (table.code, table.err) == (0, "")
        for name in registry.names(kind):
            assert name in table.out.split()
            traits = registry.traits(kind, name)
            assert traits.summary.split()[0] in table.out
            for parameter in registry.complete(kind, name, {}):
                assert f"{parameter} = " in words(table.out)

    def test_an_unknown_kind(self, fedsieve_: Command) -> None:
        assert_mistake(
            fedsieve_("list", "rules"), "can't list 'rules'; there are attacks, defenses, datasets, models, partitions"
        )


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

    def test_a_rule_in_the_middle(self, fedsieve_: Command) -> None:
        assert_mistake(fedsieve_("run", "--defense", "median,skymask"), "median aggregates, so it must come last")


class TestData:
    def test_list(self, fedsieve_: Command, tmp_path: Path) -> None:
        result = fedsieve_("data", "list", "--json")
        assert (result.code, result.err) == (0, "")
        found = json.loads(result.out)
        assert found["folder"] == str(tmp_path / "data")
        states = {entry["name"]: entry["state"] for entry in found["datasets"]}
        published = ("fashion-mnist", "cifar10", "cifar100", "har", "sentiment140")
        assert states == {"digits": "ready", "csv": "yours", "npz": "yours", **dict.fromkeys(published, "missing")}
        files = {entry["name"]: entry["files"] for entry in found["datasets"]}
        assert files["digits"] == []
        assert files["har"] == ["har/UCI HAR Dataset.zip"]
        assert len(files["fashion-mnist"]) == 4
        table = fedsieve_("data", "list")
        assert str(tmp_path / "data") in table.out
        assert "missing" in table.out

    def test_a_broken_file(self, fedsieve_: Command, tmp_path: Path) -> None:
        path = tmp_path / "data/har/UCI HAR Dataset.zip"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"rubbish")
        found = json.loads(fedsieve_("data", "list", "--json").out)["datasets"]
        assert {entry["state"] for entry in found if entry["name"] == "har"} == {"broken"}
        assert_mistake(fedsieve_("data", "verify", "har"), f"{path} is corrupt")

    def test_verify(self, fedsieve_: Command) -> None:
        result = fedsieve_("data", "verify", "digits")
        assert (result.code, result.err) == (0, "")
        assert words(result.out) == "digits: checksums right"
        assert_mistake(fedsieve_("data", "verify", "har"), "har` downloads it")
        assert_mistake(fedsieve_("data", "verify", "hat"), "unknown dataset 'hat'; did you mean har")

    def test_fetch(self, fedsieve_: Command) -> None:
        assert words(fedsieve_("data", "fetch", "digits").out) == "digits: complete"
        assert_mistake(fedsieve_("data", "fetch", "har"), "is missing and could not be downloaded")
