"""One training step with every batch size that will occur, before round 0: what can't be trained is said at once.

Nothing is changed by it: no random stream, no weight, no state of the module. A batch whose loss is not finite is no
error here; screening deals with that.
"""

import warnings
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsieve.core.errors import ParameterError
from fedsieve.federation.clients import ClientData, Trainer
from fedsieve.federation.evaluation import batch_size
from fedsieve.models.flat import FlatModel
from fedsieve.models.forward import copied, random_states, reason, seeded
from fedsieve.models.losses import LOSSES
from fedsieve.models.normalisation import power_vectors

_SAME = 1e-5  # relative distance of two results that should be equal; a GPU does not always add in the same order
_AGREE = 0.05  # the same of the two engines, on any device
_TINY = 1e-7  # what is no longer is zero


def tried(
    trainer: Trainer,
    params: Float[Tensor, " d"],
    trained: Iterable[tuple[int, ClientData]],
    evaluated: Iterable[Tensor],
    n_classes: int,
) -> Trainer:
    """The trainer with the engine that can train its model.

    Clients are trained one by one if the batched computation fails, gives other numbers, or the model draws random
    numbers, which each client needs from a stream of its own.

    Args:
        trainer: Trains the clients; unchanged.
        params: The initial model, [d].
        trained: Batch sizes that occur in training, each with data that have so many samples.
        evaluated: Samples that are evaluated, each a set of its own.
        n_classes: Number of classes.

    Raises:
        ParameterError: If the model fails on a batch, returns no logit per class, gives different numbers for the same
            batch and seed, or remembers a batch in something that is not averaged.
    """
    model = _twin(trainer.model)
    trial = replace(trainer, model=model)
    batches = {}
    for size, data in trained:
        if size and size not in batches:
            batches[size] = data.x[:size], data.y[:size]
    together = before = trial.vectorized(params.device) or trial.shares(params.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once only, so a warning must not decide anything
        for size, (x, y) in sorted(batches.items(), reverse=True):
            gradient, drawn = _step(trial, params, x, y, n_classes)
            if size == max(batches):
                _check_stateless(trainer.model, params, x)
                _check_repeatable(trial, params, x, y, gradient)
            together = together and not drawn
            if together and size in (min(batches), max(batches)):  # of the others, training finds it out by itself
                together = _agrees(trial, params, x, y, gradient)
        for x in evaluated:
            size = batch_size(model, params.device)
            for k in {min(size, len(x)), len(x) % size} - {0}:
                _check_classes(model, model.logits(params, x[:k]), n_classes)
    return trainer if together == before else replace(trainer, vectorize=False)


def batch_sizes(trainer: Trainer, data: Iterable[ClientData]) -> list[tuple[int, ClientData]]:
    """Sizes of the batches that occur when ``trainer`` trains clients with these data, each with such data."""
    return [(size, own) for own in data for size in trainer.settings.batch_sizes(len(own.y))]


def _twin(model: FlatModel) -> FlatModel:
    """The model with tensors of its own."""
    constants = {name: tensor.clone() for name, tensor in model.constants.items()}
    return replace(model, module=copied(model.module), constants=constants)


def _step(
    trainer: Trainer, params: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], n_classes: int
) -> tuple[Tensor, bool]:
    """Gradient of one client's step, and whether random numbers were drawn."""
    with seeded(0, params.device):
        fresh = random_states(params.device)
    drawn = False

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        nonlocal drawn
        drawn = random_states(params.device) != fresh
        _check_classes(trainer.model, logits, n_classes)
        return LOSSES[trainer.settings.loss](logits, y)

    try:
        return trainer.model.gradient_and_statistics(params, x, y, loss)[0], drawn
    except torch.OutOfMemoryError as error:
        raise ParameterError(
            f"{trainer.model.name} and one batch of {len(x)} samples don't fit into the memory of {params.device}; "
            "make local.batch_size smaller"
        ) from error


def _agrees(
    trainer: Trainer, params: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], gradient: Float[Tensor, " p"]
) -> bool:
    """Whether two clients trained as one computation have the gradient of one that is trained alone."""
    local = params.expand(2, -1) if trainer.shares(params.device) else params.repeat(2, 1)
    try:
        both, _ = trainer.together(local, torch.stack([x, x]), torch.stack([y, y]))
    except torch.OutOfMemoryError:
        return True  # chunks get smaller in training
    except Exception:  # a branch on data, a layer that has no batched form: it was trained alone already
        return False
    return all(_near(row, gradient, _AGREE) for row in both)


def _check_classes(model: FlatModel, logits: Tensor, n_classes: int) -> None:
    if logits.shape[1] != n_classes:
        raise ParameterError(
            f"{model.name} gives outputs of shape {list(logits.shape)} for {len(logits)} samples; "
            f"[{len(logits)}, {n_classes}] was expected, a logit for each of {n_classes} classes"
        )


def _check_repeatable(
    trainer: Trainer, params: Float[Tensor, " d"], x: Tensor, y: Int[Tensor, " k"], gradient: Float[Tensor, " p"]
) -> None:
    again, _ = trainer.model.gradient_and_statistics(params, x, y, LOSSES[trainer.settings.loss])
    first, second = (trainer.model.logits(params, x) for _ in range(2))
    if not _near(again, gradient, _SAME) or not _near(first, second, _SAME):
        raise ParameterError(
            f"{trainer.model.name} gives different results for the same batch and seed, so no run could be repeated or "
            "resumed; let it draw from the global generators of torch, numpy or random, and keep nothing of a batch"
        )


def _check_stateless(model: FlatModel, params: Float[Tensor, " d"], x: Tensor) -> None:
    """Raise if a training pass leaves something in the module that changes its outputs and is not in the vector."""
    after = copied(model.module).to(params.device).train()
    try:
        with seeded(0, params.device), torch.no_grad():
            after(x)
    except Exception as error:
        raise ParameterError(f"{model.name} can't train on {len(x)} samples: {reason(error)}") from error
    moved, _ = FlatModel.of(after)
    if moved.layout != model.layout or moved.constants.keys() != model.constants.keys():
        names = {s.name for s in moved.layout.segments} | moved.constants.keys()
        new = sorted(names - {s.name for s in model.layout.segments} - model.constants.keys())
        raise ParameterError(f"{model.name} makes {', '.join(new)} while it trains; make it when the model is built")
    own = power_vectors(model.module)
    constants = {k: model.constants[k] if k in own else t for k, t in moved.constants.items()}
    if _near(replace(moved, constants=constants).logits(params, x), _twin(model).logits(params, x), _SAME):
        return
    changed = [k for k, t in constants.items() if not _near(t.cpu(), model.constants[k].cpu(), 0.0)]
    what = f"changes {changed[0]}" if changed else "keeps something of each batch in an attribute"
    raise ParameterError(
        f"{model.name} {what} while it trains, on which its outputs depend, but only parameters and the running "
        "statistics of torch's normalisation layers travel between clients and server"
    )


def _near(a: Tensor, b: Tensor, share: float) -> bool:
    """Whether two tensors differ by at most this share of the length of one, and are not finite at the same places."""
    a, b = a.double(), b.double()
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return False
    return bool((a - b)[finite].norm() <= share * b[finite].norm() + _TINY)
