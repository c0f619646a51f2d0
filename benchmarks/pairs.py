"""Ours against the obvious implementation of the same, each pair in turn; both sides compute the same."""

from typing import Any

import torch
from harness import Figure, Measured, Work, in_turn, seconds
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
from fedsieve.models.flat import FlatModel
from fedsieve.models.logistic_regression import LogisticRegression
from fedsieve.models.mlp import MLP


def measure(small: bool) -> Measured:
    """Times of all pairs; with ``small``, few clients, and both sides of each pair are compared."""
    figures = []
    for name, ours, obvious in pairs(n=12 if small else 100):
        if small:
            compare(name, ours(), obvious())
        times = in_turn({"ours": ours, "obvious": obvious}, seconds=0.0 if small else 6.0, most=5)
        shown = f"{seconds(times.of('ours'))} against {seconds(times.of('obvious'))}"
        figures.append(Figure(name, shown, ratio=f"{times.ratio('obvious', 'ours'):.1f} times faster"))
    return Measured(figures)


def compare(name: str, ours: Any, obvious: Any) -> None:
    """Raise where the two sides of a pair differ by more than rounding."""
    torch.testing.assert_close(ours.double(), obvious.double(), rtol=1e-3, atol=1e-5, msg=lambda m: f"{name}: {m}")


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
    """A model, its initial weights, and the data of n clients with 64 samples each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = factory(shape, 10)
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
