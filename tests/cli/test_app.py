"""The command line's contract: what is printed where, and how it exits."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsieve.config.experiment import Experiment
from tests.cli.conftest import QUICK, Command, assert_mistake

KEYS = [
    "dataset", "model", "attack", "defense", "n_clients", "n_malicious", "rounds", "seed", "test_accuracy",
    "late_test_accuracy", "attack_success_rate", "attack_success_rate_all", "late_attack_success_rate",
    "false_positive_rate", "false_negative_rate", "late_false_positive_rate", "late_false_negative_rate",
    "rounds_not_applied", "not_applied_reasons", "updates_screened", "screened_reasons", "notes",
    "rounds_decided", "malicious_client_rounds", "rounds_until_detection",
    "benign_client_rounds_lost", "benign_share_lost", "worst_attack_success_rate", "worst_attack_success_round",
    "largest_accuracy_fall", "largest_accuracy_fall_round",
    "client_rounds_rejected", "share_rejected", "most_rejected", "scores", "data", "seconds", "rounds_per_second",
    "run_dir", "export", "flags",
]  # fmt: skip


class TestProcess:
    """Few, since each starts an interpreter."""

    def test_json(self, process: Command, tmp_path: Path) -> None:
        result = process("run", "--attack", "min-max", "--rounds", "2", "--clients", "8", "--malicious", "2", "--json")
        assert result.code == 0, result.err
        (line,) = result.out.splitlines()
        found = json.loads(line)
        assert list(found) == KEYS
        assert (found["dataset"], found["model"], found["attack"]) == ("digits", "mlp", "min-max")
        assert (found["defense"], found["n_clients"], found["n_malicious"]) == ("skymask", 8, 2)
        assert (found["rounds"], found["seed"], found["attack_success_rate"]) == (2, 0, None)
        for key in ("test_accuracy", "late_test_accuracy", "false_positive_rate", "late_false_negative_rate"):
            assert 0 <= found[key] <= 1
        assert found["seconds"] > 0
        assert found["rounds_per_second"] > 0
        expected = Experiment.of({"attack": "min-max", "rounds": 2, "clients": 8, "malicious": 2})
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
        (tmp_path / "broken.py").write_text("class Attack:\n    def craft(self, view): return 1 / 0\n")
        result = process("run", "--attack", "broken:Attack", *QUICK, "--quiet", "--json")
        assert result.code == 1
        assert result.out == ""
        assert "ZeroDivisionError" in result.err

    def test_the_command_line_starts_without_torch(self, tmp_path: Path) -> None:
        heavy = "{'torch', 'sklearn', 'numpy', 'pydantic', 'fedsieve.config.experiment'}"
        code = f"import sys, fedsieve.cli; found = {heavy} & set(sys.modules); assert not found, found"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_a_run_imports_what_it_needs(self, tmp_path: Path) -> None:
        """Each of these takes a quarter of a second or more; sympy and torch._dynamo come with torch's compiler."""
        code = (
            "import sys\n"
            "sys.argv = ['fedsieve', 'run', '--rounds', '1', '--quiet', '--device', 'cpu', '--threads', '1']\n"
            "from fedsieve.cli import main\n"
            "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
            "heavy = {'sklearn', 'scipy', 'requests', 'pandas', 'matplotlib', 'sympy', 'torch._dynamo'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "skymask" in done.stdout

    @pytest.mark.parametrize(
        "arguments", [(), ("run",), ("sweep",), ("report",), ("reproduce",), ("watch",), ("list",), ("data",)]
    )
    def test_help(self, fedsieve_: Command, arguments: tuple[str, ...]) -> None:
        result = fedsieve_(*arguments, "--help")
        assert (result.code, result.err) == (0, "")
        for command in () if arguments else ("run", "sweep", "report", "reproduce", "watch", "list", "data"):
            assert command in result.out.split()

    def test_the_installed_command(self) -> None:
        command = Path(sys.executable).with_name("fedsieve")
        done = subprocess.run([command, "list", "partitions"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "dirichlet" in done.stdout
