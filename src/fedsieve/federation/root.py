"""Training on the root dataset: :class:`fedsieve.core.defense.Root` and ``Network`` of a simulation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.core.layout import Layout
from fedsieve.core.loss import Loss, LossName, is_recordable
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
    # at most one entry: shapes of the samples, all samples and all classes, the updates trained on them, their version
    _last: list[tuple[list[tuple[int, ...]], list[Tensor], Tensor, int]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    # at most one entry: the global model when it was asked for, its version, and value and gradient of each loss
    _slopes: list[tuple[Tensor, int, dict[LossName | Loss, tuple[Tensor, Tensor]]]] = field(
        default_factory=list, init=False, repr=False, compare=False
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
        return self.losses(flat[None])[0]

    def losses(self, flats: Float[Tensor, "m d"], loss: LossName | Loss = "cross-entropy", /) -> Float[Tensor, " m"]:
        """A loss of several models on the root data; BatchNorm normalises with the statistics of the root batch."""
        (chosen,), model = _functions([loss]), self.trainer.model

        def work(flats: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor]:
            return (model.losses(flats, x, y, chosen, self._draws),)

        if not is_recordable(chosen):
            return work(flats, *self.data)[0]
        return model.replays(("root losses", chosen), work, flats, *self.data)[0]

    def gradient(
        self, flat: Float[Tensor, " d"], loss: LossName | Loss = "cross-entropy", /
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        """A loss on the root data and its gradient; BatchNorm normalises with the statistics of the root batch."""
        values, gradients = self.gradients(flat, [loss])
        return values[0], gradients[0]

    def gradients(
        self, flat: Float[Tensor, " d"], losses: Sequence[LossName | Loss], /
    ) -> tuple[Float[Tensor, " l"], Float[Tensor, "l d"]]:
        """Several losses on the root data and their gradients, from one forward pass."""
        known = self._known(flat)
        missing = [loss for loss in dict.fromkeys(losses) if loss not in known]
        if missing:
            found = zip(missing, *self._computed(flat, _functions(missing)), strict=True)
            known |= {loss: (value, gradient) for loss, value, gradient in found}
        values, gradients = zip(*(known[loss] for loss in losses), strict=True)
        return torch.stack(values), torch.stack(gradients)

    def _computed(self, flat: Float[Tensor, " d"], losses: Sequence[Loss]) -> tuple[Tensor, Tensor]:
        model = self.trainer.model

        def work(flat: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return model.gradients(flat, x, y, losses, self._draws)

        if not all(map(is_recordable, losses)):
            return work(flat, *self.data)
        values, gradients = model.replays(("root gradients", *losses), work, flat, *self.data)
        return values, gradients

    def _known(self, flat: Float[Tensor, " d"]) -> dict[LossName | Loss, tuple[Tensor, Tensor]]:
        """Where gradients at ``flat`` are kept, by loss: an empty dictionary of its own away from the global model.

        On a GPU only the very tensor is the global model, since comparing two would make the CPU wait.
        """
        cpu = flat.device.type == "cpu"
        if self._slopes:
            at, version, found = self._slopes[0]
            if torch.equal(at, flat) if cpu else at is flat and version == flat._version:
                return found
        if not (torch.equal(flat, self.params) if cpu else flat is self.params):
            return {}
        self._slopes[:] = [(flat.clone() if cpu else flat, flat._version, {})]
        return self._slopes[0][2]

    def update(self) -> Float[Tensor, " d"]:
        """The update of a client that trains on the root data, with the random numbers of client -1."""
        return self.train([self.data])[0].clone()

    def train(self, datasets: Sequence[tuple[Tensor, Int[Tensor, " _"]]], /) -> Float[Tensor, "k d"]:
        """One update per dataset, trained with the random numbers of client -1 - k for dataset k.

        The first call for some datasets gives out what it keeps: they are large. After a write to it they are trained
        again; one through numpy goes unseen, so copy before such a write.
        """
        sizes = [tuple(x.shape) for x, _ in datasets]
        given = [torch.cat(parts) for parts in zip(*datasets, strict=True)]
        for known, before, found, version in self._last:
            unchanged = found._version == version  # whoever was given it has not written to it
            if unchanged and known == sizes and all(torch.equal(a, b) for a, b in zip(before, given, strict=True)):
                return found.clone()
        cohort = {-1 - k: ClientData(x, y) for k, (x, y) in enumerate(datasets)}
        found = self.trainer.updates(self.params, cohort, self.round)
        self._last[:] = [(sizes, given, found, found._version)]
        return found


def _functions(losses: Sequence[LossName | Loss]) -> list[Loss]:
    return [LOSSES[loss] if isinstance(loss, str) else loss for loss in losses]


@dataclass(frozen=True)
class RunnableModel:
    """The architecture and the shape of its input. Implements :class:`fedsieve.core.defense.Network`."""

    model: FlatModel
    input_shape: tuple[int, ...]

    def logits(self, flat: Float[Tensor, " d"], x: Tensor, /) -> Float[Tensor, "k c"]:
        """Outputs of the model ``flat``; BatchNorm normalises with its running statistics."""
        return self.model.logits(flat, x)
