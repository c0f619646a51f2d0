"""Evaluation of a model: accuracy and loss on test data, success rates of a backdoor."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
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
    shown = (test.x, test.y) + (() if triggered is None else (triggered.x, triggered.wanted, triggered.already))

    def work(params: Tensor, *shown: Tensor) -> tuple[Tensor]:
        right, loss = _classified(model, params, shown[0], shown[1])
        counts = [right.sum(), loss]
        if len(shown) > 2:
            hit, _ = _classified(model, params, shown[2], shown[3])
            others = ~shown[4]
            counts += [(hit & others).sum(), others.sum(), hit.sum()]
        return (torch.stack([count.double() for count in counts]),)  # brought over from a GPU in one piece

    right, loss, *hits = model.replays("evaluate", work, params, *shown)[0].tolist()
    accuracy, mean = metrics.share(int(right), len(test.y)), metrics.finite(loss / max(1, len(test.y)))
    if triggered is None:
        return Scores(accuracy, mean)
    of_others, others, of_all = map(int, hits)
    return Scores(accuracy, mean, metrics.share(of_others, others), metrics.share(of_all, len(triggered.wanted)))


def outputs(model: FlatModel, params: Float[Tensor, " d"], x: Tensor) -> Float[Tensor, "k c"]:
    """The model's outputs for all samples, on the CPU."""
    return torch.cat([model.logits(params, part).cpu() for part in torch.split(x, batch_size(model, params.device))])


def batch_size(model: FlatModel, device: torch.device) -> int:
    """Samples that are evaluated at once."""
    # on a CPU, batches whose activations stay near the cache are twice as fast as large ones
    return 100 if device.type == "cpu" and model.convolves else 4096


def _classified(
    model: FlatModel, params: Float[Tensor, " d"], x_all: Tensor, y_all: Int[Tensor, " k"]
) -> tuple[Bool[Tensor, " k"], Float64[Tensor, ""]]:
    """Which samples are classified correctly [k], and the sum of the cross-entropies."""
    size = batch_size(model, params.device)
    right, loss = [y_all[:0].bool()], torch.zeros((), dtype=torch.float64, device=params.device)
    for x, y in zip(torch.split(x_all, size), torch.split(y_all, size), strict=True):
        if len(y):
            logits = model.logits(params, x)
            right.append(metrics.correct(logits, y))
            loss += metrics.total_loss(logits, y)
    return torch.cat(right), loss
