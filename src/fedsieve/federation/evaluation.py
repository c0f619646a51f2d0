"""Evaluation of a model: accuracy and loss on test data, success rates of a backdoor."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsieve.core import metrics
from fedsieve.core.attack import Triggered
from fedsieve.federation.clients import ClientData
from fedsieve.models.flat import FlatModel


@dataclass(frozen=True)
class Scores:
    """Results of one evaluation; None where it was not due or is undefined.

    Attributes:
        accuracy: Share of the test samples that are classified correctly.
        loss: Mean cross-entropy on them; None also if it is not finite.
        attack_success_rate: Share of the triggered samples of other classes that are classified as the attacker wants.
        attack_success_rate_all: The same over all triggered samples.
    """

    accuracy: float | None = None
    loss: float | None = None
    attack_success_rate: float | None = None
    attack_success_rate_all: float | None = None


def evaluate(model: FlatModel, params: Float[Tensor, " d"], test: ClientData, triggered: Triggered | None) -> Scores:
    """Accuracy and loss on ``test``, attack success rates on ``triggered``."""
    right, loss = _classified(model, params, test.x, test.y)
    accuracy, finite_loss = metrics.rate(right), metrics.finite(loss)
    if triggered is None:
        return Scores(accuracy, finite_loss)
    hit, _ = _classified(model, params, triggered.x, triggered.wanted)
    return Scores(accuracy, finite_loss, metrics.rate(hit[~triggered.already]), metrics.rate(hit))


def batch_size(model: FlatModel, device: torch.device) -> int:
    """Samples that are evaluated at once."""
    # on a CPU, batches whose activations stay near the cache are twice as fast as large ones
    return 100 if device.type == "cpu" and model.convolves else 4096


def _classified(
    model: FlatModel, params: Float[Tensor, " d"], x_all: Tensor, y_all: Int[Tensor, " k"]
) -> tuple[Bool[Tensor, " k"], float]:
    """Which samples are classified correctly [k], and the mean cross-entropy."""
    size = batch_size(model, params.device)
    right, loss = [y_all[:0].bool()], 0.0
    for x, y in zip(torch.split(x_all, size), torch.split(y_all, size), strict=True):
        if len(y):
            logits = model.logits(params, x)
            right.append(metrics.correct(logits, y))
            loss += metrics.total_loss(logits, y)
    return torch.cat(right), loss / max(1, len(y_all))
