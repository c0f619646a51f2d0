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

    def test_odd_clients(self) -> None:
        found = expand({**TINY, "odd": {"kind": ["noise", "more-data"], "clients": 2}, "root": {"noise": [0, 0.1]}})
        assert [(e.odd.kind, e.odd.amount, e.root.noise) for e in found] == [
            *[("noise", 0.3, 0), ("noise", 0.3, 0.1), ("more-data", 5, 0), ("more-data", 5, 0.1)],
        ]
        found = expand({**TINY, "odd": [{}, {"kind": "one-class"}]})
        assert [(e.odd.kind, e.odd.clients) for e in found] == [("none", None), ("one-class", 3)]

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

    def test_a_key_that_is_no_text(self) -> None:
        with pytest.raises(ParameterError, match="7 is an empty list"):
            expand({**TINY, 7: []})  # type: ignore[dict-item]

    def test_a_value_in_an_error_is_short_and_in_one_line(self) -> None:
        with pytest.raises(ParameterError) as error:
            expand({**TINY, "attack": ["none", "a\nb" + 1000 * "c"]})
        assert str(error.value).startswith("attack=a b" + 74 * "c" + "...: ")


class TestTooMany:
    """A grid that is too large is refused before anything of it is made."""

    def test_a_billion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Experiment, "of", None)
        axes = {"seed": list(range(1000)), "rounds": list(range(1000)), "clients": list(range(1, 1001))}
        with pytest.raises(ParameterError) as error:
            expand({**TINY, **axes})
        assert str(error.value) == (
            "the grid has 1,000,000,000 combinations (1,000 of seed, 1,000 of rounds, 1,000 of clients), "
            "a sweep takes 100,000: make several grids of it"
        )

    def test_more_than_can_be_written_as_a_number(self) -> None:
        with pytest.raises(ParameterError, match=r"the grid has over 10\^18 combinations \(2 of s9999, "):
            expand({f"s{k}": [0, 1] for k in range(20_000)})

    def test_the_limit_is_the_last_that_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedsieve.runs.grid.MOST_CELLS", 4)
        assert len(expand({**TINY, "seed": [0, 1, 2, 3]})) == 4
        with pytest.raises(ParameterError, match="the grid has 5 combinations"):
            expand({**TINY, "seed": [0, 1, 2, 3, 4]})
