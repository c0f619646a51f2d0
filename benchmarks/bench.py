"""Speed as ratios to the obvious implementation, in one process: `make bench`.

Absolute times depend on the machine; each pair is run in turn, A B A B ..., and the median ratio is printed. `--smoke`
runs every pair once on small inputs and checks that both sides compute the same; it measures nothing.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedsieve.aggregators.geometric_median import geometric_median
from fedsieve.aggregators.median import median as median_of_columns
from fedsieve.aggregators.trimmed_mean import trimmed_mean
from fedsieve.core.linalg import pairwise_sq_distances
from fedsieve.core.seeding import stream
from fedsieve.detectors.skymask.masks import masked_mean, train_masks
from fedsieve.federation.clients import ClientData, LocalTraining, Trainer
from fedsieve.federation.root import RootClient
from fedsieve.models.cnn import CNN
from fedsieve.models.flat import FlatModel, build_module
from fedsieve.models.logistic_regression import LogisticRegression
from fedsieve.models.mlp import MLP

REPEATS = 5
Work = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one run of each on small inputs, compared")
    smoke = parser.parse_args().smoke
    found = pairs(n=12 if smoke else 100)
    if smoke:
        for name, ours, obvious in found:
            compare(name, ours(), obvious())
        print(f"{len(found)} benchmarks run, and both sides of each agree")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("what", "ours, s", "the obvious way, s", "times faster"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, ours, obvious in found:
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


def compare(name: str, ours: Any, obvious: Any) -> None:
    """Raise where the two sides of a benchmark differ by more than rounding."""
    if ours is not None and obvious is not None:
        torch.testing.assert_close(ours.double(), obvious.double(), rtol=1e-3, atol=1e-5, msg=lambda m: f"{name}: {m}")


def clock(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs(n: int) -> list[tuple[str, Work, Work]]:
    """Name, our way, the obvious way: each the same result, for n clients."""
    cnn, params, clients = federation(CNN, (1, 28, 28), n)
    trainer = Trainer(cnn, LocalTraining(), 0)
    updates = trainer.updates(params, clients, 0)
    root = RootClient(trainer, clients[0], 10, params, 0)
    f, sizes = n // 5, f"n={n}, d={cnn.layout.size:,}"

    def ours_masks() -> Tensor:
        settings = {"learning_rate": 1e7, "clip": 1e-7, "max_steps": 5, "tolerance": 0.0}
        return train_masks(updates, params, root, **settings)[0]

    def autograd_masks() -> Tensor:
        masks = torch.ones_like(updates, requires_grad=True)
        for _ in range(5):
            mean = params + masked_mean(updates, masks)
            outer = root.gradient(mean.detach())[1]
            (gradient,) = torch.autograd.grad(mean, masks, outer)
            with torch.no_grad():
                masks -= 1e7 * gradient.clamp(-1e-7, 1e-7)
        return masks.detach()

    def distances_by_cdist() -> Tensor:
        x = updates.double()
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()

    found: list[tuple[str, Work, Work]] = [
        (f"SkyMask, 5 mask steps, {sizes}: closed form / autograd", ours_masks, autograd_masks),
        (
            f"trimmed mean, {sizes}: ours / torch.sort",
            lambda: trimmed_mean(updates, f),
            lambda: updates.sort(dim=0).values[f : n - f].mean(dim=0),
        ),
        (
            f"median, {sizes}: ours / torch.sort",
            lambda: median_of_columns(updates),
            lambda: updates.sort(dim=0).values[(n - 1) // 2 : n // 2 + 1].mean(dim=0),
        ),
        (
            f"geometric median, {sizes}, 100 iterations: on inner products / on the updates",
            lambda: geometric_median(updates, tolerance=0.0),
            lambda: weiszfeld_on_updates(updates),
        ),
        (
            f"pairwise distances, {sizes}: ours / torch.cdist in float64",
            lambda: pairwise_sq_distances(updates),
            distances_by_cdist,
        ),
    ]
    for name, factory, shape in (
        ("logistic regression, 561 features", LogisticRegression, (561,)),
        ("mlp, 64 features", MLP, (1, 8, 8)),
        ("cnn, 28 x 28 pixels", CNN, (1, 28, 28)),
    ):
        model, start, data = federation(factory, shape, n)
        cohort = Trainer(model, LocalTraining(), 0)
        found.append(
            (
                f"local training, {n} clients, {name}: cohort / client by client",
                lambda cohort=cohort, start=start, data=data: cohort.updates(start, data, 0),
                lambda model=model, start=start, data=data: client_by_client(model, start, data),
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
    settings, updates = LocalTraining(), []
    for i, data in clients.items():
        module = model.module.train()
        tensors = model.layout.unflatten(params.clone())
        module.load_state_dict(tensors, strict=False)
        optimizer = torch.optim.SGD(module.parameters(), lr=settings.learning_rate)
        for batch in settings.batches(len(data.y), stream(0, "batches", 0, i)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(data.x[batch]), data.y[batch]).backward()
            optimizer.step()
        updates.append(model.layout.flatten({k: v.detach() for k, v in module.state_dict().items()}) - params)
    return torch.stack(updates)


if __name__ == "__main__":
    main()
