"""Records on the disk: one in memory at a time; damaged, contradictory and absurd ones are told and left out."""

import json
import re
import tracemalloc
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from fedsieve.core.metrics import summarize
from fedsieve.core.records import DiagnosisRecord, RoundRecord
from fedsieve.report import figures, tables
from fedsieve.report.digest import MISSED, POINTS, Digest, spaced
from fedsieve.report.figures.masks import _kept, _last
from fedsieve.report.load import load
from fedsieve.report.page import write_page
from fedsieve.report.stored import Stored
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.lines import line_of
from tests.report.conftest import diagnosis, record

MakeRun = Callable[..., Path]


def written(path: Path, lines: list[Any]) -> None:
    """Replace the records of a run directory by these: records, dicts or text."""
    texts = [
        line if isinstance(line, str) else json.dumps(asdict(line) if isinstance(line, RoundRecord) else line)
        for line in lines
    ]
    (path / "records.jsonl").write_text("".join(f"{text}\n" for text in texts))


class TestDigest:
    def test_by_hand(self) -> None:
        none = {"rejected": None, "false_positive_rate": None, "false_negative_rate": None}
        records = [
            record(0, 0.1, **none),
            record(1, None, diagnosis=diagnosis()),
            record(2, 0.3, false_negative_rate=0.5),
            record(3, 0.4, diagnosis=diagnosis()),
        ]
        found = Digest.of(iter(records))
        assert found.rounds == 4
        assert found.summary == summarize(records)
        curves = {name: (list(rounds), list(values)) for name, (rounds, values) in found.curves.items()}
        assert curves == {
            "test_accuracy": ([0, 2, 3], [0.1, 0.3, 0.4]),
            "attack_success_rate": ([], []),
            "false_positive_rate": ([1, 2, 3], [0, 0, 0]),
            "false_negative_rate": ([1, 2, 3], [0, 0.5, 0]),
            MISSED: ([2], [0.3]),
        }
        assert found.decided_from == 1
        assert (list(found.diagnosed), found.n_diagnosed) == ([1, 3], 2)

    def test_diagnoses_without_positions(self) -> None:
        bare = DiagnosisRecord((), None, (), (), ("far", "", "", ""))
        found = Digest.of(record(k, 0.5, diagnosis=bare if k % 2 else diagnosis()) for k in range(5))
        assert (list(found.diagnosed), found.n_diagnosed) == ([0, 2, 4], 5)

    def test_long_curves_are_thinned(self) -> None:
        found = Digest.of(record(k, k / 2000) for k in range(2000))
        rounds, values = found.curves["test_accuracy"]
        assert len(rounds) == len(values) == POINTS
        assert (rounds[0], rounds[-1], values[-1]) == (0, 1999, 1999 / 2000)
        assert {b - a for a, b in pairwise(rounds)} == {4, 5}
        assert all(value == k / 2000 for k, value in zip(rounds, values, strict=True))
        assert found.rounds == 2000

    @pytest.mark.parametrize(("n", "most", "kept"), [(0, 3, []), (3, 3, [0, 1, 2]), (9, 1, [8]), (5, 0, [])])
    def test_spaced(self, n: int, most: int, kept: list[int]) -> None:
        assert spaced(n, most) == kept


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of records that are in memory, whenever one is read from the disk."""
    held: WeakSet[RoundRecord] = WeakSet()
    counts: list[int] = []
    read = RunDirectory.iter_records

    class Record(RoundRecord):  # by identity
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    def counted(self: RunDirectory, only: Container[int] | None = None) -> Iterator[RoundRecord]:
        for found in read(self, only):
            one = Record(**vars(found))
            held.add(one)
            counts.append(len(held))
            del found
            yield one
            del one

    monkeypatch.setattr(RunDirectory, "iter_records", counted)
    return counts


def many(make_run: MakeRun, runs: int, rounds: int) -> Path:
    """Runs with a diagnosis of each round, all with the same records."""
    seen = [record(k, 0.5, diagnosis=diagnosis()) for k in range(rounds)]
    first = make_run("0", [], seen, attack="min-max", rounds=rounds)
    for k in range(1, runs):
        (first.parent / str(k)).mkdir()
        settings = (first / "experiment.yaml").read_text().replace("seed: 0", f"seed: {k}")
        (first.parent / str(k) / "experiment.yaml").write_text(settings)
        (first.parent / str(k) / "records.jsonl").hardlink_to(first / "records.jsonl")
    return first.parent


class TestMemory:
    def test_one_record_at_a_time(self, make_run: MakeRun, tmp_path: Path, alive: list[int]) -> None:
        folder = many(make_run, 3, 70)
        runs = load([folder])
        found = tables.grids(runs)
        tables.markdown(found, runs)
        figures.draw_all(runs, found, tmp_path / "figures")
        assert len(alive) == 3 * 70  # each is read once
        assert max(alive) <= 3
        write_page(runs, tmp_path / "index.html")
        # again those of the map, and of the scatter plots; one of each beforehand, for its size
        assert len(alive) == 3 * (70 + 70 + 2)
        assert max(alive) <= 3

    @pytest.mark.slow
    def test_does_not_grow_with_runs(self, make_run: MakeRun, tmp_path: Path) -> None:
        folder = many(make_run, 30, 120)
        size = (folder / "0" / "records.jsonl").stat().st_size

        def peak(n: int) -> int:
            paths = [folder / str(k) for k in range(n)]
            tracemalloc.start()
            write_page(load(paths), tmp_path / "index.html")
            try:
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(1)  # what is loaded once
        few, more = peak(2), peak(30)
        assert more - few < 28 * size / 3  # far less than the files; their records would be several times as large

    def test_figures_and_tables_take_records_in_memory_too(self, tmp_path: Path) -> None:
        figures.accuracy_over_rounds({"x": {"mean": [[record(0, 0.5), record(1, 0.6)]]}}, tmp_path / "p.png")
        assert (tmp_path / "p.png").exists()


class TestAbsurd:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"round": 7}, "round 7, where one from 1 to 3 was expected"),
            ({"round": -1}, "round -1, where one from 1 to 3"),
            ({"round": 0}, "round 0, where one from 1 to 3"),
            ({"round": 10**30}, "where one from 1 to 3"),
            ({"clients": (0, 1, 2, 10**308)}, "4 clients with ids from 0 to 1000000"),
            ({"clients": (-1, 1, 2, 3)}, "4 clients with ids from -1 to 3, where there are ids 0 to 3"),
            ({"clients": tuple(range(100_000))}, "100000 clients with ids from 0 to 99999"),
            ({"clients": (0, 0, 1, 1, 2)}, "5 clients"),
            # new ids: of malicious clients only, and one a round at most
            (
                {"clients": (0, 1, 2, 7)},
                "4 clients with ids from 0 to 7, where there are ids 0 to 3, malicious clients'",
            ),
            ({"clients": (8, 1, 2, 3), "malicious": (8,), "rejected": ()}, "malicious clients' to 7"),
            ({"clients": (-4, 1, 2, 3), "malicious": (-4,), "rejected": ()}, "ids from -4 to 3"),
            ({"malicious": (9,)}, "decisions on clients that did not take part"),
            ({"rejected": (5,)}, "decisions on clients that did not take part"),
            ({"screened": (5,)}, "decisions on clients that did not take part"),
            ({"weights": (1.0,)}, "1 weights of 4 clients"),
            ({"scores": (1.0,) * 5}, "5 scores of 4 clients"),
            ({"diagnosis": diagnosis(3)}, "3 positions of 4 clients"),
            ({"diagnosis": replace(diagnosis(), reasons=())}, "0 reasons of 4 clients"),
            ({"diagnosis": replace(diagnosis(), updates=())}, "0 positions of updates of 4 clients"),
            ({"diagnosis": replace(diagnosis(), layers=("one",))}, "masks with another number of layers"),
        ],
        ids=lambda value: value[:24] if isinstance(value, str) else "",
    )
    def test_contradictory_records_are_left_out(
        self, make_run: MakeRun, tmp_path: Path, fields: dict[str, Any], said: str
    ) -> None:
        good = [record(k, 0.5 + k / 10, diagnosis=diagnosis()) for k in range(4)]
        path = make_run("a", [], good, attack="min-max", rounds=4)
        written(path, [good[0], replace(good[1], **fields), good[2], good[3]])
        (run,) = load([path])
        (problem,) = run.problems
        assert problem.startswith("damaged: 1 of 4 records are left out; line 2: ")
        assert said in problem
        assert not run.finished
        assert run.digest.rounds == 3
        assert [r.round for r in run.records] == [0, 2, 3]
        assert isinstance(run.records, Stored)
        assert [r.round for r in run.records.at({0, 2})] == [0, 3]
        grids = tables.grids([run])
        assert grids[0].cells["skymask", "min-max"].text() == "damaged"
        figures.draw_all([run], grids, tmp_path / "figures")
        write_page([run], tmp_path / "index.html")
        assert "damaged: 1 of 4 records" in (tmp_path / "index.html").read_text()

    def test_new_ids_of_malicious_clients_are_no_damage(self, make_run: MakeRun) -> None:
        seen = [
            record(k, 0.5, clients=(4 * k, 1, 2, 3), malicious=(4 * k,), rejected=(4 * k, 2), diagnosis=diagnosis())
            for k in range(4)
        ]
        (run,) = load([make_run("a", [], seen, attack="fresh-identity", rounds=4)])
        assert run.problems == ()
        assert run.finished
        assert list(run.records) == seen

    def test_rounds_without_positions_are_no_damage(self, make_run: MakeRun, tmp_path: Path) -> None:
        bare = DiagnosisRecord((), None, (), (), ("far", "", "", ""))
        seen = [record(k, 0.5, diagnosis=diagnosis() if k in (0, 3) else bare) for k in range(6)]
        path = make_run("a", [], seen, attack="min-max", rounds=6)
        (path / "records.jsonl").write_bytes(b"".join(map(line_of, seen)))
        (run,) = load([path])
        assert run.problems == ()
        assert list(run.records) == seen
        write_page([run], tmp_path / "index.html")
        text = (tmp_path / "index.html").read_text()
        (content,) = re.findall(r'<script id="data" type="application/json">(.*)</script>', text)
        (shown,) = json.loads(content)["runs"]
        assert [plot["round"] for plot in shown["scatter"]] == [0, 3]
        assert shown["sampled"]
        figures.mask_scatter({"x": {"a": run.records}}, tmp_path / "a.png")
        figures.layers_kept({"x": run.records}, tmp_path / "b.png")
        assert _last(run.records) == seen[3]
        shares = [(k == 0, layer, share, 1) for k in range(4) for layer, share in enumerate((0.4, 0.6))]
        assert _kept(run.records) == (("one", "two"), shares)

    def test_out_of_order_and_twice(self, make_run: MakeRun) -> None:
        path = make_run("a", [0.1, 0.2, 0.3, 0.4])
        written(path, [record(k, k / 10) for k in (0, 2, 1, 2, 3)])
        (run,) = load([path])
        assert run.problems == (
            "damaged: 2 of 5 records are left out; line 3: round 1, where one from 3 to 3 was expected",
        )
        assert not run.finished
        written(path, [record(k, k / 10) for k in (0, 1, 2, 3, 3)])
        assert not load([path])[0].finished  # which of the two is right is unknown

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308", "-0.1", "1.1"])
    def test_rates_that_are_none(self, make_run: MakeRun, tmp_path: Path, value: str) -> None:
        good = json.dumps(asdict(record(1, 0.75)))
        path = make_run("a", [0.5, 0.75])
        rates = ("test_accuracy", "attack_success_rate", "false_positive_rate", "false_negative_rate")
        bad = {**asdict(record(0, 0.5)), **dict.fromkeys(rates, 0.123)}
        written(path, [json.dumps(bad).replace("0.123", value), good])
        (run,) = load([path])
        assert run.problems[0].startswith("1 of 2 rounds have numbers that are not finite, or rates not in [0, 1]")
        assert run.finished
        assert run.summary["late_test_accuracy"] == 0.75
        assert run.summary["false_positive_rate"] == 0
        write_page([run], tmp_path / "index.html")

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "1e308"])
    def test_positions_that_are_none(self, make_run: MakeRun, tmp_path: Path, value: str) -> None:
        odd = replace(diagnosis(), root=(0.0, 0.123), updates=((0.123, 0.0),) * 4, kept=((0.123, 0.5),) * 4)
        odd = replace(odd, coordinates=((0.123, 1.0), (1.0, 0.123), (1.0, 1.0), (None, None)))
        path = make_run("a", [], [record(0, 0.5, diagnosis=odd)], attack="min-max", rounds=1)
        text = (path / "records.jsonl").read_text().replace("0.123", value)
        (path / "records.jsonl").write_text(text)
        (run,) = load([path])
        (seen,) = (r.diagnosis for r in run.records)
        assert seen is not None
        assert seen.coordinates == ((None, 1.0), (1.0, None), (1.0, 1.0), (None, None))
        assert seen.updates == ((None, 0.0),) * 4
        assert (seen.root, seen.kept) == (None, ((None, 0.5),) * 4)
        write_page([run], tmp_path / "index.html")
        figures.mask_scatter({"x": {"a": run.records}}, tmp_path / "a.png")
        figures.layers_kept({"x": run.records}, tmp_path / "b.png")

    @pytest.mark.parametrize(
        "line",
        ["{}", "[1]", "null", "no json", "[" * 100_000, '{"round": ' + "9" * 5000 + "}", "\x00", "\u00ed\u00a0"],
        ids=["empty", "list", "null", "text", "deep", "digits", "zero", "latin"],
    )
    def test_what_is_no_record_ends_them(self, make_run: MakeRun, line: str) -> None:
        path = make_run("a", [0.1, 0.2, 0.3])
        written(path, [record(0, 0.1), record(1, 0.2), line, record(2, 0.3)])
        (run,) = load([path])
        (problem,) = run.problems
        assert problem.startswith("records: ")
        assert "line 3" in problem
        assert len(problem) <= 400
        assert run.digest.rounds == 2
        assert not run.finished

    @pytest.mark.parametrize("name", ["experiment.yaml", "records.jsonl", "error.txt"])
    def test_folders_in_place_of_files(self, make_run: MakeRun, tmp_path: Path, name: str) -> None:
        path = make_run("a", [0.1])
        (path / name).unlink(missing_ok=True)
        (path / name).mkdir()
        (run,) = load([path])
        assert bool(run.problems) == (name != "error.txt")
        write_page([run], tmp_path / "index.html")

    def test_the_end_of_a_long_error_message(self, make_run: MakeRun) -> None:
        path = make_run("a", [0.5], rounds=2)
        (path / "error.txt").write_bytes(b"x" * 10**6 + b"\nMemoryError: \xff[/]\n\n")
        assert load([path])[0].problems == ("failed: MemoryError: \ufffd[/]",)

    def test_more_clients_than_can_be_shown(self, make_run: MakeRun, tmp_path: Path, monkeypatch: Any) -> None:
        """Rounds that would not fit into the page are left out of it, and nothing else is."""
        monkeypatch.setattr("fedsieve.report.page._SCATTER_BUDGET", 100)
        path = make_run("a", [], [record(0, 0.5, diagnosis=diagnosis())], attack="min-max", rounds=1)
        write_page(load([path]), tmp_path / "index.html")
        text = (tmp_path / "index.html").read_text()
        assert '"map":{' in text
        assert '"scatter":[]' in text
        assert '"sampled":true' in text


def test_rounds_that_changed_nothing_and_screened_updates_are_told(make_run: MakeRun, tmp_path: Path) -> None:
    records = [
        record(0, 0.1, applied=False, note="no update is left", screened=(1, 2), screened_reasons=("NaN", "too long")),
        record(1, 0.1, screened=(1,), screened_reasons=("NaN",)),
    ]
    bad = make_run("a", [], records, rounds=2)
    make_run("b", [0.5, 0.6], defense="mean")
    runs = load([bad.parent])
    said = (
        "model unchanged in 1 of 2 rounds: no update is left (1)",
        "3 updates screened in 2 rounds: NaN (2), too long (1)",
    )
    assert runs[0].notes == said
    assert runs[0].problems == runs[1].problems == runs[1].notes == ()
    assert tables.problems(runs) == [f"{bad}: {line}" for line in said]
    text = tables.markdown(tables.grids(runs), runs)
    assert "3 updates screened in 2 rounds" in text
    tables.write_csv(tables.grids(runs), tmp_path / "t.csv")
    assert said[0] in (tmp_path / "t.csv").read_text()
    write_page(runs, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text()
    assert f'"note":"{"; ".join(said)}"' in page
