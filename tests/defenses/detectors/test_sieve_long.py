"""Long trainings at the edge of what is stable: sieve must not be what ends them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from fedsieve.config.experiment import Experiment
from fedsieve.federation.simulation import Simulation

ROUNDS = 400


@pytest.fixture(scope="module")
def noisy_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits at 16 x 16 pixels, with so much noise that a convolutional network learns its root data by heart."""
    digits = load_digits()
    images = np.stack([zoom(image / 16, 2, order=1) for image in digits.images])[:, None]
    images += np.random.default_rng(0).normal(0, 0.6, images.shape)
    file = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(file, x=images.astype(np.float32), y=digits.target)
    return file


def accuracies(file: Path, **settings: Any) -> list[float]:
    e = Experiment.of(
        {
            "dataset": {"name": "npz", "file": str(file)},
            "model": "cnn",
            "partition": {"name": "groups", "q": 0.5},
            "local": {"learning_rate": 0.5},
            "server": {"learning_rate": 0.5},
            "clients": 30,
            "malicious": 6,
            "seed": 101,
            "rounds": ROUNDS,
            "evaluate_every": 10,
            **settings,
        }
    )
    records = [record for _, record in Simulation.of(e, Path(), torch.device("cpu")).rounds()]
    assert all(r.update_norm is not None and r.update_norm < 100 for r in records)
    return [r.test_accuracy for r in records if r.test_accuracy is not None]


@pytest.mark.slow
def test_without_an_attack_it_is_as_good_as_the_mean(noisy_digits: Path) -> None:
    """Projected in every round, this training was 15 points behind the mean, and not finite after 280 rounds."""
    last = {name: accuracies(noisy_digits, attack="none", defense=name)[-5:] for name in ("mean", "sieve")}
    assert np.median(last["sieve"]) > np.median(last["mean"]) - 0.05  # single rounds still jump
