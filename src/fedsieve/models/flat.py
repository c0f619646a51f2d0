"""Any ``nn.Module`` as functions of one flat vector.

The vector holds the parameters that train and, behind them, the running statistics of normalisation layers (BatchNorm,
SyncBatchNorm, InstanceNorm), so these are part of a client's update and a defense sees them. Everything else stays as
it was built, at the server and at every client: frozen parameters, buffers of any type (masks, indices, counters), the
running statistics of layers that don't train (:mod:`fedsieve.models.normalisation`).

Training normalises with the statistics of the batch and updates the running ones. :meth:`FlatModel.gradient`
normalises in the same way, but leaves the running statistics unchanged; their gradient is 0. Evaluation normalises with
the running statistics. So does training in a layer that gets one value per channel (a sample of a pixel): no variance.

Outputs follow from the vector, the samples and a seed: what a forward pass writes to a buffer or to an attribute is
undone after it, and random numbers (torch's, numpy's and Python's) start from the seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.layout import Layout
from fedsieve.core.loss import Loss
from fedsieve.core.rows import stacked
from fedsieve.models.forward import channels_last, copied, logits_of, reason, seeded, tensors_of, tied, unfit, untouched
from fedsieve.models.losses import LOSSES
from fedsieve.models.normalisation import NORMS, prepare
from fedsieve.models.precision import Precision, computed_in
from fedsieve.models.replay import Replays

T = TypeVar("T")
_USUAL = LOSSES["cross-entropy"]
_Losses = Callable[[Tensor, Tensor], list[Tensor]]


@dataclass(frozen=True)
class FlatModel:
    """A module's architecture. Its functions take the weights as a vector.

    Attributes:
        module: Gives the structure; its own tensors are neither read nor written.
        layout: Where each tensor lies in the vector.
        constants: Tensors by name that are not in the vector: frozen parameters and buffers, as they were built.
        name: Of the model, for error messages.
        replays: What a GPU repeats without Python.
    """

    module: nn.Module
    layout: Layout
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "the model"
    replays: Replays = field(default_factory=Replays, init=False, repr=False, compare=False)
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, module: nn.Module, name: str = "the model") -> tuple["FlatModel", Float[Tensor, " d"]]:
        """The architecture of ``module``, and its weights as a vector.

        Raises:
            ParameterError: If none of its parameters is trainable, one has no shape yet (lazy layers), or those that
                train are not all float32 or all float64.
        """
        module = copied(module)
        trained = prepare(module)
        parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
        vector = parameters | {k: b for k, b in module.named_buffers() if k in trained}
        why = unfit(module, vector)
        if why:
            raise ParameterError(f"{type(module).__name__} can't be a federated model: {why}")
        vector = {k: t.detach() for k, t in vector.items()}
        layout = Layout.of(
            {k: t for k, t in vector.items() if k in parameters}, {k: t for k, t in vector.items() if k in trained}
        )
        constants = {k: t.detach() for k, t in tensors_of(module).items() if k not in vector}
        return cls(module, layout, constants, name), layout.flatten(vector)

    @cached_property
    def _ties(self) -> bool:
        return tied(self.module)

    @cached_property
    def is_random(self) -> bool:
        """Whether it has layers that draw random numbers in training (dropout)."""
        return any(
            isinstance(layer, _DropoutNd | nn.RReLU)
            or (isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0)
            for layer in self.module.modules()
        )

    @cached_property
    def convolves(self) -> bool:
        """Whether it has two-dimensional convolutions, which are faster on a CPU with channels last."""
        return any(isinstance(layer, nn.Conv2d) for layer in self.module.modules())

    @cached_property
    def recurrent(self) -> bool:
        """Whether it has recurrent layers, which ``torch.func.vmap`` can't run with several clients' weights."""
        return any(isinstance(layer, nn.RNNBase) for layer in self.module.modules())

    @cached_property
    def is_sample_wise(self) -> bool:
        """Whether the gradient of each sample is its own: no batch statistics, no random numbers, no recurrence."""
        return not (self.is_random or self.recurrent or len(self.normalisation))

    @property
    def normalisation(self) -> Int[Tensor, " k"]:
        """Coordinates of the normalisation layers that can have running statistics: their parameters, then these."""
        layers = tuple(f"{name}." for name, layer in self.module.named_modules() if isinstance(layer, NORMS))
        parts = [torch.arange(s.start, s.stop) for s in self.layout.segments if s.name.startswith(layers)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def logits(self, flat: Float[Tensor, " d"], x: Tensor) -> Float[Tensor, "k c"]:
        """Outputs in evaluation mode (running statistics, no dropout), without gradient.

        Args:
            flat: The model, [d].
            x: Samples [k, *input_shape]; :class:`ParameterError` if the module fails on them.
        """

        def work() -> Tensor:
            self.module.eval()
            return self._forward(self.tensors(flat), self.arrange(x))[0]

        with torch.no_grad():
            return self._run(work, x, 0, "take")

    def training_loss(
        self,
        parameters: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        x: Tensor,
        y: Int[Tensor, " k"],
        loss: Loss = _USUAL,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss in training mode, and the running statistics after this batch; changes none, and seeds nothing."""
        output, moved = self._trained(parameters, statistics, x)
        return loss(output, y), moved

    def _trained(
        self, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor], x: Tensor
    ) -> tuple[Float[Tensor, "k c"], dict[str, Tensor]]:
        """Logits in training mode, and the running statistics after this batch."""
        self.module.train()
        moved = {name: tensor.clone() for name, tensor in statistics.items()}  # written in place by the module
        output, after = self._forward({**parameters, **moved}, x)
        return output, {name: after[name].detach() for name in moved}

    def gradient_and_statistics(
        self,
        flat: Float[Tensor, " d"],
        x: Tensor,
        y: Int[Tensor, " k"],
        loss: Loss = _USUAL,
        seed: int = 0,
        precision: Precision = "float32",
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, " r"]]:
        """Gradient of the training loss, and the running statistics after this batch."""
        work = partial(self._backward, flat, x, y, lambda logits, y: [loss(logits, y)])
        with torch.enable_grad():
            _, gradients, statistics = self._run(work, x, seed, "train on", precision)
        return gradients[0], torch.cat([flat.new_empty(0), *(t.reshape(-1) for t in statistics.values())])

    def gradient(
        self, flat: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], loss: Loss = _USUAL, seed: int = 0
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        """:meth:`gradients` of one loss."""
        values, gradients = self.gradients(flat, x, y, [loss], seed)
        return values[0], gradients[0]

    def gradients(
        self,
        flat: Float[Tensor, " d"],
        x: Tensor,
        y: Int[Tensor, " k"],
        losses: Sequence[Loss] = (_USUAL,),
        seed: int = 0,
    ) -> tuple[Float[Tensor, " l"], Float[Tensor, "l d"]]:
        """Training losses of one batch and their gradients with respect to ``flat``, 0 at the running statistics."""

        def all_of(logits: Tensor, y: Tensor) -> list[Tensor]:
            return [loss(logits, y) for loss in losses]

        with torch.enable_grad():
            values, gradients, _ = self._run(lambda: self._backward(flat, x, y, all_of), x, seed, "train on")
        rest = len(flat) - gradients.shape[1]
        return values, torch.cat([gradients, flat.new_zeros(len(losses), rest)], dim=1) if rest else gradients

    def losses(
        self, flats: Float[Tensor, "m d"], x: Tensor, y: Int[Tensor, " k"], loss: Loss = _USUAL, seed: int = 0
    ) -> Float[Tensor, " m"]:
        """A training loss of one batch under each of several models, without gradient."""

        def one(*given: Any) -> Tensor:
            return loss(self._trained(*given)[0], y)

        with torch.no_grad():  # every model draws the same numbers
            works = [partial(one, *self.split(self.tensors(flat)), self.arrange(x)) for flat in flats]
            return torch.stack([self._run(work, x, seed, "train on") for work in works])

    def _backward(
        self, flat: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], losses: _Losses
    ) -> tuple[Float[Tensor, " l"], Float[Tensor, "l p"], dict[str, Tensor]]:
        """Losses of one forward pass, the gradient of each, and the running statistics."""
        parameters, statistics = self.split(self.tensors(flat))
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        output, moved = self._trained(leaves, statistics, self.arrange(x))
        values, rows, tensors = losses(output, y), [], list(leaves.values())
        # of several losses those of one class need its samples alone: a pass over these takes less than over all
        skips = len(values) > 1 and x.device.type == "cpu" and self.convolves and self.is_sample_wise
        for k, value in enumerate(values, 1):
            if skips:
                (slope,) = torch.autograd.grad(value, output, retain_graph=True)
                used = slope.any(dim=1)
                if 2 * int(used.sum()) <= len(used):
                    value = (self._trained(leaves, statistics, self.arrange(x[used]))[0] * slope[used]).sum()
            gradients = torch.autograd.grad(value, tensors, retain_graph=k < len(values), materialize_grads=True)
            rows.append(torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in gradients]))
        return torch.stack([value.detach() for value in values]), stacked(rows), moved

    def _run(self, work: Callable[[], T], x: Tensor, seed: int, what: str, precision: Precision = "float32") -> T:
        """The result of ``work``, with generators that start from ``seed``; errors of the module in one line."""
        try:
            with seeded(seed, x.device), computed_in(precision, x.device):
                return work()
        except (FedSieveError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self.wants_plain_memory(error):
                return self._run(work, x, seed, what, precision)
            raise ParameterError(
                f"{self.name} can't {what} samples of shape {list(x.shape[1:])}: {reason(error)}; batch of {len(x)}"
            ) from error

    def _forward(self, tensors: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [k, c] of the module as it is set (training or evaluation), and all its tensors after the call."""
        frozen, buffers = self.constants_on(x.device)
        given = {**tensors, **frozen, **{name: buffer.clone() for name, buffer in buffers.items()}}
        versions = {name: tensor._version for name, tensor in frozen.items()}
        with untouched(self.module):
            output = functional_call(self.module, given, (x,), tie_weights=self._ties)
        for name, version in versions.items():
            if frozen[name]._version != version:
                raise ParameterError(f"{self.name} writes to {name}, which is frozen; make it a buffer or let it train")
        logits = logits_of(output, next(iter(tensors.values())).dtype)
        if logits.dim() != 2 or len(logits) != len(x):
            raise ParameterError(
                f"{self.name} gives outputs of shape {list(logits.shape)} for {len(x)} samples of shape "
                f"{list(x.shape[1:])}; [{len(x)}, classes] was expected, a logit for each class"
            )
        return logits, given

    def constants_on(self, device: torch.device) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Frozen parameters on ``device``, and buffers, of which a forward pass gets copies since it may write to them.

        Call it once before ``torch.func`` transforms :meth:`training_loss`: what is made within does not outlast it.
        """
        key = device, self.rearranges
        if key not in self._made:
            names = {name for name, _ in self.module.named_parameters()}
            here = {name: tensor.to(device) for name, tensor in self.constants.items()}
            frozen = {name: self.arrange(tensor) for name, tensor in here.items() if name in names}
            self._made[key] = frozen, {name: tensor for name, tensor in here.items() if name not in names}
        return self._made[key]  # type: ignore[no-any-return]

    def split(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters and the running statistics of an unflattened vector."""
        n = self.layout.n_parameters
        names = {s.name for s in self.layout.segments if s.start < n}
        return {k: t for k, t in tensors.items() if k in names}, {k: t for k, t in tensors.items() if k not in names}

    def tensors(self, flat: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """:meth:`Layout.unflatten`; of a single vector, convolution weights are rearranged by :meth:`arrange`."""
        tensors = self.layout.unflatten(flat)
        if flat.dim() == 1 and self.rearranges:
            return {name: self.arrange(tensor) for name, tensor in tensors.items()}
        return tensors

    @property
    def rearranges(self) -> bool:
        """Whether images may lie in another order than the module knows: it convolves, and no layer calls ``view``."""
        return self.convolves and "plain memory" not in self._made

    def wants_plain_memory(self, error: Exception) -> bool:
        """Whether a pass failed since images lay in another order; from now on they don't."""
        found = self.rearranges and "view size is not compatible" in str(error)
        if found:
            self._made["plain memory"] = True
        return found

    def arrange(self, x: Tensor) -> Tensor:
        """``x`` in channels-last memory if it is four-dimensional and on a CPU: convolutions run twice as fast."""
        if x.dim() != 4 or x.device.type != "cpu" or not self.rearranges:
            return x
        return channels_last(x)
