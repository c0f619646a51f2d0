"""Writes a model as a state dict of its own module, which is loaded without FedSieve where the module needs none."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from fedsieve.config import registry
from fedsieve.config.installed import registered
from fedsieve.core.errors import ParameterError
from fedsieve.federation.simulation import Simulation, SimulationState
from fedsieve.models.flat import FlatModel
from fedsieve.models.forward import copied, reason, seeded
from fedsieve.models.normalisation import NORMS

SUFFIX = ".safetensors"


def check_export(path: Path) -> None:
    """See that a model can be written to a path, before it is trained.

    Raises:
        ParameterError: If not.
    """
    if path.suffix != SUFFIX:
        raise ParameterError(f"a model is written as {SUFFIX}, got {path}: try {path.with_suffix(SUFFIX)}")
    if path.is_dir():
        raise ParameterError(f"can't write a model to {path}: it is a folder")
    if not path.absolute().parent.is_dir():
        raise ParameterError(f"can't write a model to {path}: there is no folder {path.parent}")


def check_loads(simulation: Simulation) -> None:
    """See that what :func:`loading` says works: a module that is made anew takes the state dict.

    Raises:
        ParameterError: If not, such as a module that makes a buffer only when it is called.
    """
    e, model = simulation.experiment, simulation.trainer.model
    factory, tensors = registry.load("models", e.model.name), state_dict(model, simulation.initial.server.params)
    with seeded(0, torch.device("cpu")):
        module = factory(**simulation.arguments)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ParameterError(
            f"{model.name} can't be exported: made anew, it does not take its own state dict: {reason(error)}"
        ) from error


def state_dict(model: FlatModel, params: Float[Tensor, " d"]) -> dict[str, Tensor]:
    """The state dict of the module with the weights ``params``: the module's own names, on the CPU.

    Frozen parameters and buffers that are not running statistics are as they were built.

    Raises:
        ParameterError: If a part of the module's state is no tensor.
    """
    module = copied(model.module)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, tensor in {**model.constants, **model.layout.unflatten(params)}.items():
            own[name].copy_(tensor)
    for layer in module.modules():  # its counter is left out of the vector, and loads as 0 wherever it comes from
        if isinstance(layer, NORMS) and layer.running_mean is not None and layer.num_batches_tracked is None:
            layer.num_batches_tracked = torch.tensor(0)
    found = module.state_dict()
    if wrong := [name for name, value in found.items() if not isinstance(value, Tensor)]:
        raise ParameterError(f"{model.name} can't be exported: {wrong[0]} in its state dict is no tensor")
    # copies, since a file holds no tensor twice
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in found.items()}


def exported(simulation: Simulation, state: SimulationState) -> bytes:
    """The content of a file with the global model as it is evaluated; names of classes and words are its metadata."""
    said = {"classes": simulation.holdings.class_names, "vocabulary": simulation.arguments.get("vocabulary", ())}
    metadata = {name: json.dumps(list(texts)) for name, texts in said.items() if texts}
    tensors = state_dict(simulation.trainer.model, simulation.evaluated(state))
    return save(tensors, {"format": "pt", **metadata})


def loading(simulation: Simulation, path: Path) -> str:
    """A line of Python that makes the module and loads its state dict from ``path``."""
    e, file = simulation.experiment, repr(str(path.absolute()))
    name = e.model.name
    place = name if ":" in name else registered("models")[name].value
    module, _, factory = place.partition(":")
    lines = ["from safetensors.torch import load_file", f"from {module} import {factory}"]
    given = {k: repr(v) for k, v in simulation.arguments.items()}
    if "vocabulary" in given:
        lines.insert(0, "import json; from safetensors import safe_open")
        given["vocabulary"] = f"tuple(json.loads(safe_open({file}, 'pt').metadata()['vocabulary']))"
    lines.append(f"model = {factory}({', '.join(f'{k}={v}' for k, v in given.items())})")
    return "; ".join([*lines, f"model.load_state_dict(load_file({file}))"])
