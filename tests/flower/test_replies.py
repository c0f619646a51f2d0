"""Malformed replies: each is dropped with its reason, and the round is that of the others alone."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("flwr")

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsieve.flower import Defended
from tests.flower.federation import FIRST, Nodes, content, everyone, honest, ids, one_round, quiet, raw, small, trained
from tests.flower.messages import sent_to

Change = Callable[[Message, Message], Any]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(text: str, numbers: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with a header of one's own."""
    line = text.encode() + b"\n"
    size = len(line).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + line + numbers


def array(data: bytes, **other: Any) -> Change:
    """A reply in which ``weight`` has these bytes."""

    def change(reply: Message, message: Message) -> Message:
        reply.content["arrays"]["weight"] = raw("float32", (2, 3), data, **other)
        return reply

    return change


def numbers(values: Any) -> Change:
    return array(npy(np.asarray(values)))


def samples(value: Any) -> Change:
    def change(reply: Message, message: Message) -> Message:
        reply.content["metrics"]["num-examples"] = value
        return reply

    return change


def records(edit: Callable[[RecordDict], Any]) -> Change:
    def change(reply: Message, message: Message) -> Message:
        edit(reply.content)
        return reply

    return change


def with_value(value: float, place: int = 0) -> Any:
    found = np.ones((2, 3), np.float32)
    found.flat[place] = value
    return found


class Bomb:
    """What a pickle in an array would do if anybody read it."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/fedsieve-was-here"),)


class Hostile:
    """No message at all: every attribute raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}\nfor you")


GOOD = npy(np.ones((2, 3), np.float32))
NUMBERS = GOOD[-24:]
MALFORMED: dict[str, tuple[Change, str]] = {
    "not a message": (lambda r, m: 3, "can't be read: AttributeError: 'int' object has no attribute 'metadata'"),
    "hostile object": (lambda r, m: Hostile(), "can't be read: RuntimeError: no metadata for you"),
    "error": (lambda r, m: Message(Error(7, "out of\nmemory"), reply_to=m), "error 7: out of memory"),
    "error without reason": (lambda r, m: Message(Error(2), reply_to=m), "error 2: None"),
    "empty": (lambda r, m: Message(RecordDict(), reply_to=m), "0 array records, 1 expected"),
    "no arrays": (records(lambda c: c.pop("arrays")), "0 array records, 1 expected"),
    "two arrays": (records(lambda c: c.update(more=ArrayRecord(small()))), "2 array records, 1 expected"),
    "no metrics": (records(lambda c: c.pop("metrics")), "0 metric records, 1 expected"),
    "two metrics": (records(lambda c: c.update(more=MetricRecord({"a": 1}))), "2 metric records, 1 expected"),
    "no samples": (records(lambda c: c["metrics"].pop("num-examples")), "no num-examples in its metrics"),
    "negative": (samples(-5), "num-examples is -5, expected more than 0 and at most 9.0072e+15"),
    "zero": (samples(0), "num-examples is 0, expected more than 0"),
    "zero float": (samples(0.0), "num-examples is 0, expected more than 0"),
    "huge": (samples(2**62), "num-examples is 4.61169e+18, expected more than 0"),
    "not a number": (samples(float("nan")), "num-examples is nan"),
    "infinite": (samples(float("inf")), "num-examples is inf"),
    "list": (samples([10, 10]), "num-examples is a list, expected a number"),
    "empty list": (samples([]), "num-examples is a list"),
    "missing array": (records(lambda c: c["arrays"].pop("bias")), "no array bias; 1 arrays, 2 expected"),
    "extra array": (
        records(lambda c: c["arrays"].update(more=Array(np.ones(1)))),
        "an array more that was not sent; 3 arrays, 2 expected",
    ),
    "renamed": (records(lambda c: c["arrays"].update(b=c["arrays"].pop("bias"))), "no array bias"),
    "turned": (numbers(np.ones((3, 2), np.float32)), "array weight is float32 [3, 2], expected float32 [2, 3]"),
    "flat": (numbers(np.ones(6, np.float32)), "array weight is float32 [6], expected float32 [2, 3]"),
    "scalar": (numbers(np.float32(1)), "array weight is float32 [], expected float32 [2, 3]"),
    "larger": (numbers(np.ones((200, 300), np.float32)), "array weight is of 240128 bytes, 24 and a header of at most"),
    "double": (numbers(np.ones((2, 3))), "array weight is float64 [2, 3], expected float32 [2, 3]"),
    "integers": (numbers(np.ones((2, 3), np.int32)), "array weight is int32 [2, 3]"),
    "complex": (numbers(np.ones((2, 3), np.complex64)), "array weight is complex64 [2, 3]"),
    "text": (numbers(np.full((2, 3), "a")), "array weight is <U1 [2, 3]"),
    "records": (numbers(np.zeros((2, 3), [("a", "<f4")])), "array weight is [('a', '<f4')] [2, 3]"),
    "nan": (numbers(with_value(np.nan)), "not finite: 1 of 6 numbers of array weight"),
    "all nan": (numbers(np.full((2, 3), np.nan, np.float32)), "not finite: 6 of 6 numbers of array weight"),
    "infinity": (numbers(with_value(-np.inf, 5)), "not finite: 1 of 6 numbers of array weight"),
    "objects": (numbers(np.array([[Bomb()] * 3] * 2, dtype=object)), "array weight holds Python objects"),
    "a pickle": (array(pickle.dumps(Bomb())), "array weight is no .npy file that can be read"),
    "an archive": (array(b"PK\x03\x04" + b"0" * 60), "array weight is no .npy file that can be read"),
    "no bytes": (array(b""), "array weight is no .npy file that can be read"),
    "noise": (array(bytes(range(200))), "array weight is no .npy file that can be read"),
    "header alone": (array(GOOD[:-24]), "array weight has 0 bytes of numbers, expected 24"),
    "cut": (array(GOOD[:-1]), "array weight has 23 bytes of numbers, expected 24"),
    "cut header": (array(GOOD[:20]), "array weight is no .npy file"),
    "longer": (array(GOOD + b"\0"), "array weight has 25 bytes of numbers, expected 24"),
    "much longer": (array(GOOD + bytes(10**6)), "array weight is of 1000152 bytes"),
    "claims much": (
        array(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000)}", NUMBERS)),
        "array weight is float32 [1000000000000, 1000000], expected float32 [2, 3]",
    ),
    "claims less than nothing": (
        array(header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}", NUMBERS)),
        "array weight is float32 [-2, -3]",
    ),
    "no literal": (
        array(header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, __import__('os'))}", NUMBERS)),
        "array weight is no .npy file that can be read",
    ),
    "deep header": (array(header("(" * 1500 + ")" * 1500, NUMBERS)), "array weight is no .npy file that can be read"),
    "long header": (array(header("{}" + " " * 60000, NUMBERS)), "array weight is of 60037 bytes"),
    "unknown version": (array(b"\x93NUMPY\x09\x00" + GOOD[8:]), "array weight is no .npy file"),
    "other bytes": (array(GOOD, stype="torch.Tensor"), "array weight is serialised as 'torch.Tensor'"),
}


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("defense", ["mean", "krum"])
def test_each_kind_is_dropped_alone(kind: str, defense: str, caplog: pytest.LogCaptureFixture) -> None:
    change, reason = MALFORMED[kind]
    expected, _ = one_round(
        Defended(quiet(), defense, assumed_malicious=1), small(), lambda m: everyone(m)[:2] + everyone(m)[3:], 6
    )

    def replies(messages: list[Message]) -> list[Any]:
        found = everyone(messages)
        found[2] = change(found[2], messages[2])
        return found

    caplog.set_level("INFO", "flwr")
    defended = Defended(quiet(), defense, assumed_malicious=1)
    model, metrics = one_round(defended, small(), replies, 6)
    assert all(torch.equal(model[name], expected[name]) for name in expected)
    (dropped,) = defended.decisions[0].dropped
    assert dropped.reason.startswith(reason)
    assert len(dropped.reason) <= 120
    nobody = kind in ("not a message", "hostile object")
    assert dropped.node == (None if nobody else FIRST + 2)
    assert metrics["dropped"] == 1
    assert metrics["dropped-clients"] == ([] if nobody else [2])
    assert metrics["silent-clients"] == ([2] if nobody else [])
    assert reason.partition(";")[0] in caplog.text
    assert not Path("/tmp/fedsieve-was-here").exists()


class TestWho:
    def test_a_node_that_was_not_asked(self) -> None:
        def replies(messages: list[Message]) -> list[Any]:
            strangers = [sent_to(node, RecordDict()) for node in (0, FIRST + 99, 2**64 - 1)]
            return [*everyone(messages), *(Message(content(small()), reply_to=m) for m in strangers)]

        expected, _ = one_round(Defended(quiet(), "mean"), small(), everyone)
        defended = Defended(quiet(), "mean")
        model, metrics = one_round(defended, small(), replies)
        assert all(torch.equal(model[name], expected[name]) for name in expected)
        assert {d.node: d.reason for d in defended.decisions[0].dropped} == dict.fromkeys(
            (0, FIRST + 99, 2**64 - 1), "a node that was not asked"
        )
        assert (metrics["dropped"], metrics["dropped-clients"], defended.nodes) == (3, [], tuple(ids(5)))

    @pytest.mark.parametrize("bad_first", [True, False])
    def test_a_second_reply(self, bad_first: bool) -> None:
        """The first reply that can be used counts."""
        expected, _ = one_round(Defended(quiet(), "mean"), small(), everyone)

        def replies(messages: list[Message]) -> list[Any]:
            nan = numbers(with_value(np.nan))(honest(messages[1]), messages[1])
            twice = Message(content(small()), reply_to=messages[0])
            return [nan, *everyone(messages), twice] if bad_first else [*everyone(messages), twice, nan]

        defended = Defended(quiet(), "mean")
        model, metrics = one_round(defended, small(), replies)
        assert all(torch.equal(model[name], expected[name]) for name in expected)
        reasons = {d.node: d.reason for d in defended.decisions[0].dropped}
        assert reasons[FIRST] == "second reply"
        assert reasons[FIRST + 1].startswith("not finite" if bad_first else "second reply")
        assert (metrics["accepted"], metrics["dropped"]) == (5, 2)

    def test_silence(self) -> None:
        expected, _ = one_round(Defended(quiet(), "mean"), small(), lambda m: everyone(m)[1:])
        defended = Defended(quiet(), "mean")
        model, metrics = one_round(defended, small(), lambda m: everyone(m)[1:])
        assert all(torch.equal(model[name], expected[name]) for name in expected)
        assert (metrics["silent"], metrics["silent-clients"]) == (1, [0])
        assert defended.decisions[0].silent == (FIRST,)

    @pytest.mark.parametrize("n", [0, 1, 2, 3])
    def test_too_few(self, n: int) -> None:
        """Of 10 nodes 2 are assumed malicious: with 2 replies, all might be theirs."""
        defended = Defended(quiet(), "mean")
        model, metrics = one_round(defended, small(), lambda m: everyone(m)[:n], 10)
        moved = not torch.equal(model["weight"], small()["weight"])
        assert moved == (n == 3) == bool(metrics["applied"])
        note = [
            "no usable reply",
            "1 usable replies of 10 nodes, fewer than 3",
            "2 usable replies of 10 nodes, fewer than 3",
            "",
        ]
        assert defended.decisions[0].note == note[n]
        assert defended.decisions[0].rejected == {}

    def test_min_replies(self) -> None:
        defended = Defended(quiet(), "mean", min_replies=5)
        assert one_round(defended, small(), lambda m: everyone(m)[1:])[1]["applied"] == 0
        assert one_round(defended, small(), everyone)[1]["applied"] == 1

    def test_replies_that_end_with_an_error(self) -> None:
        def replies(messages: list[Message]) -> Any:
            yield from everyone(messages)

        assert one_round(Defended(quiet(), "mean"), small(), replies)[1]["accepted"] == 5  # type: ignore[arg-type]


class TestMetrics:
    def replies(self, *changed: dict[str, Any]) -> Any:
        def made(messages: list[Message]) -> list[Any]:
            found = []
            for k, message in enumerate(messages):
                metrics = {"num-examples": 10, "loss": 1.0, "per-class": [0.5, float(k)]}
                metrics |= changed[k] if k < len(changed) else {}
                arrays = ArrayRecord(trained(message))
                found.append(
                    Message(RecordDict({"a": arrays, "m": MetricRecord(metrics)}), reply_to=message)  # type: ignore[arg-type]
                )
            return found

        return made

    def test_lists_are_averaged_by_entry(self) -> None:
        _, metrics = one_round(Defended(quiet(), "mean"), small(), self.replies())
        assert metrics["per-class"] == pytest.approx([0.5, 2.0])
        assert metrics["loss"] == pytest.approx(1.0)

    @pytest.mark.parametrize(
        "odd",
        [
            {"loss": float("nan")},
            {"loss": float("inf")},
            {"loss": [1.0]},
            {"per-class": [0.5]},
            {"per-class": []},
            {"per-class": [0.5, float("nan")]},
            {"more": 1},
            {"loss": 2**63 + 2**12},
            {"loss": 10**400},
        ],
        ids=str,
    )
    def test_odd_ones_are_left_out_and_the_update_counts(self, odd: dict[str, Any]) -> None:
        expected, _ = one_round(Defended(quiet(), "mean"), small(), everyone)
        model, metrics = one_round(Defended(quiet(), "mean"), small(), self.replies(odd))
        assert all(torch.equal(model[name], expected[name]) for name in expected)
        assert metrics["per-class"] == pytest.approx([0.5, 2.5])
        assert (metrics["loss"], metrics["accepted"]) == (pytest.approx(1.0), 5)

    def test_nobody_counts_for_too_many(self) -> None:
        _, metrics = one_round(Defended(quiet(), "mean"), small(), self.replies({"num-examples": 10**9, "loss": 8.0}))
        assert metrics["loss"] == pytest.approx((3 * 8.0 + 4) / 7)

    def test_names_of_ours_are_ours(self) -> None:
        _, metrics = one_round(Defended(quiet(), "mean"), small(), self.replies(*[{"rejected": 77}] * 5))
        assert metrics["rejected"] == 0


class TestEvaluation:
    def evaluate(self, defended: Defended, change: Change, bad: int = 2) -> MetricRecord | None:
        grid = Nodes(ids(5), honest)
        messages = list(defended.configure_evaluate(1, ArrayRecord(small()), ConfigRecord(), grid))
        found: list[Any] = []
        for message in sorted(messages, key=lambda m: m.metadata.dst_node_id):
            metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
            reply = Message(RecordDict({"metrics": metrics}), reply_to=message)
            found.append(change(reply, message) if message.metadata.dst_node_id == FIRST + bad else reply)
        return defended.aggregate_evaluate(1, found)

    @pytest.mark.parametrize(
        "change",
        [
            lambda r, m: 3,
            lambda r, m: Hostile(),
            lambda r, m: Message(Error(7, "no"), reply_to=m),
            lambda r, m: Message(RecordDict(), reply_to=m),
            records(lambda c: c.update(more=MetricRecord({"num-examples": 3, "accuracy": 1.0}))),
            records(lambda c: c["metrics"].pop("num-examples")),
            records(lambda c: c["metrics"].pop("accuracy")),
            records(lambda c: c["metrics"].update(accuracy=float("nan"))),
            records(lambda c: c["metrics"].update(accuracy=[1.0])),
            records(lambda c: c["metrics"].update(more=1)),
            samples(-1),
            samples(0),
            samples([3]),
            lambda r, m: honest(sent_to(5, RecordDict(), "evaluate")),
        ],
    )
    def test_a_malformed_one_is_left_out(self, change: Change) -> None:
        found = self.evaluate(Defended(FedAvg(), "mean"), change)
        assert found is not None
        assert dict(found) == {"accuracy": pytest.approx(0.5)}

    def test_counts_are_capped(self) -> None:
        def change(reply: Message, message: Message) -> Message:
            reply.content["metrics"].update({"num-examples": 10**9, "accuracy": 1.0})
            return reply

        found = self.evaluate(Defended(FedAvg(), "mean"), change)
        assert found is not None
        assert found["accuracy"] == pytest.approx((4 * 0.5 + 3) / 7)

    def test_all_malformed(self) -> None:
        defended = Defended(FedAvg(), "mean")
        defended.configure_evaluate(1, ArrayRecord(small()), ConfigRecord(), Nodes(ids(3), honest))
        assert defended.aggregate_evaluate(1, [3, Hostile()]) is None
        assert defended.aggregate_evaluate(1, []) is None

    def test_those_whose_update_was_dropped_have_no_say(self) -> None:
        def nan(messages: list[Message]) -> list[Any]:
            found = everyone(messages)
            return [numbers(with_value(np.nan))(found[0], messages[0]), *found[1:]]

        defended = Defended(FedAvg(), "mean")
        one_round(defended, small(), nan)
        found = self.evaluate(defended, records(lambda c: c["metrics"].update(accuracy=1.0)), bad=0)
        assert found is not None
        assert found["accuracy"] == pytest.approx(0.5)

    def test_a_strategy_that_fails(self) -> None:
        def broken(contents: list[RecordDict], key: str) -> MetricRecord:
            raise KeyError("f1")

        found = self.evaluate(Defended(FedAvg(evaluate_metrics_aggr_fn=broken), "mean"), lambda r, m: r)
        assert dict(found or {}) == {"accuracy": pytest.approx(0.5)}


def broken(random: Random, reply: Message, message: Message) -> Any:
    """A reply with one to three faults, drawn at random."""
    for _ in range(random.randint(1, 3)):
        kind = random.random()
        if kind < 0.4 or not isinstance(reply, Message) or not reply.has_content():
            reply = random.choice(list(MALFORMED.values()))[0](honest(message), message)
            continue
        arrays = [r for r in reply.content.values() if isinstance(r, ArrayRecord)]
        name = random.choice(["weight", "bias"])
        if not arrays or name not in arrays[0]:
            continue
        old = arrays[0][name]
        data = bytearray(old.data)
        if kind < 0.7:  # bytes of the header, but for the order of bytes, which is a matter of taste
            for _ in range(random.randint(1, 8)):
                place = random.randrange(min(len(data), 128) or 1)
                if place < len(data) and data[place : place + 1] not in (b"<", b">"):
                    data[place] = random.choice([random.randrange(256), *b" 0123456789(),'TrueFalse"])
            data = bytearray(bytes(data).replace(b">f4", b"<f4"))
        elif kind < 0.8:
            data = data[: random.randrange(len(data) + 1)]
        elif kind < 0.9:
            data += random.randbytes(random.randint(1, 5000))
        else:
            shape = tuple(random.randint(0, 4) for _ in range(random.randint(0, 5)))
            kinds = [np.float32, np.float64, np.float16, np.int8, np.bool_, np.uint64, np.complex128]
            number = random.choice(kinds if shape != old.shape else kinds[1:])  # or it would be a reply like any other
            data = bytearray(npy(np.ones(shape, number)))
        arrays[0][name] = raw(random.choice([old.dtype, "", "object"]), shape_of(random), bytes(data), old.stype)
    return reply


def shape_of(random: Random) -> tuple[int, ...]:
    return tuple(random.choice([-1, 0, 2, 3, 2**40]) for _ in range(random.randint(0, 4)))


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_malformed_replies(seed: int) -> None:
    """A thousand for each seed: no exception, and the round is that of the usable replies alone, to the bit."""
    random, n_bad, n_good = Random(seed), 100, 7
    for number in range(10):
        defense = ["mean", "krum", "median", "trimmed-mean", "geometric-median"][number % 5]
        good, sent = set(random.sample(range(n_bad + n_good), n_good)), dict[int, dict[str, bytes]]()

        def replies(messages: list[Message], good: set[int] = good, sent: Any = sent) -> list[Any]:
            found = [
                honest(message) if k in good else broken(random, honest(message), message)
                for k, message in enumerate(messages)
            ]
            for k, reply in enumerate(found):
                if isinstance(reply, Message) and reply.has_content() and "arrays" in reply.content:
                    sent[k] = {name: array.data for name, array in reply.content["arrays"].items()}
            random.shuffle(found)
            return found

        defended = Defended(quiet(), defense, assumed_malicious=2)
        model, metrics = one_round(defended, small(), replies, n_bad + n_good)
        usable = {node - FIRST for node in defended.decisions[0].accepted}
        assert good <= usable
        assert len(usable) + metrics["dropped"] >= n_bad + n_good
        assert len(usable) < n_good + 25  # two faults may undo each other, and a byte of a header may mean nothing

        def those(messages: list[Message], usable: set[int] = usable, sent: Any = sent) -> list[Any]:
            """The usable replies alone, with the arrays that numpy reads in them."""
            found = []
            for k in sorted(usable):
                arrays = {name: torch.from_numpy(np.load(io.BytesIO(data))) for name, data in sent[k].items()}
                assert {name: t.shape for name, t in arrays.items()} == {name: t.shape for name, t in small().items()}
                found.append(Message(content(arrays), reply_to=messages[k]))
            return found

        expected, _ = one_round(Defended(quiet(), defense, assumed_malicious=2), small(), those, n_bad + n_good)
        assert all(torch.equal(model[name], expected[name]) for name in expected)


FAULTS: dict[str, Callable[[Message], dict[str, Any]]] = {
    "NaN": lambda m: {"arrays": {k: t * torch.nan for k, t in trained(m).items()}},
    "1e30": lambda m: {"arrays": {k: t * 0 + 1e30 for k, t in trained(m).items()}},
    "wrong shape": lambda m: {"arrays": {k: t.flatten()[:1] for k, t in trained(m).items()}},
    "missing weight": lambda m: {"arrays": {"bias": trained(m)["bias"]}},
    "1e9 examples": lambda m: {"arrays": {k: t * 0 + 9 for k, t in trained(m).items()}, "samples": 10**9},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("defense", ["median", "krum", "trimmed-mean", "mean"])
def test_the_five_faults(fault: str, defense: str) -> None:
    """One of ten nodes has the fault: the model is within the honest nodes' range, but for a mean and 1e9 examples."""

    def replies(messages: list[Message]) -> list[Any]:
        found = everyone(messages)
        found[4] = Message(content(**FAULTS[fault](messages[4])), reply_to=messages[4])
        return found

    defended = Defended(quiet(), defense)
    model, metrics = one_round(defended, small(), replies, 10)
    assert metrics["applied"] == 1
    assert metrics["dropped"] == (fault != "1e9 examples")
    for name, old in small().items():
        bound = 1.0 if fault == "1e9 examples" and defense == "mean" else 0.5
        assert (model[name] - old).abs().max() < bound
