"""The server's clean dataset, in the forms in which users of Flower have one."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsieve.core.defense import Network
from fedsieve.core.errors import ParameterError
from fedsieve.federation.matrix import root_data
from fedsieve.federation.root import RootClient, RunnableModel
from fedsieve.flower.arrays import Arrays

_MOST = 100_000  # samples: many times what any defense needs, and an endless loader ends here
_X, _Y = ("x", "img", "image", "pixel_values", "features", "data", "inputs"), ("y", "label", "labels", "target")
_FORMS = (
    "root is a pair (x, y), a map-style Dataset or a DataLoader of pairs (x, y) or of mappings with "
    f"one of {', '.join(_X)} and one of {', '.join(_Y)}; or a function that returns one of these"
)


def samples(root: Any) -> tuple[Tensor, Tensor]:
    """Samples [k, *input_shape] and classes [k] of a root dataset, whatever its form.

    Raises:
        ParameterError: If it has no such form, or is empty or endless.
    """
    root = root() if callable(root) and not isinstance(root, nn.Module) else root
    if isinstance(root, list | tuple) and len(root) == 2 and len(root[0]) == len(root[1]) != 2:
        return _tensor(root[0]), _tensor(root[1])
    if isinstance(root, list | tuple) and len(root) == 2 and all(isinstance(p, Tensor | np.ndarray) for p in root):
        return _tensor(root[0]), _tensor(root[1])
    if not isinstance(root, Iterable) and not hasattr(root, "__getitem__"):
        raise ParameterError(f"{_FORMS}; got a {type(root).__name__}")
    if isinstance(root, Sized) and len(root) > _MOST:
        raise ParameterError(f"root has {len(root)} entries, more than {_MOST}: take a part of them")
    batched = isinstance(root, torch.utils.data.DataLoader) and root.batch_size is not None
    # a Dataset of torch has a length and no end of its own
    items: Iterable[Any] = (root[k] for k in range(len(root))) if _indexed(root) else root
    pairs = [_pair(item) for item in islice(items, _MOST + 1)]
    if not pairs or len(pairs) > _MOST:
        raise ParameterError(f"root has {'no samples' if not pairs else f'more than {_MOST} entries'}: {_FORMS}")
    join = torch.cat if batched else torch.stack
    try:
        return join([x for x, _ in pairs]), join([y for _, y in pairs])
    except RuntimeError as error:
        raise ParameterError(f"root's samples have different shapes: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Rooted:
    """The server's samples, and how it trains on them.

    Attributes:
        module: The model that clients train.
        x: Samples, [k, *input_shape].
        y: Their classes, [k].
        local: How clients train, as :func:`fedsieve.root_data` takes it.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    local: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.at(None, None, 0, 0, [])

    def at(
        self, arrays: Arrays | None, params: Tensor | None, round: int, seed: int, sizes: Sequence[float]
    ) -> RootClient:
        """The root of a round.

        Args:
            arrays: What was sent; None for the module as it is.
            params: The global model, [d]; None for that of the module.
            round: Counts from 0.
            seed: Decides the batches.
            sizes: Numbers of samples that clients report: where they train in epochs, root models take as many steps
                as the client of the median number.

        Raises:
            ParameterError: If the samples, their classes, the module or the settings don't fit each other.
        """
        found = root_data(self.module, self.x, self.y, round=round, seed=seed, **self.local)
        trainer = found.trainer
        if arrays is not None and arrays.network is not None:
            trainer = replace(trainer, model=arrays.network)
        if sizes:
            trainer = replace(trainer, settings=trainer.settings.as_many_steps([int(max(1, s)) for s in sizes]))
        return replace(found, trainer=trainer, params=found.params if params is None else params)

    def network(self, arrays: Arrays | None) -> Network | None:
        """The architecture."""
        if arrays is None or arrays.network is None:
            return None
        return RunnableModel(arrays.network, tuple(self.x.shape[1:]))


def _indexed(root: Any) -> bool:
    return hasattr(root, "__getitem__") and isinstance(root, Sized) and not isinstance(root, Mapping)


def _pair(item: Any) -> tuple[Tensor, Tensor]:
    if isinstance(item, Mapping):
        names = [next((name for name in known if name in item), None) for known in (_X, _Y)]
        if None in names:
            raise ParameterError(f"a sample of root has {', '.join(map(str, item))}: {_FORMS}")
        item = [item[name] for name in names]
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise ParameterError(f"a sample of root is a {type(item).__name__}: {_FORMS}")
    return _tensor(item[0]), _tensor(item[1])


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"root's samples are no numbers: {str(error).splitlines()[0]}") from error
