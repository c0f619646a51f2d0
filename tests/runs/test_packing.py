"""Any state survives being stored as JSON and tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.core.errors import FedSieveError
from fedsieve.federation.server import ServerState
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.packing import pack, unpack
from tests.runs.conftest import (
    CPU,
)

SHARED = torch.arange(6.0)


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
    def test_round_trip(self, tmp_path: Path, value: Any) -> None:
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
        # and through the file
        directory = RunDirectory(tmp_path)
        server = ServerState(torch.arange(3.0), 5, value, {"step": torch.tensor(2.0)})
        state = SimulationState(server, torch.ones(2, 3), value)
        directory.save(state)
        found = directory.load(CPU)
        assert found is not None
        assert_equal(found.server.defense, value)
        assert_equal(found.adversary, value)
        assert found.round == 5
        assert torch.equal(found.server.params, server.params)
        assert found.personal is not None
        assert torch.equal(found.personal, torch.ones(2, 3))
        assert_equal(dict(found.server.optimizer), dict(server.optimizer))

    def test_a_state_that_shares_the_model(self, tmp_path: Path) -> None:
        params = torch.arange(3.0)  # a defense may keep the last model, which a round may leave unchanged
        RunDirectory(tmp_path).save(SimulationState(ServerState(params, 1, {"last": params})))
        found = RunDirectory(tmp_path).load(CPU)
        assert found is not None
        assert torch.equal(found.server.defense["last"], params)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ({1, 2}, "can't checkpoint state: set is neither"),
            ({"a": [object()]}, "can't checkpoint state.a.0: object is neither"),
        ],
    )
    def test_what_cannot_be_kept(self, value: Any, said: str) -> None:
        with pytest.raises(FedSieveError) as error:
            pack(value, "state", {})
        assert str(error.value).startswith(said)

    def test_nothing_saved(self, tmp_path: Path) -> None:
        assert RunDirectory(tmp_path).load(CPU) is None
        assert RunDirectory(tmp_path).records() == []
