"""Copycats: who is copied, in which layer, and with how much noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.copycat import Copycat, layer_coordinates, nearest_group
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.attack import AttackView
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.federation.simulation import Simulation

LAYOUT = Layout.of(
    {"conv1.weight": torch.zeros(2), "bn1.weight": torch.zeros(2), "0.weight": torch.zeros(2), "b": torch.zeros(1)},
    {"bn1.running_var": torch.zeros(3)},
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OWN, OTHERS = normal(3, 10), normal(5, 10, seed=1)


def sent(make_view: Callable[..., AttackView], m: int = 3, others: Any = OTHERS, **parameters: Any) -> Tensor:
    return Copycat(**parameters).craft(make_view(OWN[:1].expand(m, -1), others, n_clients=9, layout=LAYOUT))


class TestVictims:
    @pytest.mark.parametrize(
        ("m", "rows"), [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (7, [0, 1, 2, 3, 4, 0, 1])]
    )
    def test_distinct(self, make_view: Callable[..., AttackView], m: int, rows: list[int]) -> None:
        assert torch.equal(sent(make_view, m), OTHERS[rows])

    def test_one(self, make_view: Callable[..., AttackView]) -> None:
        assert torch.equal(sent(make_view, victims="one"), OTHERS[[0, 0, 0]])

    def test_by_id_where_ids_are_known(self, make_view: Callable[..., AttackView]) -> None:
        ids = torch.tensor([30, 4, 18, 2, 7])
        view = make_view(OWN, OTHERS, benign_ids=ids)
        assert torch.equal(Copycat().craft(view), OTHERS[[3, 1, 4]])
        assert torch.equal(Copycat("one").craft(view), OTHERS[[3, 3, 3]])

    @pytest.mark.parametrize(
        ("m", "size", "rows"),
        [
            (2, None, [1, 4]),
            (3, None, [1, 3, 4]),
            (4, 2, [1, 4, 1, 4]),
            (2, 3, [1, 3]),
            (6, None, [0, 1, 2, 3, 4, 0]),
            (3, 99, [0, 1, 2]),
        ],
    )
    def test_group(self, make_view: Callable[..., AttackView], m: int, size: int | None, rows: list[int]) -> None:
        others = torch.tensor([[0.0], [7.0], [20.0], [9.0], [8.0]]).expand(-1, 10)
        assert torch.equal(sent(make_view, m, others, victims="group", group_size=size), others[rows])

    def test_group_is_of_one_class(self, play: Callable[..., Any]) -> None:
        # clients with samples of one class each, two of each class
        settings = {"partition": {"name": "groups", "q": 1.0}, "clients": 20, "malicious": 4}
        (rows,) = play({"name": "copycat", "victims": "group", "group_size": 2}, rounds=1, **settings)
        victims = torch.cdist(rows.bad, rows.good).argmin(dim=1)
        assert torch.equal(rows.bad, rows.good[victims])
        pair = rows.good[victims.unique()]
        assert len(pair) == 2
        assert torch.pdist(pair) == torch.pdist(rows.good).min()


def test_nearest_group_against_plain_loops() -> None:
    for seed in range(20):
        x, size = normal(9, 3, seed=seed).double(), 2 + seed % 5
        groups = [sorted(range(9), key=lambda j: float((x[i] - x[j]).square().sum()))[:size] for i in range(9)]
        best = min(
            (sum(float((x[i] - x[j]).square().sum()) for j in group), sorted(group)) for i, group in enumerate(groups)
        )
        assert nearest_group(x, size).tolist() == best[1]


class TestLayers:
    @pytest.mark.parametrize(
        ("layer", "where"),
        [
            ("conv1", [0, 1]),
            ("bn1", [2, 3, 7, 8, 9]),
            ("0", [4, 5]),
            ("b", [6]),
            (0, [0, 1]),
            (1, [2, 3, 7, 8, 9]),
            (3, [6]),
            (-1, [6]),
            (-4, [0, 1]),
            (None, list(range(10))),
        ],
    )
    def test_own_elsewhere(self, make_view: Callable[..., AttackView], layer: Any, where: list[int]) -> None:
        assert layer_coordinates(LAYOUT, layer).nonzero().squeeze(1).tolist() == where
        rows = Copycat(layer=layer, factor=2.0).craft(make_view(OWN, OTHERS, layout=LAYOUT))
        expected = OWN.clone()
        expected[:, where] = 2 * OTHERS[:3, where]
        assert torch.equal(rows, expected)

    @pytest.mark.parametrize("layer", ["fc", 4, -5, "weight", "conv"])
    def test_no_such_layer(self, make_view: Callable[..., AttackView], layer: Any) -> None:
        with pytest.raises(ParameterError) as error:
            sent(make_view, layer=layer)
        said = f"copycat: the model has no layer {layer!r}; it has 0 conv1, 1 bn1, 2 0, 3 b"
        assert str(error.value) == said

    @pytest.mark.parametrize("layer", ["layers.1", 1, -2, "layers.9", 2])
    def test_is_told_before_any_round(self, layer: Any) -> None:
        attack: Any = {"name": "copycat", "layer": layer}
        for outer in ("on-off", "fresh-identity", "sleeper"):
            attack = {"name": outer, "attack": attack}
        experiment = Experiment.of({"attack": {"name": "mixture", "attacks": ["none", attack]}, "clients": 8})
        if layer in ("layers.9", 2):
            with pytest.raises(ParameterError) as error:
                Simulation.of(experiment, Path(), torch.device("cpu"))
            said = f"copycat: the model has no layer {layer!r}; it has 0 layers.1, 1 layers.3"
            assert str(error.value) == said
        else:
            Simulation.of(experiment, Path(), torch.device("cpu"))


class TestJitterAndFactor:
    @pytest.mark.parametrize("layer", [None, "bn1"])
    def test_length_of_the_noise(self, make_view: Callable[..., AttackView], layer: Any) -> None:
        rows = sent(make_view, layer=layer, jitter=0.1, factor=-2.0)
        parameters = layer_coordinates(LAYOUT, layer) & (torch.arange(10) < 7)
        rest = layer_coordinates(LAYOUT, layer) & ~parameters
        noise = (rows / -2 - OTHERS[:3])[:, parameters]
        torch.testing.assert_close(noise.norm(dim=1), 0.1 * OTHERS[:3, parameters].norm(dim=1))
        assert torch.equal(rows[:, rest], -2 * OTHERS[:3, rest])

    def test_each_copy_has_its_own(self, make_view: Callable[..., AttackView]) -> None:
        rows = sent(make_view, victims="one", jitter=0.1)
        assert torch.pdist(rows).min() > 0


class TestNobodyToCopy:
    def test_without_knowledge(self, make_view: Callable[..., AttackView]) -> None:
        with pytest.raises(ParameterError) as error:
            sent(make_view, others=None)
        assert str(error.value) == "copycat must see the benign updates; grant them with knowledge=full"

    @pytest.mark.parametrize(
        "attack",
        ["copycat", {"name": "sleeper", "attack": "copycat"}, {"name": "mixture", "attacks": ["none", "copycat"]}],
        ids=["copycat", "sleeper", "mixture"],
    )
    def test_is_told_before_any_round(self, attack: Any) -> None:
        name = attack if isinstance(attack, str) else attack["name"]
        with pytest.raises(ParameterError) as error:
            Experiment.of({"attack": attack, "knowledge": "partial"})
        assert str(error.value) == f"attack {name} must see the benign updates; grant them with knowledge=full"
        with pytest.raises(ParameterError) as error:
            Experiment.of({"attack": attack, "clients": 12, "malicious": 12})
        assert str(error.value) == f"attack {name} needs benign clients, but all 12 clients are malicious"
        assert Experiment.of({"attack": attack, "clients": 12, "malicious": 11}).n_malicious == 11

    def test_a_round_without_benign_clients(self, make_view: Callable[..., AttackView], play: Any) -> None:
        for victims in ("distinct", "one", "group"):
            assert torch.equal(Copycat(victims).craft(make_view(OWN, OTHERS[:0], layout=LAYOUT)), OWN)
        rounds = play("copycat", rounds=12, clients=4, malicious=2, clients_per_round=1)
        assert {len(rows.bad) for rows in rounds} == {0, 1}
        assert all(len(rows.good) + len(rows.bad) == 1 for rows in rounds)


class TestSimulation:
    def test_each_copies_another(self, play: Callable[..., Any]) -> None:
        honest = play("none", rounds=1)[0]
        one, two = play("copycat", rounds=2)
        assert torch.equal(one.good, honest.good)
        for rows in (one, two):
            assert torch.equal(rows.bad, rows.good[:3])
        # what is copied counts twice; the server's learning rate is a half
        step = 0.5 * (one.good.sum(dim=0) + one.good[:3].sum(dim=0)) / 8
        torch.testing.assert_close(two.params - one.params, step, rtol=1e-4, atol=1e-6)

    def test_in_one_layer_of_a_real_model(self, play: Callable[..., Any]) -> None:
        honest = play("none", rounds=1)[0]
        (rows,) = play({"name": "copycat", "layer": -1, "victims": "one"}, rounds=1)
        last = 10 * 64 + 10
        same = (rows.bad == honest.bad).all(dim=0)
        copied = (rows.bad == honest.good[0]).all(dim=0)
        assert copied[-last:].all()
        assert same[:-last].all()


def test_default() -> None:
    assert registry.build("attacks", "copycat", {}) == Copycat() == Copycat("distinct", None, None, 0.0, 1.0)


@pytest.mark.parametrize(("given", "kept"), [(0, 0), (-1, -1), ("fc", "fc"), ("0", "0"), (None, None)])
def test_a_number_stays_a_number(given: Any, kept: Any) -> None:
    found = registry.complete("attacks", "copycat", {"layer": given})["layer"]
    assert (type(found), found) == (type(kept), kept)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"group_size": 3}, "copycat: group_size has no effect with victims=distinct, got 3; set victims=group"),
        ({"victims": "group", "group_size": 0}, "copycat: group_size must be at least 1, got 0"),
        ({"jitter": -0.1}, "copycat: jitter must be at least 0 and finite, got -0.1"),
        ({"factor": 0.0}, "copycat: factor must be finite and not 0, got 0.0"),
        (
            {"victims": "all"},
            "attack copycat: victims: Input should be 'distinct', 'one' or 'group', got 'all'",
        ),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        registry.complete("attacks", "copycat", parameters)
    assert str(error.value) == message
