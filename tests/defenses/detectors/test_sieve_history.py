"""The client history against lists: means, accumulated evidence, who earns and loses, and what is forgotten."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.detectors.sieve.history import CONVICTED, accumulate, look_up, means, remember

F64 = torch.float64
MEMORY, FORGET = 0.8, 3

# rounds of (evidence, whether the update says something) by client id
rounds_of = st.lists(
    st.dictionaries(st.integers(0, 6), st.tuples(st.floats(-20, 20), st.booleans()), min_size=1, max_size=7),
    min_size=1,
    max_size=10,
)


def played(rounds: list[dict[int, tuple[float, bool]]], forget: int = FORGET) -> dict[str, Tensor]:
    history = None
    for seen in rounds:
        ids = torch.tensor(list(seen))
        values = torch.tensor([v for v, _ in seen.values()], dtype=F64)
        heard = torch.tensor([said for _, said in seen.values()])
        history = remember(history, ids, torch.stack([values, -values], dim=1), heard, MEMORY, forget)
        history = accumulate(history, ids, values, heard)
    assert history is not None
    return history


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rounds=rounds_of)
def test_against_lists(rounds: list[dict[int, tuple[float, bool]]]) -> None:
    clients: dict[int, dict[str, float]] = {}
    for seen in rounds:
        clients = {i: c for i, c in clients.items() if c["absent"] < FORGET}
        for i, c in clients.items():
            c["absent"] = 0 if i in seen else c["absent"] + 1
        for i, (value, said) in seen.items():
            c = clients.setdefault(i, dict.fromkeys(("weights", "sum", "rounds", "accumulated", "absent"), 0.0))
            if said:
                c["weights"] = c["weights"] * MEMORY + 1
                c["sum"] = c["sum"] * MEMORY + min(max(value, -6), 6)
                c["rounds"] += 1
                c["accumulated"] = min(max(c["accumulated"] + min(max(value, -2), 4), 0), 16)
    history = played(rounds)
    assert history["ids"].tolist() == sorted(clients)
    in_order = [clients[i] for i in sorted(clients)]
    for name in ("weights", "rounds", "accumulated", "absent"):
        assert history[name].tolist() == pytest.approx([c[name] for c in in_order]), name
    sums = [x for c in in_order for x in (c["sum"], -c["sum"])]
    assert history["sums"].flatten().tolist() == pytest.approx(sums, abs=1e-9)
    ids, found = means(history)
    assert ids.tolist() == [i for i in sorted(clients) if clients[i]["rounds"]]
    assert found[:, 0].tolist() == pytest.approx([c["sum"] / c["weights"] for c in in_order if c["rounds"]], abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rounds=rounds_of, last=st.dictionaries(st.integers(0, 6), st.floats(-1e6, 1e6), min_size=1))
def test_what_one_round_can_do(rounds: list[dict[int, tuple[float, bool]]], last: dict[int, float]) -> None:
    before = played(rounds, forget=99)
    after = played([*rounds, {i: (v, True) for i, v in last.items()}], forget=99)
    known = dict(zip(before["ids"].tolist(), before["accumulated"].tolist(), strict=True))
    for i, value in zip(after["ids"].tolist(), after["accumulated"].tolist(), strict=True):
        old = known.get(i, 0.0)
        assert 0 <= value <= 16
        assert old - 2 <= value <= old + 4
        assert value == old or i in last
    assert CONVICTED >= 2 * 4  # so that one round never decides


def test_empty_updates_earn_and_lose_nothing() -> None:
    before = played([{3: (4.0, True), 8: (-1.0, True)}, {3: (3.0, True), 8: (1.0, True)}])
    after = played([
        {3: (4.0, True), 8: (-1.0, True)},
        {3: (3.0, True), 8: (1.0, True)},
        *[{3: (-20.0, False), 8: (20.0, False), 5: (0.0, False)}] * 19,
    ])  # fmt: skip
    assert after["ids"].tolist() == [3, 5, 8]
    for name in ("weights", "sums", "rounds", "accumulated"):
        assert torch.equal(after[name][[0, 2]], before[name]), name
        assert not after[name][1].any()
    assert means(after)[0].tolist() == [3, 8]


def test_no_run_of_harmless_rounds_earns_credit() -> None:
    honest = [{1: (-20.0, True)}] * 200
    assert played(honest)["accumulated"].tolist() == [0]
    assert played([*honest, {1: (9.0, True)}, {1: (9.0, True)}, {1: (0.5, True)}])["accumulated"].tolist() == [8.5]
    # and a client that was convicted is believed again
    assert played([{1: (9.0, True)}] * 50 + [{1: (-9.0, True)}] * 4)["accumulated"].tolist() == [CONVICTED]


def test_order_of_clients_is_irrelevant() -> None:
    one = played([{5: (1.0, True), 2: (3.0, True), 9: (2.0, False)}, {9: (4.0, True), 2: (1.0, True)}])
    other = played([{9: (2.0, False), 2: (3.0, True), 5: (1.0, True)}, {2: (1.0, True), 9: (4.0, True)}])
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert look_up(one, "accumulated", torch.tensor([9, 2, 5])).tolist() == [4, 4, 1]
    assert look_up(one, "rounds", torch.tensor([5, 5, 2])).tolist() == [1, 1, 2]
    assert look_up(one, "sums", torch.tensor([5])).tolist() == [[1, -1]]


def test_forgetting() -> None:
    away: list[dict[int, tuple[float, bool]]] = [{2: (0.0, True)}] * 5
    rounds: list[dict[int, tuple[float, bool]]] = [{1: (4.0, True), 2: (0.0, True)}]
    assert [played([*rounds, *away[:k]])["ids"].tolist() for k in range(5)] == [[1, 2]] * 4 + [[2]]
    back: dict[int, tuple[float, bool]] = {1: (1.0, True)}
    assert played([*rounds, *away[:2], back])["accumulated"][0] == 5
    assert played([*rounds, *away[:4], back])["accumulated"][0] == 1


def test_ever_new_ids() -> None:
    history = None
    for t in range(400):
        ids = torch.arange(5 * t, 5 * t + 5)
        history = remember(history, ids, torch.zeros(5, 3, dtype=F64), torch.ones(5, dtype=torch.bool), MEMORY, 20)
        history = accumulate(history, ids, torch.full((5,), 9.0, dtype=F64), torch.ones(5, dtype=torch.bool))
        assert len(history["ids"]) <= 5 * 21
    assert history is not None
    assert set(history["accumulated"].tolist()) == {4.0}


def test_nothing_is_changed_in_place() -> None:
    before = played([{1: (4.0, True), 2: (1.0, True)}])
    kept = {name: tensor.clone() for name, tensor in before.items()}
    ids, heard = torch.tensor([2, 1]), torch.ones(2, dtype=torch.bool)
    after = remember(before, ids, torch.ones(2, 2, dtype=F64), heard, MEMORY, FORGET)
    middle = {name: tensor.clone() for name, tensor in after.items()}
    accumulate(after, ids, torch.ones(2, dtype=F64), heard)
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    assert all(torch.equal(after[name], middle[name]) for name in middle)
