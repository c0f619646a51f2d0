"""Losses by name: means over samples, from logits [k, c] and classes [k]."""

from jaxtyping import Float, Int
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.functional import cross_entropy, log_softmax

from fedsieve.core.loss import Loss, LossName, recordable


@recordable
def batch_cross_entropy(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Cross-entropy with the softmax over the samples of the batch instead of over the classes.

    The loss of SkyMask's published code (``log_softmax(dim=0)``), in its clients' and in its masks' training. It does
    not change if a constant is added to the logits of one class, as training on skewed labels does.

    >>> import torch
    >>> batch_cross_entropy(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    tensor(0.6931)
    """
    return -log_softmax(logits, dim=0).gather(1, y[:, None]).mean()


@recordable
def mean_cross_entropy(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """The mean over samples of minus the log-softmax of their class."""
    if is_functorch_wrapped_tensor(logits):
        # the same numbers; torch's own, under vmap, imports a computer algebra system to check its arguments
        return -log_softmax(logits, dim=1).gather(1, y[:, None]).mean()
    return cross_entropy(logits, y)


LOSSES: dict[LossName, Loss] = {"cross-entropy": mean_cross_entropy, "batch": batch_cross_entropy}
