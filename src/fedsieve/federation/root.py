"""Training on the root dataset: :class:`fedsieve.core.defense.Root` and ``Network`` of a simulation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.core.defense import Loss, LossName
from fedsieve.core.layout import Layout
from fedsieve.core.seeding import stream
from fedsieve.federation.clients import ClientData, Trainer
from fedsieve.models.flat import FlatModel
from fedsieve.models.losses import LOSSES


@dataclass(frozen=True)
class RootClient:
    """The root dataset and the global model of one round. Implements :class:`fedsieve.core.defense.Root`.

    Caches the result of the last call of :meth:`train`, and gradients at the global model by loss: an attacker that
    simulates the defense asks for the same dozens of times a round.

    Attributes:
        trainer: Trains on root data as a client trains.
        samples: The root dataset.
        n_classes: Number of classes of the task, whether the root dataset has all of them or not.
        params: The round's global model, [d].
        round: Counts from 0; decides the batches.
    """

    trainer: Trainer
    samples: ClientData
    n_classes: int
    params: Float[Tensor, " d"]
    round: int
    _last: dict[bytes, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _slopes: dict[LossName | Loss, tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def layout(self) -> Layout:
        """Where each tensor of the model lies in its vector; :meth:`Layout.flatten` takes a module's state dict."""
        return self.trainer.model.layout

    @property
    def data(self) -> tuple[Tensor, Int[Tensor, " k"]]:
        """Samples [k, *input_shape] and their classes [k]."""
        return self.samples.x, self.samples.y

    @cached_property
    def _draws(self) -> int:
        """The seed of dropout in :meth:`loss` and :meth:`gradient`: all calls of a round draw the same numbers."""
        return stream(self.trainer.seed, "root dropout", self.round).initial_seed()

    def loss(self, flat: Float[Tensor, " d"], /) -> Float[Tensor, ""]:
        """Mean cross-entropy on the root data; BatchNorm normalises with the statistics of the root batch."""
        return self.trainer.model.loss(flat, *self.data, seed=self._draws)

    def gradient(
        self, flat: Float[Tensor, " d"], loss: LossName | Loss = "cross-entropy", /
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        """A loss on the root data and its gradient; BatchNorm normalises with the statistics of the root batch."""
        chosen = LOSSES[loss] if isinstance(loss, str) else loss
        known = self._slopes.get(loss)
        if known is not None and torch.equal(known[0], flat):
            return known[1].clone(), known[2].clone()
        value, gradient = self.trainer.model.gradient(flat, *self.data, chosen, self._draws)
        if torch.equal(flat, self.params):
            self._slopes[loss] = (flat.clone(), value.clone(), gradient.clone())
        return value, gradient

    def update(self) -> Float[Tensor, " d"]:
        """The update of a client that trains on the root data, with the random numbers of client -1."""
        return self.train([self.data])[0]

    def train(self, datasets: Sequence[tuple[Tensor, Int[Tensor, " _"]]], /) -> Float[Tensor, "k d"]:
        """One update per dataset, trained with the random numbers of client -1 - k for dataset k."""
        digest = hashlib.blake2b()
        for tensor in (t for dataset in datasets for t in dataset):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        key = digest.digest()
        if key not in self._last:
            cohort = {-1 - k: ClientData(x, y) for k, (x, y) in enumerate(datasets)}
            found = self.trainer.updates(self.params, cohort, self.round)
            self._last.clear()
            self._last[key] = found
        return self._last[key].clone()


@dataclass(frozen=True)
class RunnableModel:
    """The architecture and the shape of its input. Implements :class:`fedsieve.core.defense.Network`."""

    model: FlatModel
    input_shape: tuple[int, ...]

    def logits(self, flat: Float[Tensor, " d"], x: Tensor, /) -> Float[Tensor, "k c"]:
        """Outputs of the model ``flat``; BatchNorm normalises with its running statistics."""
        return self.model.logits(flat, x)
