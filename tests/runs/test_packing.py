"""Any state survives being stored as JSON and tensors."""

import hashlib
import json
import re
from collections import defaultdict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.core.errors import CorruptDataError, FedSieveError
from fedsieve.federation.server import ServerState
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs.checkpoint import Stamp, decode, encode
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.packing import pack, unpack
from tests.runs.conftest import CPU

SHARED = torch.arange(6.0)
LOOP: list[Any] = []
LOOP.append(LOOP)
Pair = namedtuple("Pair", "a b")


class TestState:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            3,
            2.5,
            float("inf"),
            "text",
            [],
            (),
            {},
            [1, (2, [None, "x"]), {"a": False}],
            {"tensor": {"value": 1}, "list": [1]},
            {3: torch.ones(2), 14: torch.zeros(2)},  # clients by id
            {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)},
            (torch.ones(2), {"x": [torch.zeros(0, 3), torch.tensor(4)]}),
            [torch.tensor([True, False]), torch.tensor([1.5], dtype=torch.float64), torch.tensor([2**40])],
            (SHARED.expand(2, 6), SHARED.view(2, 3).T),
            (SHARED, SHARED),
            (SHARED, SHARED[2:]),
        ],
        ids=repr,
    )
    def test_round_trip(self, value: Any) -> None:
        def assert_equal(a: Any, b: Any) -> None:
            assert type(a) is type(b)
            if isinstance(a, Tensor):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
            elif isinstance(a, dict):
                assert list(a) == list(b)
                for key in a:
                    assert_equal(a[key], b[key])
            elif isinstance(a, list | tuple):
                assert len(a) == len(b)
                for x, y in zip(a, b, strict=True):
                    assert_equal(x, y)
            else:
                assert a == b

        tensors: dict[str, Tensor] = {}
        tree = json.loads(json.dumps(pack(value, "state", tensors)))
        assert_equal(value, unpack(tree, tensors))
        # and through a checkpoint
        server = ServerState(torch.arange(3.0), 5, value, {"step": torch.tensor(2.0)})
        stamp = Stamp({"seed": 3, "server": {"rate": 0.1}}, 5, "ab")
        kept, found = decode(encode(SimulationState(server, torch.ones(2, 3), value), stamp), CPU)
        assert kept == stamp
        assert_equal(found.server.defense, value)
        assert_equal(found.adversary, value)
        assert found.round == 5
        assert torch.equal(found.server.params, server.params)
        assert found.personal is not None
        assert torch.equal(found.personal, torch.ones(2, 3))
        assert_equal(dict(found.server.optimizer), dict(server.optimizer))

    def test_a_state_that_shares_the_model(self) -> None:
        params = torch.arange(3.0)  # a defense may keep the last model, which a round may leave unchanged
        state = SimulationState(ServerState(params, 1, {"last": params}))
        _, found = decode(encode(state, Stamp({}, 1, "")), CPU)
        assert torch.equal(found.server.defense["last"], params)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ({1, 2}, "can't checkpoint state: set is neither"),
            ({"a": [object()]}, "can't checkpoint state.a.0: object is neither"),
            # what would come back as something else
            (defaultdict(int), "can't checkpoint state: defaultdict is neither"),
            ({"a": Pair(1, 2)}, "can't checkpoint state.a: Pair is neither"),
        ],
    )
    def test_what_cannot_be_kept(self, value: Any, said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            pack(value, "state", {})
        assert str(error.value).startswith(said)

    @pytest.mark.parametrize(
        "value", [LOOP, torch.eye(2).to_sparse(), torch.zeros(2, device="meta")], ids=["loop", "sparse", "meta"]
    )
    def test_what_cannot_be_written(self, value: Any) -> None:
        with pytest.raises(FedSieveError) as error:
            encode(SimulationState(ServerState(torch.zeros(1), 0, value)), Stamp({}, 0, ""))
        assert str(error.value).startswith("can't checkpoint the state: ")
        assert "\n" not in str(error.value)

    def test_nothing_saved(self, tmp_path: Path) -> None:
        assert RunDirectory(tmp_path).load(CPU) is None
        assert RunDirectory(tmp_path).records() == []

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (rb"{\"dict\": [[", rb"{\"list\": [["),
            (rb"\"records\": \"ab\"", rb"\"records\": 1234"),
            (rb"\"settings\": {}", rb"\"settings\": []"),
            (b'"__metadata__"', b'"__metadata\xff_"'),
        ],
        ids=["state", "records", "settings", "text"],
    )
    def test_a_forged_one_whose_checksum_is_right(self, before: bytes, after: bytes) -> None:
        content = encode(SimulationState(ServerState(torch.zeros(4), 3, {"a": 1})), Stamp({}, 3, "ab"))
        assert decode(sealed(content), CPU)[1].round == 3
        assert before in content
        with pytest.raises(CorruptDataError, match=r"^it is not a FedSieve checkpoint of this version: ") as error:
            decode(sealed(content.replace(before, after, 1)), CPU)
        assert len(str(error.value)) < 200


def sealed(content: bytes) -> bytes:
    """A checkpoint with the checksum of what it holds."""
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
    assert found is not None
    zeros = content[: found.start(1)] + b"0" * 64 + content[found.end(1) :]
    return zeros.replace(b"0" * 64, hashlib.sha256(zeros).hexdigest().encode(), 1)
