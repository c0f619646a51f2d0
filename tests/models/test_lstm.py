"""The recurrent network: padding, word vectors from a file, gradients, training in a cohort."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.models.build import build_module
from fedsieve.models.flat import FlatModel
from fedsieve.models.lstm import LSTM
from fedsieve.models.mlp import MLP

WORDS = ("<pad>", "<unk>", "good", "bad", "day", "night")


def built(seed: int = 0, **parameters: object) -> nn.Module:
    return build_module(
        LSTM, (5,), 3, torch.Generator().manual_seed(seed), {"embedding": 4, "hidden": 5, **parameters}, WORDS
    )


def batch(k: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Texts of one to five words, padded."""
    x = torch.randint(1, len(WORDS), (k, 5), generator=torch.Generator().manual_seed(seed))
    return x * (torch.arange(5) <= torch.arange(k).unsqueeze(1) % 5), torch.arange(k) % 3


class TestForward:
    @pytest.mark.parametrize("k", [1, 8, 70, 300])  # computed in one, one, two and eight parts
    def test_against_each_text_alone_without_padding(self, k: int) -> None:
        module, (x, _) = built().double(), batch(k)
        for ids, logits in zip(x, module(x), strict=True):
            outputs, (last, _) = module.lstm(module.embedding(ids[ids > 0].unsqueeze(0)))  # type: ignore[operator]
            torch.testing.assert_close(module.fc(last[-1])[0], logits)  # type: ignore[operator]
            torch.testing.assert_close(outputs[:, -1], last[-1])

    def test_more_padding_changes_nothing(self) -> None:
        module, (x, _) = built(), batch()
        torch.testing.assert_close(module(torch.cat([x, torch.zeros(8, 7, dtype=torch.long)], dim=1)), module(x))

    def test_only_padding_is_allowed(self) -> None:
        assert built()(torch.zeros(2, 5, dtype=torch.long)).isfinite().all()

    def test_no_texts_have_no_logits(self) -> None:
        assert built()(torch.zeros(0, 5, dtype=torch.long)).shape == (0, 3)

    def test_sizes(self) -> None:
        module = LSTM(2, tuple(map(str, range(5000))))
        # 5000 x 64 vectors, two layers of 4 x 64 x (64 + 64 + 2), 2 x 64 + 2
        assert sum(p.numel() for p in module.parameters()) == 320_000 + 2 * 33_280 + 130


class TestGlove:
    def write(self, folder: Path, text: str = "good 1 2 3 4\nthe 9 9 9 9\nday -1 0.5 1e-3 0\n. . . 1 1 1 1\n") -> str:
        path = folder / "glove.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def test_known_words_start_from_it(self, tmp_path: Path) -> None:
        plain, module = built(), built(glove=self.write(tmp_path))
        weight = module.embedding.weight  # type: ignore[union-attr]
        assert weight[2].tolist() == [1, 2, 3, 4]
        torch.testing.assert_close(weight[4], torch.tensor([-1, 0.5, 1e-3, 0]))
        assert torch.equal(weight[[0, 1, 3, 5]], plain.embedding.weight[[0, 1, 3, 5]])  # type: ignore[union-attr,index]
        assert weight[0].eq(0).all()
        assert FlatModel.of(module)[0].layout.n_parameters == FlatModel.of(plain)[0].layout.n_parameters

    def test_frozen(self, tmp_path: Path) -> None:
        model, flat = FlatModel.of(built(glove=self.write(tmp_path), freeze=True))
        free, _ = FlatModel.of(built())
        assert free.layout.n_parameters - model.layout.n_parameters == len(WORDS) * 4
        assert len(flat) == model.layout.size == model.layout.n_parameters  # the vectors are not part of it
        assert torch.equal(model.constants["embedding.weight"], built(glove=self.write(tmp_path)).embedding.weight)  # type: ignore[union-attr]
        trainer = Trainer(model, LocalTraining(learning_rate=1.0), seed=0)
        update = trainer.updates(flat, {0: ClientData(*batch())}, round=0)[0]
        assert update.abs().max() > 0

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match=r"^lstm: embedding is 3, but the vectors of .* have size 4$"):
            built(glove=self.write(tmp_path), embedding=3)
        with pytest.raises(MissingDataError, match=r"^lstm: /no/glove.txt cannot be read: No such file or directory$"):
            built(glove="/no/glove.txt")
        for text, message in [
            ("a 1 2 3 4\ngood 1 2 x 4\n", "is not a file of words and numbers: could not convert string to float: 'x'"),
            ("a 1 2 3 4\ngood 1 2\n", "line 2: 'good' has no 4 finite numbers"),
            ("a 1 2 3 4\ngood 1 2 3 nan\n", "line 2: 'good' has no 4 finite numbers"),
        ]:
            with pytest.raises(CorruptDataError, match=message):
                built(glove=self.write(tmp_path, text))
        (tmp_path / "b.txt").write_bytes(b"a 1 2 3 4\n\xff 1 2 3 4\n")
        with pytest.raises(CorruptDataError, match="is not a file of words and numbers: 'utf-8' codec"):
            built(glove=str(tmp_path / "b.txt"))


def test_needs_text() -> None:
    with pytest.raises(ParameterError, match=r"^lstm needs text, .* try mlp, cnn or logistic-regression$"):
        build_module(LSTM, (1, 8, 8), 10, torch.Generator(), {})
    for parameters in ({"hidden": 0}, {"layers": 0}, {"embedding": 0}):
        with pytest.raises(ParameterError, match=r"^lstm: embedding, hidden and layers must be at least 1, got "):
            built(**parameters)


class TestAsAFunctionOfAVector:
    def test_gradient_is_that_of_the_module(self) -> None:
        module, (x, y) = built().double(), batch()
        model, flat = FlatModel.of(module)
        for shift in (0.0, 0.3):  # not only at the module's own weights
            plain = copy.deepcopy(module)
            with torch.no_grad():
                for parameter in plain.parameters():
                    parameter += shift
            cross_entropy(plain(x), y).backward()
            expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters() if p.grad is not None])
            if shift:  # backward leaves padding's row out, and no test reads it
                assert plain.embedding.weight.grad[0].eq(0).all()  # type: ignore[union-attr,index]
            loss, gradient = model.gradient(flat + shift, x, y)
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(loss, cross_entropy(plain(x), y).detach())
            torch.testing.assert_close(model.logits(flat + shift, x), plain(x).detach())
        assert gradient.abs().max() > 0

    def test_gradient_by_finite_differences(self) -> None:
        model, flat = FlatModel.of(built().double())
        x, y = batch()
        _, gradient = model.gradient(flat, x, y)
        step = torch.randn(len(flat), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        step[:4] = 0  # padding's vector
        slope = torch.sub(*model.losses(torch.stack([flat + 1e-6 * step, flat - 1e-6 * step]), x, y)) / 2e-6
        torch.testing.assert_close(gradient @ step, slope, rtol=1e-6, atol=1e-8)

    def test_recurrent(self) -> None:
        assert FlatModel.of(built())[0].recurrent
        assert FlatModel.of(nn.GRU(2, 2))[0].recurrent
        assert not FlatModel.of(MLP((3,), 2))[0].recurrent
        assert not FlatModel.of(built())[0].is_random


class TestCohort:
    @pytest.mark.parametrize("vectorize", [None, True, False])
    def test_trains_client_by_client_as_torch_does(self, vectorize: bool | None) -> None:
        module = built().double()
        model, flat = FlatModel.of(module)
        settings = LocalTraining(learning_rate=0.3, batch_size=20, steps=3, momentum=0.5)
        trainer = Trainer(model, settings, seed=0, vectorize=vectorize)
        assert not trainer.vectorized(torch.device("cpu"))
        assert not trainer.vectorized(torch.device("cuda"))
        clients = {k: ClientData(*batch(6 + k, seed=k)) for k in range(3)}
        updates = trainer.updates(flat, clients, round=0)
        for update, data in zip(updates, clients.values(), strict=True):
            plain = copy.deepcopy(module)
            optimizer = torch.optim.SGD(plain.parameters(), lr=0.3, momentum=0.5)
            for _ in range(3):  # every batch is all of the client's data
                optimizer.zero_grad()
                cross_entropy(plain(data.x), data.y).backward()
                optimizer.step()
            expected = torch.cat([p.detach().reshape(-1) for p in plain.parameters()]) - flat
            torch.testing.assert_close(update, expected, rtol=1e-9, atol=1e-12)

    def test_learns_which_word_it_was(self) -> None:
        """The class is the first word, four words and padding ago."""
        model, flat = FlatModel.of(built(hidden=16, embedding=8))
        x = torch.randint(1, len(WORDS), (90, 5), generator=torch.Generator().manual_seed(1))
        y = torch.arange(90) % 3
        x[:, 0] = y + 2
        trainer = Trainer(model, LocalTraining(learning_rate=1.0, batch_size=30, epochs=15, clip_norm=1.0), seed=0)
        for k in range(4):
            flat = flat + trainer.updates(flat, {0: ClientData(x, y)}, k)[0]
        assert (model.logits(flat, x).argmax(1) == y).float().mean() > 0.95
