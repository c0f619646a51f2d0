"""Local training equals torch's own, client by client, whichever engine runs and however clients are chunked."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsieve.core.seeding import stream
from fedsieve.federation import clients as clients_module
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.models.flat import FlatModel
from tests.federation.conftest import CLASSES, MODULES, PLAIN, ROUND, SEED, SIZES, assert_by_hand, federation, made


class Dropout(nn.Module):
    """A model that draws random numbers while training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        assert isinstance(out, Tensor)
        return out


def chunks_of(monkeypatch: pytest.MonkeyPatch, clients: int, params: Tensor) -> None:
    monkeypatch.setattr(clients_module, "_CPU_CHUNK_FLOATS", clients * len(params))


# whether clients are trained as one computation, and how many at once
ENGINES = [(True, 1), (True, 2), (True, 100), (False, 1)]


class TestEqualsTorch:
    @pytest.mark.parametrize(("vectorize", "chunk"), ENGINES)
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
            LocalTraining(learning_rate=0.3, batch_size=4, steps=3, clip_value=0.02),
            LocalTraining(learning_rate=0.3, batch_size=4, epochs=2, clip_norm=0.3, clip_value=0.05, weight_decay=0.1),
            LocalTraining(learning_rate=0.3, batch_size=4, steps=3, loss="batch"),
            LocalTraining(learning_rate=0.1, batch_size=4, epochs=2, momentum=0.9, clip_value=0.1, loss="batch"),
        ],
        ids=[
            "steps",
            "epochs",
            "momentum",
            "momentum-decay",
            "clip",
            "no-clip",
            "all",
            "proximal",
            "proximal-all",
            "clip-value",
            "both-clips",
            "batch-loss",
            "batch-loss-all",
        ],
    )
    @pytest.mark.parametrize("name", ["logistic-regression", "mlp"])
    def test_small_models(
        self, monkeypatch: pytest.MonkeyPatch, name: str, settings: LocalTraining, vectorize: bool, chunk: int
    ) -> None:
        module, shape = made(name)
        model, params = FlatModel.of(module)
        chunks_of(monkeypatch, chunk, params)
        data = federation(shape, SIZES)
        before = params.clone()
        found = Trainer(model, settings, SEED, vectorize).updates(params, data, ROUND)
        assert_by_hand(found, model, module, data, settings)
        assert torch.equal(params, before)

    @pytest.mark.parametrize(("vectorize", "chunk"), ENGINES)
    @pytest.mark.parametrize(
        ("name", "settings", "sizes"),
        [
            ("cnn", LocalTraining(learning_rate=0.2, batch_size=4, epochs=1, momentum=0.9), {3: 5, 1: 4, 2: 7}),
            ("batchnorm", LocalTraining(learning_rate=0.1, batch_size=4, steps=3, weight_decay=0.1), SIZES),
            ("batchnorm", LocalTraining(learning_rate=0.1, batch_size=4, epochs=2, momentum=0.9), {0: 6, 4: 7, 1: 2}),
            ("batchnorm", LocalTraining(learning_rate=0.1, batch_size=4, steps=3, proximal=0.7), {0: 6, 4: 7, 1: 2}),
            ("batchnorm", LocalTraining(learning_rate=0.1, batch_size=4, steps=3, loss="batch"), {0: 6, 4: 7, 1: 2}),
            ("cnn", LocalTraining(learning_rate=0.2, batch_size=4, steps=2, clip_value=0.01), {3: 5, 1: 4}),
            ("resnet20", LocalTraining(learning_rate=0.05, batch_size=3, steps=2, clip_norm=0.5), {3: 5, 1: 2}),
        ],
    )
    def test_convolutions_and_statistics(
        self,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        settings: LocalTraining,
        sizes: dict[int, int],
        vectorize: bool,
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

    @pytest.mark.parametrize("vectorize", [True, False])
    def test_clip_value_clips_every_coordinate(self, vectorize: bool) -> None:
        module, shape = made("mlp")
        model, params = FlatModel.of(module)
        data = federation(shape, SIZES)
        step = LocalTraining(learning_rate=1.0, batch_size=4, steps=1)
        gradients = -Trainer(model, step, SEED, vectorize).updates(params, data, ROUND)
        clipped = -Trainer(model, replace(step, clip_value=0.01), SEED, vectorize).updates(params, data, ROUND)
        torch.testing.assert_close(clipped, gradients.clamp(-0.01, 0.01))
        assert 0.1 < float((gradients.abs() > 0.01).double().mean()) < 0.9  # some are clipped, others are not

    def test_the_batch_loss_is_another_loss(self) -> None:
        module, shape = made("mlp")
        model, params = FlatModel.of(module)
        data = federation(shape, SIZES)
        usual, batch = (
            Trainer(model, replace(PLAIN, loss=loss), SEED).updates(params, data, ROUND)
            for loss in ("cross-entropy", "batch")
        )
        assert not any(torch.allclose(a, b) for a, b in zip(usual, batch, strict=True))

    def test_the_default_engine_follows_the_model(self) -> None:
        chosen = {name: Trainer(FlatModel.of(made(name)[0])[0], PLAIN, SEED).vectorized(torch.device("cpu"))
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

    @pytest.mark.parametrize("epochs", [1, 3])
    def test_as_many_steps_as_the_median_client(self, epochs: int) -> None:
        settings = LocalTraining(learning_rate=0.1, batch_size=10, epochs=epochs)
        assert settings.as_many_steps([5, 31, 40, 900, 11]).steps == 4 * epochs
        fixed = LocalTraining(steps=7)
        assert fixed.as_many_steps([5, 31]) is fixed


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
    def test_does_not_depend_on_the_other_clients(self, name: str) -> None:
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

    def test_every_client_round_and_step_draws_its_own_numbers(self) -> None:
        drawn: list[float] = []

        class Drawing(Dropout):
            def forward(self, x: Tensor) -> Tensor:
                drawn.append(float(torch.rand(())))
                return super().forward(x)

        model, params = FlatModel.of(Drawing().double())
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
        # as on a GPU: all clients at once, fewer after a failure
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
        assert tried == [2, 2, 1]  # the smaller size is remembered

    def test_one_client_is_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried, trainer, (_, _, params, data) = self.limited(monkeypatch, 0)
        with pytest.raises(torch.OutOfMemoryError):
            trainer.updates(params, data, ROUND)
        assert tried == [5, 2, 1]
