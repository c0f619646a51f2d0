"""Fashion-MNIST: 70,000 grey images of clothes, 28 x 28 pixels, in the idx format of MNIST."""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedsieve.core.bounded import read_at_most
from fedsieve.core.errors import CorruptDataError
from fedsieve.core.traits import Traits
from fedsieve.data import store
from fedsieve.data.dataset import Dataset, RemoteFile, channels_first

NAME = "fashion-mnist"
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
MEAN, STD = 0.2860, 0.3530  # of the training images' pixels in [0, 1]
FILES = tuple(RemoteFile(f"{NAME}/{name}", (f"{URL}/{name}",), md5) for name, md5 in MD5.items())

_LARGEST = 16 + 60_000 * 28 * 28  # bytes of the training images, unpacked
_WHITE = round((1 - MEAN) / STD, 4)  # a white pixel after standardisation, for triggers


@dataclass(frozen=True)
class FashionMNIST:
    """Images [1, 28, 28], standardised; the published 60,000 for training and 10,000 for testing."""

    traits: ClassVar[Traits] = Traits(
        summary="70,000 grey images of clothes, 28 x 28 pixels",
        paper="Xiao, Rasul and Vollgraf, Fashion-MNIST: a Novel Image Dataset, arXiv 2017",
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "cnn",
        "clients": 100,
        "attack_parameters": {"scaling": {"value": _WHITE}, "lie-backdoor": {"value": _WHITE}},
    }

    def files(self) -> tuple[RemoteFile, ...]:
        """Images and labels, for training and for testing."""
        return FILES

    def verify(self, folder: Path) -> None:
        """Check all four files; raises MissingDataError or CorruptDataError."""
        for file in FILES:
            store.verify(file, folder, dataset=NAME)

    def fetch(self, folder: Path) -> None:
        """Download missing and corrupt files; raises MissingDataError or CorruptDataError."""
        for file in FILES:
            store.fetch(file, folder, dataset=NAME)

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the files below ``folder``, downloaded if missing; ``generator`` is not used."""
        paths = [store.fetch(file, folder, dataset=NAME) for file in FILES]
        (x, y), (x_test, y_test) = read_pair(paths[0], paths[1]), read_pair(paths[2], paths[3])
        return Dataset(x.sub_(MEAN).div_(STD), y, x_test.sub_(MEAN).div_(STD), y_test, n_classes=10, encode=encode)


def encode(raw: Any) -> Float[Tensor, "k 1 28 28"]:
    """Raw images, uint8 [k, 28, 28, 1], as inputs; raises ParameterError."""
    return channels_first(raw, 28, 28, 1).float().div_(255).sub_(MEAN).div_(STD)


def read_pair(images: Path, labels: Path) -> tuple[Float[Tensor, "N 1 28 28"], Int[Tensor, " N"]]:
    """Images in [0, 1] and their classes, 0 to 9; raises CorruptDataError."""
    x, y = read_idx(images), read_idx(labels)
    if x.dim() != 3 or x.shape[1:] != (28, 28):
        raise CorruptDataError(f"{images} holds an array of shape {tuple(x.shape)}, expected (N, 28, 28)")
    if y.shape != x.shape[:1]:
        raise CorruptDataError(f"{labels} holds an array of shape {tuple(y.shape)}, expected ({len(x)},)")
    if (y > 9).any():
        raise CorruptDataError(f"{labels} has class {int(y.max())}, expected 0 to 9")
    return x.unsqueeze(1).float().div_(255), y.long()


def read_idx(path: Path) -> UInt8[Tensor, "*shape"]:
    """The array of bytes in a gzipped idx file; raises CorruptDataError.

    The format: two zero bytes, the type (0x08: unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values with the last index running fastest.
    """
    try:
        with gzip.open(path) as stream:
            raw = bytearray(read_at_most(stream, _LARGEST, str(path)))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path} is not a whole gzip file: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not raw[3]:
        raise CorruptDataError(f"{path} is not an idx file of unsigned bytes: it begins with {raw[:4].hex(' ')}")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if len(raw) != start + prod(shape):
        raise CorruptDataError(f"{path} has {len(raw)} bytes, expected {start + prod(shape)} for shape {tuple(shape)}")
    return torch.frombuffer(raw, dtype=torch.uint8)[start:].view(shape)
