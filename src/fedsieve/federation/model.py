"""The experiment's model, built before round 0."""

from torch import Tensor

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.models.flat import FlatModel, build_module


def build_model(e: Experiment, data: Dataset) -> tuple[FlatModel, Tensor]:
    """The experiment's model and its initial weights [d].

    Raises:
        ParameterError: If the model does not take the samples, or does not return one logit per class.
    """
    module = build_module(
        registry.load("models", e.model.name),
        data.input_shape,
        data.n_classes,
        stream(e.seed, "weights"),
        e.model.parameters,
        data.vocabulary,
    )
    model, params = FlatModel.of(module)
    shape, name = list(data.input_shape), e.model.name
    try:
        found = list(model.logits(params, data.x_train[:2]).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        text = "; for text there is lstm" if data.vocabulary else ""
        raise ParameterError(
            f"model {name} can't take samples of shape {shape}: {str(error).splitlines()[0]}{text}"
        ) from error
    if found != [2, data.n_classes]:
        raise ParameterError(
            f"model {name} gives outputs of shape {found} for 2 samples of shape {shape}; "
            f"[2, {data.n_classes}] was expected, a logit for each of {data.n_classes} classes"
        )
    return model, params
