"""What every registered attack must do."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.core.attack import (
    Attack,
    AttackView,
    Backdoor,
    Crafted,
    DataAttack,
    PoisonView,
    Task,
    Triggered,
    UpdateAttack,
    craft,
    poison,
)
from fedsieve.core.defense import Aggregate
from fedsieve.core.errors import ParameterError

NAMES = registry.names("attacks")
N_CLASSES = 4
UNTARGETED = {"label-flip"}  # data attacks without a backdoor
KINDS = {"edge-case": ("images",), "phrase": ("texts",)}  # data that an attack is for; images and features for others
PARAMETERS = {"edge-case": {"target": 1}}  # where the default is for one dataset
# Methods that change nothing with default parameters: model replacement is off, and split-layers passes data on.
UNCHANGED = {"poison": {"split-layers", "jitter", "fresh-identity"}, "craft": {"none", "edge-case", "phrase"}}

Poisoned = Callable[..., tuple[Tensor, Tensor]]


def kinds(name: str) -> tuple[str, ...]:
    return KINDS.get(name, ("images", "features"))


every_attack = pytest.mark.parametrize("name", NAMES)
every_attack_and_kind = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in NAMES for kind in kinds(name)]
)


def encode_images(raw: Any) -> Tensor:
    return torch.from_numpy(raw).permute(0, 3, 1, 2) / 255


def encode_texts(texts: list[str]) -> Tensor:
    """The id of a word is its length plus 1; at most six words."""
    return torch.tensor([([1 + len(word) for word in text.split()] + 6 * [0])[:6] for text in texts])


ENCODE = {"images": encode_images, "features": None, "texts": encode_texts}


def build(name: str) -> Attack:
    attack = registry.build("attacks", name, PARAMETERS.get(name, {}))
    assert isinstance(attack, DataAttack | UpdateAttack)
    return attack


def plain_mean(matrix: Tensor) -> Aggregate:
    return Aggregate(matrix.mean(dim=0), torch.full_like(matrix[:, 0], 1 / len(matrix)))


def grants(name: str) -> dict[str, Any]:
    """Fields of the view that the attack needs and that the threat model need not grant."""
    return {"simulate_defense": plain_mean} if "defense" in registry.traits("attacks", name).needs else {}


def needs_no_benign(name: str) -> bool:
    """Whether the attack does without the benign updates."""
    return "benign updates" not in registry.traits("attacks", name).needs


def sent_by(name: str, view: AttackView) -> Tensor:
    return craft(build(name), view, name).updates


def test_registry_is_complete() -> None:
    ours = {"none", "label-flip", "min-max", "min-sum", "fang-trim", "fang-krum", "sign-flip", "gaussian", "ipm", "lie"}
    ours |= {"lie-backdoor", "scaling", "edge-case", "phrase", "mixture", "split-layers"}
    assert ours | {"sleeper", "on-off", "jitter", "copycat", "free-rider", "fresh-identity"} <= set(NAMES)
    assert len(NAMES) >= 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the file of edge-case."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "edge-cases").mkdir()
    train, test = np.arange(320, dtype=np.uint8).reshape(5, 8, 8, 1), np.zeros((3, 8, 8, 1), np.uint8)
    np.savez(folder / "edge-cases" / "southwest-planes.npz", train=train, test=test)
    return folder


@pytest.fixture
def data() -> SimpleNamespace:
    g = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        images=torch.rand(20, 1, 8, 8, generator=g),
        features=torch.rand(20, 25, generator=g),
        texts=torch.randint(2, 30, (20, 6), generator=g),
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
    shown = others if granted or not needs_no_benign(name) else None
    view = make_view(own, shown, n_clients=m + 8, **grants(name))
    sent, attack = sent_by(name, view), build(name)
    if isinstance(attack, UpdateAttack):  # craft converts what a third party's attack returns
        returned = attack.craft(replace(view, generator=torch.Generator().manual_seed(0)))
        direct = returned.updates if isinstance(returned, Crafted) else returned
        assert (direct.dtype, direct.device) == (dtype, own.device)
        assert torch.equal(direct, sent)
    assert sent.shape == (m, 40)
    assert sent.dtype == dtype
    assert sent.device == own.device
    assert sent.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if needs_no_benign(name)])
def test_uses_only_what_is_granted(make_view: Callable[..., AttackView], data: SimpleNamespace, name: str) -> None:
    # benign updates that are not granted could only be read from the storage behind the malicious ones
    quiet = torch.cat([data.own, torch.zeros(8, 40)])
    loud = torch.cat([data.own, torch.full((8, 40), 1e9)])
    one, other = (sent_by(name, make_view(rows[:3], n_clients=11, **grants(name))) for rows in (quiet, loud))
    assert torch.equal(one, other)


@every_attack
def test_inputs_of_craft_are_unchanged(make_view: Callable[..., AttackView], data: SimpleNamespace, name: str) -> None:
    view = make_view(data.own, data.others, **grants(name))
    assert view.benign_updates is not None
    tensors = (view.malicious_updates, view.benign_updates, view.global_params)
    before = [t.clone() for t in tensors]
    sent_by(name, view)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@every_attack
def test_same_seed_same_update(make_view: Callable[..., AttackView], data: SimpleNamespace, name: str) -> None:
    one, other = (sent_by(name, make_view(data.own, data.others, seed=5, **grants(name))) for _ in range(2))
    assert torch.equal(one, other)


@every_attack
def test_order_of_the_benign_updates_is_irrelevant(
    make_view: Callable[..., AttackView], data: SimpleNamespace, name: str
) -> None:
    ids = torch.arange(8)
    one, other = (
        sent_by(name, make_view(data.own.double(), rows.double(), benign_ids=k, **grants(name)))
        for rows, k in ((data.others, ids), (data.others.flip(0), ids.flip(0)))
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_attack_and_kind
class TestPoison:
    @pytest.fixture
    def poisoned(self, make_poison_view: Callable[..., PoisonView], folder: Path, kind: str) -> Poisoned:
        def poisoned(name: str, x: Tensor, y: Tensor, n_classes: int = N_CLASSES) -> tuple[Tensor, Tensor]:
            return poison(build(name), x, y, make_poison_view(n_classes, folder=folder, encode=ENCODE[kind]))

        return poisoned

    def test_shape(self, poisoned: Poisoned, data: SimpleNamespace, name: str, kind: str) -> None:
        samples = getattr(data, kind)
        x, y = poisoned(name, samples, data.y)
        assert x.shape[1:] == samples.shape[1:]
        assert y.shape == (len(x),)
        assert (x.dtype, y.dtype) == (samples.dtype, data.y.dtype)
        assert x.isfinite().all()

    def test_inputs_are_unchanged(self, poisoned: Poisoned, data: SimpleNamespace, name: str, kind: str) -> None:
        samples = getattr(data, kind)
        x_before, y_before = samples.clone(), data.y.clone()
        poisoned(name, samples, data.y)
        assert torch.equal(samples, x_before)
        assert torch.equal(data.y, y_before)

    @pytest.mark.parametrize("n_classes", [4, 7])
    def test_labels_are_classes(
        self, poisoned: Poisoned, data: SimpleNamespace, name: str, kind: str, n_classes: int
    ) -> None:
        _, y = poisoned(name, getattr(data, kind), data.y, n_classes)
        assert 0 <= y.min() <= y.max() < n_classes

    def test_same_seed_same_data(self, poisoned: Poisoned, data: SimpleNamespace, name: str, kind: str) -> None:
        one, other = (poisoned(name, getattr(data, kind), data.y) for _ in range(2))
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])

    @pytest.mark.parametrize("k", [1, 2])
    def test_few_samples(self, poisoned: Poisoned, data: SimpleNamespace, name: str, kind: str, k: int) -> None:
        x, y = poisoned(name, getattr(data, kind)[:k], data.y[:k])
        assert len(x) == len(y) >= k


@every_attack_and_kind
def test_triggered_inputs_of_a_backdoor(data: SimpleNamespace, folder: Path, name: str, kind: str) -> None:
    attack, samples = build(name), getattr(data, kind)
    x_before, y_before = samples.clone(), data.y.clone()
    task = Task(N_CLASSES, folder, ENCODE[kind])
    found = attack.triggered(samples, data.y, task) if isinstance(attack, Backdoor) else None
    assert torch.equal(samples, x_before)
    assert torch.equal(data.y, y_before)
    assert isinstance(attack, Backdoor) or not isinstance(attack, DataAttack) or name in UNTARGETED
    if found is None:
        return
    assert isinstance(found, Triggered)
    assert found.x.shape[1:] == samples.shape[1:]
    assert found.x.isfinite().all()
    assert (found.x.dtype, found.wanted.dtype, found.already.dtype) == (samples.dtype, torch.long, torch.bool)
    assert found.wanted.shape == found.already.shape == (len(found.x),)
    assert 0 <= found.wanted.min() <= found.wanted.max() < N_CLASSES


@every_attack
def test_does_what_its_methods_and_traits_say(
    make_view: Callable[..., AttackView],
    make_poison_view: Callable[..., PoisonView],
    data: SimpleNamespace,
    folder: Path,
    name: str,
) -> None:
    traits = registry.traits("attacks", name)
    kind = kinds(name)[0]
    samples = getattr(data, kind)
    views = [make_poison_view(N_CLASSES, member=member, folder=folder, encode=ENCODE[kind]) for member in range(3)]
    attack = build(name)
    poisoned = [poison(attack, samples, data.y, view) for view in views]
    poisons = any(not (torch.equal(x, samples) and torch.equal(y, data.y)) for x, y in poisoned)
    simulated = []

    def simulate_defense(matrix: Tensor) -> Aggregate:
        simulated.append(matrix)
        return plain_mean(matrix)

    sent = sent_by(name, make_view(data.own, data.others, simulate_defense=simulate_defense))
    assert poisons == (isinstance(attack, DataAttack) and name not in UNCHANGED["poison"])
    assert torch.equal(sent, data.own) != (isinstance(attack, UpdateAttack) and name not in UNCHANGED["craft"])
    assert set(traits.needs) - {"benign updates"} == ({"defense"} if simulated else set())  # see test_traits.py
    assert traits.summary


@every_attack
def test_default_constructor_is_the_registry_default(name: str) -> None:
    assert registry.load("attacks", name)() == registry.build("attacks", name, {})


FLOATS = [
    (name, field.name)
    for name in NAMES
    for field in dataclasses.fields(registry.load("attacks", name))  # type: ignore[arg-type]
    if get_type_hints(registry.load("attacks", name))[field.name] in (float, float | None)
]
# What has to be set beside a parameter, so that it has an effect.
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("free-rider", "tiny"): {"what": "tiny"},
    ("on-off", "shrink"): {"off": "shrunken"},
    ("sleeper", "shrink"): {"off": "shrunken"},
}
SIGNED = {("copycat", "factor")} | {(name, "value") for name, field in FLOATS if field == "value"}
every_float = pytest.mark.parametrize(("name", "field"), FLOATS)


def with_float(name: str, field: str, value: float) -> Any:
    return registry.load("attacks", name)(**{**PARAMETERS.get(name, {}), **BESIDE.get((name, field), {}), field: value})


def test_parameters_that_are_numbers() -> None:
    assert {("scaling", "factor"), ("norm-bounded-backdoor", "boost"), ("jitter", "share")} <= set(FLOATS)
    assert len(FLOATS) >= 30


@every_float
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, -1.0])
def test_a_number_that_cannot_be_used(name: str, field: str, value: float) -> None:
    """One line with the parameter and its value, when the attack is built and when it is configured."""
    if value == -1 and (name, field) in SIGNED:
        assert getattr(with_float(name, field, value), field) == value
        return
    with pytest.raises(ParameterError) as error:
        with_float(name, field, value)
    assert str(error.value).startswith(f"{name}: {field} must be ")
    assert f"got {value}" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ParameterError, match=f"{name}: {field} must be "):
        registry.complete("attacks", name, {**BESIDE.get((name, field), {}), field: value})


@every_float
def test_the_largest_number(make_view: Callable[..., AttackView], data: SimpleNamespace, name: str, field: str) -> None:
    """What float32 can hold is out of range, or makes no NaN: rows that overflow are infinite, and are screened."""
    said = ""
    try:
        attack = with_float(name, field, 3e38)
    except ParameterError as error:
        said = str(error)
    if said:
        assert said.startswith(f"{name}: {field} must be ")
        assert "got 3e+38" in said
        return
    own = torch.where(torch.arange(40) % 4 == 0, 0, data.own)  # 0 times infinity would be NaN
    others = torch.where(torch.arange(40) % 4 == 0, 0, data.others)
    sent = craft(attack, make_view(own, others, **grants(name)), name).updates
    assert not sent.isnan().any()


@every_attack
def test_global_randomness_is_left_alone(
    make_view: Callable[..., AttackView],
    make_poison_view: Callable[..., PoisonView],
    data: SimpleNamespace,
    folder: Path,
    name: str,
) -> None:
    kind = kinds(name)[0]
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    view = make_poison_view(N_CLASSES, folder=folder, encode=ENCODE[kind])
    poison(build(name), getattr(data, kind), data.y, view)
    sent_by(name, make_view(data.own, data.others, **grants(name)))
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_before)  # noqa: NPY002
