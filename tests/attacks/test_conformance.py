"""What every registered attack must do."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve import registry
from fedsieve.types import Attack, AttackView

NAMES = registry.names("attacks")
N_CLASSES = 4

every_attack = pytest.mark.parametrize("name", NAMES)


def build(name: str) -> Attack:
    attack = registry.build("attacks", name, {})
    assert isinstance(attack, Attack)
    return attack


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_registry_is_complete() -> None:
    assert {"none", "label-flip", "min-max", "scaling"} <= set(NAMES)
    assert len(NAMES) >= 4


@pytest.fixture
def data() -> SimpleNamespace:
    g = generator()
    return SimpleNamespace(
        images=torch.rand(20, 1, 8, 8, generator=g),
        features=torch.rand(20, 25, generator=g),
        y=torch.arange(20) % N_CLASSES,
        own=torch.randn(3, 40, generator=g),
        others=torch.randn(8, 40, generator=g),
    )


@every_attack
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("granted", [True, False])
def test_one_finite_row_per_malicious_client(
    make_view: Callable[..., AttackView],
    data: SimpleNamespace,
    name: str,
    m: int,
    dtype: torch.dtype,
    granted: bool,
) -> None:
    own, others = data.own[:m].to(dtype), data.others.to(dtype)
    sent = build(name).craft(make_view(own, others if granted else None, n_clients=m + 8))
    assert sent.shape == (m, 40)
    assert sent.dtype == dtype
    assert sent.device == own.device
    assert sent.isfinite().all()


@every_attack
def test_uses_only_what_is_granted(make_view: Callable[..., AttackView], data: SimpleNamespace, name: str) -> None:
    # not granted, the others' updates could only be reached through storage behind the attacker's own
    quiet = torch.cat([data.own, torch.zeros(8, 40)])
    loud = torch.cat([data.own, torch.full((8, 40), 1e9)])
    one, other = (build(name).craft(make_view(rows[:3], n_clients=11)) for rows in (quiet, loud))
    assert torch.equal(one, other)


@every_attack
def test_inputs_of_craft_are_unchanged(make_view: Callable[..., AttackView], data: SimpleNamespace, name: str) -> None:
    view = make_view(data.own, data.others)
    assert view.others is not None
    before = [t.clone() for t in (view.own, view.others, view.global_params)]
    build(name).craft(view)
    assert all(torch.equal(a, b) for a, b in zip((view.own, view.others, view.global_params), before, strict=True))


@every_attack
def test_same_seed_same_update(make_view: Callable[..., AttackView], data: SimpleNamespace, name: str) -> None:
    one, other = (build(name).craft(make_view(data.own, data.others, seed=5)) for _ in range(2))
    assert torch.equal(one, other)


@every_attack
def test_order_of_the_others_is_irrelevant(
    make_view: Callable[..., AttackView], data: SimpleNamespace, name: str
) -> None:
    view = make_view(data.own.double(), data.others.double())
    assert view.others is not None
    one, other = build(name).craft(view), build(name).craft(replace(view, others=view.others.flip(0)))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_attack
@pytest.mark.parametrize("kind", ["images", "features"])
class TestPoison:
    def poisoned(self, name: str, x: Tensor, y: Tensor, n_classes: int = N_CLASSES) -> tuple[Tensor, Tensor]:
        return build(name).poison(x, y, n_classes, generator())

    def test_shape(self, data: SimpleNamespace, name: str, kind: str) -> None:
        samples = getattr(data, kind)
        x, y = self.poisoned(name, samples, data.y)
        assert x.shape[1:] == samples.shape[1:]
        assert y.shape == (len(x),)
        assert (x.dtype, y.dtype) == (samples.dtype, data.y.dtype)
        assert x.isfinite().all()

    def test_inputs_are_unchanged(self, data: SimpleNamespace, name: str, kind: str) -> None:
        samples = getattr(data, kind)
        x_before, y_before = samples.clone(), data.y.clone()
        self.poisoned(name, samples, data.y)
        assert torch.equal(samples, x_before)
        assert torch.equal(data.y, y_before)

    @pytest.mark.parametrize("n_classes", [4, 7])
    def test_labels_are_classes(self, data: SimpleNamespace, name: str, kind: str, n_classes: int) -> None:
        _, y = self.poisoned(name, getattr(data, kind), data.y, n_classes)
        assert 0 <= y.min() <= y.max() < n_classes

    def test_same_seed_same_data(self, data: SimpleNamespace, name: str, kind: str) -> None:
        one, other = (self.poisoned(name, getattr(data, kind), data.y) for _ in range(2))
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])

    @pytest.mark.parametrize("k", [1, 2])
    def test_few_samples(self, data: SimpleNamespace, name: str, kind: str, k: int) -> None:
        x, y = self.poisoned(name, getattr(data, kind)[:k], data.y[:k])
        assert len(x) == len(y) >= k


@every_attack
def test_does_something_that_its_traits_say(
    make_view: Callable[..., AttackView], data: SimpleNamespace, name: str
) -> None:
    traits = registry.traits("attacks", name)
    x, y = build(name).poison(data.images, data.y, N_CLASSES, generator())
    poisons = not (torch.equal(x, data.images) and torch.equal(y, data.y))
    crafts = not torch.equal(build(name).craft(make_view(data.own, data.others)), data.own)
    assert set(traits.needs) == {word for word, does in (("data", poisons), ("updates", crafts)) if does}
    assert traits.summary


@every_attack
def test_global_randomness_is_left_alone(
    make_view: Callable[..., AttackView], data: SimpleNamespace, name: str
) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    build(name).poison(data.images, data.y, N_CLASSES, generator())
    build(name).craft(make_view(data.own, data.others))
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_before)  # noqa: NPY002
