"""The model as a vector, selections of updates, what views contain, errors."""

import dataclasses
from types import ModuleType

import pytest
import torch

from fedsieve.core.defense import ServerView, Updates
from fedsieve.core.errors import (
    BoundError,
    CorruptDataError,
    FedSieveError,
    MissingDataError,
    ParameterError,
    UnknownNameError,
)
from fedsieve.core.layout import Layout, Segment, output_layer

PARAMETERS = {"weight": torch.arange(6.0).view(2, 3), "scale": torch.tensor([6.0]), "bias": torch.arange(7.0, 9)}
STATISTICS = {"mean": torch.arange(9.0, 12), "var": torch.arange(12.0, 14).view(1, 2)}
LAYOUT = Layout.of(PARAMETERS, STATISTICS)


class TestLayout:
    def test_parameters_first_statistics_last(self) -> None:
        assert [(s.name, s.shape, s.start, s.stop) for s in LAYOUT.segments] == [
            ("weight", (2, 3), 0, 6),
            ("scale", (1,), 6, 7),
            ("bias", (2,), 7, 9),
            ("mean", (3,), 9, 12),
            ("var", (1, 2), 12, 14),
        ]
        assert (LAYOUT.n_parameters, LAYOUT.size) == (9, 14)

    def test_without_statistics(self) -> None:
        layout = Layout.of(PARAMETERS)
        assert (layout.n_parameters, layout.size) == (9, 9)

    def test_empty(self) -> None:
        assert (Layout.of({}).size, Layout.of({}).n_parameters) == (0, 0)

    def test_order_of_the_vector(self) -> None:
        assert LAYOUT.flatten(STATISTICS | PARAMETERS).tolist() == list(range(14))

    def test_extra_tensors_are_ignored_and_missing_ones_are_not(self) -> None:
        assert LAYOUT.flatten({**PARAMETERS, **STATISTICS, "other": torch.zeros(3)}).tolist() == list(range(14))
        with pytest.raises(KeyError, match="var"):
            LAYOUT.flatten({**PARAMETERS, "mean": torch.zeros(3)})

    @pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_round_trip(self, batch: tuple[int, ...], dtype: torch.dtype) -> None:
        flat = torch.randn(*batch, 14, dtype=dtype, generator=torch.Generator().manual_seed(0))
        tensors = LAYOUT.unflatten(flat)
        assert {k: tuple(t.shape) for k, t in tensors.items()} == {s.name: (*batch, *s.shape) for s in LAYOUT.segments}
        assert torch.equal(LAYOUT.flatten(tensors), flat)
        assert LAYOUT.flatten(tensors).dtype == dtype

    @pytest.mark.parametrize("batch", [(), (2,)])
    def test_scalars(self, batch: tuple[int, ...]) -> None:
        layout = Layout.of({"a": torch.zeros(()), "b": torch.zeros(2)})
        flat = torch.randn(*batch, 3)
        tensors = layout.unflatten(flat)
        assert torch.equal(tensors["a"], flat[..., 0])
        assert torch.equal(layout.flatten(tensors), flat)

    def test_batch_rows_are_apart(self) -> None:
        flat = torch.randn(3, 14)
        tensors = LAYOUT.unflatten(flat)
        for i in range(3):
            alone = LAYOUT.unflatten(flat[i])
            assert all(torch.equal(alone[name], tensors[name][i]) for name in alone)

    @pytest.mark.parametrize("batch", [(), (4,)])
    def test_views_not_copies(self, batch: tuple[int, ...]) -> None:
        flat = torch.zeros(*batch, 14)
        for tensor in LAYOUT.unflatten(flat).values():
            tensor.fill_(1)
        assert (flat == 1).all()

    def test_views_of_a_slice(self) -> None:
        wide = torch.zeros(4, 40)
        LAYOUT.unflatten(wide[:, 20:34])["bias"].fill_(1)
        assert wide.any(dim=0).nonzero().squeeze(1).tolist() == [27, 28]

    def test_flatten_copies(self) -> None:
        weight = torch.zeros(2)
        Layout.of({"w": weight}).flatten({"w": weight}).fill_(1)
        assert weight.tolist() == [0, 0]

    def test_tensors_that_are_not_contiguous(self) -> None:
        images = torch.arange(16.0).view(1, 2, 2, 4).contiguous(memory_format=torch.channels_last)
        assert Layout.of({"w": images}).flatten({"w": images}).tolist() == list(range(16))

    def test_gradients_flow_through_the_views(self) -> None:
        flat = torch.zeros(14, requires_grad=True)
        LAYOUT.unflatten(flat)["bias"].sum().backward()  # type: ignore[no-untyped-call]
        assert flat.grad is not None
        assert flat.grad.nonzero().squeeze(1).tolist() == [7, 8]


def test_segment_of_a_scalar() -> None:
    assert Segment("s", (), 3).stop == 4


class TestUpdates:
    updates = Updates(torch.arange(6.0).view(3, 2), torch.tensor([7, 3, 5]), Layout.of({"w": torch.zeros(2)}))

    def test_select(self) -> None:
        chosen = self.updates.select(torch.tensor([True, False, True]))
        assert chosen.matrix.tolist() == [[0, 1], [4, 5]]
        assert chosen.client_ids.tolist() == [7, 5]
        assert chosen.layout is self.updates.layout

    def test_select_no_row(self) -> None:
        chosen = self.updates.select(torch.zeros(3, dtype=torch.bool))
        assert chosen.matrix.shape == (0, 2)
        assert chosen.client_ids.shape == (0,)

    def test_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            self.updates.matrix = torch.zeros(3, 2)  # type: ignore[misc]


def test_known_updates_are_what_was_granted(doubles: ModuleType) -> None:
    own = torch.zeros(1, 2)
    assert doubles.attack_view(own, None).known_updates.tolist() == [[0, 0]]
    assert doubles.attack_view(own, torch.ones(2, 2)).known_updates.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_defense_does_not_get_the_ground_truth() -> None:
    fields = {f.name for f in dataclasses.fields(ServerView)}
    served = {"state", "root", "network", "learning_rate"}
    assert fields == {"round", "n_malicious", "generator", "global_params"} | served
    assert not {f.name for f in dataclasses.fields(Updates)} - {"matrix", "client_ids", "layout"}


def test_every_error_has_one_base() -> None:
    errors = (UnknownNameError, ParameterError, BoundError, MissingDataError, CorruptDataError)
    assert all(issubclass(error, FedSieveError) for error in errors)


@pytest.mark.parametrize(
    ("shapes", "weight", "bias"),
    [
        ({"a": (4, 3), "b": (4,), "out": (2, 4), "bias": (2,)}, "out", "bias"),
        ({"a": (4, 3), "out": (2, 4)}, "out", None),
        ({"a": (4, 3), "out": (2, 4), "scale": (4,)}, "out", None),
        ({"conv": (2, 1, 3, 3), "bias": (2,), "scale": (7,)}, "conv", "bias"),
        ({"a": (4,), "out": (2,)}, "out", None),  # no parameter of two dimensions
        ({"out": (3,)}, "out", None),
        ({"out": (2, 4), "bias": (2,), "scale": (2,)}, "out", "bias"),
    ],
)
def test_output_layer(shapes: dict[str, tuple[int, ...]], weight: str, bias: str | None) -> None:
    parameters = {name: torch.empty(shape) for name, shape in shapes.items()}
    layout = Layout.of(parameters, {"running_mean": torch.empty(2), "more": torch.empty(2, 2)})
    found = output_layer(layout)
    assert found[0].name == weight
    assert (None if found[1] is None else found[1].name) == bias
