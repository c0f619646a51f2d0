"""Layers that remember: running statistics of normalisation layers, and the vectors of spectral norm.

Running statistics train if their layer does. A normalisation layer whose own parameters are all frozen (or, without
parameters of its own, those of the closest module around it that has some), or that the module's ``train`` method
leaves in evaluation mode, stays fixed and normalises with the statistics it was built with.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from fedsieve.core.errors import ParameterError

NORMS = _NormBase  # BatchNorm, SyncBatchNorm, InstanceNorm, and every class derived from them
_POWER_ITERATIONS = 15  # as many as torch makes for a new layer


def prepare(module: nn.Module) -> set[str]:
    """Set up the layers of a module that remember so that its outputs follow from its weights alone.

    A normalisation layer in training that gets a single value per channel (one sample, one pixel), which has no
    variance, uses its running statistics and leaves them unchanged. Spectral norm starts its power iteration in every
    pass, in evaluation too, from the vectors it was built with, and makes at least 15 iterations.

    Args:
        module: Changed in place; in training mode afterwards.

    Returns:
        Names of the running statistics that train.

    Raises:
        ParameterError: If a layer's momentum is None.
    """
    module.train()
    trained: set[str] = set()
    for name, layer in module.named_modules():
        if isinstance(layer, NORMS):
            if not layer.training or _is_frozen(module, name):
                layer.register_forward_pre_hook(_evaluated)
            elif layer.track_running_stats and layer.running_mean is not None:
                trained |= {_joined(name, "running_mean"), _joined(name, "running_var")}
                _prepare_trained(layer, name)
        power = _power_iteration(layer)
        if power is not None:
            power.n_power_iterations = max(power.n_power_iterations, _POWER_ITERATIONS)
            layer.register_forward_pre_hook(_evaluated if _is_frozen(module, name) else _iterated, prepend=True)
    return trained


def power_vectors(module: nn.Module) -> set[str]:
    """Names of the buffers that spectral norm writes to."""
    found = set()
    for name, layer in module.named_modules():
        power = _power_iteration(layer)
        if power is not None:
            prefix = power.name if isinstance(power, SpectralNorm) else ""
            found |= {_joined(name, f"{prefix}_u"), _joined(name, f"{prefix}_v")}
    return found


def _prepare_trained(layer: _NormBase, name: str) -> None:
    if layer.momentum is None:
        raise ParameterError(
            f"layer {name or 'of the model'} ({type(layer).__name__}) has momentum=None, an average over a count that "
            "is not the same at every client; give it a momentum"
        )
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        layer.num_batches_tracked = None  # counted for nothing here; other classes may want it
    layer.register_forward_pre_hook(_without_variance, with_kwargs=True)


def _power_iteration(layer: nn.Module) -> Any:
    """What holds the number of power iterations of a layer with spectral norm, in torch's new way or its old; or None.

    On a vector the new one makes none.
    """
    if isinstance(layer, _SpectralNorm):
        return layer if hasattr(layer, "n_power_iterations") else None
    return next((hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)), None)


def _is_frozen(module: nn.Module, name: str) -> bool:
    """Whether none of a layer's parameters train; of a layer without, those of the closest module around it."""
    while True:
        parameters = list(module.get_submodule(name).parameters())
        if parameters or not name:
            return not any(parameter.requires_grad for parameter in parameters)
        name = name.rpartition(".")[0]


def _joined(layer: str, tensor: str) -> str:
    return f"{layer}.{tensor}" if layer else tensor


# Hooks that run before a layer does. FlatModel undoes what they do to it, as all that a forward pass does.


def _evaluated(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    layer.training = False


def _iterated(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    layer.training = True


def _without_variance(layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    x = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
    if x is not None and layer.training and _values_per_channel(layer)(x) == 1:
        layer.training = False


def _values_per_channel(layer: nn.Module) -> Callable[[Tensor], int]:
    """How many values are normalised together: of a sample in InstanceNorm, else of all samples."""
    if isinstance(layer, _InstanceNorm):
        return lambda x: prod(x.shape[2:] if x.dim() > 2 else x.shape[1:])
    return lambda x: x.numel() // x.shape[1] if x.shape[1] else 0
