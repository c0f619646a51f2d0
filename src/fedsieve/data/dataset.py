"""A loaded dataset, the protocol of classes that load one, and transformations that several share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int, Num, Shaped, UInt8
from torch import Tensor

from fedsieve.core.errors import CorruptDataError, ParameterError
from fedsieve.core.traits import Traits

_CLASSES_LISTED = 20  # most classes of which the sizes are listed


@dataclass(frozen=True)
class Dataset:
    """Labelled samples in memory, ready for a model.

    Attributes:
        x_train: Training samples: float32 on the dataset's own scale, images channels first; int64 token ids of texts.
        y_train: Their classes, 0 to ``n_classes - 1``.
        x_test: Test samples, of which neither a client nor the server's root dataset has any.
        y_test: Their classes.
        n_classes: Number of classes.
        owners: The natural client (a person, a device) of each training sample, 0 to k - 1; None if the data has none.
        encode: From raw samples in the form of the dataset's files (images: uint8 [k, height, width, channels]; texts:
            a list of strings) to inputs of the model; None where there is no such form.
        vocabulary: Words by token id, for text.
        class_names: Name of each class in the user's file; empty where classes have no other name than their number.
        owned_by: What ``owners`` are: the name of a column, "person"; "" where the data has none.
        details: How the samples were read, a few words each, for :attr:`reading`.
        owner_names: Name of each natural client, ``person 7``; empty where they have no other name than their number.
        test_owners: The natural client of each test sample; None where that is not known.
        root_rows: Rows of the training samples that are the server's root dataset; None: they are drawn.
    """

    x_train: Shaped[Tensor, "N *shape"]
    y_train: Int[Tensor, " N"]
    x_test: Shaped[Tensor, "M *shape"]
    y_test: Int[Tensor, " M"]
    n_classes: int
    owners: Int[Tensor, " N"] | None = None
    encode: Callable[[Any], Tensor] | None = None
    vocabulary: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    owned_by: str = ""
    details: tuple[str, ...] = ()
    owner_names: tuple[str, ...] = ()
    test_owners: Int[Tensor, " M"] | None = None
    root_rows: Int[Tensor, " R"] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])

    @property
    def reading(self) -> str:
        """How the data were read, in one line: ``400 rows, 2 classes (380/20), 1 numeric + 0 one-hot columns``."""
        trained, tested = (y.bincount(minlength=self.n_classes) for y in (self.y_train, self.y_test))
        counts = (trained + tested).tolist()
        shape, details = " x ".join(map(str, self.input_shape)), list(self.details)
        if not self.x_train.is_floating_point():
            kind = "texts"
            details.insert(0, f"{shape} tokens each")
        elif self.x_train.dim() == 4:
            kind = f"images of {shape} (channels, height, width)"
        else:
            kind, details = "rows", details or [f"{shape} features"]
        classes = f"{self.n_classes} classes {_sizes(counts)}"
        if absent := (trained == 0).nonzero().squeeze(1).tolist():
            classes += f", no training samples of {', '.join(map(self.class_name, absent[:5]))}"
        return ", ".join([f"{sum(counts)} {kind}", classes, *details])

    def class_name(self, k: int) -> str:
        """Class ``k`` for a message, with its name in the user's file.

        >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
        >>> Dataset(x, y, x, y, 2, class_names=("no", "yes")).class_name(1)
        "class 1 ('yes')"
        """
        name = self.class_names[k] if k < len(self.class_names) else str(k)
        return f"class {k}" if name == str(k) else f"class {k} ({name[:40]!r})"


@runtime_checkable
class Loader(Protocol):
    """A registered dataset: which files it has and how they are read.

    ``defaults`` are experiment settings that suit this dataset; settings of the user replace them.
    ``attack_parameters`` and ``defense_parameters`` in them are parameters by name of the attack or defense. A loader
    may have a method ``implied_defaults() -> Mapping[str, Any]``: defaults that follow from its parameters or its file,
    which replace the others; it is called unless the user sets both the partition and the number of clients.
    """

    traits: ClassVar[Traits]
    defaults: ClassVar[Mapping[str, Any]]

    def files(self) -> tuple["RemoteFile", ...]:
        """The published files; empty if a dependency brings the data or the user does."""
        ...

    def verify(self, folder: Path) -> None:
        """Check the files below ``folder``; raises MissingDataError or CorruptDataError."""
        ...

    def fetch(self, folder: Path) -> None:
        """Download missing and corrupt files below ``folder``; raises MissingDataError or CorruptDataError."""
        ...

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the files below ``folder``, downloaded if missing; ``generator`` draws the test set if none is given."""
        ...


@dataclass(frozen=True)
class RemoteFile:
    """One published file.

    Attributes:
        path: Path below the data folder, with forward slashes.
        urls: Addresses, tried in order.
        md5: Published checksum of the file; "" if only its members have one.
        members: Of an archive without a published checksum: the MD5 of each member that is read.
        largest: Most bytes that a member unpacks to.
    """

    path: str
    urls: tuple[str, ...]
    md5: str = ""
    members: Mapping[str, str] | None = None
    largest: int = 1 << 30


def _sizes(counts: list[int]) -> str:
    """Samples of each class, or the range where there are many classes."""
    if len(counts) <= _CLASSES_LISTED:
        return f"({'/'.join(map(str, counts))})"
    least, most = min(counts), max(counts)
    return f"of {least} each" if least == most else f"of {least} to {most}"


def channels_first(raw: Any, height: int, width: int, channels: int) -> UInt8[Tensor, "k channels height width"]:
    """Raw images, uint8 [k, height, width, channels] of numpy or torch, as [k, channels, height, width].

    Raises:
        ParameterError: If they have another type or shape.
    """
    wanted = f"images must be uint8 of shape [k, {height}, {width}, {channels}]"
    if not isinstance(raw, np.ndarray | Tensor):
        raise ParameterError(f"{wanted}, got {type(raw).__name__}")
    if raw.dtype not in (np.uint8, torch.uint8) or tuple(raw.shape[1:]) != (height, width, channels):
        raise ParameterError(f"{wanted}, got {str(raw.dtype).removeprefix('torch.')} of shape {list(raw.shape)}")
    return (torch.from_numpy(raw.copy()) if isinstance(raw, np.ndarray) else raw).permute(0, 3, 1, 2)


def standardised(
    numbers: Num[np.ndarray, " N"], train: Int[np.ndarray, " A"], where: str
) -> Float32[np.ndarray, "N 1"]:
    """Numbers [N] minus the training rows' mean, divided by their standard deviation; 0 if these are constant.

    Args:
        numbers: One feature of all rows.
        train: Training rows.
        where: Source of the numbers, for the error message.

    Raises:
        CorruptDataError: If numbers are too large for it.

    >>> standardised(np.array([1.0, 3.0, 5.0]), np.array([0, 1]), "x").tolist()
    [[-1.0], [1.0], [3.0]]
    """
    known = numbers[train]
    if known.min() == known.max():
        return np.zeros((len(numbers), 1), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = known.std()
        result: np.ndarray = ((numbers - known.mean()) / deviation).astype(np.float32)
    if not (np.isfinite(deviation) and np.isfinite(result).all()):
        raise CorruptDataError(f"{where} has numbers too large to be standardised")
    return result.reshape(-1, 1)
