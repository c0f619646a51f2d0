"""Flags: each is raised at its threshold and not beyond it, names its runs and numbers, and has a page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsieve.config.experiment import Experiment
from fedsieve.core.metrics import summarize
from fedsieve.core.records import RoundRecord
from fedsieve.detectors import sieve
from fedsieve.report import damage, flags
from fedsieve.report.load import load
from fedsieve.report.page import write_page
from tests.report.conftest import record
from tests.report.test_page import content

MakeRun = Callable[..., Path]
PAGES = Path(__file__).parents[2] / "docs" / "flags"
UNDECIDED: dict[str, Any] = {"rejected": None, "false_positive_rate": None, "false_negative_rate": None}


def raised(folder: Path, *names: str) -> list[flags.Flag]:
    """The flags of these names, or all."""
    runs = load([folder])
    return [flag for flag in flags.flags(runs, damage.compare(runs)) if flag.name in (names or flags.NAMES)]


def blind(accuracies: Sequence[float | None], success: Sequence[float | None] = ()) -> list[RoundRecord]:
    """Rounds of a defense that takes no decision, with these accuracies and attack success rates."""
    rates = [*success, *[None] * (len(accuracies) - len(success))]
    return [record(k, a, attack_success_rate=s, **UNDECIDED) for k, (a, s) in enumerate(zip(accuracies, rates))]  # noqa: B905


def made(make_run: MakeRun, name: str, accuracies: Sequence[float | None], **more: Any) -> Path:
    """A finished run without decisions; ``success`` are its attack success rates."""
    records = blind(accuracies, more.pop("success", ()))
    return make_run(name, [], records, rounds=len(records), **{"attack": "scaling", "defense": "mean", **more})


class TestPages:
    def test_each_flag_has_one_and_the_index_names_it(self) -> None:
        assert {page.stem for page in PAGES.glob("*.md")} - {"README"} == set(flags.NAMES)
        index = (PAGES / "README.md").read_text(encoding="utf-8")
        for name in flags.NAMES:
            assert f"| [{name}]({name}.md) |" in index
            text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
            assert text.startswith(f"# {name}\n")
            for part in ("**Raised**", "**It means**", "**What to do**"):
                assert part in text, name

    def test_thresholds_are_those_of_the_index(self) -> None:
        index = (PAGES / "README.md").read_text(encoding="utf-8")
        values = [line.split("|")[2].strip() for line in index.splitlines() if line.startswith("| a diff")]
        assert values == ["0.01", "0.1"]
        assert "| benign clients rejected without attack | 0.01 of them |" in index
        assert "| rounds with a decision | 20, and half of the run's |" in index
        from fedsieve.report import cell_flags

        assert (cell_flags.ACCURACY, cell_flags.SUCCESS, flags.LOST, flags.DECIDED) == (0.01, 0.1, 0.01, 20)


class TestHarmlessAttack:
    @pytest.mark.parametrize(
        ("accuracies", "success", "void"),
        [
            ([0.5, 0.75], [], True),
            ([0.5, 0.745], [], True),
            ([0.75, 0.9], [], True),  # it gains
            ([0.5, 0.735], [], False),  # in the last tenth
            ([0.475, 0.75], [], False),  # per round
            ([0.5, 0.75], [0.09, 0.09], True),
            ([0.5, 0.75], [1.0, 0.09], True),  # at first everything may be read as one class
            ([0.5, 0.75], [0.0, 0.11], False),
        ],
    )
    def test_threshold(self, make_run: MakeRun, accuracies: list[float], success: list[float], void: bool) -> None:
        made(make_run, "r", [0.5, 0.75], attack="none")
        path = made(make_run, "a", accuracies, success=success)
        assert [flag.runs for flag in raised(path.parent, "harmless-attack")] == [(str(path),)] * void

    def test_in_words(self, make_run: MakeRun) -> None:
        made(make_run, "r", [0.5, 0.75], attack="none")
        path = made(make_run, "a", [0.51, 0.746], success=[0.3, 0.05])
        (flag,) = raised(path.parent, "harmless-attack")
        assert flag.line == (
            "harmless-attack: digits: scaling costs the undefended mean -0.3 % of accuracy per round and +0.4 % in the "
            "last tenth, and its backdoor works in 5.0 % at most: what a defense does here shows nothing "
            f"[{path}]; see docs/flags/harmless-attack.md"
        )

    def test_means_over_seeds_and_the_largest_success(self, make_run: MakeRun) -> None:
        for seed, accuracy in ((0, 0.735), (1, 0.755)):
            made(make_run, f"r{seed}", [0.75], attack="none", seed=seed)
            path = made(make_run, f"a{seed}", [accuracy], seed=seed)
        assert len(raised(path.parent, "harmless-attack")) == 1
        made(make_run, "r2", [0.75], attack="none", seed=2)
        made(make_run, "a2", [0.75], success=[0.5], seed=2)
        assert raised(path.parent, "harmless-attack") == []

    @pytest.mark.parametrize("missing", ["reference", "seed", "length", "end", "mean"])
    def test_where_it_can_not_be_known(self, make_run: MakeRun, missing: str) -> None:
        if missing != "reference":
            length = 1 if missing == "length" else 2
            made(make_run, "r", [0.5, 0.75][:length], attack="none", seed=int(missing == "seed"))
        defense = "median" if missing == "mean" else "mean"
        path = made(make_run, "a", [0.5, 0.75], defense=defense)
        if missing == "end":
            lines = (path / "records.jsonl").read_text().splitlines()
            (path / "records.jsonl").write_text(lines[0] + "\n")
        assert raised(path.parent, "harmless-attack") == []

    def test_a_strike_in_one_round_is_harm(self, make_run: MakeRun) -> None:
        made(make_run, "r", [0.75] * 20, attack="none")
        path = made(make_run, "a", [0.75] * 10 + [0.1, 0.5] + [0.75] * 8)
        assert raised(path.parent, "harmless-attack") == []

    def test_few_evaluations(self, make_run: MakeRun) -> None:
        made(make_run, "r", [None, None, None, 0.75], attack="none")
        path = made(make_run, "a", [None, 0.1, None, 0.75])
        assert len(raised(path.parent, "harmless-attack")) == 1


class TestEqualToMean:
    @pytest.mark.parametrize(
        ("accuracies", "success", "equal"),
        [
            ([0.25, 0.25], [1.0, 1.0], True),
            ([0.255, 0.255], [1.0, 0.95], True),
            ([0.25, 0.3], [1.0, 1.0], False),  # better at the end
            ([0.3, 0.25], [1.0, 1.0], False),  # better on the whole
            ([0.25, 0.25], [1.0, 0.5], False),  # a smaller backdoor
            ([0.1, 0.1], [1.0, 1.0], True),  # worse
            ([0.1, 0.1], [1.0, 0.5], False),
        ],
    )
    def test_threshold(self, make_run: MakeRun, accuracies: list[float], success: list[float], equal: bool) -> None:
        mean = made(make_run, "m", [0.25, 0.25], success=[1.0, 1.0])
        path = made(make_run, "a", accuracies, success=success, defense="median")
        found = raised(path.parent, "equal-to-mean")
        assert [flag.runs for flag in found] == [(str(path), str(mean))] * equal

    def test_in_words(self, make_run: MakeRun) -> None:
        mean = made(make_run, "m", [0.25, 0.5], success=[0.0, 0.5])
        path = made(make_run, "a", [0.25, 0.25], success=[0.0, 0.75], defense="median")
        (flag,) = raised(path.parent, "equal-to-mean")
        assert flag.line == (
            "equal-to-mean: digits: under scaling median is no better than the undefended mean: accuracy -12.5 % per "
            "round, -25.0 % in the last tenth, attack success +25.0 % "
            f"[{path}, {mean}]; see docs/flags/equal-to-mean.md"
        )

    def test_only_seeds_of_both(self, make_run: MakeRun) -> None:
        made(make_run, "m0", [0.25])
        made(make_run, "m1", [0.0], seed=1)
        path = made(make_run, "a0", [0.25], defense="median")
        assert len(raised(path.parent, "equal-to-mean")) == 1
        made(make_run, "a1", [0.5], defense="median", seed=1)
        assert raised(path.parent, "equal-to-mean") == []  # a quarter better on average
        made(make_run, "a2", [0.0], defense="geometric-median", seed=2)
        assert raised(path.parent, "equal-to-mean") == []

    def test_not_where_there_is_nothing_to_gain(self, make_run: MakeRun) -> None:
        made(make_run, "r", [0.75], attack="none")
        made(make_run, "clean", [0.75], attack="none", defense="median")
        made(make_run, "m", [0.75])
        path = made(make_run, "a", [0.75], defense="median")
        names = [flag.name for flag in raised(path.parent)]
        assert names == ["harmless-attack", "one-seed"]

    def test_another_setting_is_another_comparison(self, make_run: MakeRun) -> None:
        made(make_run, "m", [0.25], clients=6)
        path = made(make_run, "a", [0.25], defense="median")
        assert raised(path.parent, "equal-to-mean") == []


ADAPTIVE = "adaptive-skymask"
INSIDE: dict[str, Any] = {"name": "mixture", "attacks": ["min-max", "adaptive-skymask"]}


class TestAdaptiveWeaker:
    @pytest.mark.parametrize("adaptive", [ADAPTIVE, INSIDE], ids=["itself", "a part"])
    @pytest.mark.parametrize(
        ("accuracy", "success", "weaker"),
        [
            (0.4, [], True),
            (0.495, [], False),
            (0.6, [], False),
            (0.5, [0.5], True),
            (0.5, [0.05], False),
            (0.6, [0.5], False),  # a backdoor, but the adaptive attack costs accuracy
        ],
    )
    def test_threshold(
        self, make_run: MakeRun, adaptive: Any, accuracy: float, success: list[float], weaker: bool
    ) -> None:
        more = {"defense": "median", "knows_defense": True}
        path = made(make_run, "a", [0.5], attack=adaptive, **more)
        plain = made(make_run, "b", [accuracy], attack="scaling", success=success, defense="median")
        made(make_run, "other", [0.0], attack="scaling", defense="geometric-median")
        made(make_run, "clean", [0.0], attack="none", defense="median")
        found = raised(path.parent, "adaptive-weaker")
        assert [flag.runs for flag in found] == [(str(path), str(plain))] * weaker

    def test_the_adaptive_backdoor_counts(self, make_run: MakeRun) -> None:
        """More accuracy lost, but a smaller backdoor: not the weaker one."""
        path = made(make_run, "a", [0.5], attack=ADAPTIVE, knows_defense=True, success=[1.0])
        made(make_run, "b", [0.25], attack="min-max")
        assert raised(path.parent, "adaptive-weaker") == []

    def test_the_strongest_is_named(self, make_run: MakeRun) -> None:
        path = made(make_run, "a", [0.5], attack=ADAPTIVE, knows_defense=True)
        made(make_run, "b", [0.25], attack="min-max")
        strongest = made(make_run, "c", [0.25], attack="scaling", success=[0.75])
        (flag,) = raised(path.parent, "adaptive-weaker")
        assert flag.line == (
            "adaptive-weaker: digits: adaptive-skymask does less damage to mean than scaling: accuracy lost per round "
            f"+25.0 %, attack success +75.0 % [{path}, {strongest}]; see docs/flags/adaptive-weaker.md"
        )

    def test_adaptive_ones_are_not_compared_with_each_other(self, make_run: MakeRun) -> None:
        made(make_run, "a", [0.5], attack=ADAPTIVE, knows_defense=True)
        path = made(make_run, "b", [0.25], attack={"name": ADAPTIVE, "shares": [0.5]}, knows_defense=True)
        assert raised(path.parent, "adaptive-weaker") == []


class TestClientsLost:
    @pytest.mark.parametrize(
        ("settings", "rate", "lost"),
        [
            ({"attack": "none"}, 1 / 3, True),
            ({"attack": "none"}, 0.011, True),
            ({"attack": "none"}, 0.01, False),
            ({"attack": "min-max"}, 1 / 3, False),
            ({"attack": "min-max", "malicious": 0}, 1 / 3, True),
        ],
    )
    def test_threshold(self, settings: dict[str, Any], rate: float, lost: bool) -> None:
        records = [record(k, 0.5, rejected=(1,), malicious=(), false_positive_rate=rate) for k in range(40)]
        e = Experiment.of({"dataset": "digits", "clients": 4, "malicious": 1, "rounds": 40, **settings})
        found = flags.of_run(e, summarize(records), 40, "here")
        assert ("clients-lost" in [flag.name for flag in found]) == lost

    def test_in_words(self, make_run: MakeRun) -> None:
        for seed in (0, 1):
            records = [record(k, 0.5, malicious=(), rejected=(1,), false_positive_rate=0.25) for k in range(20 + seed)]
            path = make_run(f"s{seed}", [], records, attack="none", rounds=20 + seed, seed=seed)
        first, second = raised(path.parent, "clients-lost")
        assert first.line.startswith(
            "clients-lost: digits, rounds 20: skymask against none: without attack benign clients were rejected 20 "
            "times, 25.0 % of them in a round ["
        )
        assert second.runs == (str(path),)

    def test_seeds_are_one_flag(self, make_run: MakeRun) -> None:
        for seed in range(5):
            records = [record(k, 0.5, malicious=(), rejected=(1,), false_positive_rate=0.25) for k in range(20)]
            path = make_run(f"s{seed}", [], records, attack="none", rounds=20, seed=seed)
        (flag,) = raised(path.parent, "clients-lost")
        assert len(flag.runs) == 5
        assert flag.text.count("rejected 20 times") == 1
        assert "s2 and 2 more]; see" in flag.line

    def test_updates_dropped_before_the_defense_are_not_its_rejections(self) -> None:
        gone = {"rejected": (0, 1, 2, 3), "screened": (0, 1, 2, 3), "malicious": (), "false_positive_rate": 1.0}
        records = [record(k, 0.5, **gone) for k in range(20)]
        e = Experiment.of({"attack": "none", "defense": "mean", "clients": 4, "malicious": 1})
        assert flags.of_run(e, summarize(records), 20, "here") == []

    def test_a_rate_that_makes_no_sense(self) -> None:
        records = [record(k, 0.5, malicious=(), rejected=(1,), false_positive_rate=None) for k in range(20)]
        e = Experiment.of({"attack": "none", "clients": 4, "malicious": 1})
        assert flags.of_run(e, summarize(records), 20, "here") == []


class TestUndecidedRates:
    @pytest.mark.parametrize(
        ("decided", "rounds", "few"),
        [(20, 20, False), (19, 19, True), (20, 40, False), (20, 41, True), (19, 20, True), (60, 120, False)],
    )
    def test_threshold(self, decided: int, rounds: int, few: bool) -> None:
        records = [record(k, 0.5, **({} if k >= rounds - decided else UNDECIDED)) for k in range(rounds)]
        e = Experiment.of({"attack": "min-max", "clients": 4, "malicious": 1})
        (*found,) = flags.of_run(e, summarize(records), rounds, "here")
        said = f"rates are of the {decided} of {rounds} rounds in which the defense took a decision"
        assert [(flag.name, flag.text) for flag in found] == [("undecided-rates", said)] * few

    @pytest.mark.parametrize(
        ("defense", "detects"),
        [("fldetector", True), ("fldetector,median", True), ("norm-clipping,skymask", True), ("median", False)],
    )
    def test_a_detector_that_never_decided(self, defense: str, detects: bool) -> None:
        records = blind([0.5] * 16)
        e = Experiment.of({"attack": "min-max", "defense": defense, "clients": 4, "malicious": 1})
        found = flags.of_run(e, summarize(records), 16, "here")
        assert [flag.text for flag in found] == [
            "the defense took no decision in 16 rounds and accepted everybody"
        ] * detects

    def test_a_run_without_a_round(self, make_run: MakeRun) -> None:
        assert raised(make_run("a", [], rounds=5).parent) == []


class TestRootMisfit:
    def test_counts_rounds_that_changed_the_model(self) -> None:
        wide = "root data don't fit the clients (limits are 1.7 times as wide)"
        notes = {3: wide, 5: f"sieve cut a step that raised the root loss (to 0.5 of it); {wide}", 6: "another note"}
        records = [record(k, 0.5, malicious=(0,), rejected=(), note=notes.get(k, "")) for k in range(20)]
        records += [record(20, 0.5, malicious=(0,), rejected=(), applied=False, note=wide)]
        e = Experiment.of({"attack": "min-max", "clients": 4, "malicious": 1})
        (flag,) = flags.of_run(e, summarize(records), 21, "here")
        said = "the defense found root data unlike the clients' in 2 of 21 rounds, and claims less"
        assert (flag.name, flag.text) == ("root-misfit", said)

    def test_is_what_sieve_says(self) -> None:
        assert flags.MISFIT == sieve.MISFIT


class TestTruthUnknown:
    @pytest.mark.parametrize(
        ("settings", "malicious", "unknown"),
        [
            ({"attack": "min-max"}, (), True),
            ({"attack": "min-max"}, (0,), False),
            ({"attack": "min-max", "malicious": 0}, (), False),
            ({"attack": "none"}, (), False),
        ],
    )
    def test_raised(self, settings: dict[str, Any], malicious: tuple[int, ...], unknown: bool) -> None:
        records = [record(k, 0.5, malicious=malicious, rejected=()) for k in range(20)]
        e = Experiment.of({"clients": 4, "malicious": 1, **settings})
        found = flags.of_run(e, summarize(records), 20, "here")
        said = (
            "none of 20 records names any of the 1 malicious clients: rejections count as benign clients', and nobody"
        )
        assert [flag.text for flag in found] == [f"{said} as missed"] * unknown

    def test_one_malicious_client_in_one_round_is_enough(self) -> None:
        records = [record(k, 0.5, malicious=(0,) if k == 7 else (), rejected=()) for k in range(20)]
        e = Experiment.of({"attack": "min-max", "clients": 4, "malicious": 1})
        assert flags.of_run(e, summarize(records), 20, "here") == []

    def test_without_settings(self, make_run: MakeRun) -> None:
        path = make_run("a", [], [record(k, 0.5, malicious=()) for k in range(20)], rounds=20)
        (path / "experiment.yaml").unlink()
        (flag,) = raised(path.parent)
        assert flag.line == (
            "truth-unknown: none of 20 records names a malicious client, and settings are unknown: rejections count as "
            f"benign clients', and nobody as missed [{path}]; see docs/flags/truth-unknown.md"
        )


class TestOneSeed:
    def test_cells(self, make_run: MakeRun) -> None:
        made(make_run, "a0", [0.5], attack="none", assumed_malicious=0)
        made(make_run, "a1", [0.5], attack="none", assumed_malicious=0, seed=1)
        for defense in ("median", "krum", "bulyan", "flame"):
            path = made(make_run, defense, [0.5], attack="none", defense=defense, clients=4, assumed_malicious=0)
        (flag,) = raised(path.parent, "one-seed")
        assert flag.text == (
            "digits: 4 of 5 cells have one seed, so their numbers have no spread: bulyan against none, flame "
            "against none, krum against none and 1 more"
        )
        assert [Path(run).name for run in flag.runs] == ["bulyan", "flame", "krum", "median"]

    def test_one_seed_twice_is_one(self, make_run: MakeRun) -> None:
        made(make_run, "a", [0.5], attack="none")
        path = made(make_run, "b", [0.5], attack="none")
        assert len(raised(path.parent, "one-seed")) == 1

    def test_unfinished_runs_have_no_numbers(self, make_run: MakeRun) -> None:
        made(make_run, "a", [0.5], attack="none")
        made(make_run, "b", [0.5], attack="none", seed=1)
        path = make_run("c", [0.5], attack="none", rounds=2, seed=2, defense="median")
        assert raised(path.parent, "one-seed") == []


class TestShown:
    def folder(self, make_run: MakeRun) -> Path:
        made(make_run, "r", [0.75], attack="none")
        return made(make_run, "a", [0.75]).parent

    def test_markdown(self, make_run: MakeRun) -> None:
        assert flags.markdown([]) == ""
        text = flags.markdown(raised(self.folder(make_run)))
        assert text.startswith("## Flags\n\n- harmless-attack: digits: scaling costs the undefended mean +0.0 %")
        assert text.endswith("see docs/flags/one-seed.md\n")

    def test_page(self, make_run: MakeRun, tmp_path: Path) -> None:
        folder = self.folder(make_run)
        write_page(load([folder]), tmp_path / "index.html")
        assert content(tmp_path / "index.html")["flags"] == [flag.as_json() for flag in raised(folder)]

    def test_names_of_a_stranger(self, make_run: MakeRun) -> None:
        path = made(make_run, "[bold]x[/]", [0.75], attack="none")
        settings = yaml.safe_load((path / "experiment.yaml").read_text())
        settings["defense"] = {"name": "| [/]\x1b[2J *a*"}
        (path / "experiment.yaml").write_text(yaml.safe_dump(settings))
        (flag,) = raised(path.parent)
        (line,) = flags.lines([flag])
        assert "\\x1b[2J" in line
        assert "\x1b" not in line + flags.markdown([flag])
        assert "\\| [/]" in flags.markdown([flag])
