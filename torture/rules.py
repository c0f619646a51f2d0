"""Every defense at the edges of its input: never NaN or infinity, one clear error, and a model that moves."""

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fedsieve
from fedsieve.config import registry
from fedsieve.core.defense import Aggregator, Bounded, Updates
from fedsieve.core.errors import BoundError
from fedsieve.data.digits import Digits
from fedsieve.federation.root import RootClient, RunnableModel
from fedsieve.federation.server import Server, ServerState
from torture.common import Context, Row, Tally, expect

N = 10
SCALES = (1e-45, 1e-38, 1e-30, 1e-10, 1.0, 1e6, 1e10, 1e19, 1e30, 3e38)
# Rules that average whatever they are sent, FLDetector in its first 20 rounds: an attacker decides.
UNDEFENDED = {"mean", "fedavg", "momentum", "norm-clipping", "fldetector"}


def rows(context: Context) -> Iterator[Row]:
    """Run the chapter."""
    warnings.simplefilter("error")
    torch.manual_seed(context.seed)
    root, names = _root(), list(registry.names("defenses"))
    edges = Tally("rules", "every rule by name on matrices at the edges", 60)
    bounds = Tally("rules", "f beyond the bound, ids twice, other shapes", 60)
    server = Tally("rules", "every rule in a server, one attacker for 15 rounds", 120)
    for name in names if not context.smoke else ["krum", "sieve"]:
        matrices = _matrices(root)
        for what, x in list(matrices.items())[:: context.some(1, 12)]:
            edges.case(f"{name}, {what}", partial(_aggregated, name, x, root))
        for what, wrong in _mistakes(root).items():
            bounds.case(f"{name}, {what}", partial(_refused, name, wrong, root))
        for what, row in list(_attackers(root).items())[:: context.some(1, 5)]:
            server.case(f"{name}, an attacker that sends {what}", partial(_fifteen_rounds, name, row, root))
    yield from (edges.row(), bounds.row(), server.row())


def _root() -> RootClient:
    """Root data and a model at the start: digits, of which each client has 60."""
    data = Digits().load(Path(), torch.Generator().manual_seed(0))
    x, y = data.x_train.flatten(1), data.y_train
    PARTS[:] = [(x[100 + 60 * k : 160 + 60 * k], y[100 + 60 * k : 160 + 60 * k]) for k in range(N)]
    return fedsieve.root_data(nn.Linear(64, 10), x[:100], y[:100], learning_rate=0.5, steps=2)


PARTS: list[tuple[Tensor, Tensor]] = []


def _defense(name: str) -> dict[str, Any]:
    """The rule's settings: SkyMask's fewest steps, since only its edges matter here."""
    return {"name": name, "mask_steps": 3} if name.startswith("skymask") else {"name": name}


def _honest(root: RootClient, n: int = N) -> Tensor:
    """Updates of honest clients."""
    return root.train(PARTS[:n])


def _matrices(root: RootClient) -> dict[str, Tensor]:
    """Updates [n, d] of all kinds."""
    good, found = _honest(root), {}
    for scale in SCALES:
        found[f"all times {scale:g}"] = good / good.abs().max() * scale
        found[f"one times {scale:g}"] = torch.cat([good[:1] / good[:1].abs().max() * scale, good[1:]])
        found[f"one coordinate {scale:g}"] = torch.cat(
            [good[:1].clone().index_fill_(1, torch.tensor([2]), scale), good[1:]]
        )
    for value in (torch.nan, torch.inf, -torch.inf):
        found[f"a row of {value}"] = torch.cat([torch.full_like(good[:1], value), good[1:]])
        found[f"one {value}"] = torch.cat([good[:1].clone().index_fill_(1, torch.tensor([2]), value), good[1:]])
        found[f"all {value}"] = torch.full_like(good, value)
        found[f"all but two {value}"] = torch.cat([torch.full_like(good[2:], value), good[:2]])
    found |= {f"{n} rows": good[:n] for n in (1, 2, 3)} | {"no row": good[:0]}
    found |= {"zeros": torch.zeros_like(good), "ones": torch.ones_like(good), "all alike": good[:1].repeat(N, 1)}
    found |= {"half opposite": torch.cat([good[:5], -good[:5]]), "mostly zeros": torch.cat([good[:1], 0 * good[1:]])}
    return found | {"-0": -torch.zeros_like(good), "subnormal": torch.full_like(good, 1e-42)}


def _finite(x: Tensor | None) -> bool:
    return x is None or bool(torch.isfinite(x).all())


def _aggregated(name: str, x: Tensor, root: RootClient) -> None:
    """Through fedsieve.aggregate, and fedsieve.detect where it is a detector; nothing not finite, nothing mutated."""
    before, params = x.clone(), root.params.clone()
    try:
        found = fedsieve.aggregate(x, _defense(name), n_malicious=_f(name, len(x), root), root=root)
        expect(_finite(found.update), "the aggregate is not finite")
        expect(_finite(found.weights) and bool((found.weights >= 0).all()), "weights are not shares")
        total = float(found.weights.sum())
        expect(total == 0 or abs(total - 1) < 1e-3, f"weights sum to {total}")
        bad = ~torch.isfinite(x).all(dim=1)
        expect(not found.weights[bad].any(), "an update that is not finite has a weight")
        if registry.stage(name) == "detector":
            seen = fedsieve.detect(x, name, root=root, **{k: v for k, v in _defense(name).items() if k != "name"})
            expect(seen.accepted is None or not seen.accepted[bad].any(), "an update that is not finite is accepted")
    finally:
        same = torch.equal(x.nan_to_num(), before.nan_to_num()) and torch.equal(root.params, params)
        expect(same, "an input was written to")


def _f(name: str, n: int, root: RootClient) -> int:
    """The number of malicious clients to assume: two, or as many as the rule's bound allows."""
    built = registry.build("defenses", name, registry.complete("defenses", name, {}))
    for f in (2, 1):
        try:
            if f <= n:
                if isinstance(built, Bounded):
                    built.check(n, f)
                return f
        except BoundError:
            pass
    return 0


def _mistakes(root: RootClient) -> dict[str, dict[str, Any]]:
    x = _honest(root)
    return {
        "f = n": {"updates": x, "n_malicious": N},
        "f > n": {"updates": x, "n_malicious": N + 1},
        "f = -1": {"updates": x, "n_malicious": -1},
        "f = 1.5": {"updates": x, "n_malicious": 1.5},
        "an id twice": {"updates": x, "client_ids": [0] * 2 + list(range(8))},
        "ids too few": {"updates": x, "client_ids": [1, 2]},
        "one coordinate too few": {"updates": x[:, 1:]},
        "a vector": {"updates": x[0]},
        "integers": {"updates": x.long()},
        "complex": {"updates": x.to(torch.complex64)},
        "text": {"updates": [["a"]]},
        "a state of another": {"updates": x, "state": {"nonsense": torch.ones(3)}},
    }


def _refused(name: str, wrong: dict[str, Any], root: RootClient) -> None:
    """Told, or for rules that need no bound or state, the usual result."""
    found = fedsieve.aggregate(defense=_defense(name), root=root, **wrong)
    expect(_finite(found.update), "the aggregate is not finite")
    lax = isinstance(wrong.get("state"), dict) or 0 <= wrong.get("n_malicious", -1) <= N
    expect(lax, "it was accepted")


def _attackers(root: RootClient) -> dict[str, Tensor]:
    """What one attacker sends, [d]."""
    d = len(root.params)
    one, good = torch.zeros(d), _honest(root, 1)[0]
    rows = {
        f"{v:g} everywhere": torch.full((d,), v) for v in (3e38, -3e38, 1e20, 1e5, 1e-38, 1e-45, torch.nan, torch.inf)
    }
    rows |= {
        f"{v:g} in one coordinate": one.clone().index_fill_(0, torch.tensor([1]), v) for v in (3e38, -1e30, 1e10, 1e-38)
    }
    return rows | {"zeros": one, "a million times its update": 1e6 * good, "the reverse": -good}


def _fifteen_rounds(name: str, row: Tensor, root: RootClient) -> None:
    """A server with nine honest clients and this attacker: a finite model, which goes where the honest ones go."""
    spec = registry.complete("defenses", name, {k: v for k, v in _defense(name).items() if k != "name"})
    defense: Aggregator = registry.build_defense(name, spec)
    network = RunnableModel(root.trainer.model, (64,))

    def seen(params: Tensor, number: int) -> RootClient:
        return RootClient(root.trainer, root.samples, root.n_classes, params, number)

    server = Server(
        defense, root.layout, assumed_malicious=_f(name, N, root), learning_rate=0.1, network=network,
        root=seen,
    )  # fmt: skip
    state, moved, honest = ServerState(root.params), 0, torch.zeros_like(root.params)
    for number in range(15):
        matrix = torch.cat([_honest(seen(state.params, number), N - 1), row[None]])
        honest += matrix[:-1].mean(dim=0)
        before = matrix.clone()
        ids = torch.arange(N)
        following, decision = server.step(state, Updates(matrix, ids, root.layout))
        expect(torch.equal(matrix.nan_to_num(), before.nan_to_num()), "the updates were written to")
        expect(bool(torch.isfinite(following.params).all()), f"round {number}: the model is not finite")
        expect(decision.applied or bool(decision.note), f"round {number}: not applied without a reason")
        moved += decision.applied
        state = following
    expect(moved > 7, f"the model moved in {moved} of 15 rounds, last: {decision.note}")
    if name not in UNDEFENDED:
        way = state.params - root.params
        cosine = float(torch.nn.functional.cosine_similarity(way.double(), honest.double(), dim=0))
        expect(cosine > 0, f"the model went the other way, cosine {cosine:.2f}")
