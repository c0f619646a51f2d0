"""Scores of a model from its outputs: balanced accuracy, AUROC, macro F1, calibration error, by class and by client.

Costs one pass over the test data and a sort for each class, so it is done once, with the final model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from fedsieve.core import metrics
from fedsieve.core.scores import ClassScores, ClientScores, FinalScores, Scored

# Of the calibration error, as in Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. 2017.
_BINS = 15
_DIGITS = 6
MOST_CLIENTS = 1000  # that are scored one by one


def final_scores(
    logits: Float[Tensor, "k c"],
    y: Int[Tensor, " k"],
    rounds: int,
    classes: Sequence[str] = (),
    clients: Int[Tensor, " k"] | None = None,
    names: Sequence[str] = (),
) -> FinalScores:
    """All scores of a model.

    Args:
        logits: Its outputs for the test samples. A sample with an output that is not finite counts as misclassified.
        y: Their classes.
        rounds: Number of rounds that were played.
        classes: Names of the classes, by number; the number is the name where there is none.
        clients: The client of each test sample, below 0 where it is none's; None where that is not known.
        names: Names of the clients.
    """
    probabilities, truth = torch.softmax(logits.double(), dim=1).numpy(), y.numpy()
    # a class that there is not stands for outputs that are not finite
    predicted = torch.where(torch.isfinite(logits).all(dim=1), logits.argmax(dim=1), logits.shape[1]).numpy()
    areas = aurocs(probabilities, truth)
    precision, recall, f1, n = _by_class(truth, predicted, list(range(logits.shape[1])))
    per_class = tuple(
        ClassScores(
            name=classes[k] if k < len(classes) else str(k),
            n=int(n[k]),
            recall=_rounded(recall[k]) if n[k] else None,
            precision=_rounded(precision[k]) if (predicted == k).any() else None,
            f1=_rounded(f1[k]) if n[k] else None,
            auroc=_rounded(areas[k]),
        )
        for k in range(logits.shape[1])
    )
    per_client = list[ClientScores]()
    if clients is not None:
        order = clients.argsort(stable=True)
        found, counts = torch.unique(clients, return_counts=True)
        for client, rows in zip(found.tolist(), torch.split(order, counts.tolist()), strict=True):
            if client >= 0 and len(per_client) < MOST_CLIENTS:
                own = rows.numpy()
                scores = _scored(probabilities[own], truth[own], predicted[own])
                per_client.append(ClientScores(client, names[client] if client < len(names) else "", scores))
    return FinalScores(rounds, _scored(probabilities, truth, predicted), per_class, tuple(per_client))


def _scored(p: Float64[np.ndarray, "k c"], truth: Int[np.ndarray, " k"], predicted: Int[np.ndarray, " k"]) -> Scored:
    """Scores on some samples, from the classes' probabilities, the true and the predicted classes."""
    if not len(truth):
        return Scored(0, None, None, None, None, None)
    there = np.unique(truth)
    either = np.union1d(there, predicted[predicted < p.shape[1]])
    _, recall, f1, n = _by_class(truth, predicted, either.tolist())
    return Scored(
        n=len(truth),
        accuracy=_rounded(np.mean(predicted == truth)),
        balanced_accuracy=_rounded(recall[n > 0].mean()),
        auroc=_rounded(aurocs(p, truth)[there].mean()),
        macro_f1=_rounded(f1.mean()),
        calibration_error=_rounded(calibration_error(p, predicted == truth)),
    )


def _by_class(truth: Int[np.ndarray, " k"], predicted: Int[np.ndarray, " k"], labels: list[int]) -> list[np.ndarray]:
    """Precision, recall, F1 and number of samples of these classes; 0 where they are undefined.

    Not by scikit-learn, whose import takes longer than a short run; a test compares the two.
    """
    most = 1 + int(max(np.max(part, initial=0) for part in (labels, truth, predicted)))
    n, named = np.bincount(truth, minlength=most), np.bincount(predicted, minlength=most)
    hits = np.bincount(truth[truth == predicted], minlength=most)
    recall, precision, f1 = hits / np.maximum(n, 1), hits / np.maximum(named, 1), 2 * hits / np.maximum(n + named, 1)
    return [values[labels] for values in (precision, recall, f1, n)]


def balanced_accuracy(truth: Int[np.ndarray, " k"], predicted: Int[np.ndarray, " k"]) -> float:
    """Mean of the recalls of the classes that the samples have; there is at least one sample.

    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])) == (2 / 3 + 1) / 2
    True
    """
    _, recall, _, _ = _by_class(truth, predicted, np.unique(truth).tolist())
    return float(recall.mean())


def aurocs(p: Float64[np.ndarray, "k c"], truth: Int[np.ndarray, " k"]) -> Float64[np.ndarray, " c"]:
    """Area under the receiver operating characteristic of each class against all others, by ranks (Mann-Whitney).

    All classes at once, which is far quicker than one call of ``sklearn.metrics.roc_auc_score`` for each.

    Args:
        p: Probability of each class.
        truth: The samples' classes.

    Returns:
        NaN for a class that none or all of the samples have, and where a probability is not finite.

    >>> aurocs(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]]), np.array([0, 0, 1, 1])).tolist()
    [0.75, 0.75]
    """
    k, c = p.shape
    areas = np.full(c, np.nan)
    counts = np.bincount(truth, minlength=c)[:c]
    known = (counts > 0) & (counts < k)
    if not known.any() or not np.isfinite(p).all():
        return areas
    positive = truth[:, None] == np.arange(c)[known]
    ranks = np.where(positive, np.apply_along_axis(_ranks, 0, p[:, known]), 0).sum(axis=0)
    n = counts[known].astype(float)
    areas[known] = (ranks - n * (n + 1) / 2) / (n * (k - n))
    return areas


def _ranks(values: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Ranks from 1; equal values have the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks


def calibration_error(p: Float64[np.ndarray, "k c"], right: np.ndarray) -> float:
    """Expected calibration error: mean over the samples of their bin's gap between confidence and accuracy.

    Args:
        p: Probability of each class; the largest of a sample is its confidence.
        right: Which samples are classified correctly, [k].

    Returns:
        NaN where a probability is not finite.

    >>> calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([True, False]))
    0.4
    """
    confidence = p.max(axis=1)
    if not np.isfinite(confidence).all():
        return float("nan")
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(p))


def _rounded(value: float) -> float | None:
    return metrics.finite(round(float(value), _DIGITS))
