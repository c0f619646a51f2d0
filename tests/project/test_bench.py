"""The benchmarks: that every goal has a row, what a verdict is, and that both sides of a ratio compute the same."""

import doctest
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from fedsieve.config import registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if not path.stem.startswith("flower_"))  # need Flower


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of the folder, by name."""
    before = dict(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]


def test_modules_are_found(bench: Any) -> None:
    assert {"bench", "harness", "goals", "gpu", "rules", "growth"} <= set(NAMES)
    assert set(bench.goals.PARTS) <= set(NAMES)


# --- Goals and verdicts --------------------------------------------------------------------------------------


class TestGoals:
    def test_limits(self, bench: Any) -> None:
        limits = {key: goal.limit for key, goal in bench.goals.GOALS.items()}
        wanted = {"gpu mean": 6, "gpu sieve": 12, "gpu skymask": 14, "gpu cifar sieve": 250, "gpu cifar skymask": 250}
        wanted |= {"gpu mean 2500": 15, "gpu sieve 2500": 30, "gpu skymask 2500": 35, "gpu sweep": 3}
        wanted |= {"gpu cifar sieve 500": 125, "gpu cifar skymask 500": 125, "gpu memory": 24, "skymask memory": 24}
        wanted |= {"round plain": 1.15, "round flower": 0.3, "masks": 1.5, "sieve": 0.5, "byzfl": 1 / 3}
        wanted |= {"rule seconds": 2, "rule passes": 3, "har mean": 5, "har sieve": 20, "har skymask": 20}
        wanted |= {"help": 0.5, "list": 0.5, "overhead": 2, "record bytes": 3000, "record load": 1}
        assert {key: limits[key] for key in wanted} == wanted
        assert limits.keys() - wanted.keys() == {
            "growth d",
            "growth n",
            "growth n sorting",
            "growth n pairs",
            "registered",
        }

    def test_each_belongs_to_a_part(self, bench: Any) -> None:
        assert {goal.part for goal in bench.goals.GOALS.values()} == set(bench.goals.PARTS) - {"pairs"}

    @pytest.mark.parametrize(
        ("key", "value", "verdict"),
        [
            ("gpu mean", 6.0, "met"),
            ("gpu mean", 6.1, "missed"),
            ("gpu sweep", 3.0, "met"),
            ("gpu sweep", 2.9, "missed"),
            ("gpu mean", math.inf, "missed"),
            ("gpu mean", math.nan, "missed"),
            ("gpu sweep", math.nan, "missed"),
            ("gpu mean", None, "not run"),
            ("", 6.0, "-"),
        ],
    )
    def test_verdicts(self, bench: Any, key: str, value: float | None, verdict: str) -> None:
        assert bench.harness.Figure("a round", "?", key, value).verdict == verdict


class TestTable:
    def test_nothing_measured_hides_nothing(self, bench: Any) -> None:
        rows = [row for part in bench.goals.PARTS for row in bench.harness.rows(part, None)]
        assert [row[0] for row in rows] == [goal.what for goal in bench.goals.GOALS.values()]
        assert {row[1] for row in rows} == {row[-1] for row in rows} == {"not run"}

    def test_figures_take_the_place_of_their_goal(self, bench: Any) -> None:
        h = bench.harness
        figures = [
            h.Figure("beside it", "7 ms"),
            h.Figure("a", "9 ms", "gpu sieve", 9.0),
            h.Figure("b", "19 ms", "gpu sieve", 19.0, "2 x"),
        ]
        rows = h.rows("gpu", h.Measured(figures))
        goals = [key for key, goal in bench.goals.GOALS.items() if goal.part == "gpu"]
        assert len(rows) == len(goals) + 2  # one goal has two figures, one figure has no goal
        at = goals.index("gpu sieve")
        assert rows[at] == ("a", "9 ms", "-", "<= 12 ms", "met")
        assert rows[at + 1] == ("b", "19 ms", "2 x", "<= 12 ms", "missed")
        assert rows[-1] == ("beside it", "7 ms", "-", "-", "-")
        assert h.counts({"gpu": h.Measured(figures)}) == {"met": 1, "missed": 1, "not run": len(goals) - 1}

    def test_files_keep_parts(self, bench: Any, tmp_path: Path) -> None:
        h, path = bench.harness, tmp_path / "cpu.json"
        assert h.kept(path) == {}
        first = h.Measured([h.Figure("a", "1 s", "list", 1.0, "2 x")], {"on": "a card"}, ["said"], {"n": 3})
        h.keep(path, "startup", first)
        h.keep(path, "rules", h.Measured([]))
        h.keep(path, "rules", h.Measured([h.Figure("b", "2 s", value=math.inf)]))
        found = h.kept(path)
        assert found == {"startup": first, "rules": h.Measured([h.Figure("b", "2 s", value=math.inf)])}
        assert [p.name for p in tmp_path.iterdir()] == ["cpu.json"]

    def test_the_committed_page_is_generated(self, bench: Any) -> None:
        found = bench.bench.figures(bench.bench.CPU, bench.bench.GPU)
        assert bench.bench.PAGE.read_text(encoding="utf-8") == bench.bench.page(found)

    def test_blocks_are_one_part(self, bench: Any) -> None:
        h = bench.harness
        one, two = (h.Measured([h.Figure(k, "1 s")], {"on": "a card"}, [f"note {k}"], {k: 1}) for k in "ab")
        assert h.together({}) is None
        assert h.together({"a": one, "b": two}) == h.Measured(
            [*one.figures, *two.figures], {"on": "a card"}, ["note a", "note b"]
        )
        other = h.Measured(two.figures, {"on": "another"}, two.notes)
        found = h.together({"a": one, "b": other})
        assert found.on == {}
        assert found.notes == ["note a", "note b", "a: a card.", "b: another."]

    def test_a_bar_in_a_cell(self, bench: Any) -> None:
        assert bench.harness.markdown([["a", "b"], ["x|y", "z"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"


# --- Timing --------------------------------------------------------------------------------------------------


class TestTiming:
    def test_in_turn(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        now, calls, costs = [0.0], [], {"a": [1.0, 2.0, 4.0, 3.0], "b": [2.0, 2.0, 2.0, 1.0]}
        monkeypatch.setattr(bench.harness.time, "perf_counter", lambda: now[0])

        def work(name: str) -> None:
            calls.append(name)
            now[0] += costs[name].pop(0)

        times = bench.harness.in_turn({"a": lambda: work("a"), "b": lambda: work("b")}, seconds=3.0)
        assert calls == ["a", "b"] * 4  # the first of each is not counted
        assert times.seconds == {"a": [2.0, 4.0, 3.0], "b": [2.0, 2.0, 1.0]}
        assert times.of("a") == 3.0
        assert times.ratio("a", "b") == 2.0  # of 1, 2 and 3
        assert times.repeats == 3

    def test_what_takes_long_is_called_once(self, bench: Any) -> None:
        calls: list[str] = []
        times = bench.harness.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0)
        assert calls == ["a", "b"]
        assert times.repeats == 1

    @pytest.mark.parametrize("name", ["harness", "growth"])
    def test_examples(self, bench: Any, name: str) -> None:
        module: ModuleType = getattr(bench, name)
        assert doctest.testmod(module).attempted > 0
        assert doctest.testmod(module).failed == 0

    @pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
    def test_exponents(self, bench: Any, power: float) -> None:
        sizes = [50, 100, 200, 400]
        assert bench.growth.exponent(sizes, [3e-4 * n**power for n in sizes]) == pytest.approx(power)

    def test_n_log_n_is_within_the_goal_of_sorting(self, bench: Any) -> None:
        sizes = bench.growth.SIZES_N
        found = bench.growth.exponent(sizes, [n * math.log(n) for n in sizes])
        assert bench.goals.LINEAR < found < bench.goals.SORTING


# --- What is compared ----------------------------------------------------------------------------------------


class TestCompared:
    def test_every_defense_is_timed(self, bench: Any) -> None:
        names = set(registry.names("defenses")) - set(bench.rules.ALIASES)
        assert set(bench.rules.aggregators()) == {n for n in names if registry.stage(n) != "detector"}
        assert {*bench.rules.FEW_PASSES, *bench.rules.COUNTERPARTS} <= set(bench.rules.aggregators())
        assert {*bench.growth.SORTING, *bench.growth.PAIRS, *bench.growth.PARAMETERS} <= names
        assert not set(bench.growth.SORTING) & set(bench.growth.PAIRS)
        assert not set(bench.rules.FEW_PASSES) & {*bench.growth.SORTING, *bench.growth.PAIRS}

    def test_every_defense_runs_on_the_case(self, bench: Any) -> None:
        case = bench.rules.Case.of(11, 1000, 2)
        assert case.updates.matrix.shape == (11, case.root.layout.size)
        assert abs(case.root.layout.size - 1000) < 100
        for name in registry.names("defenses"):
            result = bench.rules.work(case, name, bench.growth.PARAMETERS.get(name))()
            assert torch.isfinite(result.update).all(), name

    def test_the_plain_loop_is_the_same_round(self, bench: Any) -> None:
        """With batches that hold all of a client's samples, whose order means nothing."""
        local = {"batch_size": 1000, "learning_rate": 0.1}
        simulated = bench.inputs.simulation("fashion-mnist", defense="mean", small=True, clients=4, local=local)
        loop = bench.rounds.plain_loop(simulated)
        state, layout = simulated.initial.server, simulated.trainer.model.layout
        ours = simulated.trainer.updates(state.params, simulated.holdings.clients, 0)
        torch.testing.assert_close(loop.train(), ours, rtol=1e-4, atol=1e-6)
        after, _ = simulated.run_round(simulated.initial)
        loop.round()
        moved = layout.flatten({name: p.detach() for name, p in loop.module.named_parameters()})
        torch.testing.assert_close(moved, after.server.params, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(moved, state.params, rtol=1e-4, atol=1e-6)

    def test_the_plain_loop_evaluates_the_same(self, bench: Any) -> None:
        simulated = bench.inputs.simulation("fashion-mnist", defense="mean", small=True, clients=4)
        after, record = simulated.run_round(simulated.initial)
        loop, tensors = (
            bench.rounds.plain_loop(simulated),
            simulated.trainer.model.layout.unflatten(after.server.params),
        )
        with torch.no_grad():
            for name, parameter in loop.module.named_parameters():
                parameter.copy_(tensors[name])
        accuracy, loss = loop.evaluate()
        assert accuracy == pytest.approx(record.test_accuracy)
        assert loss == pytest.approx(record.test_loss, rel=1e-4)

    def test_random_samples_are_the_same_again_and_can_be_learned(self, bench: Any) -> None:
        made = bench.inputs.Samples(shape=(20,), classes=3, train=300, test=60, people=5)
        data = made.load(Path(), torch.Generator())
        assert data.x_train.shape == (300, 20)
        assert data.x_test.shape == (60, 20)
        assert torch.equal(data.x_train, made.load(Path(), torch.Generator().manual_seed(5)).x_train)
        assert data.owners is not None
        assert data.owners.bincount().tolist() == [60] * 5
        centres = torch.stack([data.x_train[data.y_train == k].mean(dim=0) for k in range(3)])
        nearest = torch.cdist(data.x_test, centres).argmin(dim=1)
        assert (nearest == data.y_test).double().mean() > 0.9

    def test_masks_take_all_steps(self, bench: Any) -> None:
        simulated, updates, state = bench.detectors.a_round("skymask", small=True, clients=4)
        root = simulated.server.root(state.params, state.round)
        bench.detectors.masks(updates.matrix, state.params, root, 2)
        bench.detectors.floor(updates.matrix, state.params, root, 2)
        with pytest.raises(RuntimeError, match="of 2 steps"):
            bench.detectors.masks(torch.zeros_like(updates.matrix), state.params, root, 2)


# --- On a GPU ------------------------------------------------------------------------------------------------


def event(name: str, start: float, end: float, own: float = 0.0, gpu: bool = False) -> SimpleNamespace:
    kind = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start, end=end), device_type=kind, self_cpu_time_total=own
    )


class TestProfile:
    def test_phases(self, bench: Any) -> None:
        events = [
            event("phase train", 0, 2000),
            event("phase defend", 3000, 5000),
            event("phase train", 6000, 7000),
            event("aten::conv2d", 100, 300, own=200),
            event("cudaLaunchKernel", 150, 160, own=10),
            event("a kernel", 200, 700, gpu=True),
            event("aten::item", 3100, 3200, own=50),
            event("cudaStreamSynchronize", 3150, 3190, own=40),
            event("cudaMemcpyAsync", 3110, 3120, own=10),
            event("aten::conv2d", 6100, 6200, own=100),
            event("cudaLaunchKernelExC", 6150, 6160, own=10),
            event("aten::add", 5500, 5600, own=100),
        ]
        found = bench.gpu.by_phase(events, rounds=2)
        assert set(found) == {"train", "defend", "elsewhere"}
        train = {k: v for k, v in found["train"].items() if k != "operations"}
        assert train == {
            "ms": 1.5,
            "kernels, ms": 0.25,
            "operations called": 1,
            "launches": 1,
            "waits": 0,
            "copies": 0,
        }
        assert found["train"]["operations"][0] == ("aten::conv2d", (pytest.approx(0.15), 1))
        assert (found["defend"]["waits"], found["defend"]["copies"], found["defend"]["launches"]) == (0.5, 0.5, 0)
        assert found["elsewhere"]["operations called"] == 0.5

    def test_a_defense_that_trains_is_still_the_defense(self, bench: Any) -> None:
        rounds = bench.inputs.Rounds(bench.inputs.simulation("har", defense="sieve", small=True, clients=4))
        before = [(owner, name) for owner, name in ((bench.gpu.Trainer, "updates"), (bench.gpu.Server, "step"))]
        originals = [getattr(owner, name) for owner, name in before]
        with bench.gpu.phases(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            rounds.play(1)
        assert [getattr(owner, name) for owner, name in before] == originals
        names = [e.name for e in profiler.events() if e.name.startswith("phase ")]
        assert sorted(names) == sorted({*names})  # once each
        assert {"phase train", "phase defend", "phase evaluate"} <= set(names)
        found = bench.gpu.by_phase(profiler.events(), rounds=1)
        assert found["train"]["operations called"] > 0
        assert found["defend"]["operations called"] > found["train"]["operations called"]
