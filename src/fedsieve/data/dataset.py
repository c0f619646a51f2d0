"""What a loaded dataset is, and what a class that loads one offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.types import Traits


@dataclass(frozen=True)
class Dataset:
    """Labelled samples in memory, ready for a model.

    Attributes:
        x_train: Samples, channels first for images; float32, on the dataset's own scale.
        y_train: Classes 0 to ``n_classes - 1``.
        x_test: Never seen by any client nor by the server's root dataset.
        y_test: Its classes.
        n_classes: Number of classes.
        owners: Which natural client (a person, a device) each training sample comes from, 0 to k - 1; None
            where the data has none.
    """

    x_train: Float[Tensor, "N *shape"]
    y_train: Int[Tensor, " N"]
    x_test: Float[Tensor, "M *shape"]
    y_test: Int[Tensor, " M"]
    n_classes: int
    owners: Int[Tensor, " N"] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])


@runtime_checkable
class Loader(Protocol):
    """A dataset by name: where its files are and how they are read.

    ``defaults`` are experiment settings that fit this dataset, in the experiment's own words; whatever the user
    sets wins.
    """

    traits: ClassVar[Traits]
    defaults: ClassVar[Mapping[str, Any]]

    def files(self) -> tuple["RemoteFile", ...]:
        """The original files, or () if the data ships with a dependency."""
        ...

    def verify(self, folder: Path) -> None:
        """Check what is below ``folder``; raises MissingDataError or CorruptDataError, changes nothing."""
        ...

    def fetch(self, folder: Path) -> None:
        """Download below ``folder`` what is missing or corrupt; raises MissingDataError or CorruptDataError."""
        ...

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the files below ``folder``, fetching what is missing; ``generator`` splits what has no split."""
        ...


@dataclass(frozen=True)
class RemoteFile:
    """One original file: where it lies below the data folder, where it comes from, what it must contain.

    Attributes:
        path: Below the data folder, with forward slashes.
        urls: Where it is published, tried in order.
        md5: Published checksum of the file; "" where only its members have one.
        members: For an archive without a published checksum: the MD5 of each member that is read.
    """

    path: str
    urls: tuple[str, ...]
    md5: str = ""
    members: Mapping[str, str] | None = None
