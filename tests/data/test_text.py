"""Words of a tweet, and the vocabulary."""

from typing import Any

import pytest
import torch

from fedsieve.core.errors import ParameterError
from fedsieve.data.text import Vocabulary, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \t\n", []),
        ("Hello, World!!", ["hello", ",", "world", "!", "!"]),
        ("@anna_B see http://t.co/x?a=1 and www.b.com/c!", ["<user>", "see", "<url>", "and", "<url>"]),
        ("HTTPS://A.B", ["<url>"]),
        ("mail me@home", ["mail", "me", "<user>"]),
        ("I don't, can't; won't", ["i", "do", "n't", ",", "ca", "n't", ";", "wo", "n't"]),
        ("it's I'm we’ve y'all", ["it", "'s", "i", "'m", "we", "'ve", "y", "'", "all"]),  # noqa: RUF001
        ("n't 'd", ["n't", "'d"]),
        ("Q&amp;A &lt;3", ["q", "&", "a", "<", "3"]),
        ("#fail 2day :-(", ["#", "fail", "2day", ":", "-", "("]),
        ("café Ünï", ["café", "ünï"]),
        ("<pad> <unk> <url>", ["<", "pad", ">", "<", "unk", ">", "<", "url", ">"]),  # can't be forged
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_most_frequent_words_ties_alphabetical() -> None:
    texts = ["b a c c", "c d e", "e b"]  # c 3, b 2, e 2, a 1, d 1
    assert Vocabulary.of(texts, 6).words == ("<pad>", "<unk>", "c", "b", "e", "a")
    assert Vocabulary.of(texts, 100).words == ("<pad>", "<unk>", "c", "b", "e", "a", "d")
    assert Vocabulary.of(texts[::-1], 6) == Vocabulary.of(texts, 6)
    assert Vocabulary.of([], 3).words == ("<pad>", "<unk>")
    with pytest.raises(ParameterError, match=r"vocabulary must have at least 3 words .*, got 2"):
        Vocabulary.of(texts, 2)


def test_encode() -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>", "no", "yes"))
    ids = vocabulary.encode(["yes no", "YES maybe", "", "no no no no no", "  "], 4)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[3, 2, 0, 0], [3, 1, 0, 0], [1, 0, 0, 0], [2, 2, 2, 2], [1, 0, 0, 0]]
    assert vocabulary.encode([], 4).shape == (0, 4)
    assert vocabulary.encode(("no",), 1).tolist() == [[2]]


@pytest.mark.parametrize(("texts", "message"), [("no", "str"), ([b"no"], "a list with bytes"), (None, "NoneType")])
def test_encode_wants_texts(texts: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^texts must be a list of strings, got {message}$"):
        Vocabulary(("<pad>", "<unk>")).encode(texts, 4)
