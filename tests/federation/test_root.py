"""Training on root data equals torch's, and is the same for the same data, in any call."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsieve.core.defense import Network, Root
from fedsieve.core.seeding import stream
from fedsieve.detectors.sieve.margin import margin_of
from fedsieve.federation.clients import ClientData, Trainer
from fedsieve.federation.root import RootClient, RunnableModel
from fedsieve.models.flat import FlatModel
from fedsieve.models.losses import LOSSES
from tests.federation.conftest import MODULES, PLAIN, ROUND, SEED, assert_by_hand, federation, made


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
        for name_of_loss, loss_of in LOSSES.items():
            twin.zero_grad()
            loss_of(twin(data.x), data.y).backward()
            flat = torch.cat([p.grad.reshape(-1) for p in twin.parameters() if p.grad is not None])
            torch.testing.assert_close(root.gradient(at, name_of_loss)[1][: len(flat)], flat)
            torch.testing.assert_close(root.gradient(at, loss_of)[1][: len(flat)], flat)

    def test_update_is_that_of_client_minus_one(self) -> None:
        module, shape = made("batchnorm")
        model, params = FlatModel.of(module)
        data = federation(shape, {-1: 8})[-1]
        root = RootClient(Trainer(model, PLAIN, SEED), data, 3, params, ROUND)
        assert_by_hand(root.update()[None], model, module, {-1: data}, PLAIN)

    def test_update_and_train_use_the_same_numbers(self) -> None:
        root = made_root("mlp")
        x, y = root.data
        both = root.train([(x, y), (x, y)])
        assert torch.equal(both[0], root.update())
        assert not torch.equal(both[0], both[1])  # the second dataset is another client's

    def test_layout_is_the_models(self) -> None:
        root = made_root("batchnorm")
        module, _ = made("batchnorm")
        assert torch.equal(root.layout.flatten(module.state_dict()), root.params)


def made_root(name: str) -> RootClient:
    module, shape = made(name)
    model, params = FlatModel.of(module)
    return RootClient(Trainer(model, PLAIN, SEED), federation(shape, {-1: 8})[-1], 3, params, ROUND)


class TestTrain:
    def test_each_dataset_trains_a_client_of_its_own(self) -> None:
        root = made_root("mlp")
        x, y = root.data
        datasets = [(x, y), (x[:3], y[:3]), (x, (y + 1) % 3)]
        cohort = {-1: ClientData(x, y), -2: ClientData(x[:3], y[:3]), -3: ClientData(x, (y + 1) % 3)}
        expected = root.trainer.updates(root.params, cohort, ROUND)
        assert torch.equal(root.train(datasets), expected)
        assert expected.shape == (3, len(root.params))

    def test_the_last_call_is_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        root, calls = made_root("mlp"), []
        updates = Trainer.updates

        def counted(self: Trainer, *args: object) -> Tensor:
            calls.append(args)
            return updates(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Trainer, "updates", counted)
        x, y = root.data
        first = root.update()
        assert torch.equal(root.update(), first)
        assert len(calls) == 1
        shifted = root.train([(x, (y + 1) % 3)])
        assert not torch.equal(shifted[0], first)
        assert torch.equal(root.train([(x.clone(), (y + 1) % 3)]), shifted)  # the same content in other tensors
        assert len(calls) == 2
        # the same values in another shape are other data
        split = root.train([(x[:4], y[:4]), (x[4:], y[4:])])
        assert len(split) == 2
        assert torch.equal(root.update(), first)
        assert len(calls) == 4

    def test_gradients_at_the_global_model_are_cached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        root, calls = made_root("mlp"), []
        gradients = FlatModel.gradients

        def counted(self: FlatModel, *args: Any) -> tuple[Tensor, Tensor]:
            calls.append(args)
            return gradients(self, *args)

        monkeypatch.setattr(FlatModel, "gradients", counted)
        margin = margin_of(0)
        first = [root.gradient(root.params, loss) for loss in ("cross-entropy", margin, margin_of(0))]
        assert len(calls) == 2
        first[0][1].zero_()
        assert root.gradient(root.params)[1].any()
        assert len(calls) == 2
        moved = root.params + 1
        other = root.gradient(moved)
        assert torch.equal(other[1], root.gradient(moved)[1])
        assert len(calls) == 4  # only the global model's
        root.params.add_(1)  # as an attacker might write to what it is shown
        assert torch.equal(root.gradient(root.params)[1], other[1])

    def test_the_cache_cannot_be_written_to(self) -> None:
        root = made_root("mlp")
        first = root.update()
        root.update().zero_()
        root.train([root.data]).zero_()
        assert torch.equal(root.update(), first)
        assert first.any()
        kept = first.clone()
        first.zero_()
        assert torch.equal(root.update(), kept)
        fresh = made_root("mlp")
        fresh.update().numpy()[:] = 0  # which no tensor's version tells of
        assert torch.equal(fresh.update(), kept)
        other = made_root("mlp")
        other.train([other.data]).zero_()  # what was trained itself: then it is trained again
        assert torch.equal(other.update(), kept)

    def test_round_and_seed_decide_the_batches(self) -> None:
        root = made_root("mlp")
        trainer = root.trainer
        others = [
            RootClient(trainer, root.samples, 3, root.params, ROUND + 1),
            RootClient(Trainer(trainer.model, trainer.settings, SEED + 1), root.samples, 3, root.params, ROUND),
        ]
        for other in others:
            assert not torch.allclose(other.update(), root.update())


def test_a_runnable_model_evaluates() -> None:
    module, shape = made("batchnorm")
    model, params = FlatModel.of(module)
    network = RunnableModel(model, shape)
    assert isinstance(network, Network)
    x = federation(shape, {0: 5})[0].x
    torch.testing.assert_close(network.logits(params, x), module.eval()(x).detach())
