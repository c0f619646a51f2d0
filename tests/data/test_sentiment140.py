"""Sentiment140: made files in the original format, unpacked and in the archive."""

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.data import sentiment140
from fedsieve.data.dataset import Dataset, Loader
from fedsieve.data.sentiment140 import MANUAL, TRAIN, Sentiment140, held_out

COUNTS = {"zoe": 30, "bob": 20, "amy": 20, "dan": 2, "eve": 1}


def row(polarity: int, user: str, text: str) -> bytes:
    cells = [str(polarity), "1467810369", "Mon Apr 06 22:19:45 PDT 2009", "NO_QUERY", user, text.replace('"', '""')]
    return ",".join(f'"{cell}"' for cell in cells).encode("latin-1") + b"\n"


@pytest.fixture
def tables() -> dict[str, bytes]:
    """Authors' tweets interleaved; each contains its author and its number."""
    tweets = sorted((k, user) for user, count in COUNTS.items() for k in range(count))
    train = b"".join(row(4 * (k % 2), user, f'{user} says "n{k}", caf\xe9') for k, user in tweets)
    manual = row(4, "x", "zoe good") + row(2, "y", "neutral") + row(0, "z", "bob bad, very")
    return {TRAIN: train, MANUAL: manual}


def put(folder: Path, tables: dict[str, bytes]) -> None:
    (folder / "sentiment140").mkdir(exist_ok=True)
    for name, content in tables.items():
        (folder / "sentiment140" / name).write_bytes(content)


def zipped(tables: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in tables.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def load(folder: Path, seed: int = 0, **parameters: Any) -> Dataset:
    return Sentiment140(**{"users": 3, "length": 8, **parameters}).load(folder, torch.Generator().manual_seed(seed))


def words_of(data: Dataset, rows: torch.Tensor) -> list[list[str]]:
    return [[data.vocabulary[k] for k in ids if k] for ids in rows.tolist()]


def test_is_a_loader() -> None:
    assert isinstance(Sentiment140(), Loader)
    assert [file.path for file in Sentiment140().files()] == ["sentiment140/trainingandtestdata.zip"]


def test_authors_with_most_tweets(tables: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path, tables)
    Sentiment140().verify(tmp_path)
    Sentiment140().fetch(tmp_path)
    data = load(tmp_path)
    assert data.x_train.dtype == data.y_train.dtype == torch.int64
    assert (data.n_classes, data.input_shape) == (2, (8,))
    assert data.owners is not None
    assert data.owners.bincount().tolist() == [27, 18, 18]  # of zoe, amy, bob: nine tenths
    assert data.test_owners is not None
    assert data.test_owners.tolist() == [0] * 3 + [1] * 2 + [2] * 2
    assert data.owner_names == ("zoe", "amy", "bob")
    assert len(data.y_test) == 3 + 2 + 2
    train, test = words_of(data, data.x_train), words_of(data, data.x_test)
    assert {(tweet[0], owner) for tweet, owner in zip(train, data.owners.tolist(), strict=True)} == {
        ("zoe", 0),
        ("amy", 1),
        ("bob", 2),
    }
    assert train[0][1:3] == ["says", '"']
    assert train[0][-1] == "café"
    numbers = [int(tweet[3][1:]) for tweet in train]
    assert data.y_train.tolist() == [number % 2 for number in numbers]
    assert not {tuple(tweet[:4]) for tweet in train} & {tuple(tweet[:4]) for tweet in test}
    assert data.encode is not None
    assert words_of(data, data.encode(["zoe says nothing"])) == [["zoe", "says", "<unk>"]]


def test_split_follows_the_generator(tables: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path, tables)
    one, again, other = load(tmp_path, 0), load(tmp_path, 0), load(tmp_path, 1)
    assert torch.equal(one.x_train, again.x_train)
    assert words_of(one, one.x_test) != words_of(other, other.x_test)


def test_manual_test_set(tables: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path, tables)
    data = load(tmp_path, test="manual")
    assert data.y_test.tolist() == [1, 0]  # the neutral one is left out
    assert words_of(data, data.x_test) == [["zoe", "<unk>"], ["bob", "<unk>", ",", "<unk>"]]
    assert len(data.y_train) == 30 + 20 + 20


def test_vocabulary_comes_from_training_tweets(tables: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path, tables)
    data = load(tmp_path)
    assert set(data.vocabulary[2:]) == {word for tweet in words_of(data, data.x_train) for word in tweet}
    assert load(tmp_path, vocabulary=5).vocabulary[2:] == ('"', ",", "café")  # thrice as frequent as zoe, or twice


def test_archive(tables: dict[str, bytes], server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped(tables)
    server.serve("/t.zip", content)
    url, md5 = f"{server.url}/t.zip", hashlib.md5(content).hexdigest()
    monkeypatch.setattr(sentiment140, "ARCHIVE", replace(sentiment140.ARCHIVE, urls=(url,), md5=md5))
    with pytest.raises(MissingDataError, match="`fedsieve data fetch sentiment140`"):
        Sentiment140().verify(tmp_path)
    data = load(tmp_path)
    Sentiment140().fetch(tmp_path)
    Sentiment140().verify(tmp_path)
    assert server.asked == ["/t.zip"]
    put(tmp_path, tables)
    assert torch.equal(load(tmp_path).x_train, data.x_train)
    (tmp_path / "sentiment140" / MANUAL).unlink()  # not both: the archive is used
    (tmp_path / "sentiment140" / TRAIN).write_bytes(b"nonsense")
    assert torch.equal(load(tmp_path).x_train, data.x_train)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (row(0, "a", "b") + b'"0","1","2"\n', "line 2: six columns that begin with 0, 4 were expected, got 3 that"),
        (row(2, "a", "b"), "line 1: six columns that begin with 0, 4 were expected, got 6 that begin with '2'"),
        (b"\n", "line 1: six columns .* got 0 that begin with ''"),
        (b"x" * 200_000, "is not a whole table: field larger than"),
    ],
)
def test_bad_tables(tables: dict[str, bytes], tmp_path: Path, content: bytes, message: str) -> None:
    put(tmp_path, tables | {TRAIN: content})
    for action in (Sentiment140().verify, Sentiment140().fetch, load):
        with pytest.raises(CorruptDataError, match=message) as error:
            action(tmp_path)
        assert "\n" not in str(error.value)


def test_archive_without_a_table(tables: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped({TRAIN: tables[TRAIN]})
    put(tmp_path, {"trainingandtestdata.zip": content})
    monkeypatch.setattr(sentiment140, "ARCHIVE", replace(sentiment140.ARCHIVE, md5=hashlib.md5(content).hexdigest()))
    with pytest.raises(CorruptDataError, match=r"testdata\.manual.* in .*\.zip is not a whole table: "):
        load(tmp_path, test="manual")


def test_too_few(tables: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path, tables)
    with pytest.raises(ParameterError, match=r"^sentiment140: 6 users asked for, the data has 5$"):
        load(tmp_path, users=6)
    put(tmp_path, tables | {TRAIN: row(0, "a", "b") + row(4, "c", "d")})
    with pytest.raises(ParameterError, match="one tweet each"):
        load(tmp_path, users=2)


def test_held_out() -> None:
    assert [held_out(n) for n in (1, 2, 14, 16, 549)] == [0, 1, 1, 2, 55]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"users": 0}, "users must be at least 1, got 0"),
        ({"vocabulary": 2}, "vocabulary must be at least 3, got 2"),
        ({"length": 0}, "length must be at least 1, got 0"),
    ],
)
def test_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=rf"^sentiment140: {message}$"):
        Sentiment140(**parameters)
