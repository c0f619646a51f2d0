"""What a GPU repeats without Python. On a CPU nothing is recorded."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.models import replay
from fedsieve.models.forward import random_states, seeded, unseeded
from fedsieve.models.replay import Replays

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_cpu_calls_the_work_each_time() -> None:
    replays, calls = Replays(), []

    def work(x: Tensor) -> tuple[Tensor]:
        calls.append(x)
        return (x + 1,)

    for k in range(5):
        (found,) = replays("add", work, torch.tensor([float(k)]))
        assert found.tolist() == [k + 1]
    assert len(calls) == 5


def test_unseeded() -> None:
    before = random_states(CPU)
    with unseeded(), seeded(3, CPU):
        assert random_states(CPU) == before
    with seeded(3, CPU):
        assert random_states(CPU) != before
    assert random_states(CPU) == before


@gpu
class TestRecorded:
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def test_same_results_without_calls(self) -> None:
        replays, calls = Replays(), []

        def work(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(1)
            return x @ y, x.sum(dim=0)

        for _ in range(8):
            x, y = torch.randn(40, 30, device=self.device()), torch.randn(30, 20, device=self.device())
            product, total = replays("product", work, x, y)
            assert torch.equal(product, x @ y)
            assert torch.equal(total, x.sum(dim=0))
        assert len(calls) == 2 + 2  # two calls, then one to warm up and one that is recorded

    @pytest.mark.parametrize("why", ["waits", "draws", "fails at once"])
    def test_what_cannot_be_recorded_is_called(self, why: str) -> None:
        replays = Replays()

        def work(x: Tensor) -> tuple[Tensor]:
            if why == "waits":
                return (x * float(x.sum()),)
            if why == "draws":
                return (x + torch.rand_like(x),)
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("not now")
            return (x + 1,)

        results: list[Any] = []
        for _ in range(6):
            results += replays(why, work, torch.ones(3, device=self.device()))
        if why == "draws":
            assert len({tuple(r.tolist()) for r in results}) == 6
        else:
            assert all(r.tolist() == [2 + (why == "waits")] * 3 for r in results)
        assert torch.ones(3, device=self.device()).sum() == 3  # the device still works

    def test_the_last_graphs_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replay, "_MOST", 2)
        replays = Replays()
        for _ in range(4):
            for n in (1, 2, 3):
                (found,) = replays("double", lambda x: (2 * x,), torch.ones(n, device=self.device()))
                assert found.tolist() == [2] * n
