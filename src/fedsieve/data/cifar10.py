"""CIFAR-10: 60,000 colour images of 32 x 32 pixels, from the published archive or its unpacked batches.

CIFAR-100 is published in the same form: a :class:`Release` describes one, and the functions read it.
"""

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedsieve.core.bounded import read_at_most
from fedsieve.core.errors import CorruptDataError, MissingDataError
from fedsieve.core.traits import Traits
from fedsieve.data import store
from fedsieve.data.dataset import Dataset, RemoteFile, channels_first

LARGEST = 1 << 28  # most bytes of a batch; CIFAR-100's training images have 155 million


@dataclass(frozen=True)
class Release:
    """A dataset as Krizhevsky published it: an archive of batches, each a pickle of Python 2.

    Attributes:
        name: Registered name of the dataset, and name of its folder below the data folder.
        title: Name in messages.
        archive: The tar.gz file.
        inside: Name of the one folder in the archive.
        batches: MD5 of each batch by file name; the last batch is the test set.
        labels: Key of the classes in a batch.
        n_classes: Number of classes.
        mean: Mean of each channel of the training pixels in [0, 1].
        std: Standard deviation of each channel.
    """

    name: str
    title: str
    archive: RemoteFile
    inside: str
    batches: Mapping[str, str]
    labels: bytes
    n_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


RELEASE = Release(
    name="cifar10",
    title="CIFAR-10",
    archive=RemoteFile(
        "cifar10/cifar-10-python.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        "c58f30108f718f92721af3b95e74349a",
    ),
    inside="cifar-10-batches-py",
    batches={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    labels=b"labels",
    n_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)


@dataclass(frozen=True)
class CIFAR10:
    """Images [3, 32, 32], each channel standardised; the published 50,000 for training and 10,000 for testing."""

    traits: ClassVar[Traits] = Traits(
        summary="60,000 colour images of animals and vehicles, 32 x 32 pixels",
        paper="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto 2009",
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "resnet20",
        "clients": 100,
        "local": {"steps": 5},
        "attack_parameters": {"scaling": {"value": 2.1}, "lie-backdoor": {"value": 2.1}},  # a white trigger
        "defense_parameters": {
            "skymask": {"mask_learning_rate": 1e8},
            "skymask-nr": {"mask_learning_rate": 1e8},
        },
    }

    def files(self) -> tuple[RemoteFile, ...]:
        """The archive; its unpacked batches can take its place."""
        return (RELEASE.archive,)

    def verify(self, folder: Path) -> None:
        """Check the unpacked batches, or the archive without them; raises MissingDataError or CorruptDataError."""
        verify(RELEASE, folder)

    def fetch(self, folder: Path) -> None:
        """Download the archive unless it or its batches exist; raises MissingDataError or CorruptDataError."""
        fetch(RELEASE, folder)

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the unpacked batches, or the archive, downloaded if missing; ``generator`` is not used."""
        return load(RELEASE, folder)


def verify(release: Release, folder: Path) -> None:
    """Check the unpacked batches, or the archive without them; raises MissingDataError or CorruptDataError."""
    if place := unpacked(release, folder):
        for _ in from_folder(release, place):
            pass
    else:
        store.verify(release.archive, folder, dataset=release.name)


def fetch(release: Release, folder: Path) -> None:
    """Download the archive unless it or its batches exist; raises MissingDataError or CorruptDataError."""
    if unpacked(release, folder):
        verify(release, folder)
    else:
        store.fetch(release.archive, folder, dataset=release.name)


def load(release: Release, folder: Path) -> Dataset:
    """Read the unpacked batches below ``folder``, or the archive, downloaded if missing."""
    if place := unpacked(release, folder):
        batches = from_folder(release, place)
    else:
        batches = from_archive(release, store.fetch(release.archive, folder, dataset=release.name))
    parts = {name: parse(release, content, where) for name, where, content in batches}
    *train, (x_test, y_test) = (parts[name] for name in release.batches)
    x, y = torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])
    x_train, x_test = normalise(release, x), normalise(release, x_test)
    return Dataset(x_train, y, x_test, y_test, release.n_classes, encode=partial(encode, release))


def unpacked(release: Release, folder: Path) -> Path | None:
    """The folder below ``folder`` with all batches unpacked; None if there is none."""
    for place in (folder / release.name / release.inside, folder / release.name, folder / release.inside):
        if all((place / name).is_file() for name in release.batches):
            return place.absolute()
    return None


def from_folder(release: Release, place: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, path and content of each batch in the folder ``place``.

    Raises:
        MissingDataError: If a batch can't be read.
        CorruptDataError: If its checksum is wrong.
    """
    for name, md5 in release.batches.items():
        where = str(place / name)
        try:
            with (place / name).open("rb") as stream:
                content = read_at_most(stream, LARGEST, where)
        except OSError as error:
            raise MissingDataError(f"{where} cannot be read: {error.strerror}") from None
        store.check_md5(content, md5, where)
        yield name, where, content


def from_archive(release: Release, path: Path) -> Iterator[tuple[str, str, bytes]]:
    """As :func:`from_folder`, from the archive and in its order; nothing is written to disk."""
    missing = dict(release.batches)
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stream = archive.extractfile(member) if folder == release.inside and name in missing else None
                if stream is None:
                    continue
                where = f"{name} in {path}"
                content = read_at_most(stream, LARGEST, where)
                store.check_md5(content, missing.pop(name), where)
                yield name, where, content
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path} is not a whole tar.gz file: {error}") from None
    if missing:
        raise CorruptDataError(f"{path} is corrupt: it lacks {', '.join(missing)}")


def parse(release: Release, content: bytes, where: str) -> tuple[UInt8[Tensor, "N 3 32 32"], Int[Tensor, " N"]]:
    """Images and classes of one batch.

    Args:
        release: The dataset.
        content: The batch, a pickle of Python 2.
        where: Its path, for the error message.

    Raises:
        CorruptDataError: If it is not such a batch.
    """
    highest = release.n_classes - 1
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        _, shape, dtype, fortran_order, pixels = batch[b"data"].state
        if dtype.given[0] != b"u1" or fortran_order or shape[1:] != (3 * 32 * 32,):
            raise ValueError(f"images of shape {shape}, type {dtype.given[0]!r}")
        x = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32)
        y = np.array(batch[release.labels], np.int64)
        if shape[0] != len(x) or y.shape != (len(x),) or (y < 0).any() or (y > highest).any():
            raise ValueError(
                f"{len(x)} images of {shape[0]}, with labels of shape {y.shape}, not all in 0 to {highest}"
            )
    except Exception as error:  # a pickle is a program and can raise anything
        raise CorruptDataError(f"{where} is not a {release.title} batch: {error or type(error).__name__}") from None
    return torch.from_numpy(x.copy()), torch.from_numpy(y)


def normalise(release: Release, images: UInt8[Tensor, "N 3 32 32"]) -> Float[Tensor, "N 3 32 32"]:
    """Images as inputs: scaled to [0, 1], then each channel standardised with the release's mean and deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (release.mean, release.std))
    return images.float().div_(255).sub_(mean).div_(std)


def encode(release: Release, raw: Any) -> Float[Tensor, "k 3 32 32"]:
    """Raw images, uint8 [k, 32, 32, 3], as inputs; raises ParameterError."""
    return normalise(release, channels_first(raw, 32, 32, 3).contiguous())


class _Inert:
    """Replaces every function and class that a batch names: keeps its arguments and state, runs nothing."""

    __slots__ = ("given", "state")

    def __init__(self, *given: object) -> None:
        self.given = given

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads a batch without running any code that the file names."""

    allowed = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return _Inert
