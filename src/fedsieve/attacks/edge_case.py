"""Edge cases: a backdoor for rare images from the tail of the distribution, which benign clients don't have.

Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos. Attack of the Tails: Yes, You Really Can
Backdoor Federated Learning. NeurIPS 2020; used in the evaluation of the Invariant Aggregator (Wang et al., AISTATS
2024).

Variant: black box. Images of Southwest Airlines' planes, labelled as trucks, are added to a malicious client's data and
are then 8 in 64 of its samples. ``factor`` adds the paper's model replacement. Success is measured on other images of
the same file, which must have the shape of the data's images.
Departs: an eighth of the data, not exactly 8 of each batch of 64. Each malicious client draws images of its own. The
paper's projected gradient descent is not implemented. Its authors publish the images as pickles, which can run code
when they are loaded; here they are read from an npz file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from fedsieve.attacks.triggers import check_target
from fedsieve.core.attack import AttackView, PoisonView, Task, Triggered
from fedsieve.core.bounded import read_npz
from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.core.linalg import check_fits_float32
from fedsieve.core.traits import Traits

FORMAT = "an npz file with uint8 arrays train and test, [k, height, width, channels] each"


def read(path: Path, part: str) -> UInt8[ndarray, "k height width channels"]:
    """The images of one part of the file, ``train`` or ``test``.

    Raises:
        MissingDataError: If the file is missing or cannot be read.
        CorruptDataError: If it has another format.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} is missing; edge-case needs {FORMAT}; docs/data.md says how to get it")
    images = read_npz(path, (part,), width=4, expected=FORMAT).get(part)
    if images is None:
        raise CorruptDataError(f"{path} is not {FORMAT}: it has no {part}")
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise CorruptDataError(f"{path} is not {FORMAT}: {part} is {images.dtype} of shape {list(images.shape)}")
    return images


@dataclass(frozen=True)
class EdgeCase:
    """Malicious clients train on rare images labelled as another class.

    Attributes:
        file: The images, an npz file with uint8 arrays ``train`` and ``test``, [k, height, width, channels] each; an
            absolute path or one relative to the data folder.
        target: Class that the images are to be classified as; 9 is CIFAR-10's truck.
        share: Share of the rare images in a malicious client's data, in (0, 1).
        factor: What the update is multiplied by; 1 is the black-box attack, clients by malicious ones the paper's model
            replacement.
    """

    file: str = "edge-cases/southwest-planes.npz"
    target: int = 9
    share: float = 0.125
    factor: float = 1.0
    traits: ClassVar[Traits] = Traits(
        summary="Backdoor: rare images (Southwest's planes) labelled as another class (truck)",
        paper="Wang et al., Attack of the Tails, NeurIPS 2020",
    )

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ParameterError(f"edge-case: share must be in (0, 1), got {self.share}")
        if self.target < 0:
            raise ParameterError(f"edge-case: target must be at least 0, got {self.target}")
        if not self.factor > 0:
            raise ParameterError(f"edge-case: factor must be positive, got {self.factor}")
        check_fits_float32("edge-case", factor=self.factor)

    def images(self, part: str, like: Tensor, task: Task) -> Tensor:
        """The images of one part of the file as inputs, of the type and shape of the samples ``like`` [k, ...]."""
        check_target("edge-case", self.target, task.n_classes)
        path = (task.folder / self.file).absolute()
        raw = read(path, part)
        wrong = (
            f"edge-case: {path} has images of shape {list(raw.shape[1:])}, which don't fit samples of shape "
            f"{list(like.shape[1:])}; use data of such images, as cifar10 is"
        )
        if task.encode is None:
            raise ParameterError(wrong)
        try:
            encoded = task.encode(raw)
        except ParameterError as error:
            raise ParameterError(wrong) from error
        if encoded.shape[1:] != like.shape[1:]:
            raise ParameterError(wrong)
        return encoded.to(like)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        """See :class:`fedsieve.core.attack.DataAttack`."""
        images = self.images("train", x, view.task)
        count = max(1, round(len(y) * self.share / (1 - self.share)))
        order = torch.randperm(len(images), generator=view.generator)
        rows = order[torch.arange(count) % len(order)]  # from the start again where the file has too few
        return torch.cat([x, images[rows.to(x.device)]]), torch.cat([y, y.new_full((count,), self.target)])

    def triggered(self, x: Tensor, y: Int[Tensor, " k"], task: Task, /) -> Triggered:
        """See :class:`fedsieve.core.attack.Backdoor`; the file's test images, none of them of the target class."""
        images = self.images("test", x, task)
        wanted = y.new_full((len(images),), self.target)
        return Triggered(images, wanted, torch.zeros_like(wanted, dtype=torch.bool))

    def craft(self, view: AttackView, /) -> Float[Tensor, "m d"]:
        """See :class:`fedsieve.core.attack.UpdateAttack`."""
        return view.malicious_updates if self.factor == 1 else self.factor * view.malicious_updates
