"""UCI HAR: activities of 30 people, from the motion sensors of a phone at the waist."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import DTypeLike
from torch import Tensor

from fedsieve.core.errors import CorruptDataError, MissingDataError
from fedsieve.core.traits import Traits
from fedsieve.data import store
from fedsieve.data.dataset import Dataset, RemoteFile, standardised

NAME = "har"
FILE = RemoteFile(
    "har/UCI HAR Dataset.zip",
    ("https://archive.ics.uci.edu/ml/machine-learning-databases/00240/UCI%20HAR%20Dataset.zip",),
    members={
        "UCI HAR Dataset/train/X_train.txt": "303c3f7f3fe62ebc72708bffa0316f1c",
        "UCI HAR Dataset/train/y_train.txt": "03cde39e4f847aea23d3b106428b67d5",
        "UCI HAR Dataset/train/subject_train.txt": "890ee3bca62ef477e218f241ae84c898",
        "UCI HAR Dataset/test/X_test.txt": "026ce582dc6cb3e74a653a5523186c3b",
        "UCI HAR Dataset/test/y_test.txt": "c7d8b43fbf9500662a3fadc8286f6f85",
        "UCI HAR Dataset/test/subject_test.txt": "7e5b62d345490918cd5ed4aeacc74673",
    },
    largest=65_998_904,  # the training features
)
FEATURES, ACTIVITIES, PEOPLE = 561, 6, 30


@dataclass(frozen=True)
class HAR:
    """561 features of 6 activities; ``owners`` are the 30 people.

    The published test set has other people than the training set. Here all rows are pooled, and 70 % of each person's
    rows, drawn with the experiment's seed, are training data.

    Attributes:
        standardise: Whether each feature is scaled to mean 0 and variance 1 over the training rows (a constant becomes
            0), as SkyMask's published code does; else features are as published, in [-1, 1].
    """

    standardise: bool = False
    traits: ClassVar[Traits] = Traits(
        summary="10,299 windows of phone sensor readings by 30 people, 561 features, 6 activities",
        paper="Anguita et al., A Public Domain Dataset for Human Activity Recognition Using Smartphones, ESANN 2013",
    )
    defaults: ClassVar[Mapping[str, Any]] = {"model": "logistic-regression", "clients": 30, "partition": "natural"}

    def files(self) -> tuple[RemoteFile, ...]:
        """The published archive."""
        return (FILE,)

    def verify(self, folder: Path) -> None:
        """Check the tables in the archive; raises MissingDataError or CorruptDataError."""
        store.verify(FILE, folder, dataset=NAME)

    def fetch(self, folder: Path) -> None:
        """Download the archive if it is missing or corrupt; raises MissingDataError or CorruptDataError."""
        store.fetch(FILE, folder, dataset=NAME)

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the archive below ``folder``, downloaded if missing; ``generator`` splits each person's rows."""
        try:
            members = store.read_members(FILE, folder)
        except (MissingDataError, CorruptDataError):
            store.fetch(FILE, folder, dataset=NAME)
            members = store.read_members(FILE, folder)
        x, y, owners = parse(members)
        train, test = split(owners, generator)
        if self.standardise:
            columns = x.T.double().numpy()
            scaled = [standardised(column, train.numpy(), FILE.path) for column in columns]
            x = torch.from_numpy(np.concatenate(scaled, axis=1))
        return Dataset(
            x[train],
            y[train],
            x[test],
            y[test],
            n_classes=ACTIVITIES,
            owners=owners[train],
            owned_by="person",
            owner_names=tuple(f"person {k + 1}" for k in range(PEOPLE)),
            test_owners=owners[test],
        )


def parse(members: Mapping[str, bytes]) -> tuple[Float[Tensor, "N 561"], Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Features, activities (0 to 5) and people (0 to 29) of all rows, training part first.

    Args:
        members: Content of each table in the archive, by name.

    Raises:
        CorruptDataError: If a table has a wrong form or values out of range.
    """

    def numbers(kind: str, dtype: DTypeLike) -> Tensor:
        names = (f"UCI HAR Dataset/{part}/{kind}_{part}.txt" for part in ("train", "test"))
        return torch.from_numpy(np.concatenate([np.array(members[name].split(), dtype) for name in names]))

    try:
        x = numbers("X", np.float32).view(-1, FEATURES)
        y, owners = numbers("y", np.int64) - 1, numbers("subject", np.int64) - 1
    except (ValueError, RuntimeError) as error:
        raise CorruptDataError(f"{FILE.path} does not hold tables of numbers: {error}") from None
    if not len(x) == len(y) == len(owners):
        raise CorruptDataError(f"{FILE.path} has {len(x)} rows, {len(y)} activities and {len(owners)} subjects")
    if not ((y >= 0) & (y < ACTIVITIES) & (owners >= 0) & (owners < PEOPLE)).all():
        raise CorruptDataError(f"{FILE.path} has activities not in 1 to {ACTIVITIES} or subjects not in 1 to {PEOPLE}")
    return x, y, owners


def split(owners: Int[Tensor, " N"], generator: torch.Generator) -> tuple[Int[Tensor, " A"], Int[Tensor, " B"]]:
    """Training rows, 70 % (rounded) of each owner's, and test rows; grouped by owner, in the order drawn."""
    train, test = [], []
    for owner in sorted(set(owners.tolist())):
        rows = (owners == owner).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        cut = round(0.7 * len(rows))
        train.append(rows[:cut])
        test.append(rows[cut:])
    return torch.cat(train), torch.cat(test)
