"""Memory that is used again: never while anybody could still read what is there."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedsieve.core.memory import Memory, blank

LIKE = torch.ones(5)


def test_the_same_again_once_nobody_refers_to_it() -> None:
    memory = Memory()
    first = memory.blank((4, 5), LIKE)
    place = first.data_ptr()
    assert first.shape == (4, 5)
    assert first.fill_(7).dtype == torch.float32
    del first
    assert memory.blank((4, 5), LIKE).data_ptr() == place
    assert memory.blank((2, 5), LIKE).data_ptr() == place  # a smaller matrix, too


@pytest.mark.parametrize("kept", ["row", "columns", "numpy", "alias"])
def test_not_while_there_is_a_view(kept: str) -> None:
    memory = Memory()
    first = memory.blank((4, 5), LIKE).fill_(7)
    views = {"row": first[1], "columns": first[:, 2:], "numpy": first.numpy(), "alias": first.detach()}
    view = views[kept]
    del views, first
    memory.blank((4, 5), LIKE).fill_(0)
    assert (torch.as_tensor(view) == 7).all()


@pytest.mark.parametrize(
    "like", [torch.ones(6), torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.bfloat16), torch.ones(0)]
)
def test_other_sizes_and_types(like: torch.Tensor) -> None:
    memory = Memory()
    memory.blank((4, 5), LIKE)
    found = memory.blank((4, len(like)), like)
    assert (found.shape, found.dtype) == ((4, len(like)), like.dtype)
    assert (found.fill_(2) == 2).all()
    assert memory.blank((0, len(like)), like).shape == (0, len(like))


def test_each_thread_has_its_own() -> None:
    memory = Memory()

    def fill(value: int) -> bool:
        found = memory.blank((50, 5), LIKE).fill_(value)
        return all(bool((found == value).all()) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(2000)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_blank_memory(dtype: torch.dtype, size: int) -> None:
    found = blank((size,), torch.ones(2, dtype=dtype))
    assert (found.shape, found.dtype) == ((size,), dtype)
    assert found.fill_(3).tolist() == [3] * size
