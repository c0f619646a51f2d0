"""Memory that is used again: never while anybody could still read what is there."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedsieve.core.memory import Memory

LIKE = torch.ones(5)


def test_the_same_again_once_nobody_refers_to_it() -> None:
    memory = Memory()
    first = memory.blank(4, LIKE)
    place = first.data_ptr()
    assert first.shape == (4, 5)
    assert first.fill_(7).dtype == torch.float32
    del first
    assert memory.blank(4, LIKE).data_ptr() == place
    assert memory.blank(2, LIKE).data_ptr() == place  # a smaller matrix, too


@pytest.mark.parametrize("kept", ["row", "columns", "numpy", "alias"])
def test_not_while_there_is_a_view(kept: str) -> None:
    memory = Memory()
    first = memory.blank(4, LIKE).fill_(7)
    views = {"row": first[1], "columns": first[:, 2:], "numpy": first.numpy(), "alias": first.detach()}
    view = views[kept]
    del views, first
    memory.blank(4, LIKE).fill_(0)
    assert (torch.as_tensor(view) == 7).all()


@pytest.mark.parametrize(
    "like", [torch.ones(6), torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.bfloat16), torch.ones(0)]
)
def test_other_sizes_and_types(like: torch.Tensor) -> None:
    memory = Memory()
    memory.blank(4, LIKE)
    found = memory.blank(4, like)
    assert (found.shape, found.dtype) == ((4, len(like)), like.dtype)
    assert (found.fill_(2) == 2).all()
    assert memory.blank(0, like).shape == (0, len(like))


def test_each_thread_has_its_own() -> None:
    memory = Memory()

    def fill(value: int) -> bool:
        found = memory.blank(50, LIKE).fill_(value)
        return all(bool((found == value).all()) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(2000)))
