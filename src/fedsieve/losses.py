"""What a model can be asked for on labelled samples: mean losses of logits [k, c] and classes [k]."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, one_hot

Loss = Callable[[Tensor, Tensor], Tensor]


def batch_contrast(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Cross-entropy with the softmax over the samples instead of over the classes.

    The mask loss of SkyMask's published code: of all samples, those of a class shall have its highest logits. A
    constant added to one class's logits, which is what a skewed mix of labels does to a model, changes nothing.
    """
    return -log_softmax(logits, dim=0).gather(1, y[:, None]).mean()


def margin(logits: Float[Tensor, "k c"], y: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Minus the mean margin, over the classes present: how far a class's own logit stands out on its own samples.

    With M[a, b] the mean of logit b over the samples of class a, centred over the classes a (so that the mix of labels
    a model was trained on doesn't count) and over the logits b (nor what the softmax ignores), the loss is minus the
    mean of M[a, a]. It is linear in the logits (the unhinged loss of van Rooyen, Menon and Williamson, NeurIPS 2015,
    which noisy labels can't turn around), so no sample counts more because the model has it wrong, and all classes
    count the same however few samples they have.
    """
    members = one_hot(y, logits.shape[1]).to(logits)
    sizes = members.sum(dim=0)
    means = (members / sizes.clamp(min=1)).T @ logits
    present = sizes > 0
    centred = means - means[present].mean(dim=0)
    centred = centred - centred.mean(dim=1, keepdim=True)
    return -centred.diagonal()[present].mean()


# By the names that fedsieve.types.Objective has.
LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "batch": batch_contrast, "margin": margin}
__all__ = ["LOSSES", "Loss", "batch_contrast", "margin"]
