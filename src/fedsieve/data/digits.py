"""Handwritten digits: 1,797 images of 8 x 8 pixels, which scikit-learn brings along."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.core.traits import Traits
from fedsieve.data.dataset import Dataset, RemoteFile, channels_first


@dataclass(frozen=True)
class Digits:
    """Images [1, 8, 8] with pixels in [0, 1]. A fifth, drawn with the experiment's seed, is the test set."""

    traits: ClassVar[Traits] = Traits(
        summary="1,797 handwritten digits of 8 x 8 pixels; needs no download",
        paper="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998",
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "mlp",
        "clients": 30,
        "attack_parameters": {"scaling": {"size": 2}, "lie-backdoor": {"size": 2}},
    }

    def files(self) -> tuple[RemoteFile, ...]:
        """None: scikit-learn brings the data along."""
        return ()

    def verify(self, folder: Path) -> None:
        """Nothing to check."""

    def fetch(self, folder: Path) -> None:
        """Nothing to fetch."""

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read from scikit-learn; ``folder`` is not used."""
        raw = torch.from_numpy(table())
        x, y = raw[:, :-1].float().div_(16).view(-1, 1, 8, 8), raw[:, -1].long()
        order = torch.randperm(len(y), generator=generator)
        test, train = order[: len(y) // 5], order[len(y) // 5 :]
        return Dataset(x[train], y[train], x[test], y[test], n_classes=10, encode=encode)


def table() -> Float64[ndarray, "N 65"]:
    """The 64 pixels of each digit, 0 to 16, and its class.

    From scikit-learn's file, where it is found: importing ``sklearn.datasets`` would be most of a short run's time.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations if package else None) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a version that keeps it elsewhere

    found = load_digits()
    return np.column_stack([found.data, found.target])


def encode(raw: Any) -> Float[Tensor, "k 1 8 8"]:
    """Raw images, uint8 [k, 8, 8, 1] of values 0 to 16, as inputs; raises ParameterError."""
    images = channels_first(raw, 8, 8, 1)
    if len(images) and images.max() > 16:
        raise ParameterError(f"images of digits must have values 0 to 16, got {images.max()}")
    return images.float().div_(16)
