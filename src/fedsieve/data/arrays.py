"""Arrays of the user's: a file of numpy arrays."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fedsieve.core.errors import CorruptDataError, MissingDataError, ParameterError
from fedsieve.core.traits import Traits
from fedsieve.data.dataset import Dataset, RemoteFile
from fedsieve.data.user_files import DEFAULTS, check_share, label_classes, resolved, split


@dataclass(frozen=True)
class NPZ:
    """Arrays in an ``.npz`` file of numpy: ``x`` [N, ...] and ``y`` [N], unchanged (images channels first).

    Classes are the distinct integers of y, sorted. Optional arrays: ``clients`` [N], the natural client of each row;
    ``x_test`` and ``y_test``, the test set; with ``tokens``, ``vocabulary``, the words by token id.

    Attributes:
        file: Path, relative to the current directory.
        test: Share of the rows in the test set, which is drawn with the experiment's seed if the file has none.
        tokens: Whether x holds token ids [N, length], 0 for padding at the end; otherwise x becomes float32.
    """

    file: str = ""
    test: float = 0.2
    tokens: bool = False
    traits: ClassVar[Traits] = Traits(summary="Your own numpy arrays: x and y in an .npz file")
    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    def __post_init__(self) -> None:
        check_share("npz", self.test)

    def files(self) -> tuple[RemoteFile, ...]:
        """None: the file is the user's."""
        return ()

    def verify(self, folder: Path) -> None:
        """Read the arrays; raises ParameterError, MissingDataError or CorruptDataError. ``folder`` is not used."""
        self._arrays()

    def fetch(self, folder: Path) -> None:
        """As :meth:`verify`: nothing can be fetched."""
        self._arrays()

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the arrays; ``generator`` draws the test set if there is none, ``folder`` is not used."""
        arrays = self._arrays()
        n, x, y = len(arrays["y"]), arrays["x"], arrays["y"]
        if "x_test" in arrays:
            x, y = np.concatenate([x, arrays["x_test"]]), np.concatenate([y, arrays["y_test"]])
            train, test = torch.arange(n), torch.arange(n, len(y))
        else:
            train, test = split("npz", n, self.test, generator)
        labels, n_classes = label_classes("npz", "y", y)
        inputs = torch.from_numpy(x.astype(np.int64 if self.tokens else np.float32))
        owners, vocabulary = None, tuple[str, ...]()
        if "clients" in arrays:
            owners = torch.from_numpy(np.unique(arrays["clients"][train.numpy()], return_inverse=True)[1])
        if self.tokens:
            vocabulary = tuple(map(str, arrays.get("vocabulary", range(int(x.max()) + 1))))
            if int(x.max()) >= len(vocabulary):
                raise CorruptDataError(
                    f"{resolved(self.file)}: x has token {int(x.max())}, its vocabulary {len(vocabulary)} words"
                )
        return Dataset(
            inputs[train], labels[train], inputs[test], labels[test], n_classes, owners, vocabulary=vocabulary
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        if not self.file:
            raise ParameterError("npz: file is not set; name one, e.g. --set dataset.file=arrays.npz")
        return read_arrays(resolved(self.file), self.tokens)


def read_arrays(path: Path, tokens: bool) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that :class:`NPZ` uses, checked.

    Args:
        path: The file.
        tokens: Whether x must hold token ids.

    Raises:
        MissingDataError: If the file cannot be read.
        CorruptDataError: If it is not an .npz file, or an array has a wrong type, shape or value; names the array.
    """
    try:
        with path.open("rb") as raw:  # numpy leaves a broken file open
            found = np.load(raw, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            wanted = ("x", "y", "x_test", "y_test", "clients", "vocabulary")
            with found:
                arrays = {name: found[name] for name in wanted if name in found.files}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptDataError(f"{path} is not a whole .npz file without pickles: {error}".replace("\n", " ")) from None
    except OSError as error:
        raise MissingDataError(f"{path} cannot be read: {error.strerror or error}") from None
    for x, y in (("x", "y"), ("x_test", "y_test")):
        if (x in arrays) != (y in arrays) or "x" not in arrays:
            raise CorruptDataError(
                f"{path} must have arrays x and y, and x_test and y_test or neither; it has {', '.join(arrays)}"
            )
        if x in arrays:
            _check_pair(path, arrays, x, y, tokens)
    for name, shape in (("clients", arrays["y"].shape), ("vocabulary", None)):
        if name in arrays and (arrays[name].ndim != 1 or (shape and arrays[name].shape != shape)):
            raise CorruptDataError(
                f"{path}: {name} has shape {list(arrays[name].shape)}, expected {list(shape or '?')}"
            )
    if "x_test" in arrays and arrays["x_test"].shape[1:] != arrays["x"].shape[1:]:
        raise CorruptDataError(
            f"{path}: x has samples of shape {list(arrays['x'].shape[1:])}, "
            f"x_test of shape {list(arrays['x_test'].shape[1:])}"
        )
    return arrays


def _check_pair(path: Path, arrays: Mapping[str, np.ndarray], x: str, y: str, tokens: bool) -> None:
    samples, labels = arrays[x], arrays[y]
    if labels.dtype.kind not in "iub" or labels.ndim != 1:
        raise CorruptDataError(f"{path}: {y} must be integers [N], got {labels.dtype} of shape {list(labels.shape)}")
    if samples.dtype.kind not in ("iu" if tokens else "iubf") or samples.ndim < 2 or (tokens and samples.ndim > 2):
        expected = "integers [N, length]" if tokens else "numbers [N, ...] of at least two dimensions"
        raise CorruptDataError(f"{path}: {x} must be {expected}, got {samples.dtype} of shape {list(samples.shape)}")
    if len(samples) != len(labels) or not samples.size:
        raise CorruptDataError(f"{path}: {x} has shape {list(samples.shape)}, {y} has {len(labels)} labels")
    with np.errstate(over="ignore"):
        if not (tokens or np.isfinite(samples.astype(np.float32)).all()):
            raise CorruptDataError(f"{path}: {x} has a value that is not finite in float32")
    if tokens and samples.min() < 0:
        raise CorruptDataError(f"{path}: {x} has token {samples.min()}, but token ids begin with 0")
