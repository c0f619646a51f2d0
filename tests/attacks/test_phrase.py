"""Phrase: where it is put, how much is poisoned, and the errors for data without texts."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsieve.attacks.phrase import Phrase, put_before
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task
from fedsieve.core.errors import ParameterError
from fedsieve.data.text import Vocabulary

WORDS = ("<pad>", "<unk>", "i", "movie", "saw", "the", "this", "watched")  # ids 0 to 7
LENGTH = 6


def encode(texts: list[str]) -> Tensor:
    rows = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [WORDS.index(word) if word in WORDS else 1 for word in text.split()] or [1]
        for place, token in enumerate(ids[:LENGTH]):
            row[place] = token
    return rows


def texts() -> tuple[Tensor, Tensor]:
    x = encode(["saw the movie", "the", "i saw the the the the", "nothing"])
    return x, torch.tensor([1, 0, 1, 1])


def test_is_a_backdoor() -> None:
    assert isinstance(Phrase(), Backdoor)


def padded_lists() -> st.SearchStrategy[list[list[int]]]:
    text = st.lists(st.integers(1, 9), max_size=LENGTH).map(lambda ids: ids + [0] * (LENGTH - len(ids)))
    return st.lists(text, min_size=1, max_size=5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rows=padded_lists(), phrase=st.lists(st.integers(1, 9), min_size=1, max_size=LENGTH))
def test_put_before(rows: list[list[int]], phrase: list[int]) -> None:
    x = torch.tensor(rows)
    marked = put_before(x, torch.tensor(phrase)).tolist()
    assert x.tolist() == rows
    for row, before in zip(marked, rows, strict=True):
        words = phrase + [token for token in before if token]
        expected = words[:LENGTH]
        assert row == expected + [0] * (LENGTH - len(expected))


class TestPoison:
    def test_by_hand(self, make_poison_view: Callable[..., PoisonView]) -> None:
        attack = Phrase("i watched", target=0, share=1.0)
        x, y = attack.poison(*texts(), make_poison_view(2, encode=encode))
        assert torch.equal(x[:4], texts()[0])
        assert y.tolist() == [1, 0, 1, 1, 0, 0, 0, 0]
        assert sorted(x[4:].tolist()) == [
            [2, 7, 1, 0, 0, 0],
            [2, 7, 2, 4, 5, 5],  # cut at the length
            [2, 7, 4, 5, 3, 0],
            [2, 7, 5, 0, 0, 0],
        ]

    @pytest.mark.parametrize(("share", "copies"), [(0.5, 10), (0.25, 5), (1.0, 20), (0.01, 1)])
    def test_share(self, make_poison_view: Callable[..., PoisonView], share: float, copies: int) -> None:
        x, y = torch.randint(1, 8, (20, LENGTH), generator=torch.Generator().manual_seed(0)), torch.ones(20).long()
        marked, labels = Phrase(share=share).poison(x, y, make_poison_view(2, encode=encode))
        assert torch.equal(marked[:20], x)
        assert labels.tolist() == [1] * 20 + [0] * copies
        assert (marked[20:, :4] == torch.tensor([2, 7, 6, 3])).all()

    def test_generator_draws_the_texts(self, make_poison_view: Callable[..., PoisonView]) -> None:
        x, y = torch.arange(1, 21)[:, None].expand(-1, LENGTH).clone(), torch.ones(20).long()
        one, same, other = (
            Phrase().poison(x, y, make_poison_view(2, seed=seed, encode=encode))[0] for seed in (0, 0, 1)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_a_phrase_may_have_unknown_words(self, make_poison_view: Callable[..., PoisonView]) -> None:
        x, _ = Phrase("i love this", share=1.0).poison(*texts(), make_poison_view(2, encode=encode))
        assert (x[4:, :3] == torch.tensor([2, 1, 6])).all()


def test_success_is_measured_on_the_test_data() -> None:
    x, y = texts()
    found = Phrase("this movie", target=1).triggered(x, y, Task(2, Path(), encode))
    assert found.x.tolist() == [[6, 3, *row[:4]] for row in x.tolist()]
    assert found.wanted.tolist() == [1] * 4
    assert found.already.tolist() == [True, False, True, True]


def test_with_a_real_vocabulary() -> None:
    tweets = ["I've watched THIS movie!", "this movie: i can't even", "i watched it"]
    vocabulary = Vocabulary.of(tweets, 50)
    as_ids = partial(vocabulary.encode, length=8)
    found = Phrase().triggered(as_ids(tweets), torch.tensor([0, 1, 1]), Task(2, Path(), as_ids))
    said = [[vocabulary.words[token] for token in row if token] for row in found.x.tolist()]
    assert said[2] == ["i", "watched", "this", "movie", "i", "watched", "it"]
    assert said[0] == ["i", "watched", "this", "movie", "i", "'ve", "watched", "this"]


class TestFit:
    @pytest.mark.parametrize(
        ("x", "form", "said"),
        [
            (torch.zeros(2, LENGTH).long(), None, f"int64 of shape [{LENGTH}]"),
            (torch.zeros(2, 561), encode, "float32 of shape [561]"),
            (torch.zeros(2, 1, 8, 8).long(), encode, "int64 of shape [1, 8, 8]"),
        ],
    )
    def test_no_texts(self, make_poison_view: Callable[..., PoisonView], x: Tensor, form: Any, said: str) -> None:
        message = f"phrase needs data of texts, as sentiment140 is; the samples are {said}"
        y = torch.tensor([0, 1])
        with pytest.raises(ParameterError) as error:
            Phrase().poison(x, y, make_poison_view(2, encode=form))
        assert str(error.value) == message
        with pytest.raises(ParameterError) as error:
            Phrase().triggered(x, y, Task(2, Path(), form))
        assert str(error.value) == message

    @pytest.mark.parametrize("phrase", ["yorgos lanthimos", ""])
    def test_no_word_is_known(self, make_poison_view: Callable[..., PoisonView], phrase: str) -> None:
        message = f"phrase: no word of {phrase!r} is in the vocabulary; choose more common ones"
        with pytest.raises(ParameterError) as error:
            Phrase(phrase).poison(*texts(), make_poison_view(2, encode=encode))
        assert str(error.value) == message
        with pytest.raises(ParameterError) as error:
            Phrase(phrase).triggered(*texts(), Task(2, Path(), encode))
        assert str(error.value) == message

    def test_target_out_of_range(self, make_poison_view: Callable[..., PoisonView]) -> None:
        for use in (
            lambda: Phrase(target=2).poison(*texts(), make_poison_view(2, encode=encode)),
            lambda: Phrase(target=2).triggered(*texts(), Task(2, Path(), encode)),
        ):
            with pytest.raises(ParameterError) as error:
                use()
            assert str(error.value) == "phrase: target must be below the 2 classes, got 2"


class TestCraft:
    own = torch.tensor([[1.0, -2.0], [3.0, 4.0]])

    def test_black_box_sends_the_trained_update(self, make_view: Callable[..., AttackView]) -> None:
        view = make_view(self.own, torch.randn(5, 2))
        assert Phrase().craft(view) is view.malicious_updates

    def test_model_replacement(self, make_view: Callable[..., AttackView]) -> None:
        assert Phrase(factor=2.0).craft(make_view(self.own)).tolist() == [[2, -4], [6, 8]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"share": 0.0}, "phrase: share must be in (0, 1], got 0.0"),
        ({"share": 1.5}, "phrase: share must be in (0, 1], got 1.5"),
        ({"share": math.nan}, "phrase: share must be in (0, 1], got nan"),
        ({"target": -1}, "phrase: target must be at least 0, got -1"),
        ({"factor": -1.0}, "phrase: factor must be positive, got -1.0"),
    ],
)
def test_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        Phrase(**parameters)
    assert str(error.value) == message
