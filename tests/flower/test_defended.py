"""The defended strategy: what a round makes of honest replies, and what stays the wrapped strategy's."""

from typing import Any

import pytest

pytest.importorskip("flwr")

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedYogi,
)
from torch import Tensor, nn

from fedsieve.aggregators.krum import Krum
from fedsieve.core.defense import Aggregate, ServerView, Updates
from fedsieve.core.errors import BoundError, FedSieveError
from fedsieve.detectors.fldetector import FLDetector
from fedsieve.flower import Defended
from fedsieve.flower.stepping import check_wrapped
from tests.flower.federation import (
    FIRST,
    Nodes,
    content,
    everyone,
    honest,
    ids,
    normalised,
    one_round,
    quiet,
    small,
    trained,
)

X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3


def sent_by(n: int, arrays: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """What the honest nodes send in round 1."""
    found: list[dict[str, Tensor]] = []

    def note(messages: list[Message]) -> list[Any]:
        found.extend(trained(message) for message in messages)
        return everyone(messages)

    one_round(Defended(quiet(), "mean"), arrays, note, n)
    return found


class TestModel:
    def test_the_mean_is_the_mean(self) -> None:
        model, metrics = one_round(Defended(quiet(), "mean"), small(), everyone)
        sent = sent_by(5, small())
        for name, old in small().items():
            expected = old + torch.stack([s[name] - old for s in sent]).mean(dim=0)
            torch.testing.assert_close(model[name], expected, rtol=0, atol=1e-6)
        assert metrics == {
            "loss": 1.0,
            "accepted": 5,
            "rejected": 0,
            "dropped": 0,
            "silent": 0,
            "applied": 1,
            "rejected-clients": [],
            "dropped-clients": [],
            "silent-clients": [],
        }

    def test_names_types_and_order_are_those_sent(self) -> None:
        arrays = {
            "z": torch.ones(2, 2, dtype=torch.float64),
            "a": torch.ones(3, dtype=torch.float16),
            "counts": torch.tensor([1, 2], dtype=torch.int32),
            "scalar": torch.tensor(1.5),
            "none": torch.zeros(0, 4),
        }
        model, _ = one_round(Defended(quiet(), "median"), arrays, everyone)
        assert {k: (t.dtype, t.shape) for k, t in model.items()} == {k: (t.dtype, t.shape) for k, t in arrays.items()}
        assert list(model) == list(arrays)
        assert torch.equal(model["counts"], arrays["counts"])
        sent = sent_by(5, arrays)
        expected = torch.stack([s["z"] for s in sent]).median(dim=0).values
        torch.testing.assert_close(model["z"], expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("with_module", [True, False])
    def test_statistics_are_apart_and_counters_stay(self, with_module: bool) -> None:
        module = normalised()
        arrays = dict(module.state_dict())

        def extreme(messages: list[Message]) -> list[Any]:
            """One of five sends ordinary parameters and a variance of 1e4."""
            replies = everyone(messages)
            bad = trained(messages[0])
            bad["1.running_var"] = bad["1.running_var"] + 1e4
            replies[0] = Message(content(bad), reply_to=messages[0])
            return replies

        defended = Defended(quiet(), "median", module=module if with_module else None)
        model, _ = one_round(defended, arrays, extreme)
        sent = sent_by(5, arrays)
        assert int(model["1.num_batches_tracked"]) == 0
        assert (model["1.running_var"] - 1).abs().max() < 0.5
        expected = torch.stack([s["0.weight"] for s in sent]).median(dim=0).values
        torch.testing.assert_close(model["0.weight"], expected, rtol=0, atol=1e-6)
        assert list(model) == list(arrays)

    def test_a_list_of_arrays_is_a_module_in_order(self) -> None:
        module = normalised()
        named, _ = one_round(Defended(quiet(), "median", module=module), dict(module.state_dict()), everyone)
        numbered = {str(k): t for k, t in enumerate(module.state_dict().values())}
        model, _ = one_round(Defended(quiet(), "median", module=module), numbered, everyone)
        assert list(model) == list(numbered)
        assert all(torch.equal(a, b) for a, b in zip(model.values(), named.values(), strict=True))

    def test_tied_weights_stay_tied_and_frozen_ones_stay(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second, self.fixed = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
                self.second.weight = self.first.weight
                self.fixed.requires_grad_(False)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.second(self.fixed(self.first(x)))
                return y

        module = Tied()
        arrays = {k: t + (1 if k == "fixed.weight" else 0) for k, t in module.state_dict().items()}
        model, _ = one_round(Defended(quiet(), "mean", module=module), arrays, everyone)
        assert torch.equal(model["first.weight"], model["second.weight"])
        assert not torch.equal(model["first.weight"], arrays["first.weight"])
        assert torch.equal(model["fixed.weight"], arrays["fixed.weight"])

    def test_arrays_in_columns(self) -> None:
        columns = {k: Array(np.asfortranarray(t.numpy())) for k, t in small().items()}

        def turned(messages: list[Message]) -> list[Any]:
            replies = everyone(messages)
            for reply, message in zip(replies, messages, strict=True):
                arrays = {k: Array(np.asfortranarray(t.numpy())) for k, t in trained(message).items()}
                reply.content["arrays"] = ArrayRecord(arrays)
            return replies

        straight, _ = one_round(Defended(quiet(), "mean"), small(), everyone)
        model, _ = one_round(Defended(quiet(), "mean"), small(), turned)
        assert all(torch.equal(model[k], straight[k]) for k in straight)
        defended = Defended(quiet(), "mean")
        grid = Nodes(ids(5), honest)
        messages = list(defended.configure_train(1, ArrayRecord(columns), ConfigRecord(), grid))
        found, _ = defended.aggregate_train(1, turned(sorted(messages, key=lambda m: m.metadata.dst_node_id)))
        assert found is not None
        assert all(torch.equal(t, straight[k]) for k, t in found.to_torch_state_dict().items())

    def test_the_order_of_replies_does_not_matter(self) -> None:
        straight, _ = one_round(Defended(quiet(), "mean"), small(), everyone, 7)
        turned, _ = one_round(Defended(quiet(), "mean"), small(), lambda m: everyone(m)[::-1], 7)
        assert all(torch.equal(turned[k], straight[k]) for k in straight)


class TestWrappedStrategy:
    @pytest.mark.parametrize("kind", [FedAdam, FedYogi, FedAdagrad])
    def test_its_own_step_is_taken(self, kind: Any) -> None:
        """Without statistics, a defended mean is what the stock strategy makes of clients with equal counts."""
        stock, defended = kind(eta=0.3), Defended(kind(eta=0.3), "mean")
        grid = Nodes(ids(5), honest)
        theirs = ours = ArrayRecord(small())
        for k in (1, 2, 3):
            for_stock = list(stock.configure_train(k, theirs, ConfigRecord(), grid))
            for_us = list(defended.configure_train(k, ours, ConfigRecord(), grid))
            theirs, _ = stock.aggregate_train(k, everyone(for_stock))
            found, _ = defended.aggregate_train(k, everyone(for_us))
            assert found is not None
            ours = found
        for name, array in theirs.items():
            np.testing.assert_allclose(ours[name].numpy(), array.numpy(), rtol=0, atol=2e-5)
            assert ours[name].dtype == "float32"

    def test_one_that_fails_is_left_out_once_and_is_as_it_was(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(FedAvg):
            steps = 0

            def aggregate_train(self, server_round: int, replies: Any) -> Any:
                self.steps += 1
                raise ZeroDivisionError("no")

        straight, _ = one_round(Defended(quiet(), "mean"), small(), everyone)
        broken = Broken()
        model, metrics = one_round(Defended(broken, "mean"), small(), everyone)
        assert all(torch.equal(model[k], straight[k]) for k in straight)
        assert (broken.steps, metrics["loss"], metrics["applied"]) == (0, 1.0, 1)
        assert "Broken failed on the aggregate, which is the model now: ZeroDivisionError: no" in caplog.text

    @pytest.mark.parametrize("wrong", ["nothing", "names", "shapes", "nan"])
    def test_one_that_returns_no_model(self, wrong: str, caplog: pytest.LogCaptureFixture) -> None:
        class Odd(FedAvg):
            def aggregate_train(self, server_round: int, replies: Any) -> Any:
                arrays = {
                    "nothing": None,
                    "names": ArrayRecord({"weight": Array(np.zeros((2, 3), np.float32))}),
                    "shapes": ArrayRecord({k: Array(np.zeros(9, np.float32)) for k in small()}),
                    "nan": ArrayRecord({k: Array(np.full(t.shape, np.nan, np.float32)) for k, t in small().items()}),
                }[wrong]
                return arrays, None

        straight, _ = one_round(Defended(quiet(), "mean"), small(), everyone)
        model, _ = one_round(Defended(Odd(), "mean"), small(), everyone)
        assert all(torch.equal(model[k], straight[k]) for k in straight)
        assert "Odd failed on the aggregate" in caplog.text

    def test_its_function_of_metrics_sees_all_accepted_replies_once(self) -> None:
        seen: list[list[RecordDict]] = []

        def function(contents: list[RecordDict], key: str) -> MetricRecord:
            seen.append(contents)
            return MetricRecord({"most": max(float(c["metrics"]["loss"]) for c in contents)})

        def replies(messages: list[Message]) -> list[Any]:
            return [Message(content(trained(m), 10, loss=float(k)), reply_to=m) for k, m in enumerate(messages)]

        strategy = FedAvg(train_metrics_aggr_fn=function)
        _, metrics = one_round(Defended(strategy, "mean"), small(), replies)
        assert metrics["most"] == 4.0
        assert [len(contents) for contents in seen] == [5]
        assert strategy.train_metrics_aggr_fn is function

    def test_sampling_and_configuration_are_its_own(self) -> None:
        as_asked = Defended(FedAvg(fraction_train=0.5, arrayrecord_key="model"), "mean")
        config = ConfigRecord({"lr": 0.5})
        grid = Nodes(ids(8), honest)
        messages = list(as_asked.configure_train(3, ArrayRecord(small()), config, grid))
        assert len(messages) == 4
        assert all(m.content["config"]["lr"] == 0.5 and m.content["config"]["server-round"] == 3 for m in messages)
        assert all("model" in m.content.array_records for m in messages)

    def test_no_training(self) -> None:
        defended = Defended(FedAvg(fraction_train=0.0, min_train_nodes=0, min_available_nodes=0), "mean")
        grid = Nodes(ids(4), honest)
        assert list(defended.configure_train(1, ArrayRecord(small()), ConfigRecord(), grid)) == []
        assert defended.aggregate_train(1, []) == (None, None)

    def test_privacy_around_it(self) -> None:
        wrapped = DifferentialPrivacyServerSideFixedClipping(Defended(quiet(), "mean"), 0.0, 1e6, 5)
        grid = Nodes(ids(5), honest)
        messages = list(wrapped.configure_train(1, ArrayRecord(small()), ConfigRecord(), grid))
        model, _ = wrapped.aggregate_train(1, everyone(messages))
        straight, _ = one_round(Defended(quiet(), "mean"), small(), everyone)
        assert model is not None
        for name, array in model.items():
            np.testing.assert_allclose(array.numpy(), straight[name].numpy(), atol=1e-5)

    def test_a_whole_run(self, caplog: pytest.LogCaptureFixture) -> None:
        defended = Defended(FedAvg(), "mean")
        grid = Nodes(ids(6), honest)
        caplog.set_level("INFO", "flwr")
        result = defended.start(
            grid, ArrayRecord(small()), num_rounds=3, evaluate_fn=lambda k, _: MetricRecord({"accuracy": k / 10})
        )
        assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
        evaluated = {k: v["accuracy"] for k, v in result.evaluate_metrics_clientapp.items()}
        assert evaluated == pytest.approx({1: 0.5, 2: 0.5, 3: 0.5})
        assert result.evaluate_metrics_serverapp[3]["accuracy"] == 0.3
        assert [d.round for d in defended.decisions] == [1, 2, 3]
        assert defended.nodes == tuple(ids(6))
        assert "fedsieve: round 2: 6 accepted, 0 rejected, 0 dropped, 0 silent" in caplog.text
        assert "Received 1 results" not in caplog.text
        again = defended.start(grid, result.arrays, num_rounds=2)
        assert sorted(again.train_metrics_clientapp) == [1, 2]
        assert [d.round for d in defended.decisions] == [1, 2, 3, 4, 5]


class TestDefense:
    def test_who_is_rejected(self, caplog: pytest.LogCaptureFixture) -> None:
        def attacked(messages: list[Message]) -> list[Any]:
            replies = everyone(messages)
            for k in (2, 3):
                moved = {name: t + 20 for name, t in trained(messages[k]).items()}
                replies[k] = Message(content(moved, 10, loss=99.0), reply_to=messages[k])
            return replies

        caplog.set_level("INFO", "flwr")
        defended = Defended(quiet(), "tolpegin")
        _, metrics = one_round(defended, small(), attacked, 8)
        (decision,) = defended.decisions
        assert sorted(decision.rejected) == [FIRST + 2, FIRST + 3]
        assert sorted(decision.accepted) == [FIRST + k for k in (0, 1, 4, 5, 6, 7)]
        assert (metrics["rejected"], metrics["rejected-clients"]) == (2, [2, 3])
        assert metrics["loss"] == pytest.approx(1.0)
        assert f"fedsieve: rejected node {FIRST + 2}" in caplog.text

    @pytest.mark.parametrize(
        "defense",
        [
            "sieve",
            "fltrust",
            "skymask",
            "fldetector",
            {"name": "trimmed-mean", "trim": 1},
            ["norm-clipping", {"name": "multi-krum"}],
            "momentum,median",
            Krum(),
            FLDetector(),
        ],
        ids=str,
    )
    def test_every_form_of_defense(self, defense: Any) -> None:
        module = normalised()
        root = {"root": (X, Y), "local": {"learning_rate": 0.1}} if defense in ("sieve", "fltrust", "skymask") else {}
        defended = Defended(quiet(), defense, module=module, assumed_malicious=1, **root)
        arrays: ArrayRecord = ArrayRecord(module.state_dict())
        grid = Nodes(ids(8), honest)
        result = defended.start(grid, arrays, num_rounds=3)
        assert [d.applied for d in defended.decisions] == [True] * 3
        assert not torch.equal(result.arrays.to_torch_state_dict()["0.weight"], module.state_dict()["0.weight"])

    def test_a_defense_that_raises_leaves_the_model(self, caplog: pytest.LogCaptureFixture) -> None:
        class Fragile:
            def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
                raise IndexError("out of range")

        model, metrics = one_round(Defended(quiet(), Fragile()), small(), everyone)
        assert all(torch.equal(model[k], t) for k, t in small().items())
        assert metrics["applied"] == 0
        assert "the defense failed: IndexError: out of range" in caplog.text

    def test_it_gets_what_it_needs(self) -> None:
        seen: list[ServerView] = []

        class Curious:
            def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
                seen.append(view)
                assert view.network is not None
                assert view.root is not None
                assert view.network.logits(view.global_params, X).shape == (60, 3)
                n = len(updates.matrix)
                return Aggregate(view.root.update(), torch.full((n,), 1 / n), state=len(seen))

        module = normalised()
        defended = Defended(
            quiet(), Curious(), module=module, root=(X, Y), local={"epochs": 2, "batch_size": 5}, seed=3
        )
        arrays = {k: t + 0.25 if t.is_floating_point() else t for k, t in module.state_dict().items()}
        one_round(defended, arrays, everyone)
        one_round(defended, arrays, everyone)
        assert (seen[0].round, seen[1].round, seen[0].n_malicious, seen[1].state) == (0, 1, 1, 1)
        flat = torch.cat([arrays[k].flatten() for k in ("0.weight", "0.bias")])
        assert torch.equal(seen[0].global_params[: len(flat)], flat)
        # 10 samples in batches of 5, twice: 4 steps, as the median client makes, and not 24
        trainer = seen[0].root.root.trainer  # type: ignore[union-attr]
        assert (trainer.settings.steps, trainer.settings.epochs, trainer.seed) == (4, None, 3)

    def test_bounds(self) -> None:
        with pytest.raises(BoundError, match="krum"):
            one_round(Defended(quiet(), "krum", assumed_malicious=2), small(), everyone, 5)
        model, _ = one_round(Defended(quiet(), "krum", assumed_malicious=0.4), small(), everyone, 5)
        assert not torch.equal(model["weight"], small()["weight"])

    def test_server_optimizer(self) -> None:
        whole, _ = one_round(Defended(quiet(), "mean"), small(), everyone)
        half, _ = one_round(Defended(quiet(), "mean", server_learning_rate=0.5), small(), everyone)
        sgd = {"name": "SGD", "momentum": 0.9}
        by_sgd, _ = one_round(Defended(quiet(), "mean", server_learning_rate=0.5, optimizer=sgd), small(), everyone)
        for name, old in small().items():
            torch.testing.assert_close(half[name] - old, (whole[name] - old) / 2)
            torch.testing.assert_close(by_sgd[name], half[name])


class TestWeights:
    def replies(self, *samples: Any) -> Any:
        def made(messages: list[Message]) -> list[Any]:
            return [
                Message(content({k: t + i for k, t in small().items()}, n, loss=float(i)), reply_to=m)
                for i, (m, n) in enumerate(zip(messages, samples, strict=True))
            ]

        return made

    def test_counts_have_no_effect_by_default(self) -> None:
        equal, _ = one_round(Defended(quiet(), "mean"), small(), self.replies(10, 10, 10, 10, 10))
        other, _ = one_round(Defended(quiet(), "mean"), small(), self.replies(1, 10**9, 10, 10, 3))
        assert all(torch.equal(equal[k], other[k]) for k in equal)

    def test_counts_are_capped(self) -> None:
        defended = Defended(quiet(), "mean", weighting="samples", weight_cap=2)
        model, metrics = one_round(defended, small(), self.replies(10, 10, 20, 30, 10**9))
        # 1e9 counts as twice the median, 40: (0 * 10 + 1 * 10 + 2 * 20 + 3 * 30 + 4 * 40) / 110
        torch.testing.assert_close(model["bias"], small()["bias"] + 300 / 110)
        assert metrics["loss"] == pytest.approx(300 / 110)

    def test_behind_a_detector(self) -> None:
        defended = Defended(quiet(), "fldetector", weighting="samples")
        model, _ = one_round(defended, small(), self.replies(10, 10, 20, 30, 40))
        torch.testing.assert_close(model["bias"], small()["bias"] + 300 / 110)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"strategy": Defended(FedAvg(), "mean")}, "strategy is defended already"),
            ({"defense": "kurm"}, "krum"),
            ({"defense": 3}, "defense must be a name, a mapping with a name, a list of these, or an aggregator"),
            ({"defense": Krum}, "defense must be a name"),
            ({"defense": "sieve"}, "sieve needs root data: give root=.x, y., module= and local=; without them, use "),
            ({"defense": "sieve", "module": normalised()}, "sieve needs root data"),
            ({"defense": "deepsight", "module": normalised()}, "deepsight runs the model"),
            ({"root": (X, Y)}, "root= needs module="),
            ({"module": nn.ReLU()}, "ReLU can't be a federated model"),
            ({"local": {"steps": 3}}, "no effect without root="),
            ({"module": normalised(), "root": (X, Y), "local": {"rate": 3}}, "rate"),
            ({"module": normalised(), "root": (X, Y), "local": {"steps": 0}}, "steps"),
            ({"module": normalised(), "root": (X[:, :2], Y)}, "shape"),
            ({"module": normalised(), "root": (X, Y + 7)}, "y must be in 0 to 2"),
            ({"module": normalised(), "root": 5}, "root is a pair"),
            ({"module": normalised(), "root": [{"text": 1}] * 4}, "a sample of root has text"),
            ({"assumed_malicious": -1}, "assumed_malicious must be"),
            ({"assumed_malicious": 1.0}, "assumed_malicious must be"),
            ({"server_learning_rate": 0.0}, "learning_rate"),
            ({"optimizer": "Adamm"}, "unknown optimizer"),
            ({"weighting": "counts"}, "weighting must be 'equal' or 'samples'"),
            ({"weighting": "samples", "defense": "krum"}, "ends in Krum, which decides by itself"),
            ({"weight_cap": 0.5}, "weight_cap must be"),
            ({"min_replies": 0}, "min_replies must be"),
            ({"seed": -1}, "seed must be"),
        ],
    )
    def test_of_the_constructor(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(FedSieveError, match=said) as error:
            Defended(**{"strategy": FedAvg(), "defense": "mean", **options})
        assert "\n" not in str(error.value)

    def test_no_strategy(self) -> None:
        with pytest.raises(FedSieveError, match=r"strategy must be a strategy of flwr\.serverapp"):
            check_wrapped("fedavg")

    def test_privacy_inside_it(self) -> None:
        inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 5)
        with pytest.raises(FedSieveError, match="wrap the other way round"):
            Defended(inner, "mean")

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({}, "no floating-point numbers"),
            ({"trees": np.zeros(9, np.uint8)}, "no floating-point numbers that can be aggregated, only trees"),
            ({"a": np.zeros(3, np.complex64)}, "array a is complex64"),
            ({"a": np.array([1.0, np.nan])}, "the server's own model is not finite: array a"),
            ({"bn.running_mean": np.zeros(3)}, "only running statistics"),
        ],
    )
    def test_of_a_model(self, arrays: dict[str, Any], said: str) -> None:
        record = ArrayRecord({k: Array(a) for k, a in arrays.items()})
        with pytest.raises(FedSieveError, match=said):
            Defended(quiet(), "mean").start(Nodes(ids(3), honest), record)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda a: a.pop("0.bias"), "the arrays are not those of Sequential: missing 0.bias"),
            (lambda a: a.update(more=a["0.bias"]), "unknown more"),
            (lambda a: a.update({"0.bias": a["3.bias"]}), "0.bias has shape"),
            (lambda a: a.update({"0.bias": a["0.bias"].long()}), "0.bias is int64"),
        ],
    )
    def test_of_arrays_that_are_not_the_modules(self, change: Any, said: str) -> None:
        arrays = dict(normalised().state_dict())
        change(arrays)
        with pytest.raises(FedSieveError, match=said):
            one_round(Defended(quiet(), "mean", module=normalised()), arrays, everyone)

    def test_aggregation_without_configuration(self, caplog: pytest.LogCaptureFixture) -> None:
        assert Defended(quiet(), "mean").aggregate_train(1, []) == (None, None)
        assert "without configure_train" in caplog.text


class TestRoot:
    @pytest.mark.parametrize(
        "form",
        [
            (X, Y),
            [X.numpy(), Y.numpy()],
            lambda: (X, Y),
            torch.utils.data.TensorDataset(X, Y),
            torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=7),
            [{"img": x, "label": int(y)} for x, y in zip(X, Y, strict=True)],
            [(x.tolist(), int(y)) for x, y in zip(X, Y, strict=True)],
            torch.utils.data.DataLoader([{"image": x, "label": y} for x, y in zip(X, Y, strict=True)], batch_size=8),
        ],
        ids=["pair", "arrays", "function", "dataset", "loader", "mappings", "lists", "loader of mappings"],
    )
    def test_every_form(self, form: Any) -> None:
        options = {"local": {"learning_rate": 0.1, "steps": 2}, "seed": 0}
        module = normalised()
        expected, _ = one_round(
            Defended(quiet(), "root-only", module=module, root=(X, Y), **options), dict(module.state_dict()), everyone
        )
        found, _ = one_round(
            Defended(quiet(), "root-only", module=module, root=form, **options), dict(module.state_dict()), everyone
        )
        assert all(torch.equal(found[k], expected[k]) for k in expected)
