"""Numbers in the docs: those of a reader's first run, and the row below a defense of one's own."""

import re
import sys
from pathlib import Path

import pytest

import fedsieve
from fedsieve.report.text import percent

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "own.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("attack", ["none", "min-max", "sign-flip"])
def test_the_row_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str) -> None:
    (found,) = re.findall(r"```python\n# (my_package/no_copies\.py)\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / found[0]).parent.mkdir()
    (tmp_path / found[0]).write_text(found[1])
    monkeypatch.chdir(tmp_path)
    rows = []
    for defense in ("mean", "my_package.no_copies:NoCopies"):
        result = fedsieve.run(attack=attack, defense=defense, device="cpu", out=defense[:4], progress=False)
        rows.append(result.summary)
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    mean, own = rows
    numbers = [mean["late_test_accuracy"], own["late_test_accuracy"]]
    numbers += [own["false_positive_rate"], own["false_negative_rate"]]
    assert f"| {attack} | {' | '.join(map(percent, numbers))} |" in PAGE


def test_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "first-run.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = fedsieve.run(attack="min-max", defense="sieve", device="cpu", progress=False)
    assert f"Run directory                    {found.path}\n" in page
    assert f"Test accuracy                    {percent(found.summary['late_test_accuracy'])} (mean of the" in page
    # in the page's table, mean is the first row and min-max the third column, sieve the last row
    rows = dict(line.split(maxsplit=1) for line in page.partition("Test accuracy, last tenth")[2].splitlines()[2:5])
    assert rows["sieve"].split()[2] == percent(found.summary["late_test_accuracy"]).removesuffix(" %")
    (shown,) = re.findall(r"^\| min-max \| ([\d.]+) % \|", PAGE, re.MULTILINE)
    assert rows["mean"].split()[2] == shown
    assert f"ends at {shown} %." in page
