"""Malicious Flower clients: what a mod makes of a reply, who acts with whom, and what a mod refuses to do."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsieve.attacks.gaussian import gaussian
from fedsieve.attacks.lie import lie, z_max
from fedsieve.attacks.min_max import min_max
from fedsieve.core.errors import FedSieveError, ParameterError, UnknownNameError
from fedsieve.core.seeding import stream
from fedsieve.flower.red_team import AttackMod, attack_mod
from tests.flower.messages import sent_to

N = 6  # clients
SENT = {
    "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn.running_mean": np.zeros(2, np.float64),
    "bn.num_batches_tracked": np.array(3),
    "fc.bias": np.ones(2, np.float16),
}
FLOATS = ("fc.weight", "fc.bias", "bn.running_mean")  # in the order of the vector


def mod_of(name: str, /, **given: Any) -> AttackMod:
    return attack_mod(name, i_am_testing=True, **given)


def message(server_round: int = 1, arrays: dict[str, Any] = SENT, kind: str = "train", **config: Any) -> Message:
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    given = ConfigRecord({"server-round": server_round} if server_round else {"lr": 0.1})
    return sent_to(77, RecordDict({"arrays": record, "config": given}), kind)


def context(client: int, n: int = N, run: int = 1) -> Context:
    return Context(run, 1000 + client, {"partition-id": client, "num-partitions": n}, RecordDict(), {})


def honest(client: int, server_round: int = 1) -> Tensor:
    """The update of a client: different for each, the same each time; float16 holds it after it is added to 1."""
    return torch.randint(-8, 9, (10,), generator=stream(5, "toy", server_round, client)).double() / 16


class Client:
    """A ClientApp that changes the floats it is given by its update, and counts."""

    def __init__(self) -> None:
        self.trained: list[int] = []

    def __call__(self, message: Message, context: Context) -> Message:
        client, content = int(context.node_config["partition-id"]), message.content
        self.trained.append(client)
        update, start, found = honest(client, content["config"]["server-round"]).numpy(), 0, {}
        arrays = {name: array.numpy() for name, array in content["arrays"].items()}
        for name in FLOATS:
            part = update[start : start + arrays[name].size].reshape(arrays[name].shape)
            found[name] = Array((arrays[name] + part).astype(arrays[name].dtype))
            start += arrays[name].size
        found["bn.num_batches_tracked"] = Array(np.array(4))
        content["arrays"].clear()  # as a client may
        record = ArrayRecord({name: found[name] for name in arrays})
        metrics = MetricRecord({"num-examples": 10 + client})
        return Message(RecordDict({"model": record, "metrics": metrics}), reply_to=message)


def update_of(reply: Message) -> Tensor:
    arrays = reply.content["model"]
    return torch.cat([torch.from_numpy(arrays[name].numpy().astype(float) - SENT[name]).reshape(-1) for name in FLOATS])


def sent(mod: AttackMod, client: int, server_round: int = 1, app: Any = None, **where: Any) -> Tensor:
    return update_of(mod(message(server_round), context(client, **where), app or Client()))


# --- One client alone ---------------------------------------------------------------------------------------


def test_an_update_attack_replaces_the_floats_and_nothing_else() -> None:
    reply = mod_of("sign-flip", factor=2.0)(message(), context(3), Client())
    assert torch.equal(update_of(reply), -2 * honest(3))
    arrays = reply.content["model"]
    assert list(arrays) == list(SENT)
    assert {name: arrays[name].dtype for name in SENT} == {name: str(value.dtype) for name, value in SENT.items()}
    assert arrays["bn.num_batches_tracked"].numpy() == 4, "counters are the client's"
    assert reply.content["metrics"]["num-examples"] == 13
    assert reply.metadata.src_node_id == 77


def test_benign_clients_send_what_they_trained_to_the_byte() -> None:
    mod, plain = mod_of("sign-flip", malicious=[0, 4]), Client()
    for client in range(N):
        reply, without = mod(message(), context(client), Client()), plain(message(), context(client))
        same = reply.content["model"] == without.content["model"]
        assert same == (client not in (0, 4)), client


@pytest.mark.parametrize("kind", ["evaluate", "query", "evaluate.train"])
def test_only_training_is_attacked(kind: str) -> None:
    reply = mod_of("sign-flip")(message(kind=kind), context(0), Client())
    assert torch.equal(update_of(reply), honest(0))


def test_named_training_functions_are_attacked_too() -> None:
    assert torch.equal(update_of(mod_of("sign-flip")(message(kind="train.mine"), context(0), Client())), -honest(0))


def test_every_use_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    mod = mod_of("sign-flip", malicious=[1])
    with caplog.at_level(logging.WARNING, "flwr"):
        sent(mod, 0), sent(mod, 1, 7)
    assert caplog.messages == ["red-team exercise: client 1 sends attack sign-flip in round 7"]


def test_clients_that_know_of_no_other_draw_different_noise_and_the_same_in_another_run() -> None:
    mod = mod_of("gaussian", std=1.0)
    first, second = sent(mod, 1), sent(mod, 2)
    assert torch.equal(first, sent(mod, 1, run=9))
    assert not torch.equal(first, second)
    assert not torch.equal(first, sent(mod, 1, 2))
    assert not torch.equal(first, sent(mod_of("gaussian", std=1.0, seed=1), 1))
    wanted = gaussian(torch.zeros(1, 10, dtype=torch.float64), 1.0, stream(0, "attack", 0, 1))[0]
    torch.testing.assert_close(first, wanted, atol=2e-3, rtol=0)  # float16


def test_a_client_that_acts_alone_counts_all_clients_of_the_federation() -> None:
    mod, x, y = mod_of("scaling", malicious=[2, 3]), torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    mod.poisoned(x, y, context(2), 4)
    assert torch.equal(sent(mod, 2), N * honest(2))


def test_what_an_attack_remembers_is_kept_in_the_clients_state() -> None:
    mod, state, app = mod_of("free-rider", what="last-step"), context(2), Client()
    assert not update_of(mod(message(1), state, app)).any()
    moved = {**SENT, "fc.weight": SENT["fc.weight"] + 1}
    reply = mod(message(2, moved), state, app).content["model"]
    assert np.array_equal(reply["fc.weight"].numpy(), SENT["fc.weight"] + 2), "the step that the server took"
    reply = mod(message(2, moved), context(2), app).content["model"]
    assert np.array_equal(reply["fc.weight"].numpy(), SENT["fc.weight"] + 1), "another run knows of no step"


def test_rounds_are_the_servers() -> None:
    mod = mod_of("sleeper", attack="sign-flip", start=3)
    found = [torch.equal(sent(mod, 0, at), -honest(0, at)) for at in range(1, 6)]
    assert found == [False, False, False, True, True]


def test_arrays_of_anything_but_floats_are_left_alone() -> None:
    odd = {"w": np.ones(2, np.float32), "text": np.array(["a"]), "mask": np.array([True]), "n": np.ones(1, np.uint16)}

    def app(message: Message, context: Context) -> Message:
        arrays = {name: Array(v + 1 if name == "w" else v) for name, v in odd.items()}
        return Message(RecordDict({"model": ArrayRecord(arrays)}), reply_to=message)

    reply = mod_of("sign-flip")(message(arrays=odd), context(0), app).content["model"]
    assert {name: array.numpy().tolist() for name, array in reply.items()} == {
        "w": [0.0, 0.0],
        "text": ["a"],
        "mask": [True],
        "n": [1],
    }


def test_an_error_reply_stays_one() -> None:
    def broken(message: Message, context: Context) -> Message:
        return Message(Error(code=3, reason="no data"), reply_to=message)

    assert mod_of("sign-flip")(message(), context(0), broken).error.reason == "no data"


# --- Malicious clients together -----------------------------------------------------------------------------


def matrix(clients: list[int], server_round: int = 1) -> Tensor:
    return torch.stack([honest(client, server_round) for client in clients])


def test_with_full_knowledge_all_send_what_the_attack_makes_of_every_clients_update(tmp_path: Path) -> None:
    mod = mod_of("min-max", malicious=[4, 1], knowledge="full", shared=tmp_path)
    wanted = min_max(matrix([1, 4, 0, 2, 3, 5]))
    assert not torch.allclose(wanted, honest(4), atol=0.05)
    for client in (1, 4):
        torch.testing.assert_close(sent(mod, client), wanted, atol=2e-3, rtol=0)
    assert torch.equal(sent(mod, 0), honest(0))


def test_with_partial_knowledge_they_know_their_own_updates(tmp_path: Path) -> None:
    mod = mod_of("lie", malicious=[1, 2, 4], knowledge="partial", shared=tmp_path)
    wanted = lie(matrix([1, 2, 4]), z_max(N, 3))
    torch.testing.assert_close(sent(mod, 2), wanted, atol=2e-3, rtol=0)


def test_each_has_its_own_row_and_index(tmp_path: Path) -> None:
    mod = mod_of("gaussian", std=1.0, malicious=[4, 1], knowledge="partial", shared=tmp_path)
    wanted = gaussian(torch.zeros(2, 10, dtype=torch.float64), 1.0, stream(0, "attack", 0))
    for row, client in enumerate((1, 4)):
        torch.testing.assert_close(sent(mod, client), wanted[row], atol=2e-3, rtol=0)


def test_the_first_one_trains_the_others_once_a_round(tmp_path: Path) -> None:
    mod, app = mod_of("min-max", malicious=[1, 4], knowledge="full", shared=tmp_path), Client()
    for client in (4, 0, 1):
        sent(mod, client, app=app)
    assert app.trained == [4, 1, 0, 2, 3, 5, 0, 1]
    sent(mod, 1, 2, app=app)
    assert app.trained[8:] == [1, 4, 0, 2, 3, 5]


def test_another_model_in_the_same_round_is_attacked_anew(tmp_path: Path) -> None:
    mod = mod_of("min-max", malicious=[1, 4], knowledge="full", shared=tmp_path)
    sent(mod, 1)
    moved = {**SENT, "fc.weight": SENT["fc.weight"] + 1}
    reply = mod(message(1, moved), context(4), Client()).content["model"]
    wanted = moved["fc.weight"] + min_max(matrix([1, 4, 0, 2, 3, 5]))[:6].reshape(2, 3).numpy()
    np.testing.assert_allclose(reply["fc.weight"].numpy(), wanted, atol=1e-5)


def test_stand_ins_get_the_message_as_it_came_and_a_state_of_their_own(tmp_path: Path) -> None:
    seen: list[tuple[int, list[str], list[str]]] = []

    def app(message: Message, context: Context) -> Message:
        seen.append((context.node_config["partition-id"], list(message.content["arrays"]), list(context.state)))
        context.state["mine"] = ConfigRecord({"a": 1})
        return Client()(message, context)

    mine = context(1)
    mod_of("min-max", malicious=[1, 4], knowledge="partial", shared=tmp_path)(message(), mine, app)
    mod_of("min-max", malicious=[1, 4], knowledge="partial", shared=tmp_path)(message(2), mine, app)
    assert seen == [(1, list(SENT), []), (4, list(SENT), []), (1, list(SENT), ["mine"]), (4, list(SENT), [])]
    assert mine.node_config["partition-id"] == 1


def test_what_the_attack_remembers_is_shared(tmp_path: Path) -> None:
    mod = mod_of("free-rider", what="last-step", malicious=[1, 4], knowledge="partial", shared=tmp_path)
    sent(mod, 1)
    moved = {**SENT, "fc.weight": SENT["fc.weight"] + 1}
    reply = mod(message(2, moved), context(4), Client()).content["model"]
    assert np.array_equal(reply["fc.weight"].numpy(), SENT["fc.weight"] + 2)


def test_runs_and_mods_do_not_mix(tmp_path: Path) -> None:
    given: dict[str, Any] = {"malicious": [1, 4], "knowledge": "partial", "shared": tmp_path}
    flip, twice = mod_of("sign-flip", **given), mod_of("sign-flip", factor=2.0, **given)
    assert torch.equal(sent(flip, 1), -honest(1))
    assert torch.equal(sent(twice, 4), -2 * honest(4))
    assert torch.equal(sent(flip, 4, run=2), -honest(4))
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_a_mod_goes_to_another_process(tmp_path: Path) -> None:
    mod = mod_of("min-max", malicious=[1, 4], knowledge="full", shared=tmp_path)
    copied: AttackMod = pickle.loads(pickle.dumps(mod))  # noqa: S301
    assert torch.equal(sent(copied, 1), sent(mod, 4))


def test_a_stand_in_that_fails_is_named(tmp_path: Path) -> None:
    def app(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 3:
            return Message(Error(code=3, reason="no data"), reply_to=message)
        return Client()(message, context)

    mod = mod_of("min-max", malicious=[1, 4], knowledge="full", shared=tmp_path)
    with pytest.raises(FedSieveError, match="attack min-max needs the update of client 3: no data"):
        mod(message(), context(1), app)


def test_a_shared_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mod = mod_of("min-max", malicious=[1, 4], knowledge="full", shared=tmp_path / "file")
    with pytest.raises(FedSieveError, match=r"can't use the shared folder .*file: File exists"):
        sent(mod, 1)


# --- Poisoned data ------------------------------------------------------------------------------------------


def test_data_are_poisoned_where_the_client_asks_for_it() -> None:
    mod, x, y = mod_of("label-flip", malicious=[2]), torch.zeros(3, 4), torch.tensor([0, 1, 4])
    assert mod.poisoned(x, y, context(2), 5)[1].tolist() == [4, 3, 0]
    assert mod.poisoned(x, y, context(1), 5)[1] is y
    assert mod_of("sign-flip").poisoned(x, y, context(2), 5)[1] is y
    assert torch.equal(sent(mod, 2), honest(2)), "what it trained on poisoned data is sent as it is"


def test_data_that_were_not_poisoned_are_an_error() -> None:
    mod = mod_of("label-flip", malicious=[2])
    assert torch.equal(sent(mod, 1, run=50), honest(1))
    with pytest.raises(ParameterError, match=r"attack label-flip poisons training data.*mod\.poisoned\(x, y, context"):
        sent(mod, 2, run=50)


def test_a_data_attack_draws_what_the_simulator_draws() -> None:
    from fedsieve.attacks.dba import DBA
    from fedsieve.core.attack import PoisonView, Task, poison

    x, y = torch.rand(9, 1, 8, 8), torch.arange(9) % 3
    found = mod_of("dba", malicious=[5, 2], seed=3).poisoned(x, y, context(2), 3)
    view = PoisonView(Task(3, Path(), None, float(x.max())), 1, stream(3, "poison", client=2))
    wanted = poison(DBA(), x, y, view)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


def test_samples_that_are_no_tensors() -> None:
    with pytest.raises(ParameterError, match=r"takes tensors, .* got ndarray of length 3 and Tensor of length 3"):
        mod_of("label-flip").poisoned(np.zeros((3, 2)), torch.zeros(3), context(0), 2)


# --- What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"i_am_testing": False}])
def test_it_is_off_unless_told_that_this_is_a_test(given: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="the federation is yours and this is a test, pass i_am_testing=True"):
        attack_mod("sign-flip", **given)


TOGETHER: dict[str, Any] = {"malicious": [0, 1], "shared": "folder"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attack": "adaptive-sieve"}, "can't do attack adaptive-sieve: a client has no defense, model and data"),
        ({"attack": "adaptive-skymask"}, "can't do attack adaptive-skymask: a client has no defense"),
        ({"attack": "lie-backdoor"}, "can't do attack lie-backdoor: it trains or evaluates models by itself"),
        ({"attack": "norm-bounded-backdoor"}, "can't do attack norm-bounded-backdoor: it trains or evaluates"),
        ({"attack": "sleeper"}, "can't do attack sleeper: it trains or evaluates"),
        (
            {"attack": "sleeper", "parameters": {"attack": "label-flip"}},
            "can't do attack sleeper: it trains or evaluates",
        ),
        ({"attack": "fresh-identity"}, "can't do attack fresh-identity: who a node is, its key says"),
        ({"attack": "copycat"}, "copycat must see the benign updates; grant them with knowledge=full"),
        ({"attack": "min-max"}, "min-max has no effect: a client that knows its own honest update alone sends it unch"),
        (
            {"attack": "lie", "knowledge": "partial", **TOGETHER, "malicious": [3]},
            "lie has no effect: a client that knows its own honest update alone",
        ),
        ({"attack": "fang-trim", "spread": 3.0}, "spread has no effect with partial knowledge"),
        ({"attack": "sign-flip", "factor": -1.0}, "factor must be positive"),
        ({"attack": "sign-flip", "strength": 1.0}, "has no parameter 'strength'"),
        ({"knowledge": "all"}, "knowledge must be own, partial, full, got 'all'"),
        ({"knowledge": "full"}, "with knowledge=full malicious clients act together"),
        ({"knowledge": "partial", "malicious": [1]}, "as shared a folder of this machine"),
        ({"shared": "folder"}, "shared has no effect with knowledge=own"),
        ({"malicious": []}, "malicious must hold at least one partition id"),
        ({"malicious": [1, 1]}, "each once; got"),
        ({"malicious": [-1]}, "from 0"),
    ],
)
def test_mistakes_are_said_before_a_client_trains(given: dict[str, Any], said: str) -> None:
    name, inner = given.get("attack", "sign-flip"), given.get("parameters", {})
    rest = {key: value for key, value in given.items() if key not in ("attack", "parameters")}
    with pytest.raises(ParameterError, match=said):
        attack_mod(name, i_am_testing=True, **rest, **inner)


def test_an_unknown_attack() -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        mod_of("sing-flip")


@pytest.mark.parametrize("config", [{}, {"partition-id": 1}, {"partition-id": "x", "num-partitions": 2}])
def test_a_node_without_a_place(config: dict[str, Any]) -> None:
    where = context(0)
    where.node_config = config
    with pytest.raises(ParameterError, match="start the node with --node-config 'partition-id=0 num-partitions=10'"):
        mod_of("sign-flip")(message(), where, Client())


def test_a_place_may_be_text() -> None:
    where = context(0)
    where.node_config = {"partition-id": "3", "num-partitions": "6"}
    app = Client()
    assert torch.equal(update_of(mod_of("sign-flip")(message(), where, app)), -honest(3))


def test_a_malicious_client_that_does_not_exist() -> None:
    with pytest.raises(ParameterError, match="malicious client 9 does not exist: num-partitions is 6"):
        sent(mod_of("sign-flip", malicious=[1, 9]), 0)


def test_a_message_without_a_round() -> None:
    with pytest.raises(ParameterError, match="the message has no server-round"):
        mod_of("sign-flip")(message(0), context(0), Client())


def test_replies_that_can_not_be_attacked() -> None:
    def without(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    def fewer(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"fc.weight": Array(np.zeros((2, 3), np.float32))})
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    with pytest.raises(ParameterError, match="changes one ArrayRecord; the reply has 0"):
        mod_of("sign-flip")(message(), context(0), without)
    with pytest.raises(ParameterError, match="the reply holds other arrays than the message: 1 with 6 floats"):
        mod_of("sign-flip")(message(), context(0), fewer)


def test_layers_that_the_model_lacks_are_said_at_the_first_message(tmp_path: Path) -> None:
    mod = mod_of("copycat", layer="conv9", malicious=[0], knowledge="full", shared=tmp_path)
    with pytest.raises(ParameterError, match="has no layer 'conv9'"):
        sent(mod, 0)


def test_what_float16_can_not_hold_is_sent_as_infinity() -> None:
    reply = mod_of("sign-flip", factor=1e6)(message(), context(3), Client()).content["model"]
    assert np.isinf(reply["fc.bias"].numpy()).any()
    assert reply["fc.bias"].dtype == "float16"
