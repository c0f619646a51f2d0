"""Which running statistics travel, and layers that remember: every kind of normalisation layer, spectral norm."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsieve.core.errors import ParameterError
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.models.build import build_module
from fedsieve.models.flat import FlatModel
from fedsieve.models.normalisation import power_vectors

CLASSES = 3


class Around(nn.Module):
    """A layer on [k, 4, 3, 3] between two linear ones."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 1), norm, nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.norm(self.conv(x)).tanh().flatten(1))


class Derived(nn.BatchNorm2d):
    """Counts, and replaces its statistics instead of writing to them; the counter decides nothing."""

    def forward(self, input: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            assert self.num_batches_tracked is not None
            mean, variance = input.mean(dim=(0, 2, 3)), input.var(dim=(0, 2, 3))
            self.num_batches_tracked = self.num_batches_tracked + 1
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean  # with its graph
            self.running_var = 0.9 * self.running_var + 0.1 * variance
        shape = (1, -1, 1, 1)
        scaled = (input - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
        return scaled * self.weight.view(shape) + self.bias.view(shape)


def built(norm: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Around(norm())


def data(k: int, seed: int = 0) -> ClientData:
    x = torch.randn(k, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    return ClientData(x, torch.arange(k) % CLASSES)


TRACKED = {
    "batch": lambda: nn.BatchNorm2d(4),
    "sync": lambda: nn.SyncBatchNorm(4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "bare-instance": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "bare-batch": lambda: nn.BatchNorm2d(4, affine=False),
    "derived": lambda: Derived(4),
}
every_tracked = pytest.mark.parametrize("kind", TRACKED)


class TestTracked:
    @every_tracked
    def test_statistics_are_behind_the_parameters(self, kind: str) -> None:
        module = built(TRACKED[kind])
        model, flat = FlatModel.of(module)
        names = [s.name for s in model.layout.segments]
        assert names[-2:] == ["norm.running_mean", "norm.running_var"]
        assert names[:-2] == [name for name, _ in module.named_parameters()]
        assert torch.equal(model.layout.flatten(module.state_dict()), flat)
        assert len(model.normalisation) == 8 + (0 if kind.startswith("bare") else 8)

    @every_tracked
    @pytest.mark.parametrize("vectorize", [True, False])
    def test_trains_as_torch(self, kind: str, vectorize: bool) -> None:
        module = built(TRACKED[kind])
        model, flat = FlatModel.of(module)
        cohort = {k: data(4 + k, seed=k) for k in range(2)}
        settings = LocalTraining(learning_rate=0.1, batch_size=9)
        for row, own in zip(
            Trainer(model, settings, 0, vectorize).updates(flat, cohort, 0), cohort.values(), strict=True
        ):
            plain = copy.deepcopy(module).train()
            optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
            cross_entropy(plain(own.x), own.y).backward()
            optimizer.step()
            torch.testing.assert_close(flat + row, model.layout.flatten(plain.state_dict()), rtol=1e-4, atol=1e-5)
            assert row[model.layout.n_parameters :].norm() > 1e-2
            torch.testing.assert_close(
                model.logits(flat + row, own.x), plain.eval()(own.x).detach(), rtol=1e-4, atol=1e-5
            )

    @pytest.mark.parametrize("kind", ["instance", "bare-instance"])
    @pytest.mark.parametrize("k", [1, 3])
    def test_one_pixel_has_no_variance(self, kind: str, k: int) -> None:
        """Of a sample, whose values alone InstanceNorm normalises: torch can't train on one, at any batch size."""

        class Pixel(Around):
            def forward(self, x: Tensor) -> Any:
                return self.fc(self.norm(self.conv(x)[:, :, :1, :1]).expand(-1, -1, 3, 3).flatten(1))

        model, flat = FlatModel.of(Pixel(TRACKED[kind]()))
        own = data(k)
        gradient, statistics = model.gradient_and_statistics(flat, own.x, own.y)
        assert gradient.isfinite().all()
        assert statistics.tolist() == [0] * 4 + [1] * 4
        torch.testing.assert_close(
            model.losses(flat[None], own.x, own.y)[0], cross_entropy(model.logits(flat, own.x), own.y)
        )

    def test_lazy_layers(self) -> None:
        def factory() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.LazyLinear(CLASSES))

        own = data(6)
        before = torch.get_rng_state()
        one, two = (
            build_module(factory, (2, 3, 3), CLASSES, torch.Generator().manual_seed(3), {}, samples=own.x)
            for _ in range(2)
        )
        assert torch.equal(torch.get_rng_state(), before)
        (model, flat), (_, again) = FlatModel.of(one), FlatModel.of(two)
        assert torch.equal(flat, again)
        assert model.layout.n_parameters == 19 * 5 + 10 + 6 * CLASSES
        assert flat[model.layout.n_parameters :].tolist() == [0] * 5 + [1] * 5
        gradient, statistics = model.gradient_and_statistics(flat, own.x, own.y)
        assert gradient.any()
        assert statistics[:5].any()

    def test_layers_made_in_the_first_pass(self) -> None:
        class Late(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc: nn.Module | None = None

            def forward(self, x: Tensor) -> Any:
                if self.fc is None:
                    self.fc = nn.Linear(x[0].numel(), CLASSES)
                return self.fc(x.flatten(1))

        module = build_module(Late, (2, 3, 3), CLASSES, torch.Generator().manual_seed(3), {}, samples=data(2).x)
        assert [s.name for s in FlatModel.of(module)[0].layout.segments] == ["fc.weight", "fc.bias"]

    def test_momentum_none_of_a_layer_that_is_fixed(self) -> None:
        with pytest.raises(ParameterError, match=r"^layer norm \(BatchNorm2d\) has momentum=None, "):
            FlatModel.of(built(lambda: nn.BatchNorm2d(4, momentum=None)))
        FlatModel.of(built(lambda: nn.BatchNorm2d(4, momentum=None).requires_grad_(False)))


class InEvaluation(Around):
    """Keeps its normalisation layer in evaluation mode, as is usual for fine-tuning."""

    def train(self, mode: bool = True) -> "InEvaluation":
        super().train(mode)
        self.norm.eval()
        return self


class TestFixed:
    @pytest.mark.parametrize(
        ("module", "trained"),
        [
            (Around(nn.BatchNorm2d(4).requires_grad_(False)), []),
            (Around(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)).requires_grad_(False)), []),
            (InEvaluation(nn.BatchNorm2d(4)), ["norm.weight", "norm.bias"]),
            (Around(nn.BatchNorm2d(4, track_running_stats=False)), ["norm.weight", "norm.bias"]),
            (Around(nn.GroupNorm(2, 4)), ["norm.weight", "norm.bias"]),
        ],
        ids=["frozen", "in-a-frozen-part", "kept-in-evaluation", "untracked", "group"],
    )
    def test_statistics_do_not_travel(self, module: Around, trained: list[str]) -> None:
        module = copy.deepcopy(module)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name.endswith(("mean", "var")):
                    buffer += 0.5
        before = copy.deepcopy(module.state_dict())
        model, flat = FlatModel.of(module)
        names = [s.name for s in model.layout.segments]
        assert names == ["conv.weight", "conv.bias", *trained, "fc.weight", "fc.bias"]
        assert len(flat) == model.layout.n_parameters
        own = data(5)
        plain = copy.deepcopy(module).train()
        if not trained:
            plain.norm.eval()
        loss = cross_entropy(plain(own.x), own.y)
        loss.backward()
        torch.testing.assert_close(model.gradient(flat, own.x, own.y)[0], loss.detach())
        found = model.layout.unflatten(model.gradient(flat, own.x, own.y)[1])
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(value, before[name]) for name, value in model.constants.items())

    def test_a_weight_that_trains_makes_a_layer_train(self) -> None:
        module = built(lambda: nn.BatchNorm2d(4))
        module.norm.bias.requires_grad_(False)  # type: ignore[union-attr]
        names = [s.name for s in FlatModel.of(module)[0].layout.segments]
        assert "norm.running_mean" in names
        assert "norm.bias" not in names


def spectral(old: bool) -> Any:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(2)
        norm = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
        return nn.Sequential(norm(nn.Linear(6, 5, bias=False)), nn.Tanh(), nn.Linear(5, CLASSES))


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
class TestSpectralNorm:
    def test_only_the_weight_travels(self, old: bool) -> None:
        module = spectral(old)
        model, _ = FlatModel.of(module)
        weight = "0.weight_orig" if old else "0.parametrizations.weight.original"
        assert sorted(s.name for s in model.layout.segments) == sorted([weight, "2.weight", "2.bias"])
        assert set(model.constants) == power_vectors(module)
        assert len(power_vectors(module)) == 2

    def test_is_the_largest_singular_value_wherever_the_weight_moves(self, old: bool) -> None:
        """Vectors that stay as built must not make evaluation another function than training."""
        model, flat = FlatModel.of(spectral(old))
        start = next(s for s in model.layout.segments if s.name.startswith("0."))
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            weight = torch.randn(5, 6, generator=generator) @ torch.diag(torch.tensor([4.0, 2, 1, 1, 1, 1]))
            moved = flat.clone()
            moved[start.start : start.stop] = weight.flatten()
            x, y = torch.randn(7, 6, generator=generator), torch.arange(7) % CLASSES
            hidden = (x @ (weight / torch.linalg.matrix_norm(weight, ord=2)).T).tanh()
            tensors = model.layout.unflatten(moved)
            expected = hidden @ tensors["2.weight"].T + tensors["2.bias"]
            torch.testing.assert_close(model.logits(moved, x), expected, rtol=0.02, atol=0.02)
            torch.testing.assert_close(model.losses(moved[None], x, y)[0], cross_entropy(model.logits(moved, x), y))

    def test_trains_client_by_client(self, old: bool) -> None:
        model, flat = FlatModel.of(spectral(old))
        generator = torch.Generator().manual_seed(0)
        cohort = {k: ClientData(torch.randn(5, 6, generator=generator), torch.arange(5) % CLASSES) for k in range(3)}
        trainer = Trainer(model, LocalTraining(learning_rate=0.1, steps=2), 0)
        together = trainer.updates(flat, cohort, 0)
        assert (together.norm(dim=1) > 1e-3).all()
        for row, client in zip(together, cohort, strict=True):
            torch.testing.assert_close(trainer.updates(flat, {client: cohort[client]}, 0)[0], row)

    def test_frozen_stays_as_built(self, old: bool) -> None:
        module = spectral(old)
        for parameter in module[0].parameters():
            parameter.requires_grad_(False)
        model, flat = FlatModel.of(module)
        x = torch.randn(4, 6)
        torch.testing.assert_close(model.logits(flat, x), module.eval()(x).detach())
        torch.testing.assert_close(
            model.losses(flat[None], x, torch.arange(4) % CLASSES)[0],
            cross_entropy(module(x), torch.arange(4) % CLASSES).detach(),
        )
