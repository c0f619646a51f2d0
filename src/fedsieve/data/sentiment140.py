"""Sentiment140: 1.6 million tweets of 2009, labelled positive or negative by an emoticon that was then removed."""

import csv
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import torch

from fedsieve.core.bounded import read_lines
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.core.traits import Traits
from fedsieve.data import store
from fedsieve.data.dataset import Dataset, RemoteFile
from fedsieve.data.text import Vocabulary

NAME = "sentiment140"
ARCHIVE = RemoteFile(
    "sentiment140/trainingandtestdata.zip",
    (
        "http://cs.stanford.edu/people/alecmgo/trainingandtestdata.zip",
        "https://zenodo.org/records/11116734/files/trainingandtestdata.zip?download=1",
    ),
    "1647eb110dd2492512e27b9a70d5d1bc",
)
TRAIN, MANUAL = "training.1600000.processed.noemoticon.csv", "testdata.manual.2009.06.14.csv"
CLASSES = {"0": 0, "4": 1}  # negative and positive; "2", neutral, is in the manual test set only
SHARE = 0.1  # of each user's tweets, for testing


@dataclass(frozen=True, slots=True)
class Tweet:
    """The columns of a row that are used."""

    polarity: str
    user: str
    text: str


@dataclass(frozen=True)
class Sentiment140:
    """Tweets as token ids [length], negative (0) or positive (1); ``owners`` are their authors.

    Of the 660,000 authors, those with the most tweets are kept. Some of these are programs that send the same complaint
    many times, so natural clients differ strongly. The vocabulary is that of all training tweets.

    Attributes:
        users: Number of authors kept; ties are broken by name.
        vocabulary: Number of token ids: the most frequent words of the training tweets.
        length: Number of tokens read from a tweet.
        test: Test set: with ``users`` a tenth of each author's tweets, drawn with the experiment's seed; with
            ``manual`` the 359 positive and negative tweets that the paper's authors labelled by hand.
    """

    users: int = 100
    vocabulary: int = 5000
    length: int = 32
    test: Literal["users", "manual"] = "users"
    traits: ClassVar[Traits] = Traits(
        summary="1.6 million tweets, positive or negative, by author",
        paper="Go, Bhayani and Huang, Twitter Sentiment Classification using Distant Supervision, Stanford 2009",
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "lstm",
        "clients": 100,
        "partition": "natural",
        "local": {"learning_rate": 0.3, "batch_size": 64, "steps": 20, "momentum": 0.9, "clip_norm": 1.0},
        "server": {"learning_rate": 1.0},
    }

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ParameterError(f"sentiment140: users must be at least 1, got {self.users}")
        if self.vocabulary < 3:
            raise ParameterError(f"sentiment140: vocabulary must be at least 3, got {self.vocabulary}")
        if self.length < 1:
            raise ParameterError(f"sentiment140: length must be at least 1, got {self.length}")

    def files(self) -> tuple[RemoteFile, ...]:
        """The archive; its unpacked tables can take its place."""
        return (ARCHIVE,)

    def verify(self, folder: Path) -> None:
        """Check the archive's checksum, or every row of the unpacked tables, which have no checksum.

        Raises:
            MissingDataError: If neither exists.
            CorruptDataError: If the checksum or a row is wrong.
        """
        if unpacked(folder):
            for name in (TRAIN, MANUAL):
                for _ in read(folder, name):
                    pass
        else:
            store.verify(ARCHIVE, folder, dataset=NAME)

    def fetch(self, folder: Path) -> None:
        """Download the archive unless it or its tables exist; raises MissingDataError or CorruptDataError."""
        if unpacked(folder):
            self.verify(folder)
        else:
            store.fetch(ARCHIVE, folder, dataset=NAME)

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the unpacked tables, or the archive, downloaded if missing; ``generator`` draws the test set.

        The table is read twice, so that only the tweets of the authors that are kept are in memory.
        """
        if not unpacked(folder):
            store.fetch(ARCHIVE, folder, dataset=NAME)
        counts = Counter(tweet.user for tweet in read(folder, TRAIN))
        if len(counts) < self.users:
            raise ParameterError(f"sentiment140: {self.users} users asked for, the data has {len(counts)}")
        chosen = sorted(counts, key=lambda user: (-counts[user], user))[: self.users]
        by_user: dict[str, list[Tweet]] = {user: [] for user in chosen}
        for tweet in read(folder, TRAIN):
            if tweet.user in by_user:
                by_user[tweet.user].append(tweet)
        train, test, owners, test_owners = [], [], [], list[int]()
        for owner, tweets in enumerate(by_user.values()):
            cut = held_out(len(tweets)) if self.test == "users" else 0
            order = torch.randperm(len(tweets), generator=generator).tolist() if cut else range(len(tweets))
            test += [tweets[k] for k in order[:cut]]
            train += [tweets[k] for k in order[cut:]]
            owners += [owner] * (len(tweets) - cut)
            test_owners += [owner] * cut
        if self.test == "manual":
            test = [tweet for tweet in read(folder, MANUAL) if tweet.polarity in CLASSES]
        if not test:
            raise ParameterError("sentiment140: these users have one tweet each, so none is left to test; more users")
        vocabulary = Vocabulary.of([tweet.text for tweet in train], self.vocabulary)
        encode = partial(vocabulary.encode, length=self.length)
        (x, y), (x_test, y_test) = (
            (encode([t.text for t in part]), torch.tensor([CLASSES[t.polarity] for t in part]))
            for part in (train, test)
        )
        return Dataset(
            x,
            y,
            x_test,
            y_test,
            2,
            torch.tensor(owners),
            encode,
            vocabulary.words,
            owned_by="author",
            owner_names=tuple(chosen),
            test_owners=torch.tensor(test_owners) if self.test == "users" else None,
        )


def held_out(n: int) -> int:
    """Number of test tweets of a user with ``n`` tweets: a tenth, rounded, at least one; 0 for n = 1.

    >>> [held_out(n) for n in (1, 2, 26)]
    [0, 1, 3]
    """
    return max(1, round(SHARE * n)) if n > 1 else 0


def unpacked(folder: Path) -> bool:
    """Whether both tables exist below ``folder``, unpacked."""
    return all((folder / NAME / name).is_file() for name in (TRAIN, MANUAL))


def read(folder: Path, name: str) -> Iterator[Tweet]:
    """The rows of one table, from the unpacked file or the archive.

    Args:
        folder: The data folder.
        name: ``TRAIN`` or ``MANUAL``.

    Raises:
        MissingDataError: If the file can't be opened.
        CorruptDataError: If it is not such a table; names the line.
    """
    path = (folder / NAME / name if unpacked(folder) else folder / ARCHIVE.path).absolute()
    where = str(path) if unpacked(folder) else f"{name} in {path}"
    allowed = CLASSES if name == TRAIN else {**CLASSES, "2": 2}
    line = 0
    with ExitStack() as stack:
        try:
            raw: IO[bytes]
            if unpacked(folder):
                raw = stack.enter_context(path.open("rb"))
            else:
                raw = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(name))
            text = stack.enter_context(io.TextIOWrapper(raw, encoding="latin-1", newline=""))
            rows = csv.reader(read_lines(text, path))
            for row in rows:
                line = rows.line_num
                if len(row) != 6 or row[0] not in allowed:
                    raise CorruptDataError(
                        f"{where}, line {line}: six columns that begin with {', '.join(sorted(allowed))} "
                        f"were expected, got {len(row)} that begin with {row[0] if row else ''!r:.20}"
                    )
                yield Tweet(row[0], row[4], row[5])
        except PermissionError as error:
            raise MissingDataError(f"{path} cannot be read: {error.strerror}") from None
        except (csv.Error, KeyError, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise CorruptDataError(f"{where} is not a whole table: {error}".replace("\n", " ")) from None
    if not line:
        raise CorruptDataError(f"{where} has no rows")
