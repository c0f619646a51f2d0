"""scikit-learn's digits, which ship with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedsieve.core.errors import ParameterError
from fedsieve.data import digits
from fedsieve.data.digits import Digits, encode, table


def test_the_table_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = load_digits()
    assert np.array_equal(table()[:, :-1], raw.data)
    assert np.array_equal(table()[:, -1], raw.target)
    own = table()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)  # its file is elsewhere
    assert np.array_equal(table(), own)


def test_encode_is_what_the_loader_does() -> None:
    data = Digits().load(Path(), torch.Generator().manual_seed(0))
    assert data.encode is not None
    encoded = data.encode(load_digits().images.astype(np.uint8)[..., None])
    assert encoded.dtype == torch.float32
    rows = {tuple(image.flatten().tolist()) for image in encoded}
    assert rows == {tuple(image.flatten().tolist()) for image in torch.cat([data.x_train, data.x_test])}


def test_wrong_images() -> None:
    with pytest.raises(ParameterError, match=r"^images of digits must have values 0 to 16, got 17$"):
        encode(np.full((1, 8, 8, 1), 17, np.uint8))
    with pytest.raises(ParameterError, match=r"^images must be uint8 of shape \[k, 8, 8, 1\], got uint8 of shape"):
        encode(np.zeros((1, 8, 8), np.uint8))
