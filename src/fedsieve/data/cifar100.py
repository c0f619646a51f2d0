"""CIFAR-100: 60,000 colour images of 32 x 32 pixels of 100 classes, published in the form of CIFAR-10."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedsieve.core.traits import Traits
from fedsieve.data import cifar10
from fedsieve.data.cifar10 import Release
from fedsieve.data.dataset import Dataset, RemoteFile

RELEASE = Release(
    name="cifar100",
    title="CIFAR-100",
    archive=RemoteFile(
        "cifar100/cifar-100-python.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
    inside="cifar-100-python",
    batches={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    labels=b"fine_labels",
    n_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


@dataclass(frozen=True)
class CIFAR100:
    """Images [3, 32, 32] of the 100 fine classes, each channel standardised.

    The published 50,000 for training and 10,000 for testing.
    """

    traits: ClassVar[Traits] = Traits(
        summary="60,000 colour images of 100 classes of things, 32 x 32 pixels",
        paper="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto 2009",
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "model": "resnet20",
        "clients": 100,
        "local": {"steps": 5},
        "attack_parameters": {"scaling": {"value": 2.0}, "lie-backdoor": {"value": 2.0}},  # a white trigger
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
        cifar10.verify(RELEASE, folder)

    def fetch(self, folder: Path) -> None:
        """Download the archive unless it or its batches exist; raises MissingDataError or CorruptDataError."""
        cifar10.fetch(RELEASE, folder)

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the unpacked batches, or the archive, downloaded if missing; ``generator`` is not used."""
        return cifar10.load(RELEASE, folder)
