"""Grids: which experiments a grid of settings stands for."""

from collections import Counter
from typing import Any

import pytest

from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.runs.grid import expand
from tests.runs.conftest import TINY


class TestExpand:
    def test_product_of_lists(self) -> None:
        found = expand({**TINY, "attack": ["none", "min-max"], "defense": ["mean", "median"], "seed": [0, 1, 2]})
        assert len(found) == 12
        assert Counter(e.attack.name for e in found) == {"none": 6, "min-max": 6}
        assert {e.seed for e in found} == {0, 1, 2}

    def test_no_list_is_one_cell(self) -> None:
        assert [e.key for e in expand(TINY)] == [Experiment.of(TINY).key]

    def test_lists_in_components_are_values(self) -> None:
        (found,) = expand({**TINY, "model": {"name": "mlp", "hidden": [9, 8]}})
        assert list(found.model.parameters["hidden"]) == [9, 8]

    def test_chains_are_lists_in_a_list(self) -> None:
        found = expand({**TINY, "defense": ["mean", ["norm-clipping", "median"]]})
        assert [e.defense.name for e in found] == ["mean", "norm-clipping,median"]

    def test_lists_in_sections(self) -> None:
        found = expand({**TINY, "local": {"learning_rate": [0.1, 0.5], "steps": 2}, "root": {"size": [10, 20]}})
        assert [(e.local.learning_rate, e.root.size) for e in found] == [(0.1, 10), (0.1, 20), (0.5, 10), (0.5, 20)]
        assert {e.local.steps for e in found} == {2}

    def test_shares_of_malicious_clients(self) -> None:
        found = expand({**TINY, "clients": 10, "attack": "min-max", "defense": "mean", "malicious": [0.2, 0.4, 6]})
        assert [e.malicious for e in found] == [2, 4, 6]

    def test_equal_cells_are_one(self) -> None:
        assert len(expand({**TINY, "seed": [0, 1, 0]})) == 2

    @pytest.mark.parametrize(
        ("grid", "message"),
        [
            ({"seed": []}, "seed is an empty list"),
            ({"local": {"steps": []}}, "local.steps is an empty list"),
            ({"attack": ["none", "min-mux"], "seed": [0, 1]}, "attack=min-mux, seed=0: "),
            ({"sede": [0, 1]}, "unknown setting sede"),
        ],
    )
    def test_wrong_ones(self, grid: dict[str, Any], message: str) -> None:
        with pytest.raises(ParameterError) as error:
            expand({**TINY, **grid})
        assert message in str(error.value)
