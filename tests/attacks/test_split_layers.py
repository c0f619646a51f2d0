"""Split layers: the coordinates of each client, and what it sends in them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.fang import FangTrim
from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.none import NoAttack
from fedsieve.attacks.scaling import Scaling
from fedsieve.attacks.split_layers import SplitLayers, contiguous_groups, layer_of_each, own_coordinates
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.layout import Layout
from fedsieve.models.build import build_module
from fedsieve.models.flat import FlatModel

# conv1: 0 to 3 and bn1's statistics last; bn1: 4 and 5; body.0: 6 to 8; fc: 9 to 12
LAYOUT = Layout.of(
    {
        "conv1.weight": torch.zeros(1, 3),
        "conv1.bias": torch.zeros(1),
        "bn1.weight": torch.zeros(1),
        "bn1.bias": torch.zeros(1),
        "body.0.weight": torch.zeros(3),
        "fc.weight": torch.zeros(2, 2),
    },
    {"bn1.running_mean": torch.zeros(1), "bn1.running_var": torch.zeros(1)},
)
LAYERS = [0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 1, 1]
MEAN, VAR = 13, 14


@dataclass(frozen=True)
class Sends:
    """Sends ``value`` in every coordinate."""

    value: float

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        return x + self.value, y

    def craft(self, view: AttackView, /) -> Tensor:
        return torch.full_like(view.malicious_updates, self.value)


@dataclass(frozen=True)
class OneRow(Sends):
    def craft(self, view: AttackView, /) -> Tensor:
        return view.malicious_updates[0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestLayers:
    def test_by_hand(self) -> None:
        assert layer_of_each(LAYOUT).tolist() == LAYERS

    def test_tensors_without_module_are_one_layer(self) -> None:
        assert layer_of_each(Layout.of({"w": torch.zeros(2), "b": torch.zeros(1)})).tolist() == [0, 0, 0]

    def test_of_a_real_model(self) -> None:
        factory = registry.load("models", "resnet20")
        module = build_module(factory, (3, 8, 8), 10, torch.Generator().manual_seed(0), {})
        model, params = FlatModel.of(module)
        layers = layer_of_each(model.layout)
        assert len(layers) == len(params)
        assert int(layers.max()) + 1 == 2 + 9 * 4 + 1  # stem, nine blocks of two convolutions with BatchNorm, output
        in_order = layers[: model.layout.n_parameters].tolist()
        assert in_order == sorted(in_order)
        statistics = {s.name.rpartition(".")[0]: int(layers[s.start]) for s in model.layout.segments}
        for s in model.layout.segments:
            assert (layers[s.start : s.stop] == statistics[s.name.rpartition(".")[0]]).all()


class TestGroups:
    @pytest.mark.parametrize(
        ("sizes", "n_groups", "groups"),
        [
            ([4, 4, 4], 3, [0, 1, 2]),
            ([1, 1, 1, 1], 2, [0, 0, 1, 1]),
            ([10, 1, 1, 1], 2, [0, 1, 1, 1]),
            ([1, 1, 1, 10], 2, [0, 0, 0, 1]),
            ([10, 1, 1, 1], 4, [0, 1, 2, 3]),
            ([1, 1, 1, 10], 3, [0, 0, 1, 2]),
            ([3, 2, 4, 3], 2, [0, 0, 1, 1]),
            ([5, 6, 7], 1, [0, 0, 0]),
            ([9], 1, [0]),
        ],
    )
    def test_by_hand(self, sizes: list[int], n_groups: int, groups: list[int]) -> None:
        assert contiguous_groups(sizes, n_groups) == groups

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=40), data=st.data())
    def test_none_empty_and_in_order(self, sizes: list[int], data: Any) -> None:
        n_groups = data.draw(st.integers(1, len(sizes)))
        groups = contiguous_groups(sizes, n_groups)
        assert len(groups) == len(sizes)
        assert (groups[0], groups[-1]) == (0, n_groups - 1)
        assert all(b - a in (0, 1) for a, b in pairwise(groups))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(sizes=st.lists(st.integers(1, 10), min_size=30, max_size=60), n_groups=st.integers(1, 5))
    def test_about_equal(self, sizes: list[int], n_groups: int) -> None:
        groups = contiguous_groups(sizes, n_groups)
        sums = [sum(s for s, g in zip(sizes, groups, strict=True) if g == k) for k in range(n_groups)]
        # each is within half a layer of an equal share of the remaining sum, so that errors don't add up
        assert max(sums) - min(sums) <= 2 * max(sizes)


class TestOwnCoordinates:
    def members_of(self, members: list[int], groups: int | None = None) -> list[list[int]]:
        """For each coordinate, the members that attack it."""
        mine = own_coordinates(LAYOUT, torch.tensor(members), groups)
        return [[m for m, row in zip(members, mine, strict=True) if row[j]] for j in range(LAYOUT.size)]

    def test_one_client_per_layer(self) -> None:
        assert self.members_of([0, 1, 2, 3]) == [[layer] for layer in LAYERS]

    def test_members_by_rank(self) -> None:
        # 4, 7, 9 and 30 are ranks 0 to 3
        assert self.members_of([9, 4, 30, 7]) == [[[4, 7, 9, 30][layer]] for layer in LAYERS]

    def test_more_clients_than_layers(self) -> None:
        found = self.members_of([0, 1, 2, 3, 4, 5])
        assert found == [[layer, layer + 4] if layer < 2 else [layer] for layer in LAYERS]

    def test_fewer_clients_than_layers(self) -> None:
        # sizes 4, 4, 3, 4: two groups of 8 and 7
        assert self.members_of([5, 2]) == [[2 if layer < 2 else 5] for layer in LAYERS]
        assert self.members_of([3]) == [[3]] * LAYOUT.size

    def test_groups(self) -> None:
        assert self.members_of([0, 1, 2, 3], groups=2) == [[0, 2] if layer < 2 else [1, 3] for layer in LAYERS]
        assert self.members_of([0, 1, 2, 3], groups=99) == [[layer] for layer in LAYERS]
        assert self.members_of([0, 1, 2], groups=1) == [[0, 1, 2]] * LAYOUT.size

    @pytest.mark.parametrize("groups", [None, 1, 2, 3, 4])
    @pytest.mark.parametrize("m", range(1, 8))
    def test_every_coordinate_has_a_client_and_every_client_has_coordinates(self, groups: int | None, m: int) -> None:
        mine = own_coordinates(LAYOUT, torch.arange(m), groups)
        assert mine.shape == (m, LAYOUT.size)
        assert mine.any(dim=0).all()
        assert mine.any(dim=1).all()


class TestCraft:
    def test_crafted_in_own_layers_honest_in_the_others(self, make_view: Callable[..., AttackView]) -> None:
        own = normal(4, LAYOUT.size)
        before = own.clone()
        sent = SplitLayers(Sends(9.0)).craft(make_view(own, layout=LAYOUT)).updates
        assert torch.equal(own, before)
        for row in range(4):
            for j, layer in enumerate(LAYERS):
                assert sent[row, j] == (9 if layer == row else own[row, j])

    def test_statistics_go_with_their_layer(self, make_view: Callable[..., AttackView]) -> None:
        sent = SplitLayers(Sends(9.0)).craft(make_view(torch.zeros(4, LAYOUT.size), layout=LAYOUT)).updates
        assert sent[:, [4, 5, MEAN, VAR]].tolist() == [[0] * 4, [9] * 4, [0] * 4, [0] * 4]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_factor(self, make_view: Callable[..., AttackView], dtype: torch.dtype) -> None:
        own = normal(2, LAYOUT.size).to(dtype)
        sent = SplitLayers(Sends(9.0), factor=2.5).craft(make_view(own, layout=LAYOUT)).updates
        assert sent.dtype == dtype
        whole = own + 2.5 * (9 - own)
        for j, layer in enumerate(LAYERS):
            mine = 0 if layer < 2 else 1
            assert float(sent[mine, j]) == pytest.approx(float(whole[mine, j]))
            assert sent[1 - mine, j] == own[1 - mine, j]

    def test_the_inner_attack_sees_the_whole_view(self, make_view: Callable[..., AttackView]) -> None:
        own, others = normal(4, LAYOUT.size), normal(6, LAYOUT.size, seed=1)
        whole = FangTrim().craft(make_view(own, others, layout=LAYOUT))
        sent = SplitLayers(FangTrim()).craft(make_view(own, others, layout=LAYOUT)).updates
        assert torch.equal(sent, torch.where(own_coordinates(LAYOUT, torch.arange(4), None), whole, own))
        # in every coordinate one client attacks; with the inner attack alone all do
        assert ((sent - own) != 0).sum() == LAYOUT.size

    def test_one_client_is_the_inner_attack(self, make_view: Callable[..., AttackView]) -> None:
        own, others = normal(1, LAYOUT.size), normal(6, LAYOUT.size, seed=1)
        whole = FangTrim().craft(make_view(own, others, layout=LAYOUT))
        assert torch.equal(SplitLayers(FangTrim()).craft(make_view(own, others, layout=LAYOUT)).updates, whole)

    def test_a_huge_row_stays_in_its_layers(self, make_view: Callable[..., AttackView]) -> None:
        sent = SplitLayers(Sends(1e30)).craft(make_view(normal(4, LAYOUT.size), layout=LAYOUT)).updates
        assert sent.isfinite().all()
        assert (sent > 1e29).sum() == LAYOUT.size

    def test_an_answer_of_the_wrong_shape(self, make_view: Callable[..., AttackView]) -> None:
        with pytest.raises(FedSieveError) as error:
            SplitLayers(OneRow(0.0)).craft(make_view(normal(3, LAYOUT.size), layout=LAYOUT))
        said = "attack split-layers: OneRow returned float32 of shape [15] instead of float32 of shape [3, 15]: one row per malicious client"  # noqa: E501
        assert str(error.value) == said


class TestDelegates:
    def test_poison(self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = SplitLayers(Sends(2.0)).poison(*samples, make_poison_view(member=3))
        assert torch.equal(x, samples[0] + 2)
        assert torch.equal(y, samples[1])

    def test_triggered(self) -> None:
        x, y, task = normal(6, 30), torch.arange(6) % 3, Task(3, Path())
        attack = SplitLayers(Scaling(target=2))
        assert isinstance(attack, Backdoor)
        found = attack.triggered(x, y, task)
        assert found is not None
        assert torch.equal(found.x, Scaling(target=2).trigger(x))
        assert SplitLayers(NoAttack()).triggered(x, y, task) is None

    def test_default(self, make_view: Callable[..., AttackView]) -> None:
        assert registry.build("attacks", "split-layers", {}) == SplitLayers() == SplitLayers(FangTrim())
        own, others = normal(4, LAYOUT.size), normal(6, LAYOUT.size, seed=1)
        one, other = (
            s.craft(make_view(own, others, layout=LAYOUT)).updates for s in (SplitLayers(), SplitLayers(FangTrim()))
        )
        assert torch.equal(one, other)
        assert not torch.equal(one, own)

    def test_data_attack_is_refused(self) -> None:
        with pytest.raises(ParameterError) as error:
            SplitLayers(LabelFlip())
        assert str(error.value) == (
            "split-layers: LabelFlip only poisons data, so that splitting has no effect; "
            "take an attack that crafts updates"
        )

    @pytest.mark.parametrize("depth", [1, 2, 3])
    @pytest.mark.parametrize("wrapper", ["sleeper", "on-off", "jitter", "fresh-identity", "mixture", "split-layers"])
    @pytest.mark.parametrize("inner", ["label-flip", "targeted-flip"])
    def test_data_attack_within_others_is_refused(self, wrapper: str, depth: int, inner: str) -> None:
        spec: Any = inner
        for k in range(depth):
            name = ("sleeper", "jitter")[k % 2] if k else wrapper
            held = {"attacks": ["scaling", spec]} if name == "mixture" else {"attack": spec}
            spec = {"name": name, **held}
        with pytest.raises(FedSieveError) as error:
            Experiment.of({"attack": {"name": "split-layers", "attack": spec}})
        said = str(error.value)
        cls = registry.load("attacks", inner).__name__
        assert f"split-layers: {cls}" in said
        assert said.endswith("only poisons data, so that splitting has no effect; take an attack that crafts updates")
        assert "\n" not in said

    def test_attacks_on_updates_within_others(self) -> None:
        inner = {"name": "mixture", "attacks": ["scaling", {"name": "jitter", "attack": "min-max"}, "none"]}
        e = Experiment.of({"attack": {"name": "split-layers", "attack": {"name": "sleeper", "attack": inner}}})
        assert isinstance(registry.build("attacks", e.attack.name, e.attack.parameters), SplitLayers)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"groups": 0}, "split-layers: groups must be at least 1, got 0"),
        ({"factor": 0.0}, "split-layers: factor must be positive, got 0.0"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        SplitLayers(NoAttack(), **parameters)
    assert str(error.value) == message
