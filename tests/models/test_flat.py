"""Models as functions of a flat vector, against the plain modules."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsieve.config import registry
from fedsieve.core.errors import ParameterError
from fedsieve.models.build import build_module
from fedsieve.models.cnn import CNN
from fedsieve.models.flat import FlatModel
from fedsieve.models.logistic_regression import LogisticRegression
from fedsieve.models.mlp import MLP
from fedsieve.models.resnet20 import ResNet20

NAMES = registry.names("models")
SHAPES = {"cnn": (1, 12, 14), "resnet20": (3, 8, 8), "logistic-regression": (7,), "mlp": (2, 3), "lstm": (9,)}
VOCABULARY = tuple("_?abcdefgh")
N_CLASSES = 5

every_model = pytest.mark.parametrize("name", NAMES)


def test_registry_is_complete() -> None:
    assert set(SHAPES) == set(NAMES)
    assert len(NAMES) == 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class User(nn.Module):
    """A user's own: BatchNorm in one and two dimensions, a scalar-like scale, a frozen layer, a float buffer."""

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4, momentum=0.3)
        self.frozen = nn.Linear(4 * input_shape[1] * input_shape[2], 6)
        self.frozen.requires_grad_(False)
        self.bn2 = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.ones(1))
        self.fc = nn.Linear(6, n_classes)
        self.register_buffer("shift", torch.full((n_classes,), 0.25))

    def forward(self, x: Tensor) -> Any:
        y = self.bn1(self.conv(x)).tanh().flatten(1)
        return self.scale * self.fc(self.bn2(self.frozen(y)).tanh()) + self.shift


def module_of(name: str) -> nn.Module:
    """A module in float64, with weights that are not zero anywhere."""
    shape = SHAPES.get(name, (2, 4, 4))
    factory = User if name == "user" else registry.load("models", name)
    module = build_module(factory, shape, N_CLASSES, generator(), {}, VOCABULARY).double()
    noise = generator(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise, dtype=torch.float64), alpha=0.1)
        for key, buffer in module.named_buffers():
            if key.endswith("running_var"):
                buffer += torch.rand(buffer.shape, generator=noise, dtype=torch.float64)
            elif key.endswith("running_mean"):
                buffer += torch.randn(buffer.shape, generator=noise, dtype=torch.float64)
    return module


def batch(name: str, k: int = 6) -> tuple[Tensor, Tensor]:
    shape = SHAPES.get(name, (2, 4, 4))
    if name == "lstm":  # token ids, padded with 0 at the end
        x = torch.randint(1, len(VOCABULARY), (k, *shape), generator=generator(2))
        return x * (torch.arange(*shape) < torch.arange(3, k + 3).unsqueeze(1)), torch.arange(k) % N_CLASSES
    return torch.randn(k, *shape, generator=generator(2), dtype=torch.float64), torch.arange(k) % N_CLASSES


every_module = pytest.mark.parametrize("name", [*NAMES, "user"])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


class TestVector:
    @every_module
    def test_round_trip(self, name: str) -> None:
        module = module_of(name)
        model, flat = FlatModel.of(module)
        tensors = model.layout.unflatten(flat)
        fixed = ("num_batches_tracked", "frozen.weight", "frozen.bias", "shift")
        state = {k: v for k, v in module.state_dict().items() if not k.endswith(fixed)}
        assert set(tensors) == set(state)
        assert torch.equal(model.layout.flatten(module.state_dict()), flat)
        assert all(torch.equal(tensors[k], state[k]) for k in state)
        assert torch.equal(model.layout.flatten(tensors), flat)
        assert flat.shape == (model.layout.size,)
        assert flat.dtype == torch.float64
        assert not flat.requires_grad

    @every_module
    def test_trained_parameters_come_first(self, name: str) -> None:
        module = module_of(name)
        model, _ = FlatModel.of(module)
        trained = {k for k, p in module.named_parameters() if p.requires_grad}
        assert {s.name for s in model.layout.segments if s.stop <= model.layout.n_parameters} == trained
        assert model.layout.n_parameters == sum(p.numel() for p in module.parameters() if p.requires_grad)

    @every_module
    def test_split(self, name: str) -> None:
        module = module_of(name)
        model, flat = FlatModel.of(module)
        parameters, statistics = model.split(model.tensors(flat))
        assert set(parameters) == {k for k, p in module.named_parameters() if p.requires_grad}
        assert set(parameters) | set(statistics) == {s.name for s in model.layout.segments}
        assert not set(parameters) & set(statistics)

    def test_cnn(self) -> None:
        model, flat = FlatModel.of(CNN((1, 28, 28), 10))
        assert len(flat) == model.layout.n_parameters == 139_960

    def test_resnet20(self) -> None:
        model, flat = FlatModel.of(ResNet20((3, 32, 32), 10))
        assert model.layout.n_parameters == 269_722
        # behind them a mean and a variance per filter: 16 at the start, then two layers in three blocks of each width
        assert len(flat) - 269_722 == 2 * (16 + 6 * (16 + 32 + 64)) == 1376
        names = [s.name for s in model.layout.segments if s.start >= 269_722]
        assert len(names) == 2 * 19
        assert all(name.endswith(("running_mean", "running_var")) for name in names)
        variances = [s for s in model.layout.segments if s.name.endswith("running_var")]
        assert all((flat[s.start : s.stop] == 1).all() for s in variances)

    def test_others(self) -> None:
        assert len(FlatModel.of(LogisticRegression((3, 4), 5))[1]) == 13 * 5
        assert len(FlatModel.of(MLP((10,), 3, hidden=(7, 4)))[1]) == 11 * 7 + 8 * 4 + 5 * 3
        assert not FlatModel.of(LogisticRegression((3, 4), 5))[1].any()

    def test_scalar_parameter(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(2.0))
                self.fc = nn.Linear(3, 2)

            def forward(self, x: Tensor) -> Any:
                return self.scale * self.fc(x)

        module = Scaled()
        model, flat = FlatModel.of(module)
        x = torch.randn(4, 3)
        torch.testing.assert_close(model.logits(flat, x), module(x).detach())


class TestGradient:
    def expected(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Torch's own: one training-mode pass of a copy of the module, and backward."""
        module = copy.deepcopy(module).train()
        loss = cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {k: p.grad for k, p in module.named_parameters() if p.requires_grad and p.grad is not None}
        return loss.detach(), gradients | dict(module.named_buffers())

    @every_module
    def test_is_autograds(self, name: str) -> None:
        module, (x, y) = module_of(name), batch(name)
        model, flat = FlatModel.of(module)
        loss, gradient = model.gradient(flat, x, y)
        expected_loss, expected = self.expected(module, x, y)
        close(loss, expected_loss)
        found = model.layout.unflatten(gradient)
        parameters = {k for k, p in module.named_parameters() if p.requires_grad}
        for key in parameters:
            close(found[key], expected[key])
        assert all(found[key].any() for key in parameters if "conv" not in key)  # not zero against zero
        assert not any(found[key].any() for key in found if key not in parameters)
        assert not loss.requires_grad
        assert not gradient.requires_grad

    @every_module
    def test_statistics_move_as_torchs_own(self, name: str) -> None:
        module, (x, y) = module_of(name), batch(name)
        model, flat = FlatModel.of(module)
        _, expected = self.expected(module, x, y)
        parameters, statistics = model.split(model.tensors(flat))
        loss, moved = model.training_loss(parameters, statistics, x, y)
        assert set(moved) == set(statistics)
        for key in moved:
            close(moved[key], expected[key] if key in expected else statistics[key])
        close(loss, self.expected(module, x, y)[0])
        gradient, flat_moved = model.gradient_and_statistics(flat, x, y)
        assert torch.equal(torch.cat([flat_moved.new_empty(0), *(t.reshape(-1) for t in moved.values())]), flat_moved)
        assert torch.equal(gradient, model.gradient(flat, x, y)[1][: model.layout.n_parameters])

    @pytest.mark.parametrize("name", ["resnet20", "user"])
    def test_nothing_it_is_given_moves(self, name: str) -> None:
        model, flat = FlatModel.of(module_of(name))
        x, y = batch(name)
        held = [flat, x, y, *model.module.state_dict().values()]
        before = [tensor.clone() for tensor in held]
        model.gradient(flat, x, y)
        model.gradient_and_statistics(flat, x, y)
        model.losses(flat[None], x, y)[0]
        model.logits(flat, x)
        assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))

    @every_module
    def test_loss_is_the_gradients(self, name: str) -> None:
        model, flat = FlatModel.of(module_of(name))
        x, y = batch(name)
        close(model.losses(flat[None], x, y)[0], model.gradient(flat, x, y)[0])
        assert not model.losses(flat[None], x, y)[0].requires_grad

    @every_module
    def test_against_finite_differences(self, name: str) -> None:
        model, flat = FlatModel.of(module_of(name))
        x, y = batch(name)
        direction = torch.randn(flat.shape, generator=generator(3), dtype=torch.float64)
        direction[model.layout.n_parameters :] = 0
        h = 1e-6
        slope = torch.sub(*model.losses(torch.stack([flat + h * direction, flat - h * direction]), x, y)) / (2 * h)
        assert float(slope) == pytest.approx(float(model.gradient(flat, x, y)[1] @ direction), rel=1e-4)

    def test_works_under_no_grad(self) -> None:
        model, flat = FlatModel.of(module_of("mlp"))
        x, y = batch("mlp")
        with torch.no_grad():
            assert torch.equal(model.gradient(flat, x, y)[1], model.gradient(flat, x, y)[1])
            assert model.gradient(flat, x, y)[1].any()

    def test_unused_parameter_has_gradient_zero(self) -> None:
        class Unused(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.other = nn.Linear(3, 2), nn.Linear(2, 2)

            def forward(self, x: Tensor) -> Any:
                return self.fc(x)

        model, flat = FlatModel.of(Unused())
        found = model.layout.unflatten(model.gradient(flat, torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))[1])
        assert found["fc.weight"].any()
        assert not found["other.weight"].any()


class TestBatchNorm:
    @every_module
    def test_evaluation_uses_the_running_statistics(self, name: str) -> None:
        module, (x, y) = module_of(name), batch(name)
        model, flat = FlatModel.of(module)
        model.gradient(flat, x, y)  # leaves the module in training mode, which must not matter
        close(model.logits(flat, x), copy.deepcopy(module).eval()(x).detach())
        close(model.logits(flat, x)[:1], model.logits(flat, x[:1]))  # no sample depends on its batch
        assert not model.logits(flat, x).requires_grad

    def test_training_uses_the_batchs(self) -> None:
        model, flat = FlatModel.of(module_of("resnet20"))
        x, y = batch("resnet20")
        other = flat.clone()
        other[model.layout.n_parameters :] += 3
        assert torch.equal(model.losses(other[None], x, y)[0], model.losses(flat[None], x, y)[0])
        assert torch.equal(model.gradient(other, x, y)[1], model.gradient(flat, x, y)[1])
        assert not torch.allclose(model.logits(other, x), model.logits(flat, x))

    def test_counter_does_not_travel(self) -> None:
        model, _ = FlatModel.of(module_of("resnet20"))
        assert not any("num_batches_tracked" in s.name for s in model.layout.segments)
        assert len(model.layout.segments) > 0

    def test_by_hand(self) -> None:
        # one feature, values 1, 2, 3, 6: mean 3, unbiased variance (4 + 1 + 0 + 9) / 3 = 14 / 3; momentum 0.25
        norm = nn.Sequential(nn.BatchNorm1d(1, momentum=0.25), nn.Linear(1, 2))
        model, flat = FlatModel.of(norm)
        x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
        _, moved = model.gradient_and_statistics(flat, x, torch.tensor([0, 1, 0, 1]))
        assert moved.tolist() == pytest.approx([0.75 * 0 + 0.25 * 3, 0.75 * 1 + 0.25 * 14 / 3])


class TestOf:
    @every_module
    def test_module_handed_in_is_not_modified(self, name: str) -> None:
        module, (x, y) = module_of(name), batch(name)
        before, training = copy.deepcopy(module.state_dict()), module.training
        model, flat = FlatModel.of(module)
        model.gradient(flat, x, y)
        model.logits(flat, x)
        flat.zero_()
        after = module.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[k], before[k]) for k in before)
        assert module.training == training
        assert all(p.grad is None for p in module.parameters())

    def test_tied_weights_are_one(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
                self.b.weight = self.a.weight

            def forward(self, x: Tensor) -> Any:
                return self.b(self.a(x).tanh())

        module = Tied().double()
        model, flat = FlatModel.of(module)
        x, y = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3
        assert len(flat) == 9
        cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
        assert module.a.weight.grad is not None
        close(model.gradient(flat, x, y)[1], module.a.weight.grad.flatten())

    def test_what_does_not_train_is_not_in_the_vector(self) -> None:
        model, flat = FlatModel.of(module_of("user"))
        assert set(model.constants) == {"frozen.weight", "frozen.bias", "shift"}
        assert not set(model.constants) & {s.name for s in model.layout.segments}
        assert all(s.name.endswith(("running_mean", "running_var"))
                   for s in model.layout.segments if s.start >= model.layout.n_parameters)  # fmt: skip
        assert len(flat) == model.layout.size == sum(math.prod(s.shape) for s in model.layout.segments)

    @pytest.mark.parametrize(
        ("module", "message"),
        [
            (nn.Flatten(), "Flatten can't be a federated model: it has no trainable parameter"),
            (
                nn.Linear(2, 2).requires_grad_(False),
                "Linear can't be a federated model: it has no trainable parameter",
            ),
            (
                nn.Sequential(nn.BatchNorm1d(2, momentum=None)),
                "layer 0 (BatchNorm1d) has momentum=None, an average over a count that is not the same at every "
                "client; give it a momentum",
            ),
            (
                nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()),
                "Sequential can't be a federated model: 1.weight is bfloat16, and updates are aggregated in float32 or "
                "float64; use module.float()",
            ),
            (
                nn.Linear(2, 2).half(),
                "Linear can't be a federated model: weight is float16, and updates are aggregated in float32 or "
                "float64; use module.float()",
            ),
            (
                nn.Linear(2, 2, dtype=torch.complex64),
                "Linear can't be a federated model: weight is complex64, and updates are aggregated in float32 or "
                "float64; use module.float()",
            ),
            (
                nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
                "Sequential can't be a federated model: 0.weight is float32 and 1.weight is float64, and one vector "
                "has one type; use module.float()",
            ),
            (
                nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)),
                "Sequential: 1.weight has no shape yet; call the module on samples first",
            ),
        ],
    )
    def test_refusals(self, module: nn.Module, message: str) -> None:
        with pytest.raises(ParameterError) as error:
            FlatModel.of(module)
        assert str(error.value) == message

    @pytest.mark.parametrize(
        ("module", "random"),
        [
            (MLP((3,), 2), False),
            (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), True),
            (nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout2d())), True),
            (nn.Sequential(nn.Linear(2, 2), nn.AlphaDropout()), True),
            (nn.Sequential(nn.Linear(2, 2), nn.FeatureAlphaDropout()), True),
        ],
    )
    def test_is_random(self, module: nn.Module, random: bool) -> None:
        assert FlatModel.of(module)[0].is_random == random

    def test_dropout_is_off_in_evaluation(self) -> None:
        model, flat = FlatModel.of(nn.Sequential(nn.Linear(30, 30), nn.Dropout(0.5), nn.Linear(30, 2)))
        x = torch.randn(4, 30)
        assert torch.equal(model.logits(flat, x), model.logits(flat, x))


class TestBuildModule:
    def build(self, name: str, seed: int = 0) -> Tensor:
        factory = registry.load("models", name)
        return FlatModel.of(build_module(factory, SHAPES[name], N_CLASSES, generator(seed), {}, VOCABULARY))[1]

    @every_model
    def test_deterministic(self, name: str) -> None:
        first = self.build(name)
        torch.rand(5)
        assert torch.equal(self.build(name), first)

    @pytest.mark.parametrize("name", ["cnn", "resnet20", "mlp"])
    def test_generator_decides(self, name: str) -> None:
        assert not torch.equal(self.build(name, 0), self.build(name, 1))
        g = generator()
        factory = registry.load("models", name)
        one, two = (
            FlatModel.of(build_module(factory, SHAPES[name], N_CLASSES, g, {}, VOCABULARY))[1] for _ in range(2)
        )
        assert not torch.equal(one, two)

    @every_model
    def test_global_randomness_is_left_alone(self, name: str) -> None:
        torch_before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
        self.build(name)
        assert torch.equal(torch.get_rng_state(), torch_before)
        np.testing.assert_equal(np.random.get_state(legacy=False), numpy_before)  # noqa: NPY002

    def test_parameters_are_passed_on(self) -> None:
        module = build_module(MLP, (3,), 2, generator(), {"hidden": (5, 6)})
        assert [p.shape[0] for p in module.parameters() if p.dim() == 2] == [5, 6, 2]

    @every_model
    def test_weights_are_finite_and_the_loss_is_sane(self, name: str) -> None:
        factory = registry.load("models", name)
        model, flat = FlatModel.of(build_module(factory, SHAPES[name], N_CLASSES, generator(), {}, VOCABULARY))
        x, y = batch(name)
        loss = float(model.losses(flat[None], x.float() if x.is_floating_point() else x, y)[0])
        assert 0.1 < loss < 10


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: CNN((1, 9, 28), 10),
            "cnn needs images of at least 10 x 10 pixels, got samples of shape [1, 9, 28]; "
            "try mlp or logistic-regression",
        ),
        (
            lambda: CNN((561,), 6),
            "cnn needs images of at least 10 x 10 pixels, got samples of shape [561]; try mlp or logistic-regression",
        ),
        (
            lambda: ResNet20((3, 32, 3), 10),
            "resnet20 needs images of at least 4 x 4 pixels, got samples of shape [3, 32, 3]; "
            "try mlp or logistic-regression",
        ),
        (
            lambda: ResNet20((64,), 10),
            "resnet20 needs images of at least 4 x 4 pixels, got samples of shape [64]; try mlp or logistic-regression",
        ),
        (lambda: MLP((3,), 2, hidden=()), "mlp: hidden must list layer sizes of at least 1, got []"),
        (lambda: MLP((3,), 2, hidden=(4, 0)), "mlp: hidden must list layer sizes of at least 1, got [4, 0]"),
    ],
)
def test_refused_shapes(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        build()
    assert str(error.value) == message


@pytest.mark.parametrize(("factory", "shape"), [(CNN, (1, 10, 10)), (CNN, (3, 11, 13)), (ResNet20, (1, 4, 4))])
def test_smallest_images(factory: type[nn.Module], shape: tuple[int, ...]) -> None:
    model, flat = FlatModel.of(factory(shape, 3))
    assert model.logits(flat, torch.randn(2, *shape)).shape == (2, 3)


def test_resnet_shortcut_pads_with_zeros() -> None:
    # with every convolution zero and BatchNorm at its start, a block is relu(shortcut): the first filters of the input
    module = ResNet20((3, 8, 8), 4).eval()
    block: Any = module.blocks[3]
    with torch.no_grad():
        block.conv1.weight.zero_()
        block.conv2.weight.zero_()
        x = torch.rand(2, 16, 8, 8)
        y = block(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()
