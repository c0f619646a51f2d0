"""The best plain loop over clients that we know: what FedSieve's round is compared with on a CPU.

One local step of SGD from shared weights. Convolutions run in channels-last memory; nothing is loaded, since one step
changes no client's weights; gradients are written into the client's row of one matrix; the server's step is in place.
No client is screened, no defense is called, nothing is recorded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class PlainLoop:
    """A federation with a plain mean. Mutable: the module holds the global model.

    Args:
        module: The global model, without BatchNorm.
        clients: Samples [k, ...] and classes [k] of each client.
        test: Samples and classes to evaluate on.
        learning_rate: Of the clients' step.
        server_learning_rate: Share of the mean that is added.
        batch_size: Samples per client and step.
    """

    def __init__(
        self,
        module: nn.Module,
        clients: Sequence[tuple[Tensor, Tensor]],
        test: tuple[Tensor, Tensor],
        *,
        learning_rate: float = 0.5,
        server_learning_rate: float = 0.5,
        batch_size: int = 32,
    ) -> None:
        images = test[0].dim() == 4
        self.module = module.to(memory_format=torch.channels_last) if images else module
        self.parameters = list(self.module.parameters())
        self.clients = [(channels_last(x), y) for x, y in clients]
        self.test = channels_last(test[0]), test[1]
        self.learning_rate, self.server_learning_rate, self.batch_size = learning_rate, server_learning_rate, batch_size
        self.generator = torch.Generator().manual_seed(0)
        self.updates = torch.empty(len(clients), sum(p.numel() for p in self.parameters))

    def train(self) -> Tensor:
        """Every client's update, [n, d]."""
        for (x, y), row in zip(self.clients, self.updates, strict=True):
            batch = torch.randperm(len(y), generator=self.generator)[: self.batch_size]
            loss = cross_entropy(self.module(channels_last(x[batch])), y[batch])
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, self.parameters)], out=row)
        return self.updates.mul_(-self.learning_rate)

    def round(self) -> None:
        """Train, average, move the global model."""
        mean = self.train().mean(dim=0)
        with torch.no_grad():
            for parameter, part in zip(self.parameters, mean.split([p.numel() for p in self.parameters]), strict=True):
                parameter.add_(part.view_as(parameter), alpha=self.server_learning_rate)

    @torch.inference_mode()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy and mean cross-entropy on the test samples."""
        right, loss = torch.zeros((), dtype=torch.long), torch.zeros(())
        for x, y in zip(self.test[0].split(100), self.test[1].split(100), strict=True):
            logits = self.module(x)
            right += (logits.argmax(dim=1) == y).sum()
            loss += cross_entropy(logits, y, reduction="sum")
        return float(right) / len(self.test[1]), float(loss) / len(self.test[1])


def channels_last(x: Tensor) -> Tensor:
    """Images in channels-last memory, with the strides that say so even for one channel; others unchanged."""
    if x.dim() != 4:
        return x
    _, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, (h * w * c, 1, w * c, c))
