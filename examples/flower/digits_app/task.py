"""The model, the data and plain training: nothing here knows of defenses or attacks."""

from collections.abc import Iterable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

TEST, ROOT = 360, 100  # samples that the server keeps to itself: to evaluate, and to judge updates by


class Net(nn.Module):
    """A small network for images of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [k, 64] to logits [k, 10]."""
        return self.out(functional.relu(self.hidden(x)))


def initial_model() -> Net:
    """The model before the first round; the same in every process."""
    torch.manual_seed(0)
    return Net()


def _digits() -> tuple[Tensor, Tensor]:
    """All 1,797 images [k, 64], between 0 and 1, and their classes, always in the same random order."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    return torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]


def test_data() -> tuple[Tensor, Tensor]:
    """The server's test set."""
    x, y = _digits()
    return x[:TEST], y[:TEST]


def root_data() -> tuple[Tensor, Tensor]:
    """The server's root data: a hundred clean samples that no client has."""
    x, y = _digits()
    return x[TEST : TEST + ROOT], y[TEST : TEST + ROOT]


def partition(index: int, count: int) -> tuple[Tensor, Tensor]:
    """Client ``index``'s samples of ``count`` equal parts."""
    x, y = _digits()
    return x[TEST + ROOT :][index::count], y[TEST + ROOT :][index::count]


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, learning_rate: float, batch_size: int) -> float:
    """Plain SGD; returns the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    losses: list[float] = []
    for _ in range(epochs):
        losses.clear()
        for batch in _batches(len(y), batch_size):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def _batches(n: int, size: int) -> Iterable[Tensor]:
    return torch.randperm(n).split(size)


@torch.no_grad()
def test(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss and accuracy."""
    logits = model(x)
    return functional.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
