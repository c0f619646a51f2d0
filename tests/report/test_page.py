"""The page: its content, and that a real browser shows it without errors."""

import base64
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsieve.cli.options import nested_settings
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError
from fedsieve.report import page as page_module
from fedsieve.report.document import vega
from fedsieve.report.escaping import shortened
from fedsieve.report.flags import NAMES
from fedsieve.report.load import load
from fedsieve.report.page import template, write_page
from fedsieve.report.text import DASH, as_command
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
    whole = "dataset digits, model cnn, partition groups, clients 4, malicious 1, rounds 3, knowledge full"
    (setting,) = found["settings"]
    assert (setting["title"], setting["runs"], found["start"]) == ("digits", 5, 0)
    assert setting["text"].startswith(whole.replace("cnn", setting["text"].split("model ")[1].split(",")[0]))
    assert found["defenses"] == ["mean", "skymask"]
    assert set(found["explained"]) == set(NAMES)
    by_cell = {(r["defense"], r["attack"], r["seed"]): r for r in found["runs"]}
    one = by_cell["skymask", "min-max", 0]
    assert one["done"]
    assert one["summary"]["accuracy"] == pytest.approx(0.7)
    assert one["curves"]["accuracy"] == [[0, 1, 2], [0.5, 0.6, 0.7]]
    assert one["map"] == {
        "clients": [0, 1, 2, 3], "rounds": [0, 1, 2], "malicious": [0], "rejected": [[0], [0, 2], [0]], "present": None
    }  # fmt: skip
    assert (one["truth"], one["undetected"], one["summary"]["until"], one["names"]) == (True, False, 0, None)
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
    assert found["settings"][dataset["in"]]["text"].startswith(f"dataset {name}, model ")
    assert found["settings"][model["in"]]["text"].startswith(f"dataset digits, model {name}, ")
    assert attack["note"].startswith(shortened(f"model unchanged in 1 of 1 rounds: {name} (1)", 400))
    assert attack["scatter"][0]["reasons"][0] == shortened(name, 200)
    assert page.scripts[1].strip() == vega()
    assert page.scripts[2].strip().startswith("// The data")
    assert page.scripts[2].strip().endswith("overview();")


def two_datasets(make_run: MakeRun) -> Path:
    """Six runs of digits and six of har, each with its own numbers of clients and rounds."""
    for seed in (0, 1):
        for defense, low in (("geometric-median", 0.2), ("mean", 0.3), ("median", 0.4)):
            make_run(f"d{defense}{seed}", [low, low + seed / 10], defense=defense, attack="none", seed=seed)
            more = {"dataset": "har", "clients": 8, "malicious": 2}
            path = make_run(f"h{defense}{seed}", [0.8] * 3, defense=defense, attack="none", seed=seed, **more)
    return path.parent


def test_the_choices_are_settings_that_exist(make_run: MakeRun, tmp_path: Path) -> None:
    folder = two_datasets(make_run)
    make_run("failed", [0.1, None], attack="none", dataset="har", clients=8, malicious=3, rounds=3)
    write_page(load([folder]), tmp_path / "index.html")
    found = content(tmp_path / "index.html")
    # no more is said than tells them apart
    assert [(each["title"], each["runs"]) for each in found["settings"]] == [
        ("digits, malicious 1", 6), ("har, malicious 2", 6), ("har, malicious 3", 1)
    ]  # fmt: skip
    assert found["start"] == 0
    assert {(run["clients"], run["in"]) for run in found["runs"]} == {(4, 0), (8, 1), (8, 2)}
    assert all(row["in"] in (0, 1) for row in found["damage"])


def test_flags_are_with_the_runs_that_they_concern(make_run: MakeRun, tmp_path: Path) -> None:
    seen = [record(k, 0.5, malicious=(), rejected=(1,), false_positive_rate=0.25) for k in range(2)]
    make_run("a", [], seen, attack="none", defense="skymask", malicious=0, rounds=2)
    path = make_run("b", [0.5, 0.5], attack="none", defense="mean", malicious=0)
    write_page(load([path.parent]), tmp_path / "index.html")
    found = content(tmp_path / "index.html")
    by_defense = {run["defense"]: {found["flags"][k]["name"] for k in run["flags"]} for run in found["runs"]}
    assert "clients-lost" in by_defense["skymask"]
    assert "clients-lost" not in by_defense["mean"]
    assert "one-seed" in by_defense["mean"]


def test_names_of_clients(make_run: MakeRun, tmp_path: Path) -> None:
    names = ["St. Anna", "</script><b>", "", "n" * 90]
    for seed in (0, 1, 2):
        path = make_run(f"a{seed}", [0.5], attack="min-max", seed=seed)
        (path / "clients.json").write_text(json.dumps({"names": names if seed < 2 else names[:1]}))
    write_page(load([path.parent]), tmp_path / "index.html")
    found = content(tmp_path / "index.html")
    assert found["names"] == [["St. Anna", "</script><b>", "", shortened("n" * 90, 60)], ["St. Anna"]]
    assert [run["names"] for run in found["runs"]] == [0, 0, 1]


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


def test_nothing_is_fetched_and_no_other_script_runs() -> None:
    text = template()
    assert re.findall(r"/\*[A-Z]+\*/", text.replace(vega(), "")) == ["/*DATA*/"]  # style and scripts are in it
    own = text.replace(vega(), "")
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']", own)
    assert not re.findall(r"https?://", own)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2 == len(Document(text).scripts) - 1
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert set(rules["script-src"].split()) == {f"'sha256-{each}'" for each in hashes}
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert rules["img-src"] == "data: blob:"


def test_without_the_charts_library(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    vega.cache_clear()
    with pytest.raises(FedSieveError, match=r"charts need vl-convert-python: pip install vl-convert-python$"):
        write_page(load([make_run("a", [0.5])]), tmp_path / "index.html")
    assert not list(tmp_path.glob("index*"))


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
    """The page once its charts are drawn, and what it complained of or asked the network for."""
    tab, said = browser.new_page(**more), []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
    tab.goto(path.as_uri())
    drawn(tab)
    return tab, said


def js(tab: Any, expression: str) -> Any:
    """The value of a JavaScript expression; the page's policy forbids playwright's own way of evaluating one."""
    session = tab.context.new_cdp_session(tab)
    wanted = {"expression": expression, "returnByValue": True, "awaitPromise": True}
    answer = session.send("Runtime.evaluate", wanted)
    session.detach()
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"].get("value")


def drawn(tab: Any) -> None:
    """Wait until the charts are as they should be."""
    js(tab, "new Promise(done => setTimeout(done, 50)).then(() => Promise.all([...queues.values()]))")


def values(tab: Any, chart: str, panel: str) -> list[dict[str, Any]]:
    """What a panel of a chart is drawn from."""
    find = f'spec => JSON.stringify(spec).includes(\'"title":"{panel}\')'
    panels = f"makers.get('{chart}')(900).vconcat[0].concat"
    found: list[dict[str, Any]] = js(
        tab, f"{panels}.find({find}).layer.find(l => l.mark.type === 'line' && l.name).data.values"
    )
    return found


def tooltip(tab: Any) -> str:
    tab.locator("#vg-tooltip-element.visible").wait_for()
    return str(tab.inner_text("#vg-tooltip-element"))


def point_at(tab: Any, chart: str, x: float, y: float, click: bool = False) -> None:
    """Move the mouse to a place of a chart, in pixels from its data's upper left corner."""
    canvas = tab.locator(f"#{chart} canvas")
    canvas.scroll_into_view_if_needed()
    box, (left, top) = canvas.bounding_box(), js(tab, f"views.{chart}.origin()")
    # the box is that of the canvas, which begins with the padding
    tab.mouse.move(box["x"] + left + x, box["y"] + top + y)
    if click:
        tab.mouse.down()
        tab.mouse.up()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any, scheme: str, width: int) -> None:
    write_page(load([five(make_run)]), tmp_path / "index.html")
    size = {"width": width, "height": 900}
    tab, said = opened(browser, tmp_path / "index.html", color_scheme=scheme, viewport=size)
    assert tab.inner_text("#counts").startswith("5 runs, 3 finished, 1 setting")
    assert tab.inner_text("#problem-count") == "2 problems"
    assert tab.locator("#matrix tbody button", has_text="70.0 ± 0.0").count() == 1
    cell = tab.locator("#matrix tbody button[aria-label^='skymask against min-max']")
    assert tab.locator("#matrix tbody button", has_text="failed").count() == 1
    # a cell with decisions is selected from the start
    assert cell.get_attribute("aria-pressed") == "true"
    assert tab.inner_text("#h-detail") == "skymask against min-max"
    assert tab.inner_text("#h-compare") == "Against min-max"
    assert js(tab, "Object.keys(views).sort()") == ["compare", "map", "scatter"]
    assert "Benign clients were rejected 1 of 9 times, malicious clients missed 0 of 3 times" in tab.inner_text(
        "#map-text"
    )
    assert "Round 3: 1 of 4 clients rejected, 1 of 1 malicious ones." in tab.inner_text("#scatter-text")
    tab.locator("#round").focus()
    tab.keyboard.press("ArrowLeft")
    assert "Round 2: 2 of 4" in tab.inner_text("#scatter-text")
    # the last client has an update and no mask; the root model is among the masks
    shown = js(tab, "makers.get('scatter')(900).concat[0].data.values.filter(p => p.shown === 1)")
    assert [p["name"] for p in shown if p["what"] == "features"] == ["client 0", "client 1", "client 2", "root model"]
    assert [p["truth"] for p in shown if p["what"] == "updates"] == ["malicious", "benign", "benign", "benign"]
    assert [p["decision"] for p in shown if p["what"] == "updates"] == ["rejected", "accepted"] * 2
    assert tab.inner_text("#command").startswith("fedsieve run --dataset digits --attack min-max --defense skymask")
    tab.select_option("#measure", "fpr")
    assert "benign clients rejected" in tab.inner_text("#matrix caption").lower()
    assert "false positive rate" in tab.inner_text("#measure-text")
    other = tab.locator("#matrix tbody button[aria-label^='mean against min-max']")
    other.focus()
    tab.keyboard.press("Enter")
    assert tab.inner_text("#h-detail") == "mean against min-max"
    assert tab.locator("#map-box").is_hidden()
    assert tab.inner_text("#run-flags") != "" or tab.locator("#run-flags li").count() == 0
    cell.click()
    drawn(tab)
    # every control has a name, every picture a text
    for each in tab.locator("select, input, button").all():
        name = js(tab, "''") or each.get_attribute("aria-label") or each.inner_text() or each.get_attribute("id")
        label = tab.locator(f"label:has(#{each.get_attribute('id')})").count() if each.get_attribute("id") else 0
        assert label or name.strip()
    for name in ("compare", "map", "scatter"):
        assert len(tab.locator(f"#{name} [aria-label], #{name}[aria-label]").first.get_attribute("aria-label")) > 40
    colour = js(tab, "getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    assert js(tab, "document.documentElement.scrollWidth") == width  # nothing sticks out
    assert js(tab, "Math.max(...[...document.querySelectorAll('canvas')].map(c => c.clientWidth))") < width
    tab.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    for _ in range(100):  # until the browser has told the page
        drawn(tab)
        if js(tab, "views.map.background()") == js(tab, "colour('panel')"):
            break
    assert js(tab, "['compare', 'map', 'scatter'].every(name => views[name].background() === colour('panel'))")
    assert said == []
    tab.close()


def test_two_datasets_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    write_page(load([two_datasets(make_run)]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    assert tab.locator("#setting option").all_inner_texts() == ["digits (6 runs)", "har (6 runs)"]
    assert tab.locator("#matrix tbody button").all_inner_texts() == ["25.0 ± 7.1", "35.0 ± 7.1", "45.0 ± 7.1"]
    assert "6 runs shown, 2 seeds: dataset digits" in tab.inner_text("#shown")
    tab.select_option("#setting", label="har (6 runs)")
    drawn(tab)
    assert tab.locator("#matrix tbody button").all_inner_texts() == ["80.0 ± 0.0"] * 3
    assert tab.locator("#detail").is_visible()
    assert {point["round"] for point in values(tab, "compare", "Test accuracy")} == {1, 2, 3}
    assert said == []
    tab.close()


def test_a_seed_counts_once_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    """The same run in two folders, and an unfinished one of that seed."""
    make_run("a", [0.2, None], attack="none", rounds=3)
    for name, accuracy, seed in (("b", 0.4, 0), ("c", 0.4, 0), ("d", 0.6, 1)):
        path = make_run(name, [accuracy] * 3, attack="none", seed=seed)
    write_page(load([path.parent]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    assert tab.locator("#matrix tbody button").all_inner_texts() == ["50.0 ± 14.1"]
    assert {p["text"] for p in values(tab, "compare", "Test accuracy")} == {"50.0 ± 14.1"}
    assert said == []
    tab.close()


def test_curves_look_like_their_names_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    several = ["geometric-median", "mean", "median"]
    for attack, defenses in (("none", several), ("min-max", several[::2])):
        for defense in defenses:
            path = make_run(f"{attack}{defense}", [0.5, 0.6], attack=attack, defense=defense)
    make_run("har", [0.5, 0.6], attack="none", defense="median", dataset="har", clients=8)
    write_page(load([path.parent]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    looks = []

    def look() -> dict[str, Any]:
        drawn(tab)
        one = "name => [views.compare.scale('color')(name), String(views.compare.scale('strokeDash')(name))]"
        return {name: js(tab, f"({one})('{name}')") for name in several}

    def legend() -> list[str]:
        found: list[str] = js(
            tab, "makers.get('compare')(900).vconcat[0].concat[0].layer[2].encoding.color.legend.values"
        )
        return found

    for attack, names in (("min-max", several[::2]), ("none", several)):
        tab.locator(f"#matrix tbody button[aria-label*='against {attack}']").first.click()
        looks.append(look())
        assert legend() == names
    tab.select_option("#setting", label="har (1 run)")
    looks.append(look())
    assert legend() == ["median"]
    assert looks[0] == looks[1] == looks[2]
    assert len({tuple(each) for each in looks[0].values()}) == 3
    assert said == []
    tab.close()


def test_means_of_curves_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    """Over seeds, in rounds that all of them have; none where these are few."""
    for seed in (0, 1):
        blind = {"rejected": None, "false_positive_rate": None, "false_negative_rate": None}
        skymask = [
            record(k, 0.4 + 0.2 * seed, **(blind if (k + seed) % 2 else {"false_positive_rate": 0.5})) for k in range(6)
        ]
        make_run(f"s{seed}", [], skymask, attack="min-max", seed=seed, rounds=6)
        many = [
            record(k, 0.5, false_positive_rate=0.25 if k < 300 else 0.75, false_negative_rate=float(seed))
            for k in range(600)
        ]
        path = make_run(f"k{seed}", [], many, attack="min-max", seed=seed, rounds=600)
    write_page(load([path.parent]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    tab.select_option("#setting", label="digits, rounds 6 (2 runs)")
    drawn(tab)
    assert values(tab, "compare", "Benign clients rejected") == []
    assert "No means of skymask where the seeds have values in different rounds" in tab.inner_text("#compare-text")
    (point,) = [p for p in values(tab, "compare", "Test accuracy") if p["round"] == 4]
    assert (point["text"], round(point["low"], 1), round(point["high"], 1)) == ("50.0 ± 14.1", 35.9, 64.1)
    tab.select_option("#setting", label="digits, rounds 600 (2 runs)")
    drawn(tab)
    assert "Each point of the rates is a mean over 10 rounds." in tab.inner_text("#compare-text")
    rates = values(tab, "compare", "Benign clients rejected")
    assert len(rates) == 60
    assert rates[-1]["round"] == 600
    assert [p["text"] for p in rates] == ["25.0 ± 0.0"] * 30 + ["75.0 ± 0.0"] * 30
    assert {p["text"] for p in values(tab, "compare", "Malicious clients missed")} == {"50.0 ± 70.7"}
    assert said == []
    tab.close()


def test_pointing_dragging_and_saving_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    folder = five(make_run)
    for path in folder.iterdir():
        (path / "clients.json").write_text(json.dumps({"names": ["St. Anna", "<b>B</b>", "", "D"]}))
    write_page(load([folder]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html", viewport={"width": 1280, "height": 900})
    # a client of the map is found in the scatter plots, and the other way round
    assert js(tab, "views.map.signal('names')") == {"0": "St. Anna", "1": "<b>B</b>", "2": "client 2", "3": "D"}
    row = "views.map.scale('y')(1) + views.map.scale('y').bandwidth() / 2"
    point_at(tab, "map", js(tab, "views.map.scale('x')(2)"), js(tab, row), click=True)
    assert tooltip(tab).split() == ["client", "<b>B</b>", "round", "2", "decision", "benign,", "accepted"]
    drawn(tab)
    picked = "views.{}.data('picked_store').map(t => t.values[0])"
    assert [js(tab, picked.format(name)) for name in ("map", "scatter")] == [[1], [1]]
    chosen = "[{unit: '', fields: [{type: 'E', field: 'client'}], values: [0]}]"
    js(tab, f"views.scatter.data('picked_store', {chosen}).runAsync().then(() => 1)")
    assert js(tab, picked.format("map")) == [0]
    # pointing at a round tells all its numbers, dragging over the strip shows a part of the rounds
    canvas = tab.locator("#compare canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 150)
    assert tooltip(tab).split() == ["round", "2", "mean,", "%", "40.0", "skymask,", "%", "60.0", "±", "0.0"]
    strip = box["y"] + box["height"] - 50
    tab.mouse.move(box["x"] + 0.2 * box["width"], strip)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.6 * box["width"], strip, steps=4)
    tab.mouse.up()
    first, last = js(tab, "views.compare.signal('part').round")
    assert 1 < first < last < 3
    assert js(tab, "views.compare.scale('concat_0_concat_0_x').domain()") == [first, last]
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        with tab.expect_download() as saved:
            tab.locator("#map-box").get_by_text(f"Save {kind.upper()}").click()
        assert saved.value.suggested_filename == f"map.{kind}"
        assert Path(saved.value.path()).read_bytes().startswith(start)
    tab.locator("#often-box summary").click()
    lines = [row.locator("th, td").all_inner_texts() for row in tab.locator("#often tr").all()]
    assert lines[0] == ["client", "truth", "rejected", "%"]
    assert lines[1] == ["St. Anna", "malicious", "3 of 3", "100.0"]
    assert ["client 2", "benign", "1 of 3", "33.3"] in lines
    assert said == []
    tab.close()


def test_where_nobody_knows_who_is_malicious_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    none: dict[str, Any] = {"malicious": None, "false_positive_rate": None, "false_negative_rate": None}
    seen = [record(k, 0.5, diagnosis=diagnosis(), rejected=(2,), **none) for k in range(4)]
    make_run("a", [], seen, attack="none", malicious=0, rounds=4)
    path = make_run("b", [], [dataclasses.replace(r, rejected=None) for r in seen], attack="none", malicious=0,
                    rounds=4, defense="mean")  # fmt: skip
    write_page(load([path.parent]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    assert tab.inner_text("#h-detail") == "skymask against none"
    assert "Clients were rejected 4 of 16 times; who is malicious is not known." in tab.inner_text("#map-text")
    measures = tab.locator("#measure option").all_inner_texts()
    assert measures[0] == "test accuracy, last tenth"
    assert measures[1:] == ["accuracy lost per round", "accuracy lost in the worst round", "clients rejected"]
    tab.select_option("#measure", "rejected")
    assert tab.locator("#matrix tbody button").all_inner_texts() == [DASH, "25.0"]
    kinds = js(tab, "[...new Set(makers.get('map')(900).data.values.map(c => c.kind))].sort()")
    assert kinds == ["accepted", "rejected"]
    truths = js(tab, "[...new Set(makers.get('scatter')(900).concat[0].data.values.map(c => c.truth))].sort()")
    assert truths == ["client", "root model"]
    text = tab.inner_text("main")
    for each in (
        tab.inner_text("#shown"),
        tab.inner_text("#map-text"),
    ):  # the setting's own word, and what is not known
        text = text.replace(each, "")
    text = text.replace(tab.inner_text("#flag-list"), "").replace(tab.inner_text("#run-flags"), "")
    text = text.replace(tab.inner_text("#measure-text"), "").replace(tab.inner_text("#command"), "")
    assert not re.search("benign|malicious", text)
    assert said == []
    tab.close()


def test_nasty_names_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    paths = [named(make_run, name, where) for name in NASTY.values() for where in ("attack", "defense")]
    for path in paths:
        (path / "clients.json").write_text(json.dumps({"names": [*NASTY.values()][:4]}))
    write_page(load(paths), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    shown = {each.text_content() for each in tab.locator("#matrix th").all()}
    assert set(NASTY.values()) - {NASTY["surrogate"]} <= shown
    chosen = (
        "(name => { const r = D.runs.find(r => [r.attack, r.defense].includes(name)); choose(r.defense, r.attack); })"
    )
    for key in ("end of script", "other scripts", "long", "zero", "template"):
        js(tab, f"{chosen}({json.dumps(NASTY[key])})")
        drawn(tab)
        assert said == []
        assert js(tab, "document.querySelectorAll('canvas').length") == 2, key
    # all defenses are in one tooltip: their names are read neither as expressions nor as markup
    js(tab, f"(r => choose(r.defense, r.attack))(D.runs.find(r => r.defense === {json.dumps(NASTY['template'])}))")
    drawn(tab)
    box = tab.locator("#compare canvas").bounding_box()
    tab.locator("#compare canvas").scroll_into_view_if_needed()
    for y in range(int(box["height"]) - 60, 0, -60):
        tab.locator("#compare canvas").hover(position={"x": 200, "y": y}, force=True)
        if tab.locator("#vg-tooltip-element.visible").count():
            break
    told = re.sub(r"\s", "", str(tab.locator("#vg-tooltip-element").text_content()))
    for name in set(NASTY.values()) - {NASTY["surrogate"]}:
        assert re.sub(r"\s", "", name.replace("\0", "")) in told  # a browser leaves it out
    assert tab.locator("script").count() == 3
    assert tab.locator("img").count() == 0
    assert said == []
    tab.close()


def test_markup_that_got_in_does_nothing(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    """The policy holds where the escaping fails: a script, an event handler and an image in the body are dead."""
    write_page(load([five(make_run)]), tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    server = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
    bad = f"<script>window.hit = 1</script><img src='{address}' onerror='window.hit = 1'>"
    (tmp_path / "index.html").write_text(text.replace("<main>", f"{bad}<main>"))
    tab, said = opened(browser, tmp_path / "index.html")
    assert js(tab, "window.hit") is None
    assert len(said) >= 2
    assert all("Content Security Policy" in line for line in said if line != address), said
    server.settimeout(0.2)
    with server, pytest.raises(TimeoutError):
        server.accept()  # the browser said that it would ask, and was not let
    assert tab.locator("#map canvas").count() == 1
    tab.close()


def test_rounds_without_a_decision_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    write_page(load([undecided(make_run)]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    text = tab.inner_text("#map-text")
    assert "Benign clients were rejected 0 of 6 times, malicious clients missed 0 of 2 times." in text
    assert "No decision in 1 of these rounds." in text
    assert {c["round"] for c in js(tab, "makers.get('map')(900).data.values")} == {2, 3}
    assert js(tab, "views.map.scale('x').domain()") == [0.5, 3.5]
    assert said == []
    tab.close()


def test_new_ids_in_a_browser(make_run: MakeRun, tmp_path: Path, browser: Any) -> None:
    write_page(load([returning(make_run, rounds=9)]), tmp_path / "index.html")
    tab, said = opened(browser, tmp_path / "index.html")
    text = tab.inner_text("#map-text")
    assert "4 clients (down), 9 rounds (across)." in text
    assert "Benign clients were rejected 3 of 27 times, malicious clients missed 3 of 9 times." in text
    points = js(tab, "makers.get('scatter')(900).concat[0].data.values.filter(p => p.shown === 8)")
    assert [points[0][key] for key in ("name", "truth", "decision")] == ["client 0 (as 32)", "malicious", "rejected"]
    assert said == []
    tab.close()


@pytest.mark.slow
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
    assert tab.inner_text("#counts").startswith("2000 runs, 2000 finished, 4 settings")
    assert "500 runs shown, 25 seeds" in tab.inner_text("#shown")
    assert tab.locator("#matrix tbody button").count() == 20
    assert tab.locator("#setting option").all_inner_texts() == [
        f"digits, partition groups (q={q}) (500 runs)" for q in (0.2, 0.4, 0.6, 0.8)
    ]
    tab.select_option("#setting", "3")
    tab.locator("#matrix tbody button").first.click()
    drawn(tab)
    assert tab.locator("#run option").count() == 25
    assert js(tab, "makers.get('compare')(900).vconcat[0].concat.length") == 3
    assert len(values(tab, "compare", "Test accuracy")) == 4 * 20
    assert said == []
    tab.close()
