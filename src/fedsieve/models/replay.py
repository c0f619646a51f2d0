"""Functions of tensors that a GPU repeats without Python: recorded as a CUDA graph, replayed in one launch.

A model of this field's size takes a GPU less time than Python takes to ask for its hundred operations. What a round
does several times with tensors of the same shapes is therefore recorded. A replay runs the recorded operations, so its
results are those of the call that was recorded.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsieve.models.forward import generators, random_states, unseeded

Work = Callable[..., tuple[Tensor, ...]]

_RECORDED_AT = 3  # the call with the same shapes in which the work is recorded; what occurs twice only isn't
_MOST = 24  # graphs that are kept; the one that was not used for longest goes first
_SEEN = 1000  # keys that are counted

# Whether anything is recorded; benchmarks and tests compare both ways.
enabled = True


@dataclass
class _Graph:
    """A recorded call: replaying it reads ``inputs`` and writes ``outputs``."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


class Replays:
    """The recorded calls of one model. On a CPU, nothing is recorded."""

    def __init__(self) -> None:
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._never: set[Hashable] = set()
        self._pool: Any = None

    def __call__(self, name: Hashable, work: Work, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results of ``work`` for ``inputs``.

        Args:
            name: Of the work; the same name means the same computation for inputs of the same shapes.
            work: Depends on the inputs' values alone, and on constants that are never replaced. Recorded in the third
                call with the same name and shapes, unless it draws random numbers or waits for the device.
            *inputs: Tensors on one device.
        """
        device = inputs[0].device
        if device.type != "cuda" or not enabled:
            return work(*inputs)
        key = (name, device, *((tuple(t.shape), t.dtype) for t in inputs))
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            return graph(inputs)
        calls = self._calls.pop(key, 0) + 1
        self._calls[key] = calls
        if len(self._calls) > _SEEN:
            self._calls.popitem(last=False)
        if calls < _RECORDED_AT or key in self._never:
            return work(*inputs)
        recorded = self._recorded(work, inputs)
        if recorded is None:
            self._never.add(key)
            return work(*inputs)
        while len(self._graphs) >= _MOST:
            self._graphs.popitem(last=False)
        self._graphs[key] = recorded
        return recorded(inputs)

    def _recorded(self, work: Work, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """The graph of a call; None if it can't be one."""
        device = inputs[0].device
        own = tuple(t.detach().clone(memory_format=torch.contiguous_format) for t in inputs)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        before, asked = random_states(device), torch.cuda.get_sync_debug_mode()
        try:
            with unseeded():
                with warnings.catch_warnings(action="ignore"):  # it is a prototype, says torch
                    torch.cuda.set_sync_debug_mode("error")  # what waits for the device can't be recorded
                with torch.cuda.stream(side):  # libraries set themselves up in the first call on a stream
                    work(*own)
                torch.cuda.current_stream(device).wait_stream(side)
                torch.cuda.set_sync_debug_mode(asked)
                if random_states(device) != before:
                    return None  # a replay would not draw again
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, stream=side):
                    outputs = tuple(t.detach() for t in work(*own))
        except Exception:  # a wait, or no memory: the call itself says what is wrong, if anything is
            torch.cuda.set_sync_debug_mode(asked)
            torch.cuda.synchronize(device)
            for generator in generators(device):  # one that was recorded from could not draw any more
                if generator.device.type == "cuda":
                    generator.graphsafe_set_state(generator.clone_state())
            return None
        self._pool = graph.pool()
        return _Graph(graph, own, outputs)
