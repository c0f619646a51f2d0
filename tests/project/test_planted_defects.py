"""A test of the tests: defects known from published code, planted into a copy of the package, turn the suite red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import fedsieve

TESTS = Path(__file__).parents[1]
PACKAGE = Path(fedsieve.__file__).parent


class Defect(NamedTuple):
    """What is written instead of what, and which tests then must fail.

    ``run`` selects the tests that are run, of which ``caught_by`` is one. Sources: the mask that never learns is in a
    published re-implementation of SkyMask, the others in several aggregation libraries.
    """

    file: str
    right: str
    wrong: str
    run: tuple[str, ...]
    caught_by: str


CONFORMANCE = "defenses/test_conformance.py"
DEFECTS = {
    "in-place clipping": Defect(
        "core/linalg.py",
        "scaled = torch.empty_like(x)",
        "scaled = x",
        (CONFORMANCE, "-k", "norm-clipping"),
        "test_input_is_unchanged[norm-clipping,median]",
    ),
    "masks without gradient": Defect(
        "detectors/skymask/masks.py",
        "masks.sub_(work, alpha=learning_rate)",
        "masks.sub_(work, alpha=0.0)",
        (CONFORMANCE, "-k", "skymask-nr"),
        "test_is_not_the_mean[-1000-skymask-nr]",
    ),
    "global generator": Defect(
        "aggregators/weak_dp.py",
        "torch.randn(len(mean), generator=generator)",
        "torch.randn(len(mean))",
        (CONFORMANCE, "-k", "weak-dp"),
        "test_global_randomness_is_left_alone[weak-dp]",
    ),
    "drops the first f rows": Defect(
        "aggregators/trimmed_mean.py",
        "return mean_of_ranks(x, trim, n - trim)",
        "return mean_of_ranks(x[trim:], 0, n - trim)[0], x.new_ones(n) / n",
        (CONFORMANCE, "-k", "trimmed-mean"),
        "test_client_order_is_irrelevant[0--1000-trimmed-mean]",
    ),
    "influence without a bound": Defect(
        "detectors/sieve/influence.py",
        "scale, inside = cut * kept, cut * (1 - kept)",
        "scale, inside = kept, cut * (1 - kept)",
        ("defenses/detectors/test_sieve_influence.py", "-k", "bound"),
        "test_no_limited_update_is_longer_than_the_bound",
    ),
    "harmless rounds earn credit": Defect(
        "detectors/sieve/history.py",
        "clamp(_FALL, _RISE)).clamp(0, _MOST)",
        "clamp(_FALL, _RISE)).clamp(-_MOST, _MOST)",
        ("defenses/detectors/test_sieve_history.py",),
        "test_no_run_of_harmless_rounds_earns_credit",
    ),
    "misspelt parameters are swallowed": Defect(
        "config/registry.py",
        "        if parameter not in known:\n",
        "        if False:\n",
        ("config/test_registry.py",),
        "test_wrong_ones",
    ),
}


def run(package: Path, selection: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """The selected tests, on the package in that folder."""
    file, *rest = selection
    plugins = ("-p", "no:cacheprovider", "--jaxtyping-packages=")
    command = [sys.executable, "-m", "pytest", "-q", "-rf", *plugins, str(TESTS / file), *rest]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=TESTS.parent)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "fedsieve", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.parametrize("name", DEFECTS)
def test_is_caught(copy: Path, name: str) -> None:
    defect = DEFECTS[name]
    file = copy / defect.file
    text = file.read_text(encoding="utf-8")
    assert text.count(defect.right) == 1, "the code has changed: plant the defect anew"
    file.write_text(text.replace(defect.right, defect.wrong), encoding="utf-8")
    done = run(copy, defect.run)
    assert done.returncode == 1, done.stdout + done.stderr
    assert defect.caught_by in done.stdout


def test_control_without_a_defect(copy: Path) -> None:
    # the copy is what is tested, and it passes what the defects fail
    broken = run(copy.parent / "elsewhere" / "fedsieve", ("core/test_seeding.py",))
    assert broken.returncode == 0  # falls back on the installed package: so the copy must prove that it is used
    (copy / "core" / "seeding.py").write_text("raise ImportError('planted')\n", encoding="utf-8")
    assert "planted" in run(copy, ("core/test_seeding.py",)).stdout
    shutil.copy(PACKAGE / "core" / "seeding.py", copy / "core" / "seeding.py")
    names = "norm-clipping or skymask or weak-dp or trimmed-mean"
    done = run(copy, (CONFORMANCE, "-k", names))
    assert done.returncode == 0, done.stdout
    done = run(copy, ("config/test_registry.py",))
    assert done.returncode == 0, done.stdout
