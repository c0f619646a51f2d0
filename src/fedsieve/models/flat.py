"""Any ``nn.Module`` as functions of one flat vector.

BatchNorm: running means and variances are part of the vector, after all parameters, so they are part of a client's
update and a defense sees them; the integer counter ``num_batches_tracked`` is not. Training normalises with the
statistics of the batch and updates the running ones. :meth:`FlatModel.gradient` normalises in the same way, but leaves
the running statistics unchanged; their gradient is 0. Evaluation normalises with the running statistics. So does
training in a layer that gets a single value per channel (one sample, one pixel), which has no variance.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from fedsieve.core.defense import Loss
from fedsieve.core.errors import ParameterError
from fedsieve.core.layout import Layout
from fedsieve.models.losses import LOSSES

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _without_variance(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Before a BatchNorm layer runs: evaluation mode for a single value per channel, with which torch can't train.

    :meth:`FlatModel.training_loss` sets all layers to training mode again.
    """
    if layer.training and inputs[0].numel() == inputs[0].shape[1]:
        layer.eval()


def build_module(
    factory: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
    n_classes: int,
    generator: torch.Generator,
    parameters: Mapping[str, Any],
    vocabulary: tuple[str, ...] = (),
) -> nn.Module:
    """A module with initial weights drawn from ``generator``; torch's global generator is left unchanged.

    Args:
        factory: Called with those of ``input_shape``, ``n_classes`` and ``vocabulary`` that are arguments of it, and
            with ``parameters``.
        input_shape: Shape of one sample.
        n_classes: Number of classes.
        generator: Seeds the initialisation.
        parameters: The model's own parameters.
        vocabulary: Words by token id, for text.
    """
    offered = {"input_shape": input_shape, "n_classes": n_classes, "vocabulary": vocabulary}
    wanted = {k: v for k, v in offered.items() if k in inspect.signature(factory).parameters}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return factory(**wanted, **parameters)


@dataclass(frozen=True)
class FlatModel:
    """A module's architecture. Its functions take the weights as a vector.

    Attributes:
        module: Gives the structure; its own tensors are neither read nor written.
        layout: Where each tensor lies in the vector.
    """

    module: nn.Module
    layout: Layout

    @classmethod
    def of(cls, module: nn.Module) -> tuple["FlatModel", Float[Tensor, " d"]]:
        """The architecture of ``module``, and its weights as a vector.

        Raises:
            ParameterError: If it has a buffer that is neither a floating-point tensor nor BatchNorm's counter,
                or none of its parameters is trainable.
        """
        module = copy.deepcopy(module)
        for layer in module.modules():
            if isinstance(layer, _NORMS):
                if layer.momentum is None:
                    raise ParameterError("BatchNorm with momentum=None averages over a count; give it a momentum")
                layer.num_batches_tracked = None
                layer.register_forward_pre_hook(_without_variance)
        parameters = {k: p.detach() for k, p in module.named_parameters() if p.requires_grad}
        frozen = {k: p.detach() for k, p in module.named_parameters() if not p.requires_grad}
        buffers = dict(module.named_buffers())
        wrong = [k for k, b in buffers.items() if not b.is_floating_point()]
        if wrong or not parameters:
            reason = f"buffer {wrong[0]} is not floating-point" if wrong else "it has no trainable parameter"
            raise ParameterError(f"{type(module).__name__} can't be a federated model: {reason}")
        layout = Layout.of(parameters, frozen | buffers)
        return cls(module, layout), layout.flatten(parameters | frozen | buffers)

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers (dropout)."""
        return any(
            isinstance(layer, _DropoutNd | nn.RReLU)
            or (isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and layer.dropout > 0)
            for layer in self.module.modules()
        )

    @property
    def convolves(self) -> bool:
        """Whether it has two-dimensional convolutions, which are faster on a CPU with channels last."""
        return any(isinstance(layer, nn.Conv2d) for layer in self.module.modules())

    @property
    def recurrent(self) -> bool:
        """Whether it has recurrent layers, which ``torch.func.vmap`` can't run with several clients' weights."""
        return any(isinstance(layer, nn.RNNBase) for layer in self.module.modules())

    @property
    def normalisation(self) -> Int[Tensor, " k"]:
        """Coordinates of the BatchNorm layers: their parameters, then their running statistics."""
        layers = tuple(f"{name}." for name, layer in self.module.named_modules() if isinstance(layer, _NORMS))
        parts = [torch.arange(s.start, s.stop) for s in self.layout.segments if s.name.startswith(layers)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def logits(self, flat: Float[Tensor, " d"], x: Tensor) -> Float[Tensor, "k c"]:
        """Outputs in evaluation mode (running statistics, no dropout), without gradient.

        Args:
            flat: The model, [d].
            x: Samples [k, *input_shape].
        """
        self.module.eval()
        with torch.no_grad():
            return functional_call(self.module, self.tensors(flat), (self.arrange(x),))  # type: ignore[no-any-return]

    def training_loss(
        self,
        parameters: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        x: Tensor,
        y: Int[Tensor, " k"],
        loss: Loss = LOSSES["cross-entropy"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss in training mode, and the running statistics after this batch.

        Args:
            parameters: Parameters by name.
            statistics: All other tensors of the model by name; unchanged.
            x: Samples [k, *input_shape].
            y: Classes [k].
            loss: Function of logits [k, c] and classes [k]; mean cross-entropy by default.
        """
        self.module.train()
        moved = {name: tensor.clone() for name, tensor in statistics.items()}  # written in place by the module
        output = functional_call(self.module, {**parameters, **moved}, (x,))
        return loss(output, y), moved

    def gradient_and_statistics(
        self, flat: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], loss: Loss = LOSSES["cross-entropy"]
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, " r"]]:
        """Gradient of the training loss, and the running statistics after this batch."""
        _, gradient, statistics = self._backward(flat, x, y, loss)
        return gradient, torch.cat([flat.new_empty(0), *(t.reshape(-1) for t in statistics.values())])

    def gradient(
        self, flat: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], loss: Loss = LOSSES["cross-entropy"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        """Training loss and its gradient with respect to ``flat``, which is 0 at the running statistics."""
        value, gradient, _ = self._backward(flat, x, y, loss)
        return value, torch.cat([gradient, flat.new_zeros(len(flat) - len(gradient))])

    def loss(self, flat: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
        """Training loss (mean cross-entropy), without gradient."""
        with torch.no_grad():
            return self.training_loss(*self.split(self.tensors(flat)), self.arrange(x), y)[0]

    def _backward(
        self, flat: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], loss: Loss = LOSSES["cross-entropy"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " p"], dict[str, Tensor]]:
        parameters, statistics = self.split(self.tensors(flat))
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        with torch.enable_grad():
            value, moved = self.training_loss(leaves, statistics, self.arrange(x), y, loss)
            gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return value.detach(), torch.cat([g.reshape(-1) for g in gradients]), moved

    def split(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters and the other tensors (running statistics, frozen weights) of an unflattened vector."""
        n = self.layout.n_parameters
        names = {s.name for s in self.layout.segments if s.start < n}
        return {k: t for k, t in tensors.items() if k in names}, {k: t for k, t in tensors.items() if k not in names}

    def tensors(self, flat: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """:meth:`Layout.unflatten`; of a single vector, convolution weights are rearranged by :meth:`arrange`."""
        tensors = self.layout.unflatten(flat)
        if flat.dim() == 1 and self.convolves:
            return {name: self.arrange(tensor) for name, tensor in tensors.items()}
        return tensors

    def arrange(self, x: Tensor) -> Tensor:
        """``x`` in channels-last memory if it is four-dimensional and on a CPU: convolutions run twice as fast."""
        if x.dim() != 4 or x.device.type != "cpu" or not self.convolves:
            return x
        # with one channel both orders are the same in memory, and torch would keep the strides of the other one
        _, c, h, w = x.shape
        return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, (h * w * c, 1, w * c, c))
