"""A random stream depends on its name alone."""

import itertools
import subprocess
import sys

import pytest
import torch

from fedsieve.core.seeding import stream


def draw(*name: object, **more: int) -> list[int]:
    return torch.randint(2**62, (4,), generator=stream(*name, **more)).tolist()  # type: ignore[arg-type]


def test_same_name_same_numbers() -> None:
    assert draw(3, "defense", 5, 7) == draw(3, "defense", round=5, client=7)
    assert draw(3, "defense") == draw(3, "defense", 0, 0)


def test_every_part_of_the_name_counts() -> None:
    names = list(itertools.product([0, 1, 12], ["defense", "batches", "1"], [0, 1, 12], [0, 1, 12]))
    drawn = {tuple(draw(*name)) for name in names}
    assert len(names) == 81
    assert len(drawn) == 81


@pytest.mark.parametrize(("one", "other"), [((1, "a", 2, 34), (1, "a", 23, 4)), ((11, "a"), (1, "1a"))])
def test_parts_do_not_run_together(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert draw(*one) != draw(*other)


def test_streams_are_fresh_and_apart() -> None:
    first, second = stream(0, "a"), stream(0, "a")
    torch.rand(10, generator=first)
    assert torch.rand((), generator=second) == torch.rand((), generator=stream(0, "a"))


def test_global_randomness_is_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=stream(0, "a"))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_look_independent() -> None:
    x = torch.stack([torch.randn(2000, generator=stream(0, "a", client=k)) for k in range(20)])
    correlations = torch.corrcoef(x) - torch.eye(20)
    assert correlations.abs().max() < 5 / 2000**0.5  # five standard errors, 190 pairs


def test_same_in_another_process() -> None:
    code = (
        "import torch; from fedsieve.core.seeding import stream;"
        "print(torch.rand(3, generator=stream(1, 'x', 2)).tolist())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(torch.rand(3, generator=stream(1, "x", 2)).tolist())
