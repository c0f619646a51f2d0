"""The model as a vector: where each tensor lies in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """The place of one tensor in the flat vector.

    Attributes:
        name: Name of the tensor in the model's state dict, or of a layer.
        shape: Shape of the tensor.
        start: First coordinate, from 0.
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """One past the last coordinate."""
        return self.start + prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors in a flat model vector: parameters first, running statistics last.

    Attributes:
        segments: All tensors, in the order of the vector.
        n_parameters: The first ``n_parameters`` coordinates are trained. The rest are running statistics of
            normalisation layers (BatchNorm's means and variances), which have no gradient.
    """

    segments: tuple[Segment, ...]
    n_parameters: int

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor] | None = None) -> "Layout":
        """Build the layout of ``parameters`` followed by ``statistics``, each in its own order."""
        segments: list[Segment] = []
        start = 0
        for name, tensor in [*parameters.items(), *(statistics or {}).items()]:
            segments.append(Segment(name, tuple(tensor.shape), start))
            start = segments[-1].stop
        return cls(tuple(segments), sum(tensor.numel() for tensor in parameters.values()))

    @property
    def size(self) -> int:
        """Number of coordinates (``d``)."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def layers(self) -> tuple[Segment, ...]:
        """One segment per module ("conv1" for "conv1.weight" and "conv1.bias"), parameters only, shape ``(size,)``."""
        found: list[Segment] = []
        for s in self.segments:
            module = s.name.rpartition(".")[0] or s.name
            if s.start >= self.n_parameters:
                break
            if found and found[-1].name == module:
                found[-1] = Segment(module, (s.stop - found[-1].start,), found[-1].start)
            else:
                found.append(Segment(module, (s.stop - s.start,), s.start))
        return tuple(found)

    def unflatten(self, flat: Float[Tensor, "*batch d"]) -> dict[str, Tensor]:
        """Split ``flat`` into views by tensor name, each of shape ``[*batch, *shape]``; nothing is copied."""
        lead = flat.shape[:-1]
        return {s.name: flat[..., s.start : s.stop].view((*lead, *s.shape)) for s in self.segments}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "*batch d"]:
        """Inverse of :meth:`unflatten`; leading batch axes are kept."""
        parts = []
        for s in self.segments:
            tensor = tensors[s.name]
            parts.append(tensor.reshape(*tensor.shape[: tensor.dim() - len(s.shape)], -1))
        return torch.cat(parts, dim=-1)


def output_layer(layout: Layout) -> tuple[Segment, Segment | None]:
    """Weight [classes, features] and bias [classes] of a model's last layer.

    The weight is the last parameter of at least two dimensions, one row per class; without one, the last parameter.
    The bias is the parameter right behind it, if it has as many entries as there are classes; else None.
    """
    parameters = [s for s in layout.segments if s.start < layout.n_parameters]
    k = max((k for k, s in enumerate(parameters) if len(s.shape) >= 2), default=len(parameters) - 1)
    behind = parameters[k + 1] if k + 1 < len(parameters) else None
    weight = parameters[k]
    return weight, behind if behind is not None and behind.shape == weight.shape[:1] else None
