"""Figures: each is drawn from records, and an error says what records lack."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from fedsieve.core.errors import FedSieveError
from fedsieve.core.records import RoundRecord
from fedsieve.report import figures
from fedsieve.report.figures import curves, masks, panels
from fedsieve.report.figures.masks import _kept
from fedsieve.report.figures.overview import _Files
from fedsieve.report.figures.panels import Styles
from fedsieve.report.load import load
from fedsieve.report.tables import grids
from tests.report.conftest import diagnosis, record

RECORDS = [record(k, 0.5 + 0.05 * k, diagnosis=diagnosis(), false_negative_rate=float(k < 2)) for k in range(4)]
BARE = [record(k, 0.4, rejected=None, false_positive_rate=None, false_negative_rate=None) for k in range(4)]


def drawn(path: Path) -> None:
    picture = imread(path)
    assert min(picture.shape[:2]) > 150
    assert picture[..., :3].std() > 0.02  # not one colour


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures of curves by file name, which are not written."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(curves, "save", lambda figure, path: found.update({path.name: figure}))
    return found


def test_accuracy_over_rounds(tmp_path: Path) -> None:
    runs = {"none": {"mean": [BARE, BARE]}, "min-max": {"skymask": [RECORDS]}}
    figures.accuracy_over_rounds(runs, tmp_path / "p.png", failures=True)
    drawn(tmp_path / "p.png")
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF-")
    assert ElementTree.parse(tmp_path / "p.svg").getroot().tag.endswith("svg")
    first = {kind: (tmp_path / f"p.{kind}").read_bytes() for kind in ("png", "pdf", "svg")}
    figures.accuracy_over_rounds(runs, tmp_path / "p.png", failures=True)
    assert first == {kind: (tmp_path / f"p.{kind}").read_bytes() for kind in first}


def test_a_line_is_the_mean_with_a_band_of_one_deviation_in_per_cent(tmp_path: Path, kept: dict[str, Any]) -> None:
    seeds = [[record(k, 0.5 + 0.1 * k + 0.2 * seed) for k in range(3)] for seed in range(2)]
    figures.accuracy_over_rounds({"min-max": {"skymask": seeds}}, tmp_path / "p.png")
    (panel,) = kept["p.png"].axes
    (line,) = panel.lines
    assert line.get_label() == "SkyMask"
    assert (panel.get_title(), panel.get_ylabel()) == ("Min-Max", "test accuracy, %")
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([60, 70, 80])
    corners = panel.collections[0].get_paths()[0].vertices
    off = 20 / 2**0.5
    for x, y in ((1, 60), (2, 70), (3, 80)):
        assert sorted({round(v, 6) for u, v in corners.tolist() if u == x}) == pytest.approx(
            [y - off, min(100, y + off)]
        )


def test_many_rounds_are_drawn_as_means(tmp_path: Path) -> None:
    seeds = [[record(k, (k % 2 + seed) / 4) for k in range(200)] for seed in range(2)]
    assert curves._span({"x": {"a": seeds}}, "test_accuracy") == 4
    found = curves.over_seeds(seeds, "test_accuracy", 4)
    assert list(found["round"]) == [2.5 + 4 * k for k in range(50)]
    assert found["mean"].tolist() == pytest.approx([25.0] * 50)
    assert found["std"].tolist() == pytest.approx([25 / 2**0.5] * 50)
    assert curves._span({"x": {"a": [RECORDS]}}, "test_accuracy") == 1


def test_panels_without_a_line_are_left_out(tmp_path: Path, kept: dict[str, Any]) -> None:
    runs = {"none": {"mean": [BARE], "skymask": [RECORDS]}, "min-max": {"mean": [BARE]}}
    figures.over_rounds(runs, "false_positive_rate", tmp_path / "p.png", title="Digits")
    (panel,) = kept["p.png"].axes
    assert panel.get_title() == "No attack"
    assert [line.get_label() for line in panel.lines] == ["SkyMask"]
    assert kept["p.png"].get_suptitle() == "Digits"


def test_sizes_of_a_column_and_a_page(tmp_path: Path, kept: dict[str, Any]) -> None:
    runs = {attack: {"mean": [BARE]} for attack in ("none", "min-max", "scaling")}
    for name, some, width in (
        ("one", dict(list(runs.items())[:1]), None),
        ("more", runs, None),
        ("narrow", runs, "column"),
    ):
        figures.over_rounds(some, "test_accuracy", tmp_path / name, width=width)  # type: ignore[arg-type]
    assert {name: figure.get_figwidth() for name, figure in kept.items()} == {"one": 3.3, "more": 6.9, "narrow": 3.3}
    columns = {name: figure.axes[0].get_subplotspec().get_gridspec().ncols for name, figure in kept.items()}
    assert columns == {"one": 1, "more": 3, "narrow": 1}


def looks(panel: Any) -> dict[str, tuple[Any, ...]]:
    """Colour, dashes and marker of each line of a panel that is in the legend, by label."""
    return {
        line.get_label(): (line.get_color(), line._unscaled_dash_pattern, line.get_marker())
        for line in panel.lines
        if not line.get_label().startswith("_")
    }


def in_legend(figure: Any) -> dict[str, tuple[Any, ...]]:
    """The same of the legend."""
    (legend,) = figure.legends
    lines = zip(legend.get_texts(), legend.get_lines(), strict=True)
    return {t.get_text(): (line.get_color(), line._unscaled_dash_pattern, line.get_marker()) for t, line in lines}


def test_a_name_looks_alike_in_every_panel_of_every_figure_of_a_report(
    make_run: Callable[..., Path], tmp_path: Path, kept: dict[str, Any]
) -> None:
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
    assert sum(name.startswith("benign-rejected") for name in kept) == 4
    assert sum(name.startswith("malicious-missed") for name in kept) == 4
    assert sum(name.startswith("malicious-digits") for name in kept) == 1
    everywhere: dict[str, set[tuple[Any, ...]]] = {}
    for figure in kept.values():
        assert figure.get_suptitle().startswith("Digits, ")
        legend = in_legend(figure)
        panels = [looks(panel) for panel in figure.axes if panel.get_visible()]
        assert all(panels)  # no empty ones
        assert set(legend) == {name for panel in panels for name in panel}  # every name once
        for panel in [legend, *panels]:
            for name, look in panel.items():
                everywhere.setdefault(name, set()).add(look)
    assert set(everywhere) == {"Median", "FedAvg", "Krum", "Geometric median"}
    assert all(len(found) == 1 for found in everywhere.values())
    assert len(set.union(*everywhere.values())) == 4


def test_styles() -> None:
    """Eight, each of which has another colour, other dashes and another marker than all others."""
    styles = Styles.of(f"{k:02}" for k in range(9))
    found = [styles.line(name) for name in styles.names]
    for key in ("color", "linestyle", "marker"):
        assert len({str(look[key]) for look in found}) == 8
    assert found[0] == found[8]
    assert styles.note == "9 names share 8 styles"
    assert styles.groups() == [styles.names[:8], styles.names[8:]]
    assert Styles.of(map(str, range(8))).note == ""
    assert Styles.of(["b", "a", "b"]).line("a") == Styles.of(["a", "z"]).line("a")
    assert Styles.of(["skymask", "mine", "mean"]).names == ("mean", "skymask", "mine")


def test_more_than_eight_defenses_are_several_figures(
    make_run: Callable[..., Path], tmp_path: Path, kept: dict[str, Any]
) -> None:
    for k in range(9):
        path = make_run(str(k), [0.5], attack="none", defense={"name": "skymask", "tau": (k + 1) / 10})
    assert figures.draw_all(load([path.parent]), [], tmp_path) == 6
    assert [len(kept[f"accuracy-digits{end}.png"].axes[0].lines) for end in ("", "-2")] == [8, 1]


def test_many_attacks_are_several_figures(make_run: Callable[..., Path], tmp_path: Path, kept: dict[str, Any]) -> None:
    for k in range(13):
        path = make_run(str(k), [0.5], attack={"name": "gaussian", "std": 1.0 + k})
    assert figures.draw_all(load([path.parent]), [], tmp_path) == 6
    kinds = ("accuracy", "benign-rejected", "malicious-missed")
    assert set(kept) == {f"{kind}-digits{end}.png" for kind in kinds for end in ("", "-2")}
    assert [sum(panel.get_visible() for panel in kept[f"accuracy-digits{end}.png"].axes) for end in ("", "-2")] == [
        12,
        1,
    ]


def test_curves_are_of_finished_runs_and_means_over_seeds_alone(
    make_run: Callable[..., Path], tmp_path: Path, kept: dict[str, Any]
) -> None:
    for seed, accuracies in enumerate(([0.2, 0.4], [0.4, 0.6], [0.9])):
        make_run(f"d{seed}", accuracies, attack="none", defense="mean", seed=seed, rounds=2)
    path = make_run("har", [0.8, 0.8], attack="none", defense="mean", dataset="har", rounds=2)
    figures.draw_all(load([path.parent]), [], tmp_path)
    lines = {name: list(figure.axes[0].lines[0].get_ydata()) for name, figure in kept.items()}
    assert lines["accuracy-digits.png"] == pytest.approx([30, 50])
    assert lines["accuracy-har.png"] == pytest.approx([80, 80])


def test_nobody_is_called_malicious_where_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(masks, "save", lambda figure, path: found.append(figure))
    unknown = [replace(r, malicious=None, false_positive_rate=None, false_negative_rate=None) for r in RECORDS]
    figures.mask_scatter({"x": {"a": unknown}}, tmp_path / "a.png")
    figures.layers_kept({"x": unknown}, tmp_path / "b.png")
    labels = [{text.get_text() for text in figure.legends[0].get_texts()} for figure in found]
    assert labels == [{"accepted", "rejected", "root model"}, {"clients"}]


def test_titles_that_are_alike_as_file_names(tmp_path: Path) -> None:
    path = _Files(tmp_path)
    made = [path("accuracy", title).name for title in ("a b", "A/b", "../a b", "n" * 300, "n" * 301)]
    assert made[:3] == ["accuracy-a-b.png", "accuracy-a-b-2.png", "accuracy-..-a-b.png"]
    assert len(set(made)) == 5
    assert max(map(len, made)) < 130


def test_huge_figures_are_drawn_more_coarsely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "KINDS", ("png",))
    figures.heat_map({(f"{a}", f"{b}"): 0.5 for a in range(8) for b in range(200)}, tmp_path / "p.png", "title")
    assert imread(tmp_path / "p.png").size / 4 < 8.1e6


def test_rates_against_a_number(tmp_path: Path) -> None:
    figures.rates_against({"x": {"p = 0.1": [RECORDS], "p = 0.8": [BARE]}}, tmp_path / "p.png")
    drawn(tmp_path / "p.png")
    with pytest.raises(FedSieveError, match="contains no number"):
        figures.rates_against({"x": {"none": [RECORDS]}}, tmp_path / "p.png")


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
    for kind in (
        "accuracy-digits-malicious-1.png",
        "benign-rejected-digits-malicious-2.png",
        "malicious-missed-digits-malicious-1.png",
        "malicious-digits.png",
    ):
        assert kind in found
    for name in found:
        drawn(tmp_path / "figures" / name)
