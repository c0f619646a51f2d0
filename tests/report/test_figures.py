"""Figures: each is drawn from records, and an error says what records lack."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.report import figures
from fedsieve.report.figures import curves
from fedsieve.report.figures.masks import _kept
from fedsieve.report.figures.overview import _Files
from fedsieve.report.figures.panels import Styles
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


def looks(panel: Any) -> dict[str, tuple[Any, ...]]:
    """Colour and dashes of each line of a panel that is in the legend, by label."""
    return {
        line.get_label(): (line.get_color(), line._unscaled_dash_pattern)
        for line in panel.lines
        if not line.get_label().startswith("_")
    }


def in_legend(figure: Any) -> dict[str, tuple[Any, ...]]:
    """The same of the legend."""
    (legend,) = figure.legends
    lines = zip(legend.get_texts(), legend.get_lines(), strict=True)
    return {text.get_text(): (line.get_color(), line._unscaled_dash_pattern) for text, line in lines}


def test_a_name_looks_alike_in_every_panel_of_every_figure_of_a_report(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    monkeypatch.setattr(curves, "save", lambda figure, path: kept.update({path.name: figure}))
    lines = {"none": ("median", "mean"), "min-max": ("krum", "median"), "scaling": ("mean", "krum", "geometric-median")}
    for clients, shown in ((5, ("none", "scaling")), (6, ("min-max",)), (8, ("scaling", "none"))):
        for attack in shown:
            for defense in lines[attack]:
                settings = {"clients": clients, "attack": attack, "defense": defense, "rounds": 4}
                path = make_run(f"{clients}-{attack}-{defense}", [], RECORDS, **settings)
                if clients == 8:
                    make_run(f"{clients}-{attack}-{defense}-2", [], RECORDS, malicious=2, **settings)
    runs = load([path.parent])
    figures.draw_all(runs, [], tmp_path)
    assert sum(name.startswith("accuracy") for name in kept) == 4
    assert sum(name.startswith("rates") for name in kept) == 4
    assert sum(name.startswith("malicious") for name in kept) == 1
    everywhere: dict[str, set[tuple[Any, ...]]] = {}
    for figure in kept.values():
        legend = in_legend(figure)
        drawn = [looks(panel) for panel in figure.axes]
        assert set(legend) == {name for panel in drawn for name in panel}  # every name once
        for panel in [legend, *drawn]:
            for name, look in panel.items():
                everywhere.setdefault(name, set()).add(look)
    assert set(everywhere) == {"median", "mean", "krum", "geometric-median"}
    assert all(len(found) == 1 for found in everywhere.values())
    assert len(set.union(*everywhere.values())) == 4


def test_styles() -> None:
    styles = Styles.of(f"{k:02}" for k in range(70))
    assert len({str(styles.line(name)) for name in styles.names}) == 70
    assert len({str(styles.marker(name)) for name in styles.names[:49]}) == 49
    assert styles.note == ""
    assert Styles.of(map(str, range(71))).note == "71 names share 70 styles"
    assert Styles.of(["b", "a", "b"]).line("a") == Styles.of(["a", "z"]).line("a")


def test_seventy_one_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    save = curves.save
    monkeypatch.setattr(curves, "save", lambda figure, path: (kept.append(figure), save(figure, path)))
    figures.accuracy_over_rounds({"x": {f"{k:02}": RECORDS for k in range(71)}}, tmp_path / "p.png")
    (figure,) = kept
    assert figure.legends[0].get_title().get_text() == "71 names share 70 styles"
    assert in_legend(figure) == looks(figure.axes[0])
    drawn(tmp_path / "p.png")


def test_many_attacks_are_several_figures(make_run: Callable[..., Path], tmp_path: Path) -> None:
    for k in range(13):
        path = make_run(str(k), [0.5], attack={"name": "gaussian", "std": 1.0 + k})
    runs = load([path.parent])
    figures.draw_all(runs, [], tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "accuracy-digits.png", "accuracy-digits-2.png", "rates-digits.png", "rates-digits-2.png"
    }  # fmt: skip


def test_titles_that_are_alike_as_file_names(tmp_path: Path) -> None:
    path = _Files(tmp_path)
    made = [path("accuracy", title).name for title in ("a b", "A/b", "../a b", "n" * 300, "n" * 301)]
    assert made[:3] == ["accuracy-a-b.png", "accuracy-a-b-2.png", "accuracy-..-a-b.png"]
    assert len(set(made)) == 5
    assert max(map(len, made)) < 130


def test_huge_figures_are_drawn_more_coarsely(tmp_path: Path) -> None:
    figures.heat_map({(f"{a}", f"{b}"): 0.5 for a in range(80) for b in range(80)}, tmp_path / "p.png", "title")
    assert imread(tmp_path / "p.png").size / 4 < 8.1e6


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


def test_shares_are_those_of_the_second_half_or_the_last_before_it() -> None:
    def made(*shares: float | None) -> list[RoundRecord]:
        kept = [() if share is None else ((share, 1.0),) * 4 for share in shares]
        seen = [replace(diagnosis(), kept=one, layers=("one", "two") if one else ()) for one in kept]
        return [record(k, 0.5, diagnosis=one) for k, one in enumerate(seen)]

    def first(records: list[RoundRecord]) -> set[tuple[float, int]]:
        layers, kept = _kept(records)
        assert layers == ("one", "two")
        assert len(kept) == 8
        return {(total, n) for _, layer, total, n in kept if layer == 0}

    assert first(made(0.125, 0.25, 0.5, 0.75)) == {(1.25, 2)}
    assert first(made(0.125, 0.25, None, 0.75)) == {(0.75, 1)}
    assert first(made(0.125, 0.25, None, None)) == {(0.25, 1)}
    assert _kept(made(None, None)) == ((), [])


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
