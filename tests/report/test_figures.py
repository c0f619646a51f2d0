"""Figures: each is drawn from records, and an error says what records lack."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from fedsieve.core.errors import FedSieveError
from fedsieve.report import figures
from fedsieve.report.figures import curves
from fedsieve.report.load import Run, load
from fedsieve.report.tables import grids
from tests.report.conftest import diagnosis, record

RECORDS = [record(k, 0.5 + 0.05 * k, diagnosis=diagnosis(), false_negative_rate=float(k < 2)) for k in range(4)]
BARE = [record(k, 0.4, rejected=None, false_positive_rate=None, false_negative_rate=None) for k in range(4)]


def drawn(path: Path) -> None:
    picture = imread(path)
    assert min(picture.shape[:2]) > 150
    assert picture[..., :3].std() > 0.02  # not one colour


@pytest.mark.parametrize("failures", [False, True])
def test_accuracy_over_rounds(tmp_path: Path, failures: bool) -> None:
    figures.accuracy_over_rounds({"none": {"mean": BARE}, "x": {"skymask": RECORDS}}, tmp_path / "p.png", failures)
    drawn(tmp_path / "p.png")


def test_rates_over_rounds(tmp_path: Path) -> None:
    figures.rates_over_rounds({"a": {"skymask": RECORDS, "mean": BARE}, "b": {"skymask": RECORDS}}, tmp_path / "p.png")
    drawn(tmp_path / "p.png")


def test_a_defense_has_one_colour_in_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: kept.append(figure))
    runs = {"a": {"x": RECORDS, "y": RECORDS}, "b": {"y": RECORDS, "x": RECORDS}, "c": {"z": RECORDS}}
    figures.accuracy_over_rounds(runs, tmp_path / "p.png", failures=True)
    figures.rates_over_rounds(runs, tmp_path / "p.png")
    shares = {a: {d: {"0.1": Run(tmp_path, None, tuple(RECORDS), ())} for d in lines} for a, lines in runs.items()}
    curves.accuracy_against_share(shares, tmp_path / "p.png")
    for figure in kept:
        looks: dict[str, set[tuple[str, str]]] = {}
        for panel in figure.axes:
            for line in panel.lines:
                if not line.get_label().startswith("_"):  # markers have no label
                    looks.setdefault(line.get_label(), set()).add((line.get_color(), line.get_linestyle()))
        assert set(looks) == {"x", "y", "z"}
        assert all(len(found) == 1 for found in looks.values())
        assert len(set.union(*looks.values())) == 3


def test_rates_against_a_number(tmp_path: Path) -> None:
    figures.rates_against({"x": {"p = 0.1": RECORDS, "p = 0.8": BARE}}, tmp_path / "p.png")
    drawn(tmp_path / "p.png")
    with pytest.raises(FedSieveError, match="contains no number"):
        figures.rates_against({"x": {"none": RECORDS}}, tmp_path / "p.png")


def test_heat_map(tmp_path: Path) -> None:
    cells = {("mean", "none"): 0.9, ("mean", "x"): 0.1, ("median", "none"): None}
    figures.heat_map(cells, tmp_path / "p.png", "title")
    drawn(tmp_path / "p.png")


def test_masks(tmp_path: Path) -> None:
    figures.mask_scatter({"x": {"a": RECORDS, "b": RECORDS}, "y": {"b": RECORDS}}, tmp_path / "p.png")
    drawn(tmp_path / "p.png")
    older = [replace(r, diagnosis=replace(r.diagnosis, updates=None)) for r in RECORDS if r.diagnosis]
    figures.mask_scatter({"x": {"a": RECORDS}, "y": {"a": older}}, tmp_path / "o.png")
    drawn(tmp_path / "o.png")
    figures.layers_kept({"x": RECORDS}, tmp_path / "q.png")
    drawn(tmp_path / "q.png")
    with pytest.raises(FedSieveError, match="have no coordinates"):
        figures.mask_scatter({"x": {"mean": BARE}}, tmp_path / "r.png")
    with pytest.raises(FedSieveError, match="have no masks"):
        figures.layers_kept({"x": BARE}, tmp_path / "r.png")


def test_all_of_a_report(make_run: Callable[..., Path], tmp_path: Path) -> None:
    for malicious in (1, 2):
        for attack in ("min-max", "scaling"):
            path = make_run(f"{attack}-{malicious}", [], RECORDS, attack=attack, rounds=4, malicious=malicious)
    runs = load([path.parent])
    count = figures.draw_all(runs, grids(runs), tmp_path / "figures")
    found = sorted(p.name for p in (tmp_path / "figures").glob("*.png"))
    assert len(found) == count
    for kind in ("accuracy-digits-malicious-1.png", "rates-digits-malicious-2.png", "malicious-digits.png"):
        assert kind in found
    for name in found:
        drawn(tmp_path / "figures" / name)
