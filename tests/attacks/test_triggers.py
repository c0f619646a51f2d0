"""The trigger, the poisoned copies, and errors; the tests of the attacks cover the rest."""

import pytest
import torch

from fedsieve.attacks.scaling import Scaling
from fedsieve.attacks.triggers import (
    check_effect,
    check_pattern,
    check_target,
    check_visible,
    mark,
    with_poisoned_copies,
)
from fedsieve.core.errors import ParameterError


def test_mark_by_hand() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert mark(image, 2, -1.0, 99).tolist() == [[[[-1, -1, 2], [-1, -1, 5], [6, 7, 8]]]]
    assert mark(torch.ones(1, 5), 99, 7.0, 2).tolist() == [[0, 1, 0, 1, 0]]
    assert image.sum() == 36  # a copy was marked


@pytest.mark.parametrize(("share", "copies"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_copies(share: float, copies: int) -> None:
    x, y = torch.arange(4.0)[:, None], torch.tensor([0, 1, 2, 3])
    more, labels = with_poisoned_copies(x, y, share, 2, lambda z: -z - 1, torch.Generator().manual_seed(0))
    assert torch.equal(more[:4], x)
    assert labels.tolist() == [0, 1, 2, 3] + [2] * copies
    assert set(more[4:, 0].tolist()) <= {-1, -2, -3, -4}
    assert len(set(more[4:, 0].tolist())) == copies


def test_errors_have_the_name_of_the_attack() -> None:
    for share, size, stride, target, message in [
        (0.0, 5, 20, 0, "mine: share must be in (0, 1], got 0.0"),
        (0.5, 0, 20, -1, "mine: size and stride must be at least 1 and target at least 0, got 0, 20 and -1"),
    ]:
        with pytest.raises(ParameterError) as error:
            check_pattern("mine", share, size, stride, target)
        assert str(error.value) == message
    with pytest.raises(ParameterError) as error:
        check_target("mine", 4, 4)
    assert str(error.value) == "mine: target must be below the 4 classes, got 4"
    check_pattern("mine", 1.0, 1, 1, 0)
    check_target("mine", 3, 4)


def test_only_changed_parameters_without_effect_are_errors() -> None:
    images, features = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4)
    for samples in (images, features):
        check_effect("mine", Scaling(), samples)
    check_effect("mine", Scaling(size=2, value=0.5), images)
    check_effect("mine", Scaling(stride=2), features)
    with pytest.raises(ParameterError) as error:
        check_effect("mine", Scaling(size=2, stride=2), features)
    assert str(error.value) == "mine: size has no effect on samples of shape [4], got 2; set stride instead"


def test_a_trigger_must_change_something() -> None:
    for samples, remedy in ((torch.ones(3, 1, 4, 4), "set value or size"), (torch.zeros(3, 4), "set stride")):
        with pytest.raises(ParameterError) as error:
            check_visible("mine", samples, samples.clone())
        assert str(error.value) == f"mine: each of the 3 test samples looks as with the trigger; {remedy}"
        marked = samples.clone()
        marked[0] += 1
        check_visible("mine", samples, marked)
