"""Local training equals torch's own, client by client, whichever engine runs and however clients are chunked."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsieve import clients as clients_module
from fedsieve.clients import ClientData, LocalTraining, RootClient, Trainer
from fedsieve.losses import LOSSES
from fedsieve.models.cnn import CNN
from fedsieve.models.flat import FlatModel
from fedsieve.models.logistic_regression import LogisticRegression
from fedsieve.models.mlp import MLP
from fedsieve.models.resnet20 import ResNet20
from fedsieve.seeding import stream
from fedsieve.types import Root

SEED, ROUND, CLASSES = 7, 3, 4


class Dropout(nn.Module):
    """A model that draws random numbers while training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        assert isinstance(out, Tensor)
        return out


def normed() -> nn.Module:
    """BatchNorm on vectors, where a batch has no second axis to average over."""
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))


MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "logistic-regression": (lambda: LogisticRegression((6,), CLASSES), (6,)),
    "mlp": (lambda: MLP((6,), CLASSES, hidden=(7, 5)), (6,)),
    "batchnorm": (normed, (6,)),
    "cnn": (lambda: CNN((1, 10, 11), CLASSES, hidden=9), (1, 10, 11)),
    "resnet20": (lambda: ResNet20((2, 8, 8), CLASSES), (2, 8, 8)),
}


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The module, in float64, with weights that depend on nothing else."""
    build, shape = MODULES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build().double(), shape


def federation(shape: tuple[int, ...], sizes: Mapping[int, int]) -> dict[int, ClientData]:
    found = {}
    for client, size in sizes.items():
        g = stream(SEED, "test data", client=client)
        x = torch.randn(size, *shape, generator=g, dtype=torch.float64)
        found[client] = ClientData(x, torch.randint(CLASSES, (size,), generator=g))
    return found


def by_hand(
    module: nn.Module, data: ClientData, settings: LocalTraining, client: int, round: int = ROUND
) -> dict[str, Tensor]:
    """One client's training as a PyTorch user would write it: the tensors afterwards minus those before."""
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(
        module.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )
    generator = stream(SEED, "batches", round, client)
    n, size = len(data.y), settings.batch_size
    batches: list[Tensor] = []
    if settings.epochs is None:
        batches += [torch.randperm(n, generator=generator)[:size] for _ in range(settings.steps)]
    else:
        for _ in range(settings.epochs):
            order = torch.randperm(n, generator=generator)
            batches += [order[start : start + size] for start in range(0, n, size)]
    for batch in batches:
        optimizer.zero_grad()
        cross_entropy(module(data.x[batch]), data.y[batch]).backward()
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
        for name, p in module.named_parameters():  # the gradient of proximal / 2 |p - start|^2
            assert p.grad is not None
            p.grad += settings.proximal * (p.detach() - before[name])
        optimizer.step()
    return {k: v - before[k] for k, v in module.state_dict().items()}


def assert_by_hand(
    found: Float[Tensor, "n d"],
    model: FlatModel,
    module: nn.Module,
    data: Mapping[int, ClientData],
    settings: LocalTraining,
) -> None:
    assert len(found) == len(data) > 0
    for row, (client, own) in zip(found, data.items(), strict=True):
        expected = by_hand(module, own, settings, client)
        tensors = model.layout.unflatten(row)
        assert len(tensors) >= 2
        assert set(tensors) == {k for k in expected if not k.endswith("num_batches_tracked")}
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        assert row.norm() > 1e-3


def chunks_of(monkeypatch: pytest.MonkeyPatch, clients: int, params: Tensor) -> None:
    monkeypatch.setattr(clients_module, "_CPU_CHUNK_FLOATS", clients * len(params))


PLAIN = LocalTraining(learning_rate=0.3, batch_size=4, steps=3)
# clients with fewer samples than a batch, as many, and more
SIZES = {5: 9, 0: 3, 9: 4, 2: 11, 7: 2}


class TestEqualsTorch:
    @pytest.mark.parametrize("chunk", [1, 2, 100])
    @pytest.mark.parametrize("vectorize", [True, False, None])
    @pytest.mark.parametrize(
        "settings",
        [
            PLAIN,
            LocalTraining(learning_rate=0.3, batch_size=4, epochs=2),  # last batches of 1, 3, 0, 3 and 2
            LocalTraining(learning_rate=0.1, batch_size=3, steps=4, momentum=0.9),
            LocalTraining(learning_rate=0.1, batch_size=3, epochs=3, momentum=0.5, weight_decay=0.1),
            LocalTraining(learning_rate=0.3, batch_size=4, steps=3, clip_norm=0.2),
            LocalTraining(learning_rate=0.3, batch_size=4, steps=3, clip_norm=100.0),
            LocalTraining(learning_rate=0.2, batch_size=4, epochs=2, momentum=0.9, weight_decay=0.05, clip_norm=0.3),
            LocalTraining(learning_rate=0.2, batch_size=4, steps=4, proximal=0.7),
            LocalTraining(learning_rate=0.2, batch_size=4, epochs=2, proximal=0.7, momentum=0.9, clip_norm=0.3),
        ],
        ids=["steps", "epochs", "momentum", "momentum-decay", "clip", "no-clip", "all", "proximal", "proximal-all"],
    )
    @pytest.mark.parametrize("name", ["logistic-regression", "mlp"])
    def test_small_models(
        self, monkeypatch: pytest.MonkeyPatch, name: str, settings: LocalTraining, vectorize: bool | None, chunk: int
    ) -> None:
        module, shape = made(name)
        model, params = FlatModel.of(module)
        chunks_of(monkeypatch, chunk, params)
        data = federation(shape, SIZES)
        before = params.clone()
        found = Trainer(model, settings, SEED, vectorize).updates(params, data, ROUND)
        assert_by_hand(found, model, module, data, settings)
        assert torch.equal(params, before)

    @pytest.mark.parametrize("chunk", [1, 2, 100])
    @pytest.mark.parametrize("vectorize", [True, False, None])
    @pytest.mark.parametrize(
        ("name", "settings", "sizes"),
        [
            ("cnn", LocalTraining(learning_rate=0.2, batch_size=4, epochs=1, momentum=0.9), {3: 5, 1: 4, 2: 7}),
            ("batchnorm", LocalTraining(learning_rate=0.1, batch_size=4, steps=3, weight_decay=0.1), SIZES),
            ("batchnorm", LocalTraining(learning_rate=0.1, batch_size=4, epochs=2, momentum=0.9), {0: 6, 4: 7, 1: 2}),
            ("batchnorm", LocalTraining(learning_rate=0.1, batch_size=4, steps=3, proximal=0.7), {0: 6, 4: 7, 1: 2}),
            ("resnet20", LocalTraining(learning_rate=0.05, batch_size=3, steps=2, clip_norm=0.5), {3: 5, 1: 3, 2: 2}),
        ],
    )
    def test_convolutions_and_statistics(
        self,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        settings: LocalTraining,
        sizes: dict[int, int],
        vectorize: bool | None,
        chunk: int,
    ) -> None:
        module, shape = made(name)
        model, params = FlatModel.of(module)
        chunks_of(monkeypatch, chunk, params)
        data = federation(shape, sizes)
        found = Trainer(model, settings, SEED, vectorize).updates(params, data, ROUND)
        assert_by_hand(found, model, module, data, settings)
        if name != "cnn":
            statistics = found[:, model.layout.n_parameters :]
            assert (statistics.norm(dim=1) > 1e-2).all()

    def test_clipping_clips(self) -> None:
        module, shape = made("mlp")
        model, params = FlatModel.of(module)
        data = federation(shape, SIZES)
        short = LocalTraining(learning_rate=1.0, batch_size=4, steps=1, clip_norm=0.01)
        norms = Trainer(model, short, SEED).updates(params, data, ROUND).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 0.01), rtol=1e-3, atol=0)

    def test_the_default_engine_follows_the_model(self) -> None:
        chosen = {name: Trainer(FlatModel.of(made(name)[0])[0], PLAIN, SEED)._vectorized(torch.device("cpu"))
                  for name in MODULES}  # fmt: skip
        assert chosen == {
            "logistic-regression": True, "mlp": True, "batchnorm": True, "cnn": False, "resnet20": False
        }  # fmt: skip

    @pytest.mark.parametrize("vectorize", [True, False])
    def test_float32(self, vectorize: bool) -> None:
        module, shape = made("mlp")
        model, params = FlatModel.of(module)
        data = federation(shape, SIZES)
        exact = Trainer(model, PLAIN, SEED).updates(params, data, ROUND)
        single = {k: ClientData(v.x.float(), v.y) for k, v in data.items()}
        found = Trainer(model, PLAIN, SEED, vectorize).updates(params.float(), single, ROUND)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-6)


class TestBatches:
    def test_steps_are_drawn_anew_without_replacement(self) -> None:
        batches = LocalTraining(batch_size=4, steps=5).batches(9, stream(0, "x"))
        assert len(batches) == 5
        for batch in batches:
            assert len(batch) == len(set(batch.tolist())) == 4
            assert set(batch.tolist()) <= set(range(9))
        assert len({tuple(b.tolist()) for b in batches}) == 5

    def test_fewer_samples_than_a_batch(self) -> None:
        batches = LocalTraining(batch_size=32, steps=2).batches(3, stream(0, "x"))
        assert [sorted(b.tolist()) for b in batches] == [[0, 1, 2]] * 2

    def test_an_epoch_sees_every_sample_once(self) -> None:
        batches = LocalTraining(batch_size=4, epochs=2).batches(9, stream(0, "x"))
        assert [len(b) for b in batches] == [4, 4, 1] * 2
        orders = [torch.cat(batches[i : i + 3]).tolist() for i in (0, 3)]
        assert [sorted(order) for order in orders] == [list(range(9))] * 2
        assert orders[0] != orders[1]


class TestIndependence:
    @pytest.mark.parametrize("name", ["mlp", "cnn"])
    def test_rows_follow_the_order_of_ids(self, name: str) -> None:
        module, shape = made(name)
        model, params = FlatModel.of(module)
        data = federation(shape, SIZES)
        trainer = Trainer(model, PLAIN, SEED)
        one = trainer.updates(params, data, ROUND)
        turned = trainer.updates(params, {i: data[i] for i in reversed(data)}, ROUND)
        torch.testing.assert_close(turned, one.flip(0), rtol=1e-12, atol=1e-14)
        assert len({tuple(row.tolist()) for row in one}) == len(SIZES)

    @pytest.mark.parametrize("name", ["mlp", "cnn", "batchnorm"])
    def test_who_else_trains_does_not_matter(self, name: str) -> None:
        module, shape = made(name)
        model, params = FlatModel.of(module)
        data = federation(shape, SIZES)
        trainer = Trainer(model, PLAIN, SEED)
        together = trainer.updates(params, data, ROUND)
        for row, client in zip(together, data, strict=True):
            alone = trainer.updates(params, {client: data[client]}, ROUND)
            assert alone.shape == (1, len(params))
            torch.testing.assert_close(alone[0], row, rtol=1e-10, atol=1e-12)

    def test_round_client_and_seed_decide_the_batches(self) -> None:
        module, shape = made("mlp")
        model, params = FlatModel.of(module)
        own = federation(shape, {0: 20})[0]
        settings = LocalTraining(batch_size=4)
        row = Trainer(model, settings, SEED).updates(params, {0: own}, 0)
        assert torch.equal(row, Trainer(model, settings, SEED).updates(params, {0: own}, 0))
        others = [
            Trainer(model, settings, SEED).updates(params, {0: own}, 1),
            Trainer(model, settings, SEED).updates(params, {1: own}, 0),
            Trainer(model, settings, SEED + 1).updates(params, {0: own}, 0),
        ]
        for other in others:
            assert not torch.allclose(row, other)


class TestDropout:
    settings = LocalTraining(learning_rate=0.3, batch_size=4, steps=2)

    def fresh(self, vectorize: bool | None = None) -> tuple[Trainer, Tensor, dict[int, ClientData]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            module = Dropout().double()
        model, params = FlatModel.of(module)
        return Trainer(model, self.settings, SEED, vectorize), params, federation((6,), SIZES)

    @pytest.mark.parametrize("vectorize", [True, False, None])
    def test_is_reproducible_and_leaves_the_global_generator(self, vectorize: bool | None) -> None:
        trainer, params, data = self.fresh(vectorize)
        before = torch.random.get_rng_state()
        one = trainer.updates(params, data, ROUND)
        assert torch.equal(torch.random.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            two = trainer.updates(params, data, ROUND)
        assert torch.equal(one, two)

    def test_does_not_depend_on_the_cohort(self) -> None:
        trainer, params, data = self.fresh()
        together = trainer.updates(params, data, ROUND)
        for row, client in zip(together, data, strict=True):
            alone = trainer.updates(params, {client: data[client]}, ROUND)[0]
            torch.testing.assert_close(alone, row, rtol=1e-12, atol=1e-14)

    def test_every_client_round_and_step_has_dice_of_its_own(self) -> None:
        drawn: list[float] = []

        class Diced(Dropout):
            def forward(self, x: Tensor) -> Tensor:
                drawn.append(float(torch.rand(())))
                return super().forward(x)

        model, params = FlatModel.of(Diced().double())
        data = federation((6,), SIZES)
        for seed in (SEED, SEED + 1):
            for k in (0, 1):
                Trainer(model, self.settings, seed).updates(params, data, k)
        assert len(drawn) == 2 * 2 * len(SIZES) * 2
        assert len(set(drawn)) == len(drawn)

    def test_drops(self) -> None:
        trainer, params, data = self.fresh()
        kept = [layer for layer in trainer.model.module.layers if not isinstance(layer, nn.Dropout)]
        whole, _ = FlatModel.of(nn.Sequential(*kept))
        with_it = trainer.updates(params, data, ROUND)
        without = Trainer(whole, self.settings, SEED).updates(params, data, ROUND)
        assert with_it.shape == without.shape
        assert not any(torch.allclose(a, b) for a, b in zip(with_it, without, strict=True))


class TestOutOfMemory:
    def limited(self, monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[list[int], Trainer, Any]:
        """A trainer on a device that holds ``most`` clients at once, and the sizes of chunks that it tried."""
        module, shape = made("mlp")
        model, params = FlatModel.of(module)
        tried: list[int] = []
        train = Trainer._train

        def short(self: Trainer, params: Tensor, clients: Any, plans: Any, ids: Any, round: int) -> Tensor:
            tried.append(len(clients))
            if len(clients) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return train(self, params, clients, plans, ids, round)

        monkeypatch.setattr(Trainer, "_train", short)
        # what a GPU does: everybody at once, less after a failure
        monkeypatch.setattr(Trainer, "_chunk", lambda self, params, n: min(n, self._gpu_chunk or n))
        trainer = Trainer(model, PLAIN, SEED, vectorize=True)
        return tried, trainer, (module, model, params, federation(shape, SIZES))

    def test_smaller_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried, trainer, (module, model, params, data) = self.limited(monkeypatch, 2)
        found = trainer.updates(params, data, ROUND)
        assert tried == [5, 2, 2, 1]
        assert_by_hand(found, model, module, data, PLAIN)
        tried.clear()
        assert torch.equal(trainer.updates(params, data, ROUND), found)
        assert tried == [2, 2, 1]  # it has learned

    def test_one_client_is_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried, trainer, (_, _, params, data) = self.limited(monkeypatch, 0)
        with pytest.raises(torch.OutOfMemoryError):
            trainer.updates(params, data, ROUND)
        assert tried == [5, 2, 1]


class TestRootClient:
    @pytest.mark.parametrize("name", sorted(MODULES))
    def test_loss_and_gradient(self, name: str) -> None:
        module, shape = made(name)
        model, params = FlatModel.of(module)
        data = federation(shape, {-1: 8})[-1]
        root = RootClient(Trainer(model, PLAIN, SEED), data, 3, params, ROUND)
        assert isinstance(root, Root)
        at = params + 0.01 * torch.randn(len(params), generator=stream(0, "x"), dtype=params.dtype)
        twin = copy.deepcopy(module).train()
        twin.load_state_dict(model.layout.unflatten(at), strict=False)
        expected = cross_entropy(twin(data.x), data.y)
        expected.backward()
        loss, gradient = root.gradient(at)
        torch.testing.assert_close(root.loss(at), expected.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-12)
        assert gradient.shape == params.shape
        tensors = model.layout.unflatten(gradient)
        wanted = {k: p.grad for k, p in twin.named_parameters()}
        assert len(wanted) >= 2
        for key, tensor in tensors.items():
            target = wanted.get(key)
            torch.testing.assert_close(tensor, torch.zeros_like(tensor) if target is None else target)
        assert gradient.norm() > 1e-3
        for objective, loss_of in LOSSES.items():
            twin.zero_grad()
            loss_of(twin(data.x), data.y).backward()
            flat = torch.cat([p.grad.reshape(-1) for p in twin.parameters() if p.grad is not None])
            torch.testing.assert_close(root.gradient(at, objective)[1][: len(flat)], flat)

    def test_update_is_that_of_client_minus_one(self) -> None:
        module, shape = made("batchnorm")
        model, params = FlatModel.of(module)
        data = federation(shape, {-1: 8})[-1]
        root = RootClient(Trainer(model, PLAIN, SEED), data, 3, params, ROUND)
        assert_by_hand(root.update()[None], model, module, {-1: data}, PLAIN)


class TestWitnesses:
    def root(self, name: str, y: list[int], n_classes: int = 3, settings: LocalTraining = PLAIN) -> RootClient:
        module, shape = made(name)
        model, params = FlatModel.of(module)
        data = federation(shape, {-1: len(y)})[-1]
        data = ClientData(data.x, torch.tensor(y))
        return RootClient(Trainer(model, settings, SEED), data, n_classes, params, ROUND)

    def test_each_is_trained_on_what_it_says(self) -> None:
        y = [0, 1, 2, 2, 0, 1, 2, 2, 0, 2]
        root = self.root("logistic-regression", y)
        found, trained = root.witnesses(), []

        def training(params: Tensor, cohort: dict[int, ClientData], round: int) -> Tensor:
            trained.append(cohort)
            return Trainer.updates(root.trainer, params, cohort, round)

        watched = copy.copy(root.trainer)
        watched.updates = training  # type: ignore[method-assign, assignment]
        again = replace(root, trainer=watched).witnesses()
        (cohort,) = trained
        for name in ("model", "parts", "held_out", "lying"):
            assert torch.equal(getattr(again, name), getattr(found, name))
        assert torch.equal(found.model, root.update())
        samples = [cohort[-2 - k] for k in range(10)]  # one a part
        assert [len(part.y) for part in samples] == [1] * 10
        assert [int(part.y) for part in samples] == found.classes.tolist() == sorted(y)
        held_out = [cohort[-12 - k] for k in range(5)]
        for fold, data in enumerate(held_out):
            rows = torch.cat([part.x for part, f in zip(samples, found.folds, strict=True) if f == fold])
            assert {tuple(row.tolist()) for row in data.x} == {tuple(row.tolist()) for row in rows}
            counts = torch.bincount(data.y)
            assert set(counts[counts > 0].tolist()) == {int(counts.max())}  # all classes in equal shares
        lies = [cohort[-17 - k] for k in range(2)]
        assert len(cohort) == 18
        truth = {tuple(x.tolist()): int(label) for x, label in zip(root.data.x, root.data.y, strict=True)}
        moved = []
        for data in lies:
            told = [(label - truth[tuple(x.tolist())]) % 3 for x, label in zip(data.x, data.y.tolist(), strict=True)]
            assert len(set(told)) == 1
            moved.append(told[0])
            assert torch.bincount(data.y).tolist() == [5, 5, 5]
        assert sorted(moved) == [1, 2]

    @pytest.mark.parametrize(("size", "parts"), [(1, 1), (7, 7), (100, 100), (250, 83)])
    def test_no_more_than_a_hundred_parts(self, size: int, parts: int) -> None:
        found = self.root("logistic-regression", [0] * size).witnesses()
        assert len(found.parts) == len(found.classes) == len(found.folds) == parts
        assert len(found.held_out) == min(5, parts)
        assert found.folds.unique().tolist() == list(range(min(5, parts)))

    def test_parts_that_are_normalised_have_four_samples(self) -> None:
        found = self.root("batchnorm", [0] * 9 + [1] * 3 + [2] * 4).witnesses()
        assert found.classes.tolist() == [0, 0, 1, 2]
        assert found.parts.isfinite().all()

    def test_complete(self) -> None:
        assert self.root("logistic-regression", [0, 1, 2, 0]).witnesses().complete
        assert not self.root("logistic-regression", [0, 2, 2, 0]).witnesses().complete

    def test_honest_is_the_mean_of_each_class(self) -> None:
        found = self.root("logistic-regression", [2, 0, 2, 0]).witnesses()
        expected = torch.stack([found.parts[:2].mean(dim=0), found.parts[2:].mean(dim=0)])
        torch.testing.assert_close(found.honest, expected)

    @pytest.mark.parametrize("epochs", [1, 3])
    def test_as_many_steps_as_the_median_client(self, epochs: int) -> None:
        settings = LocalTraining(learning_rate=0.1, batch_size=10, epochs=epochs)
        assert settings.as_many_steps([5, 31, 40, 900, 11]).steps == 4 * epochs
        fixed = LocalTraining(steps=7)
        assert fixed.as_many_steps([5, 31]) is fixed
