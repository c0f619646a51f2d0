"""The page: its content, and that a real browser shows it without errors."""

import dataclasses
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsieve.cli.options import nested_settings
from fedsieve.config.experiment import Experiment
from fedsieve.report import page as page_module
from fedsieve.report.escaping import shortened
from fedsieve.report.load import load
from fedsieve.report.page import template, write_page
from fedsieve.report.text import as_command
from tests.report.conftest import diagnosis, record
from tests.report.nasty import NASTY
from tests.report.test_escaping import Document

MakeRun = Callable[..., Path]
CHROMIUM = os.environ.get("FEDSIEVE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def content(path: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def five(make_run: MakeRun) -> Path:
    """Five runs: two seeds of one cell, a failed one, an unfinished one, and one whose defense rejects nobody."""
    seen = [record(k, 0.5 + 0.1 * k, diagnosis=diagnosis(), rejected=(0, 2) if k == 1 else (0,)) for k in range(3)]
    make_run("a", [], seen, attack="min-max", rounds=3)
    make_run("b", [], seen, attack="min-max", rounds=3, seed=1)
    blind = [record(k, 0.4, rejected=None, false_positive_rate=None, false_negative_rate=None) for k in range(3)]
    make_run("c", [], blind, attack="min-max", defense="mean", rounds=3)
    make_run("d", [0.3], attack="none", defense="mean", rounds=3)
    path = make_run("e", [], attack="none", rounds=3)
    (path / "error.txt").write_text("no memory for </script><b>\n")
    return path.parent


def test_content(make_run: MakeRun, tmp_path: Path) -> None:
    write_page(load([five(make_run)]), tmp_path / "index.html")
    found = content(tmp_path / "index.html")
    assert len(found["runs"]) == 5
    assert found["filters"] == ["dataset"]
    by_cell = {(r["defense"], r["attack"], r["seed"]): r for r in found["runs"]}
    one = by_cell["skymask", "min-max", 0]
    assert one["done"]
    assert one["summary"]["accuracy"] == pytest.approx(0.7)
    assert one["curves"]["accuracy"] == [[0, 1, 2], [0.5, 0.6, 0.7]]
    assert one["map"] == {
        "clients": [0, 1, 2, 3], "malicious": [0], "rejected": [[0], [0, 2], [0]], "present": None
    }  # fmt: skip
    assert [s["round"] for s in one["scatter"]] == [0, 1, 2]
    assert one["scatter"][0]["points"] == [[0, 0], [1, -1], [2, -2], None]
    assert one["scatter"][0]["malicious"] == [0]
    assert by_cell["mean", "min-max", 0]["map"] is None
    assert by_cell["mean", "none", 0]["state"] == "unfinished"
    assert by_cell["skymask", "none", 0]["state"] == "failed"
    assert len(found["problems"]) == 2


def test_the_command_repeats_the_experiment() -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"dataset": "har", "attack": {"name": "scaling", "factor": 3.0}, "defense": ["norm-clipping", "median"]},
        {"local": {"epochs": 2}, "root": {"bias": 0.8}, "partition": {"name": "dirichlet", "alpha": 0.1}, "seed": 4},
        {"attack": "adaptive-skymask", "knows_defense": True, "rounds": 7, "clients": 9, "malicious": 3},
        {"defense": {"name": "skymask", "preset": "code", "tau": 0.3}, "model": {"name": "mlp", "hidden": [9, 8]}},
        {"attack": {"name": "mixture", "attacks": ["min-max", "label-flip"]}, "server": {"optimizer": "Adam"}},
    ]
    for case in cases:
        wanted = Experiment.of(case)
        words = shlex.split(as_command(wanted))
        assert words[:2] == ["fedsieve", "run"]
        options: dict[str, Any] = {}
        pairs = []
        for name, value in zip(words[2::2], words[3::2], strict=True):
            if name == "--set":
                pairs.append(value)
            else:
                number = name[2:] in ("clients", "malicious", "rounds", "seed")
                options[name[2:]] = int(value) if number else value
        assert Experiment.of(nested_settings(options, pairs)).key == wanted.key, words


def undecided(make_run: MakeRun) -> Path:
    """One run of three rounds, without a decision in the first."""
    none: dict[str, Any] = {"rejected": None, "false_positive_rate": None, "false_negative_rate": None}
    return make_run(
        "a", [], [record(0, 0.5, **none), record(1, 0.5), record(2, 0.5)], attack="min-max", rounds=3
    ).parent


def test_rounds_without_a_decision(make_run: MakeRun, tmp_path: Path) -> None:
    write_page(load([undecided(make_run)]), tmp_path / "index.html")
    (run,) = content(tmp_path / "index.html")["runs"]
    assert run["map"]["rejected"] == [None, [0], [0]]
    assert run["curves"]["fnr"] == [[1, 2], [0, 0]]


def returning(make_run: MakeRun, rounds: int = 300) -> Path:
    """A run whose malicious client has a new id every round and is missed in every third."""
    seen = [
        record(
            k,
            0.5,
            clients=(4 * k, 1, 2, 3),
            malicious=(4 * k,),
            rejected=(4 * k,) if k % 3 else (2,),
            false_positive_rate=0.0 if k % 3 else 1 / 3,
            false_negative_rate=0.0 if k % 3 else 1.0,
            diagnosis=diagnosis(),
        )
        for k in range(rounds)
    ]
    return make_run("a", [], seen, attack="fresh-identity", rounds=rounds).parent


def test_a_client_with_new_ids_keeps_its_line(make_run: MakeRun, tmp_path: Path) -> None:
    write_page(load([returning(make_run)]), tmp_path / "index.html")
    (run,) = content(tmp_path / "index.html")["runs"]
    assert run["state"] == ""
    assert run["summary"]["fnr"] == pytest.approx(1 / 3, abs=1e-4)
    assert run["map"]["clients"] == [0, 1, 2, 3]
    assert run["map"]["malicious"] == [0]
    assert run["map"]["present"] is None
    assert len(run["map"]["rejected"]) == 200
    assert run["map"]["rejected"][0] == [2]
    assert {tuple(row) for row in run["map"]["rejected"]} == {(0,), (2,)}
    for shown in run["scatter"]:  # one round each, so with the ids that the server saw
        assert shown["malicious"] == [4 * shown["round"]]
        assert shown["clients"] == [4 * shown["round"], 1, 2, 3]


def test_no_map_of_more_clients_than_a_canvas_has_room_for(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few in each round, but other ones every round."""
    monkeypatch.setattr(page_module, "_MAP_CLIENTS", 30)
    drawn = [tuple(range(4 * (k % 10), 4 * (k % 10) + 4)) for k in range(20)]
    for name, rounds, known in (("a", 7, list(range(28))), ("b", 8, None)):
        seen = [record(k, 0.5, clients=drawn[k], malicious=(), rejected=()) for k in range(rounds)]
        path = make_run(name, [], seen, attack="min-max", rounds=rounds, clients=40)
        write_page(load([path]), tmp_path / "index.html")
        (run,) = content(tmp_path / "index.html")["runs"]
        assert (run["map"] and run["map"]["clients"]) == known


def test_scatters_keep_to_their_budget(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_SCATTER_BUDGET", 2000)
    make_run("a", [], [record(k, 0.5, diagnosis=diagnosis()) for k in range(40)], rounds=40)
    path = make_run("b", [], [record(k, 0.5, diagnosis=diagnosis()) for k in range(40)], rounds=40, seed=1)
    write_page(load([path.parent]), tmp_path / "index.html")
    for run in content(tmp_path / "index.html")["runs"]:
        assert run["sampled"]
        assert 1 < len(run["scatter"]) < 10
        assert run["scatter"][-1]["round"] == 39


def named(make_run: MakeRun, name: str, where: str, **more: Any) -> Path:
    """A run of which this component has this name, as only a file can."""
    path = make_run(f"{where}-{list(NASTY.values()).index(name)}", [], [record(0, 0.5, **more)], rounds=1)
    settings = yaml.safe_load((path / "experiment.yaml").read_text())
    settings[where] = {"name": name}
    (path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_nasty_names_are_data(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    seen = replace(diagnosis(), reasons=(name, "", "", ""))
    more = {"diagnosis": seen, "applied": False, "note": name, "screened": (1,), "screened_reasons": (name,)}
    paths = [named(make_run, name, where, **more) for where in ("attack", "defense", "dataset", "model")]
    write_page(load(paths), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    (json_text,) = re.findall(r'<script id="data" type="application/json">(.*)</script>', text)
    assert not set(json_text) & set("<>&")
    page = Document(text)
    assert page.tags == Document(template()).tags  # no element is added, and none is lost
    found = json.loads(page.scripts[0])
    if name == NASTY["surrogate"]:  # no settings can hold it, which is a problem like any other
        assert len(found["problems"]) == 8  # settings and records of each
        assert found["runs"] == []
        return
    attack, dataset, defense, model = found["runs"]
    assert (attack["attack"], defense["defense"]) == (name, name)
    assert (dataset["setting"]["dataset"], model["setting"]["model"]) == (name, name)
    assert attack["note"].startswith(shortened(f"model unchanged in 1 of 1 rounds: {name} (1)", 400))
    assert attack["scatter"][0]["reasons"][0] == shortened(name, 200)
    assert page.scripts[1].strip().startswith("// The data")
    assert page.scripts[1].strip().endswith("overview();")


def test_a_run_has_the_style_of_its_name(make_run: MakeRun, tmp_path: Path) -> None:
    for attack, defense in (("min-max", "mean"), ("none", "mean"), ("none", "median")):
        for seed in (0, 1, 2):
            if (attack, seed) != ("min-max", 0):
                path = make_run(f"{attack}{defense}{seed}", [0.5], attack=attack, defense=defense, seed=seed)
    make_run("other", [0.5], clients=6, seed=1)
    write_page(load([path.parent]), tmp_path / "index.html")
    found = content(tmp_path / "index.html")
    styles: dict[tuple[str, int], set[int]] = {}
    for run in found["runs"]:
        styles.setdefault((run["setting"]["clients"], run["seed"]), set()).add(run["style"])
    assert styles == {("4", 0): {0}, ("4", 1): {1}, ("4", 2): {2}, ("6", 1): {3}}
    assert found["styles"] == 4


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = load([make_run("a", [0.5])])
    write_page(runs, tmp_path / "index.html")
    before = (tmp_path / "index.html").read_text()

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_module, "_run", full)
    with pytest.raises(OSError, match="No space left"):
        write_page(runs, tmp_path / "index.html")
    assert (tmp_path / "index.html").read_text() == before
    assert [p.name for p in tmp_path.glob("index*")] == ["index.html"]


def test_nothing_is_fetched() -> None:
    text = template()
    assert re.findall(r"/\*[A-Z]+\*/", text) == ["/*DATA*/"]  # style and scripts are in it
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium; FEDSIEVE_CHROMIUM says where one is")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


def opened(browser: Any, path: Path, **more: Any) -> tuple[Any, list[str]]:
    tab, said = browser.new_page(**more), []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
    tab.goto(path.as_uri())
    return tab, said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any, scheme: str) -> None:
    write_page(load([five(make_run)]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html", color_scheme=scheme)
    assert tab.inner_text("#counts").startswith("5 runs, 3 finished")
    assert tab.inner_text("#problem-count") == "2 problems"
    cell = tab.locator("#matrix tbody button", has_text="70.0 ± 0.0")
    assert cell.count() == 1
    assert tab.locator("#matrix tbody button", has_text="failed").count() == 1
    assert tab.locator("#detail").is_hidden()
    cell.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#detail").is_visible()
    assert tab.inner_text("#h-detail") == "skymask against min-max"
    assert tab.locator("#curves svg").count() == 3
    assert "Benign clients were rejected 1 of 9 times, malicious clients missed 0 of 3 times" in tab.inner_text(
        "#map-text"
    )
    assert "Round 3: 1 of 4" in tab.inner_text("#scatter-text")
    tab.locator("#round").focus()
    tab.keyboard.press("ArrowLeft")
    assert "Round 2: 2 of 4" in tab.inner_text("#scatter-text")
    # the last client has an update and no mask
    assert tab.locator("#scatter svg title").count() == 3
    assert tab.locator("#scatter-updates svg title").count() == 4
    assert tab.inner_text("#command").startswith("fedsieve run --dataset digits --attack min-max --defense skymask")
    tab.select_option("#measure", "fpr")
    assert "benign clients rejected" in tab.inner_text("#matrix caption").lower()
    tab.locator("#matrix tbody button[aria-label^='mean against min-max']").click()
    assert tab.locator("#map-box").is_hidden()
    # every control has a name, every picture a text
    for each in tab.locator("select, input, button").all():
        name = each.evaluate("e => e.labels?.[0]?.innerText || e.getAttribute('aria-label') || e.innerText")
        assert name.strip()
    for each in tab.locator("#detail [role=img]:visible").all():
        assert each.get_attribute("aria-label")
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    assert said == []


def strokes(tab: Any, within: str, shape: str) -> list[tuple[str, str]]:
    """Colour and dashes of the lines in each element."""
    return [
        (line.get_attribute("stroke"), line.get_attribute("stroke-dasharray"))
        for line in tab.locator(f"{within} {shape}").all()
    ]


def test_curves_look_like_their_names_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    blind = {"rejected": None, "false_positive_rate": None, "false_negative_rate": None}
    for attack, seeds in (("none", (0, 1, 2)), ("min-max", (1, 2))):
        for seed in seeds:  # seed 1 against none has no rates
            records = [record(k, 0.5, **(blind if (attack, seed) == ("none", 1) else {})) for k in range(2)]
            path = make_run(f"{attack}{seed}", [], records, attack=attack, seed=seed, rounds=2)
    write_page(load([path.parent]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    looks = {}
    for attack in ("none", "min-max"):
        tab.locator(f"#matrix tbody button[aria-label*='against {attack}']").click()
        names = [each.inner_text().strip() for each in tab.locator("#curves-key .key").all()]
        legend = dict(zip(names, strokes(tab, "#curves-key", "line"), strict=True))
        panels = [strokes(tab, f"#curves figure:nth-of-type({k})", "polyline") for k in (1, 2, 3)]
        without = [look for name, look in legend.items() if (attack, name) != ("none", "seed 1")]
        assert panels == [list(legend.values()), without, without]
        looks[attack] = legend
    assert set(looks["none"]) == {"seed 0", "seed 1", "seed 2"}
    assert len(set(looks["none"].values())) == 3
    assert looks["min-max"] == {name: looks["none"][name] for name in ("seed 1", "seed 2")}
    assert said == []


def test_nasty_names_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    paths = [named(make_run, name, where) for name in NASTY.values() for where in ("attack", "defense")]
    write_page(load(paths), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    shown = [each.text_content() for each in tab.locator("#matrix th").all()]
    assert set(NASTY.values()) - {NASTY["surrogate"]} <= set(shown)
    tab.locator("#matrix tbody button").first.click()
    assert tab.locator("script, img").count() == 2
    assert said == []


def test_rounds_without_a_decision_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    write_page(load([undecided(make_run)]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    tab.locator("#matrix tbody button").first.click()
    text = tab.inner_text("#map-text")
    assert "Benign clients were rejected 0 of 6 times, malicious clients missed 0 of 2 times." in text
    assert "No decision in 1 of these rounds." in text
    assert said == []


def test_new_ids_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    write_page(load([returning(make_run, rounds=9)]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    tab.locator("#matrix tbody button").first.click()
    text = tab.inner_text("#map-text")
    assert "4 clients (down), 9 rounds (across)." in text
    assert "Benign clients were rejected 3 of 27 times, malicious clients missed 3 of 9 times." in text
    assert "client 32, malicious, rejected" in tab.locator("#scatter svg title").all_text_contents()[0]
    assert said == []


def test_two_thousand_runs(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    seen = [record(k, 0.5 + 0.02 * k, diagnosis=diagnosis()) for k in range(20)]
    first = make_run("0", [], seen, attack="min-max", rounds=20)
    (run,) = load([first])
    assert run.experiment is not None
    names = ["none", "min-max", "min-sum", "label-flip", "scaling"]
    defenses = ["mean", "median", "geometric-median", "skymask"]
    base = {"dataset": "digits", "clients": 4, "malicious": 1, "rounds": 20}

    def having(field: str, values: list[Any]) -> list[Any]:
        return [getattr(Experiment.of({**base, field: value}), field) for value in values]

    parts = (
        having("attack", names),
        having("defense", defenses),
        having("seed", list(range(25))),
        having("partition", [{"name": "groups", "q": q} for q in (0.2, 0.4, 0.6, 0.8)]),
    )
    fields = ("attack", "defense", "seed", "partition")
    many = [
        dataclasses.replace(
            run, path=Path(str(k)), experiment=run.experiment.model_copy(update=dict(zip(fields, chosen, strict=True)))
        )
        for k, chosen in enumerate(product(*parts))
    ]
    assert len(many) == 2000
    write_page(many, tmp_path / "index.html")
    assert (tmp_path / "index.html").stat().st_size < 30e6
    tab, said = opened(browser, tmp_path / "index.html")
    assert tab.inner_text("#counts").startswith("2000 runs, 2000 finished")
    assert "500 runs shown" in tab.inner_text("#shown")
    assert tab.locator("#matrix tbody button").count() == 20
    tab.select_option("#filter-partition", "")
    assert "2000 runs shown, of 4 settings together" in tab.inner_text("#shown")
    tab.locator("#matrix tbody button").first.click()
    assert tab.locator("#run option").count() == 100
    assert tab.locator("#curves svg").count() == 3
    assert said == []
