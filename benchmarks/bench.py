"""How fast, as ratios to the obvious way, in one process: `make bench`.

Absolute times depend on the machine; each pair is run in turn, A B A B ..., and the median ratio is printed.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from fedsieve.clients import ClientData, LocalTraining, RootClient, Trainer
from fedsieve.defenses.geometric_median import GeometricMedian
from fedsieve.defenses.median import median as median_of_columns
from fedsieve.defenses.skymask.joint import masked_mean, train_masks
from fedsieve.defenses.trimmed_mean import trimmed_mean
from fedsieve.models.cnn import CNN
from fedsieve.models.flat import FlatModel, build_module
from fedsieve.models.logistic_regression import LogisticRegression
from fedsieve.models.mlp import MLP
from fedsieve.ops import pairwise_sq_distances
from fedsieve.seeding import stream
from fedsieve.types import ServerView, Updates

REPEATS = 5


def main() -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("what", "ours, s", "the obvious way, s", "times faster"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, ours, obvious in pairs():
        ours(), obvious()  # warm up
        times = [(clock(ours), clock(obvious)) for _ in range(REPEATS)]
        table.add_row(
            name,
            f"{median(a for a, _ in times):.3f}",
            f"{median(b for _, b in times):.3f}",
            f"{median(b / a for a, b in times):.1f}",
        )
    Console().print(table)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {REPEATS}")


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs() -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Name, our way, the obvious way: each the same result."""
    cnn, cnn_params, cnn_clients = federation(CNN, (1, 28, 28), 100)
    updates = Trainer(cnn, LocalTraining(), 0).updates(cnn_params, cnn_clients, 0)
    root = RootClient(Trainer(cnn, LocalTraining(), 0), cnn_clients[0], cnn_params, 0)
    ids, view = torch.arange(100), ServerView(0, 20, stream(0, "defense"), cnn_params)
    settings = {"learning_rate": 1e7, "clip": 1e-7, "max_steps": 5, "tolerance": 0.0}

    def autograd_masks() -> None:
        masks = torch.ones_like(updates, requires_grad=True)
        for _ in range(5):
            mean = cnn_params + masked_mean(updates, masks)
            outer = root.gradient(mean.detach())[1]
            (gradient,) = torch.autograd.grad(mean, masks, outer)
            with torch.no_grad():
                masks -= 1e7 * gradient.clamp(-1e-7, 1e-7)

    found = [
        (
            "SkyMask, 5 mask steps, n=100, d=139,960: closed form / autograd",
            lambda: train_masks(updates, cnn_params, root, **settings),
            autograd_masks,
        ),
        (
            "trimmed mean, n=100, d=139,960: ours / torch.sort",
            lambda: trimmed_mean(updates, 20),
            lambda: updates.sort(dim=0).values[20:80].mean(dim=0),
        ),
        (
            "median, n=100, d=139,960: ours / torch.sort",
            lambda: median_of_columns(updates),
            lambda: updates.sort(dim=0).values[49:51].mean(dim=0),
        ),
        (
            "geometric median, n=100, d=139,960, 100 iterations: on inner products / on the updates",
            lambda: GeometricMedian(tolerance=0.0)(Updates(updates, ids, cnn.layout), view),
            lambda: weiszfeld_on_updates(updates),
        ),
        (
            "pairwise distances, n=100, d=139,960: ours / torch.cdist in float64",
            lambda: pairwise_sq_distances(updates),
            lambda: torch.cdist(updates.double(), updates.double(), compute_mode="donot_use_mm_for_euclid_dist"),
        ),
    ]
    for name, factory, shape in (
        ("logistic regression, 561 features", LogisticRegression, (561,)),
        ("mlp, 64 features", MLP, (1, 8, 8)),
        ("cnn, 28 x 28 pixels", CNN, (1, 28, 28)),
    ):
        model, params, clients = federation(factory, shape, 100)
        trainer = Trainer(model, LocalTraining(), 0)
        found.append(
            (
                f"local training, 100 clients, {name}: cohort / client by client",
                lambda trainer=trainer, params=params, clients=clients: trainer.updates(params, clients, 0),
                lambda model=model, params=params, clients=clients: client_by_client(model, params, clients),
            )
        )
    return found


def weiszfeld_on_updates(x):
    """The paper's iteration, each step a pass over the updates."""
    centre = x.mean(dim=0)
    for _ in range(100):
        pulls = 1 / (x - centre).norm(dim=1).clamp(min=1e-6)
        centre = pulls / pulls.sum() @ x
    return centre


def federation(factory, shape, n):
    module = build_module(factory, shape, 10, stream(0, "weights"), {})
    model, params = FlatModel.of(module)
    generator = stream(0, "data")
    clients = {
        i: ClientData(torch.randn(64, *shape, generator=generator), torch.randint(10, (64,), generator=generator))
        for i in range(n)
    }
    return model, params, clients


def client_by_client(model, params, clients):
    """A module and an optimizer per client, as tutorials have it."""
    settings = LocalTraining()
    for i, data in clients.items():
        module = model.module.train()
        tensors = model.layout.unflatten(params.clone())
        module.load_state_dict(tensors, strict=False)
        optimizer = torch.optim.SGD(module.parameters(), lr=settings.learning_rate)
        for batch in settings.batches(len(data.y), stream(0, "batches", 0, i)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(data.x[batch]), data.y[batch]).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
