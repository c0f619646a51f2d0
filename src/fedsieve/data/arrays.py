"""Arrays of the user's: a file of numpy arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedsieve.core.bounded import read_npz
from fedsieve.core.errors import CorruptDataError, ParameterError
from fedsieve.core.traits import Traits
from fedsieve.data.dataset import Dataset, RemoteFile
from fedsieve.data.user_files import DEFAULTS, check_number_of_classes, check_share, numbered, parted, resolved, split

MAX_TOKEN = 10_000_000  # an embedding of more words fills the memory
_NAMES = ("x", "y", "x_test", "y_test", "clients", "clients_test", "vocabulary")


@dataclass(frozen=True)
class NPZ:
    """Arrays in an ``.npz`` file of numpy: ``x`` [N, ...] and ``y`` [N], unchanged (images channels first).

    Classes are the distinct integers of y, sorted. Optional arrays: ``clients`` [N], the natural client of each row,
    integers or text; ``x_test`` and ``y_test``, the test set, and ``clients_test``, the natural client of each of its
    rows; with ``tokens``, ``vocabulary``, the words by token id.

    With ``clients``, an experiment has by default the partition ``natural`` and a client for each of their values.

    Attributes:
        file: Path, relative to the current directory.
        test: Share of the rows in the test set, which is drawn with the experiment's seed if the file has none; every
            natural client keeps a row to train on and has its share of the test set.
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

    def implied_defaults(self) -> Mapping[str, Any]:
        """See :class:`fedsieve.data.dataset.Loader`: with the array ``clients``, one client for each of its values."""
        if not self.file:
            return {}
        path = resolved(self.file)
        found = read_npz(path, ("clients",), width=1)
        if not found:
            return {}
        return {"partition": "natural", "clients": len(set(_clients(path, found["clients"])))}

    def load(self, folder: Path, generator: torch.Generator) -> Dataset:
        """Read the arrays; ``generator`` draws the test set if there is none, ``folder`` is not used."""
        arrays = self._arrays()
        n, x, labels = len(arrays["y"]), arrays["x"], arrays["y"].tolist()
        path, owners, owner_names = resolved(self.file), None, tuple[str, ...]()
        vocabulary = tuple[str, ...]()
        if "clients" in arrays:
            owners, owner_names = _owners(path, arrays)
        if "x_test" in arrays:
            if self.test != NPZ.test:
                raise ParameterError(f"npz: test has no effect: {path} has a test set, x_test and y_test")
            x, labels = np.concatenate([x, arrays["x_test"]]), labels + arrays["y_test"].tolist()
            train, test = torch.arange(n), torch.arange(n, len(labels))
        else:
            train, test = split("npz", n, self.test, generator, owners, numbered(labels)[0])
        y, class_names = numbered(labels)
        check_number_of_classes("npz", "y", len(class_names))
        inputs = torch.from_numpy(x.astype(np.int64 if self.tokens else np.float32))
        if self.tokens:
            vocabulary = tuple(map(str, arrays.get("vocabulary", range(int(x.max()) + 1))))
            if int(x.max()) >= len(vocabulary):
                raise CorruptDataError(f"{path}: x has token {int(x.max())}, its vocabulary {len(vocabulary)} words")
        return parted(
            inputs,
            y,
            (train, test),
            class_names,
            owners,
            vocabulary=vocabulary,
            owned_by="" if owners is None else "the array clients",
            owner_names=owner_names,
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
    arrays = read_npz(path, _NAMES, width=8 if tokens else 4)
    for x, y in (("x", "y"), ("x_test", "y_test")):
        if (x in arrays) != (y in arrays) or "x" not in arrays:
            raise CorruptDataError(
                f"{path} must have arrays x and y, and x_test and y_test or neither; "
                f"it has {', '.join(arrays) or 'none of these'}"
            )
        if x in arrays:
            _check_pair(path, arrays, x, y, tokens)
    if "clients_test" in arrays and not {"clients", "y_test"} <= arrays.keys():
        raise CorruptDataError(f"{path} has an array clients_test, but not both clients and y_test")
    of = (("clients", arrays["y"].shape), ("clients_test", arrays.get("y_test", arrays["y"]).shape))
    for name, shape in (*of, ("vocabulary", None)):
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
    if not tokens:
        with np.errstate(over="ignore"):
            finite = np.isfinite(samples.astype(np.float32))
        if not finite.all():
            place = [int(k) for k in np.unravel_index(finite.argmin(), finite.shape)]
            raise CorruptDataError(
                f"{path}: {x} has a value that is not finite in float32, {samples[*place]} at {place}"
            )
    if tokens and samples.min() < 0:
        raise CorruptDataError(f"{path}: {x} has token {samples.min()}, but token ids begin with 0")
    if tokens and samples.max() > MAX_TOKEN:
        raise CorruptDataError(f"{path}: {x} has token {samples.max()}, but token ids end with {MAX_TOKEN}")


def _owners(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[Int[Tensor, " N"], tuple[str, ...]]:
    """The natural client of each row, test rows last if theirs are known, and the clients' names."""
    values = _clients(path, arrays["clients"])
    tested = _clients(path, arrays["clients_test"]) if "clients_test" in arrays else []
    if new := sorted(map(str, set(tested) - set(values))):
        raise CorruptDataError(f"{path}: clients_test has {new[0]!r}, which is not in clients")
    return numbered([*values, *tested])


def _clients(path: Path, values: np.ndarray) -> list[Any]:
    """The natural client of each row; raises CorruptDataError unless they are integers or text, none of it empty."""
    if values.dtype.kind not in "iubUS" or values.ndim != 1:
        kind = f"{values.dtype} of shape {list(values.shape)}"
        raise CorruptDataError(f"{path}: clients must be integers or text [N], got {kind}")
    found: list[Any] = values.tolist()
    if values.dtype.kind in "US" and not all(found):
        raise CorruptDataError(f"{path}: clients has an empty text in row {[not f for f in found].index(True)}")
    return found
