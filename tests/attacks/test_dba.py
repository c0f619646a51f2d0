"""DBA: the pieces of the trigger, who trains on which, and success with the whole."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.dba import DBA, pieces_of
from fedsieve.attacks.scaling import Scaling
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task
from fedsieve.core.errors import ParameterError
from tests.federation.conftest import DIGITS, TINY, records_of, simulation


def changed(attack: DBA, x: Tensor, piece: int | None) -> set[tuple[int, ...]]:
    """Coordinates of one sample that a piece of the trigger changes, without the channel."""
    found = (attack.trigger(x, 9.0, piece) != x)[0].nonzero().tolist()
    return {tuple(place[1:] if x.dim() == 4 else place) for place in found}


class TestPieces:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(places=st.lists(st.booleans(), min_size=1, max_size=30).filter(any), data=st.data())
    def test_cut_against_a_loop(self, places: list[bool], data: st.DataObject) -> None:
        count = sum(places)
        pieces = data.draw(st.integers(1, count))
        found = pieces_of(torch.tensor(places), pieces).tolist()
        inside = [piece for piece, here in zip(found, places, strict=True) if here]
        assert [piece for piece, here in zip(found, places, strict=True) if not here] == [-1] * (len(places) - count)
        assert inside == sorted(inside)  # in reading order
        assert set(inside) == set(range(pieces))
        sizes = [inside.count(piece) for piece in range(pieces)]
        assert max(sizes) - min(sizes) <= 1

    def test_of_a_square_by_hand(self) -> None:
        attack, x = DBA(size=2, pieces=4), torch.zeros(1, 3, 8, 8)
        assert [changed(attack, x, piece) for piece in range(4)] == [{(0, 0)}, {(0, 1)}, {(1, 0)}, {(1, 1)}]
        marked = attack.trigger(x, 9.0, 2)
        assert marked[0, :, 1, 0].tolist() == [9, 9, 9]  # all channels
        assert marked.sum() == 27

    def test_of_features_by_hand(self) -> None:
        attack, x = DBA(stride=3, pieces=2), torch.ones(1, 10)
        assert [changed(attack, x, piece) for piece in range(2)] == [{(0,), (3,)}, {(6,), (9,)}]
        assert attack.trigger(x, 9.0, 1).tolist() == [[1, 1, 1, 1, 1, 1, 0, 1, 1, 0]]

    @pytest.mark.parametrize("pieces", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 3, 9, 4), (3, 60), (3, 8, 4)])
    def test_are_disjoint_and_make_up_the_whole(self, pieces: int, shape: tuple[int, ...]) -> None:
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
        attack = DBA(pieces=pieces)
        cut = [changed(attack, x, piece) for piece in range(pieces)]
        assert all(cut)
        assert sum(map(len, cut)) == len(set.union(*cut))
        assert set.union(*cut) == changed(attack, x, None)
        one_after_the_other = x
        for piece in range(pieces):
            one_after_the_other = attack.trigger(one_after_the_other, 9.0, piece)
        assert torch.equal(one_after_the_other, attack.trigger(x, 9.0))

    @pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 100)])
    def test_the_whole_is_the_trigger_of_scaling(self, shape: tuple[int, ...]) -> None:
        x = torch.rand(shape)
        assert torch.equal(DBA().trigger(x, 2.0), Scaling().trigger(x, 2.0))
        assert torch.equal(DBA(pieces=1).trigger(x, 2.0, 0), Scaling().trigger(x, 2.0))

    @pytest.mark.parametrize(
        ("features", "expected"), [(4, [0, 1, 2, 3]), (9, [0, 2, 4, 6, 8]), (81, [0, 20, 40, 60, 80])]
    )
    def test_few_features_have_a_denser_trigger(self, features: int, expected: list[int]) -> None:
        assert changed(DBA(), torch.ones(1, features), None) == {(place,) for place in expected}

    @pytest.mark.parametrize(
        ("parameters", "shape", "message"),
        [
            ({}, (3,), "3 features on samples of shape [3], too few for 4 pieces; set pieces"),
            ({"stride": 20}, (25,), "2 features on samples of shape [25], too few for 4 pieces; set pieces or stride"),
            (
                {"size": 1},
                (1, 8, 8),
                "1 pixel on samples of shape [1, 8, 8], too few for 4 pieces; set pieces or size",
            ),
        ],
    )
    def test_too_many(
        self,
        make_poison_view: Callable[..., PoisonView],
        parameters: dict[str, Any],
        shape: tuple[int, ...],
        message: str,
    ) -> None:
        x, y, attack = torch.rand(6, *shape), torch.arange(6) % 4, DBA(**parameters)
        for act in (
            lambda: attack.poison(x, y, make_poison_view()),
            lambda: attack.triggered(x, y, Task(4, Path())),
        ):
            with pytest.raises(ParameterError) as error:
                act()
            assert str(error.value) == f"dba: the trigger has {message}"


class TestPoison:
    @pytest.mark.parametrize("shape", [(1, 8, 8), (25,)])
    def test_each_client_has_its_own_piece(
        self, make_poison_view: Callable[..., PoisonView], shape: tuple[int, ...]
    ) -> None:
        x, y = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)) / 2 + 0.1, torch.arange(20) % 4
        attack = DBA(target=2, pieces=3, share=0.5)
        for member in range(7):
            view = make_poison_view(member=member)
            view = replace(view, task=replace(view.task, largest=0.9))
            more, labels = attack.poison(x, y, view)
            assert torch.equal(more[:20], x)
            assert torch.equal(labels[:20], y)
            assert labels[20:].tolist() == [2] * 10
            marked = attack.trigger(x, 0.9, member % 3).tolist()
            sources = [marked.index(row) for row in more[20:].tolist()]
            assert len(set(sources)) == 10

    @pytest.mark.parametrize("shape", [(1, 8, 8), (25,)])
    def test_success_is_measured_with_the_whole(self, shape: tuple[int, ...]) -> None:
        x, y, attack = torch.rand(5, *shape), torch.tensor([2, 0, 1, 2, 3]), DBA(target=2)
        found = attack.triggered(x, y, Task(4, Path(), largest=3.0))
        assert isinstance(attack, Backdoor)
        assert torch.equal(found.x, attack.trigger(x, 3.0))
        assert found.wanted.tolist() == [2] * 5
        assert found.already.tolist() == [True, False, False, True, False]

    def test_a_piece_that_nobody_sees(self) -> None:
        x = torch.rand(4, 8) + 0.1
        x[:, 4:] = 0
        with pytest.raises(ParameterError) as error:
            DBA(stride=2, pieces=2).triggered(x, torch.arange(4), Task(4, Path()))
        assert str(error.value) == (
            "dba: piece 2 of 2: each of the 4 test samples looks as with the trigger; set stride"
        )

    @pytest.mark.parametrize(
        ("parameters", "shape", "message"),
        [
            ({"target": 4}, (1, 8, 8), "target must be below the 4 classes, got 4"),
            (
                {"stride": 2},
                (1, 8, 8),
                "stride has no effect on images of shape [1, 8, 8], got 2; set size and value instead",
            ),
            ({"size": 2}, (25,), "size has no effect on samples of shape [25], got 2; set stride instead"),
        ],
    )
    def test_errors_have_its_name(
        self,
        make_poison_view: Callable[..., PoisonView],
        parameters: dict[str, Any],
        shape: tuple[int, ...],
        message: str,
    ) -> None:
        with pytest.raises(ParameterError) as error:
            DBA(**parameters).poison(torch.rand(6, *shape), torch.arange(6) % 4, make_poison_view())
        assert str(error.value) == f"dba: {message}"


@pytest.mark.parametrize(("factor", "expected"), [(None, 5.0), (1.0, 1.0), (100.0, 100.0)])
def test_craft(make_view: Callable[..., AttackView], factor: float | None, expected: float) -> None:
    own = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert torch.equal(DBA(factor=factor).craft(make_view(own, n_clients=10)), expected * own)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pieces": 0}, "pieces must be at least 1, got 0"),
        ({"factor": 0.0}, "factor must be positive, got 0.0"),
        ({"factor": math.nan}, "factor must be positive, got nan"),
        ({"share": 1.5}, "share must be in (0, 1], got 1.5"),
        ({"stride": 0}, "size and stride must be at least 1 and target at least 0, got 5, 0 and 0"),
        ({"target": -1}, "size and stride must be at least 1 and target at least 0, got 5, 20 and -1"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        DBA(**parameters)
    assert str(error.value) == f"dba: {message}"


class TestDamage:
    def test_a_larger_factor_plants_the_backdoor_sooner(self) -> None:
        more = {**DIGITS, "clients": 30, "malicious": 6, "rounds": 12, "evaluate_every": 1}
        area = []
        for factor in (0.2, 1.0, 5.0):
            records = records_of(more, attack={"name": "dba", "factor": factor})
            area.append(sum(record.attack_success_rate or 0.0 for record in records) / len(records))
        assert area == sorted(area)
        assert area[0] < 0.1
        assert area[2] > 0.9

    def test_together_they_do_what_no_piece_does(self) -> None:
        """The whole trigger, which nobody has trained on, fools a trained model more often than any piece."""
        sim = simulation(DIGITS, clients=30, malicious=6, rounds=30, attack={"name": "dba", "factor": 1.0})
        params = [state for state, _ in sim.rounds()][-1].server.params
        attack, test = sim.adversary.attack, sim.holdings.test
        assert isinstance(attack, DBA)
        others = test.x[test.y != 0]
        rates = []
        for piece in (None, 0, 1, 2, 3):
            predicted = sim.trainer.model.logits(params, attack.trigger(others, 1.0, piece)).argmax(dim=1)
            rates.append(float((predicted == 0).double().mean()))
        assert rates[0] > 0.8
        assert max(rates[1:]) < rates[0] - 0.3

    @pytest.mark.usefixtures("doubles")
    def test_on_features(self) -> None:
        more = {**TINY, "clients": 10, "malicious": 4, "rounds": 6}
        (*_, last) = records_of(more, attack="dba")
        (*_, weak) = records_of(more, attack={"name": "dba", "factor": 0.1})
        assert last.attack_success_rate is not None
        assert weak.attack_success_rate is not None
        assert last.attack_success_rate > 0.9
        assert weak.attack_success_rate < last.attack_success_rate
