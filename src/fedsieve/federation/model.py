"""The experiment's model, built before round 0."""

from torch import Tensor

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import FedSieveError, ParameterError
from fedsieve.core.seeding import stream
from fedsieve.data.dataset import Dataset
from fedsieve.models.build import build_module
from fedsieve.models.flat import FlatModel
from fedsieve.models.forward import reason
from fedsieve.models.size import check_size


def build_model(e: Experiment, data: Dataset) -> tuple[FlatModel, Tensor]:
    """The experiment's model and its initial weights [d].

    Raises:
        ParameterError: If the model can't be built, does not take the samples, or does not return one logit per class.
    """
    name, samples = f"model {e.model.name}", data.x_train[:2]
    hint = "; for text there is lstm" if data.vocabulary else ""
    factory, generator = registry.load("models", e.model.name), stream(e.seed, "weights")
    given = {"input_shape": data.input_shape, "n_classes": data.n_classes, "vocabulary": data.vocabulary}
    check_size(e.model.name, factory, {**given, **e.model.parameters}, e.clients_per_round)
    try:
        module = build_module(
            factory, data.input_shape, data.n_classes, generator, e.model.parameters, data.vocabulary, samples
        )
    except FedSieveError:
        raise
    except Exception as error:
        shape = list(data.input_shape)
        raise ParameterError(f"{name} can't be built for samples of shape {shape}: {reason(error)}{hint}") from error
    model, params = FlatModel.of(module, name)
    try:
        found = list(model.logits(params, samples).shape)
    except ParameterError as error:
        raise ParameterError(f"{error}{hint}") from error
    if found != [len(samples), data.n_classes]:
        raise ParameterError(
            f"{name} gives outputs of shape {found} for {len(samples)} samples of shape {list(data.input_shape)}; "
            f"[{len(samples)}, {data.n_classes}] was expected, a logit for each of {data.n_classes} classes"
        )
    return model, params
