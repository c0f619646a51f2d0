"""What is no parameter and no running statistic stays as it was built, at the server and at every client."""

import copy
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsieve.core.errors import ParameterError
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.models.flat import FlatModel
from fedsieve.models.forward import copied

CLASSES, SEED = 3, 5
SETTINGS = LocalTraining(learning_rate=0.1, batch_size=4, epochs=1)


class Attention(nn.Module):
    """A causal mask of -inf, Swin's position index, position ids, a mask of truth values, complex rotations."""

    shape = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.fc = nn.Linear(6, 8), nn.Linear(8, 24), nn.Linear(8, CLASSES)
        self.position = nn.Embedding(4, 8)
        self.relative_position_bias_table = nn.Parameter(torch.linspace(-1, 1, 7))
        steps = torch.arange(4)
        self.register_buffer("relative_position_index", steps[:, None] - steps[None, :] + 3)
        self.register_buffer("causal", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("position_ids", steps.expand(1, -1), persistent=False)
        self.register_buffer("kept", torch.tensor([True, False, True, True]))
        self.register_buffer("turn", torch.polar(torch.ones(8), torch.linspace(0, 1, 8)))

    def forward(self, x: Tensor) -> Any:
        h = self.embed(x) + self.position(self.position_ids)
        h = (h * self.turn).real
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(4, 4)
        weights = (q @ k.transpose(-2, -1) + bias + self.causal).softmax(dim=-1)
        return self.fc((weights @ v)[:, self.kept].mean(dim=1))


class FrozenBody(nn.Module):
    """A body in another type that doesn't train, with BatchNorm of its own, and a head that trains."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8, affine=False))
        self.body.double().requires_grad_(False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x.double()).float())


class Tied(nn.Module):
    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.b(self.a(x).tanh()).tanh())


class Remembering(nn.Module):
    """Writes to a buffer, replaces another, counts in a third, and keeps things in attributes; all are read."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, CLASSES)
        self.register_buffer("average", torch.zeros(6))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.calls, self.last = 0, torch.zeros(6)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.average.mul_(0.5).add_(x.mean(dim=0))
            self.largest = torch.maximum(self.largest, x.abs().max())
            self.steps += 1
        out = self.fc(x + self.average + self.last) / (self.largest + self.steps + self.calls)
        self.calls, self.last = self.calls + 1, x.mean(dim=0)
        return out


def built(kind: type[Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind()


def data(module: Any, k: int, seed: int = 0) -> ClientData:
    generator = torch.Generator().manual_seed(seed)
    return ClientData(torch.randn(k, *module.shape, generator=generator), torch.arange(k) % CLASSES)


every_engine = pytest.mark.parametrize("vectorize", [True, False])


class TestAttention:
    def test_only_parameters_travel(self) -> None:
        module = built(Attention)
        model, flat = FlatModel.of(module)
        assert len(flat) == model.layout.n_parameters == sum(p.numel() for p in module.parameters())
        assert flat.isfinite().all()
        assert set(model.constants) == {"relative_position_index", "causal", "position_ids", "kept", "turn"}
        assert torch.equal(model.layout.flatten(module.state_dict()), flat)

    def test_is_the_module(self) -> None:
        module = built(Attention)
        model, flat = FlatModel.of(module)
        own = data(module, 5)
        torch.testing.assert_close(model.logits(flat, own.x), module.eval()(own.x).detach())
        loss = cross_entropy(module.train()(own.x), own.y)
        loss.backward()
        found = model.layout.unflatten(model.gradient(flat, own.x, own.y)[1])
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad)

    @every_engine
    def test_updates_are_finite(self, vectorize: bool) -> None:
        module = built(Attention)
        model, flat = FlatModel.of(module)
        cohort = {k: data(module, 5 + k, seed=k) for k in range(3)}
        found = Trainer(model, SETTINGS, SEED, vectorize).updates(flat, cohort, 0)
        assert found.isfinite().all()
        assert (found.norm(dim=1) > 1e-3).all()


class TestFrozen:
    def test_body_does_not_travel(self) -> None:
        module = built(FrozenBody)
        model, flat = FlatModel.of(module)
        assert [s.name for s in model.layout.segments] == ["head.weight", "head.bias"]
        assert len(flat) == 27
        assert flat.dtype == torch.float32

    @every_engine
    @pytest.mark.parametrize("k", [1, 5])
    def test_normalises_as_built(self, vectorize: bool, k: int) -> None:
        module = built(FrozenBody)
        before = copy.deepcopy(module.state_dict())
        model, flat = FlatModel.of(module)
        own = data(module, k)
        expected = copy.deepcopy(module).eval()  # in training, too
        optimizer = torch.optim.SGD(expected.head.parameters(), lr=0.1)
        cross_entropy(expected(own.x), own.y).backward()
        optimizer.step()
        settings = LocalTraining(learning_rate=0.1, batch_size=8)
        update = Trainer(model, settings, SEED, vectorize).updates(flat, {0: own}, 0)[0]
        torch.testing.assert_close(flat + update, model.layout.flatten(expected.state_dict()))
        torch.testing.assert_close(model.logits(flat + update, own.x), expected(own.x).detach())
        assert all(torch.equal(model.constants[name], before[name]) for name in model.constants)

    def test_attacker_cannot_move_it(self) -> None:
        """Any vector at all leaves the body's features as they were: only the head is read from it."""
        module = built(FrozenBody)
        model, flat = FlatModel.of(module)
        x = data(module, 5).x
        evil = torch.full_like(flat, 350.0)
        features = module.eval().body(x.double()).float()
        expected = features @ torch.full((8, CLASSES), 350.0) + 350.0
        torch.testing.assert_close(model.logits(evil, x), expected, rtol=1e-5, atol=1e-3)

    def test_writing_to_it_is_refused(self) -> None:
        class Teacher(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.teacher = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES).requires_grad_(False)

            def forward(self, x: Tensor) -> Any:
                with torch.no_grad():
                    self.teacher.weight.mul_(0.9).add_(self.fc.weight, alpha=0.1)
                return self.fc(x) + self.teacher(x)

        model, flat = FlatModel.of(Teacher())
        with pytest.raises(ParameterError) as error:
            model.gradient(flat, torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
        assert (
            str(error.value) == "the model writes to teacher.weight, which is frozen; make it a buffer or let it train"
        )


class TestTied:
    @every_engine
    def test_travel_once_and_train_as_one(self, vectorize: bool) -> None:
        module = built(Tied)
        model, flat = FlatModel.of(module)
        assert [s.name for s in model.layout.segments] == ["a.weight", "a.bias", "b.bias", "fc.weight", "fc.bias"]
        assert torch.equal(model.layout.flatten(module.state_dict()), flat)
        own = data(module, 4)
        plain = copy.deepcopy(module)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
        cross_entropy(plain(own.x), own.y).backward()
        optimizer.step()
        update = Trainer(model, SETTINGS, SEED, vectorize).updates(flat, {0: own}, 0)[0]
        torch.testing.assert_close(flat + update, model.layout.flatten(plain.state_dict()))
        assert plain.a.weight is plain.b.weight


class TestMemory:
    def test_nothing_outlasts_a_batch(self) -> None:
        module = built(Remembering)
        before = copy.deepcopy(module.state_dict())
        model, flat = FlatModel.of(module)
        own = data(module, 4)
        first = model.gradient(flat, own.x, own.y)[1], model.logits(flat, own.x)
        model.gradient(flat, 9 * own.x, own.y)
        model.logits(flat, 9 * own.x)
        assert torch.equal(model.gradient(flat, own.x, own.y)[1], first[0])
        assert torch.equal(model.logits(flat, own.x), first[1])
        assert all(torch.equal(model.constants[name], before[name]) for name in ("average", "largest", "steps"))
        assert model.module.calls == 0
        torch.testing.assert_close(first[1], copy.deepcopy(module)(own.x).detach())  # the first call of a fresh one

    @pytest.mark.parametrize("vectorize", [True, False, None])
    def test_no_client_leaks_into_another(self, vectorize: bool | None) -> None:
        module = built(Remembering)
        model, flat = FlatModel.of(module)
        cohort = {k: data(module, 4 + k, seed=k) for k in range(4)}
        trainer = Trainer(model, SETTINGS, SEED, vectorize)
        together = trainer.updates(flat, cohort, 0)
        for k in reversed(cohort):
            alone = Trainer(model, SETTINGS, SEED, vectorize).updates(flat, {k: cohort[k]}, 0)[0]
            torch.testing.assert_close(alone, together[k], rtol=1e-5, atol=1e-7)

    def test_a_module_that_has_been_used_can_be_copied(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old way is deprecated, and used
            module = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 4)), nn.Linear(4, CLASSES))
        x = torch.randn(5, 6)
        expected = module(x)  # leaves a weight with a graph in the module
        model, flat = FlatModel.of(module)
        torch.testing.assert_close(model.logits(flat, x), expected.detach())

    def test_what_cannot_be_copied(self) -> None:
        module = nn.Linear(2, 2)
        module.source = (k for k in range(3))  # type: ignore[assignment]
        with pytest.raises(ParameterError, match=r"^Linear can't be copied: cannot pickle 'generator' object$"):
            copied(module)


def bfloat16(logits: Tensor) -> Tensor:
    return logits.bfloat16()  # as under autocast


class TestOutputs:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda logits: (logits,),
            lambda logits: [logits],
            lambda logits: {"logits": logits, "hidden": None},
            lambda logits: OrderedDict(loss=None, logits=logits),
            lambda logits: type("Output", (), {"logits": logits})(),
            bfloat16,
        ],
        ids=["tuple", "list", "dict", "ordered-dict", "object", "bfloat16"],
    )
    @every_engine
    def test_unambiguous(self, wrap: Any, vectorize: bool) -> None:
        class Wrapped(Tied):
            def forward(self, x: Tensor) -> Any:
                return wrap(super().forward(x))

        module, plain = built(Wrapped), built(Tied)
        (model, flat), (bare, _) = FlatModel.of(module), FlatModel.of(plain)
        own = data(module, 4)
        tolerance = {"rtol": 0.0, "atol": 5e-3 if wrap is bfloat16 else 0.0}
        torch.testing.assert_close(model.logits(flat, own.x), bare.logits(flat, own.x), **tolerance)
        found, expected = (Trainer(m, SETTINGS, SEED, vectorize).updates(flat, {0: own}, 0) for m in (model, bare))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, **tolerance)

    @pytest.mark.parametrize(
        ("wrap", "said"),
        [
            (
                lambda logits: (logits, logits[:, :1]),
                "forward returned a tuple of 2 (float32 [4, 3], float32 [4, 1]); ",
            ),
            (lambda logits: {"scores": logits}, "forward returned a dict with scores; "),
            (lambda logits: None, "forward returned None; "),
            (lambda logits: logits.argmax(dim=1), "forward returned int64 [4]; "),
            (lambda logits: logits.tolist(), "forward returned a list of 4 (a list of 3 ("),
            (
                lambda logits: logits[0],
                "gives outputs of shape [3] for 4 samples of shape [6]; [4, classes] was expected",
            ),
            (lambda logits: logits[:2], "gives outputs of shape [2, 3] for 4 samples of shape [6]; "),
            (lambda logits: logits[..., None], "gives outputs of shape [4, 3, 1] for 4 samples of shape [6]; "),
        ],
        ids=["two", "dict", "none", "classes", "list", "one-row", "short", "long"],
    )
    def test_others_are_told(self, wrap: Any, said: str) -> None:
        class Wrapped(Tied):
            def forward(self, x: Tensor) -> Any:
                return wrap(super().forward(x))

        model, flat = FlatModel.of(built(Wrapped), "model own:Wrapped")
        own = data(built(Tied), 4)
        for work in (lambda: model.logits(flat, own.x), lambda: model.gradient(flat, own.x, own.y)):
            with pytest.raises(ParameterError) as error:
                work()
            assert said in str(error.value)
            assert str(error.value).startswith("model own:Wrapped ")
            assert "\n" not in str(error.value)


class TestErrors:
    def test_names_the_place(self) -> None:
        class Picky(Tied):
            def forward(self, x: Tensor) -> Any:
                assert x.max() < 1, "too large\nsecond line"
                return super().forward(x)

        model, flat = FlatModel.of(built(Picky))
        with pytest.raises(ParameterError) as error:
            model.gradient(flat, torch.full((2, 6), 7.0), torch.tensor([0, 1]))
        assert str(error.value).startswith(
            "the model can't train on samples of shape [6]: AssertionError: too large (test_constants.py, line "
        )
        assert str(error.value).endswith("); batch of 2")

    @pytest.mark.parametrize("view", [False, True])
    def test_view_after_a_convolution(self, view: bool) -> None:
        """PyTorch's tutorial does; on a CPU, images lie with channels last here, of which there is no view."""

        class Convolutional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(48, CLASSES)

            def forward(self, x: Tensor) -> Any:
                h = self.conv(x).relu()
                return self.fc(h.view(-1, 48) if view else h.flatten(1))

        module: Any = built(Convolutional)
        x, y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
        model, flat = FlatModel.of(module)
        torch.testing.assert_close(model.logits(flat, x), module(x).detach())
        cross_entropy(module(x), y).backward()
        found = model.layout.unflatten(model.gradient(flat, x, y)[1])
        torch.testing.assert_close(found["conv.weight"], module.conv.weight.grad)

    def test_sparse_gradients(self) -> None:
        module = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(12, CLASSES))
        model, flat = FlatModel.of(module)
        x, y = torch.tensor([[1, 2, 3], [3, 3, 8]]), torch.tensor([0, 2])
        cross_entropy(module(x), y).backward()
        found = model.layout.unflatten(model.gradient(flat, x, y)[1])["0.weight"]
        torch.testing.assert_close(found, module[0].weight.grad.to_dense())  # type: ignore[union-attr,operator]
