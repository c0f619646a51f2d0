"""Scores of the final model on the test data: as a whole, by class, by client. Kept beside the records of a run.

All are in [0, 1], and None where they are undefined: no samples, a single class, outputs that are not finite.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scored:
    """Scores on some samples.

    Attributes:
        n: Number of samples.
        accuracy: Share that is classified correctly.
        balanced_accuracy: Mean of the recalls of the classes that the samples have: of n classes, 1/n is chance.
        auroc: Mean area under the receiver operating characteristic, each class that the samples have against all
            others; of two classes, that of either. 0.5 is chance.
        macro_f1: Mean F1 of the classes that the samples or the predictions have.
        calibration_error: Expected calibration error: how far the confidence in the predicted class, and the share of
            correct predictions, lie apart, in 15 bins of equal width. 0 is best.
    """

    n: int
    accuracy: float | None
    balanced_accuracy: float | None
    auroc: float | None
    macro_f1: float | None
    calibration_error: float | None


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class against all others.

    Attributes:
        name: Of the class.
        n: Number of its samples.
        recall: Share of its samples that are classified as it.
        precision: Share of the samples classified as it that are its own.
        f1: Harmonic mean of both.
        auroc: Area under the receiver operating characteristic.
    """

    name: str
    n: int
    recall: float | None
    precision: float | None
    f1: float | None
    auroc: float | None


@dataclass(frozen=True)
class ClientScores:
    """Scores of the global model on the test samples of one client.

    Attributes:
        client: Its id.
        name: Its name, or "".
        scores: On its test samples.
    """

    client: int
    name: str
    scores: Scored


@dataclass(frozen=True)
class FinalScores:
    """All scores of a final model.

    Attributes:
        rounds: Number of rounds after which it was scored.
        test: On all test samples.
        classes: By class.
        clients: By client, where the test samples are clients' own: those with any, the first 1,000 of them.
    """

    rounds: int
    test: Scored
    classes: tuple[ClassScores, ...]
    clients: tuple[ClientScores, ...] = ()
