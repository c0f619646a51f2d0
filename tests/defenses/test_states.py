"""States of the defenses that remember clients: as large after many rounds of ids that never return as after a few."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.core.defense import Aggregate
from fedsieve.detectors.sieve.history import remember
from fedsieve.runs.packing import pack

N = 3
# By name, with what makes the state's bound visible in 300 rounds; those that forget nothing keep no ids.
REMEMBER: dict[str, dict[str, Any]] = {
    "momentum": {},
    "sieve": {"forget_after": 40},
    "fldetector": {"forget_after": 40, "window": 2, "start": 1},
}
STATEFUL = [name for name in registry.names("defenses") if "state" in registry.traits("defenses", name).needs]


def size(state: Any) -> int:
    """Numbers in a state, as a checkpoint has them."""
    tensors: dict[str, Tensor] = {}

    def leaves(tree: Any) -> int:
        if isinstance(tree, dict):
            return sum(map(leaves, tree.values()))
        return sum(map(leaves, tree)) if isinstance(tree, list) else 1

    tree = pack(state, "state", tensors)
    return leaves(tree) + sum(tensor.numel() for tensor in tensors.values())


def played(make: SimpleNamespace, name: str, ids: list[list[int]], **parameters: Any) -> list[Aggregate]:
    """Rounds of a defense with these client ids."""
    defense = registry.build_defense(name, parameters)
    found: list[Aggregate] = []
    for t, known in enumerate(ids):
        fed = make.federation(len(known), 0, 1, d=8, seed=t)
        u = make.updates(fed.updates.matrix, known)
        state = found[-1].state if found else None
        found.append(defense(u, make.view(u, root=fed.root, state=state, round=t)))
    return found


@pytest.mark.parametrize(("name", "rounds_each"), [*((name, 1) for name in STATEFUL), ("fldetector", 2)])
def test_ids_that_never_return(make: SimpleNamespace, name: str, rounds_each: int) -> None:
    """Half of the clients come back each round, the others are new every one or two rounds."""
    ids = [[*range(N), *range(1000 + N * (t // rounds_each), 1000 + N * (t // rounds_each) + N)] for t in range(300)]
    found = played(make, name, ids, **REMEMBER.get(name, {}))
    sizes = [size(result.state) for result in found[9::10]]
    assert max(sizes[15:]) <= 1.05 * max(sizes[:15])
    assert name not in REMEMBER or rounds_each == 1 or sizes[14] > sizes[0]  # some are remembered for a while


@pytest.mark.parametrize("name", REMEMBER)
def test_clients_that_return_are_as_if_there_were_no_others(make: SimpleNamespace, name: str) -> None:
    """Ten of a hundred clients a round: the default is generous enough for every one of them."""
    g = torch.Generator().manual_seed(0)
    ids = [(torch.randperm(50, generator=g)[:10] + 100).tolist() for _ in range(60)]
    usual, endless = (played(make, name, ids, **p) for p in ({}, {"forget_after": 10**9}))
    for one, two in zip(usual, endless, strict=True):
        assert torch.equal(one.update, two.update)
        assert one.scores is None or torch.equal(one.scores, two.scores)


def test_every_stateful_defense_is_tried() -> None:
    assert set(REMEMBER) <= set(STATEFUL)
    for name in STATEFUL:
        remembers = "forget_after" in registry.load("defenses", name).__dataclass_fields__  # type: ignore[attr-defined]
        assert remembers == (name in REMEMBER), name


def test_momentum_keeps_twenty_vectors_per_client_of_a_round(make: SimpleNamespace) -> None:
    ids = [list(range(1000 + 4 * t, 1004 + 4 * t)) for t in range(90)]
    ids[70] = [7]  # a round of one does not make it forget the others
    found = played(make, "momentum", ids)
    kept = [result.state[0] for result in found]
    assert [len(state["ids"]) for state in kept[:21]] == [min(4 * t + 4, 80) for t in range(21)]
    assert all(len(state["ids"]) == len(state["momentum"]) == 80 for state in kept[20:])
    assert kept[-1]["ids"].tolist() == [7, *ids[69][1:], *(i for t in range(71, 90) for i in ids[t])]


def test_sieve_s_history_of_many_rounds() -> None:
    history, values, heard = None, torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.bool)
    for t in range(600):
        history = remember(history, torch.arange(3 * t, 3 * t + 3), values, heard, 0.9, 200)
    assert history is not None
    assert history["ids"].tolist() == list(range(3 * 399, 3 * 600))
