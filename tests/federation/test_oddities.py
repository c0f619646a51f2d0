"""Root data with defects and odd honest clients: who has them, with which values, and who does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.core.errors import ParameterError
from fedsieve.core.seeding import stream
from fedsieve.data.digits import Digits
from fedsieve.federation.clients import ClientData
from fedsieve.federation.setup import Holdings, distribute
from fedsieve.federation.simulation import Simulation
from tests.federation.conftest import CPU, DIGITS, NOWHERE, simulation

MANY: dict[str, Any] = {**DIGITS, "clients": 12, "malicious": 4, "rounds": 1}
DEFECTS: dict[str, Any] = {"shift": 1, "wrong_labels": 0.15, "noise": 0.2}


def holdings(**more: Any) -> Holdings:
    """Without a model, which takes longer than all the rest."""
    e = Experiment.of({**MANY, **more})
    attack = registry.build("attacks", e.attack.name, e.attack.parameters)
    return distribute(e, Digits().load(NOWHERE, stream(e.seed, "split")), attack, NOWHERE, CPU)


def equal(a: ClientData, b: ClientData) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def rows(data: ClientData) -> list[tuple[float, ...]]:
    """Every sample with its class."""
    return [(*x, float(y)) for x, y in zip(data.x.flatten(1).tolist(), data.y.tolist(), strict=True)]


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(ParameterError) as error:
        simulation(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def text(folder: Path) -> dict[str, Any]:
    lines = "".join(f"{'good fine nice' if k % 2 else 'bad poor sad'} w{k % 7},{k % 2}\n" for k in range(200))
    (folder / "t.csv").write_text("words,y\n" + lines, encoding="utf-8")
    return {
        "dataset": {"name": str(folder / "t.csv"), "label": "y", "text": "words"},
        "model": {"name": "lstm", "hidden": 4, "embedding": 4},
        "clients": 5,
        "malicious": 0,
        "defense": "mean",
    }


class TestRootDefects:
    @pytest.mark.parametrize("shift", [1, 3, -1, -2])
    def test_shift(self, shift: int) -> None:
        before, after = holdings().root, holdings(root={"shift": shift}).root
        expected = torch.zeros_like(before.x)
        for column in range(8):
            if 0 <= column + shift < 8:
                expected[:, :, :, column + shift] = before.x[:, :, :, column]
        assert torch.equal(after.x, expected)
        assert not torch.equal(after.x, torch.roll(before.x, shift, -1))  # nothing comes in from the other side
        assert torch.equal(after.y, before.y)

    @pytest.mark.parametrize(
        ("size", "share", "wrong"), [(100, 0.15, 15), (20, 0.15, 3), (100, 0.001, 1), (3, 0.1, 1), (10, 0.99, 10)]
    )
    def test_wrong_labels(self, size: int, share: float, wrong: int) -> None:
        before = holdings(root={"size": size}).root
        after = holdings(root={"size": size, "wrong_labels": share}).root
        assert torch.equal(after.x, before.x)
        assert int((after.y != before.y).sum()) == wrong
        assert set(after.y.tolist()) <= set(range(10))

    def test_wrong_labels_are_any_other_class(self) -> None:
        before, after = (holdings(root={"size": 200, "wrong_labels": w}).root.y for w in (0, 0.9))
        steps = ((after - before) % 10)[after != before]
        assert set(steps.tolist()) == set(range(1, 10))

    def test_more_wrong_labels_include_fewer(self) -> None:
        none, few, many = (holdings(root={"wrong_labels": w}).root.y for w in (0, 0.1, 0.3))
        assert torch.equal(many[few != none], few[few != none])

    def test_noise(self) -> None:
        before, after = holdings(root={"size": 200}).root, holdings(root={"size": 200, "noise": 0.2}).root
        noise = after.x - before.x
        assert float(noise.std()) == pytest.approx(0.2, rel=0.03)  # the brightest pixel is 1
        assert float(noise.mean()) == pytest.approx(0, abs=0.01)
        assert torch.equal(after.y, before.y)

    def test_noise_is_a_share_of_the_largest_absolute_value(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).uniform(-50, -1, (400, 4)).astype(np.float32)
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(400) % 2)
        given = {"dataset": str(tmp_path / "a.npz"), "defense": "mean", "clients": 4, "malicious": 0}
        before, after = (simulation(given, root={"size": 100, "noise": noise}).holdings.root for noise in (0, 0.1))
        assert float((after.x - before.x).std()) == pytest.approx(5, rel=0.1)

    def test_defects_do_not_change_each_other(self) -> None:
        alone, together = holdings(root={"wrong_labels": 0.15}).root, holdings(root=DEFECTS).root
        assert torch.equal(alone.y, together.y)
        plain, noisy, shifted = (holdings(root=r).root.x for r in ({}, {"noise": 0.2}, {"shift": 1}))
        torch.testing.assert_close(together.x - shifted, noisy - plain)

    def test_by_seed(self) -> None:
        assert torch.equal(holdings(root=DEFECTS).root.x, holdings(root=DEFECTS).root.x)
        one, other = ((holdings(root={**DEFECTS, "size": 100}, seed=s)).root for s in (0, 1))
        assert not torch.equal(one.y, other.y)

    @pytest.mark.parametrize("attack", ["none", "label-flip"])
    def test_nobody_else_has_them(self, attack: str) -> None:
        plain, found = holdings(attack=attack), holdings(attack=attack, root=DEFECTS)
        assert not torch.equal(plain.root.x, found.root.x)
        assert plain.clients.keys() == found.clients.keys()
        assert all(equal(plain.clients[k], found.clients[k]) for k in plain.clients)
        assert all(equal(plain.clean[k], found.clean[k]) for k in plain.clean)
        assert equal(plain.attacker_root, found.attacker_root)
        assert equal(plain.test, found.test)
        assert plain.malicious == found.malicious

    def test_the_server_trains_on_them(self) -> None:
        sims = [simulation(MANY, defense="fltrust", root=root) for root in ({}, DEFECTS)]
        assert all(sim.server.root is not None for sim in sims)
        updates = [sim.server.root(sim.initial.server.params, 0).update() for sim in sims if sim.server.root]
        assert not torch.allclose(*updates)

    def test_reading(self) -> None:
        said = holdings(root=DEFECTS, defense="fltrust").reading
        assert said.endswith(
            "100 root samples, root images moved by 1 pixel, 15 of 100 root labels wrong, root noise 0.2"
        )
        assert holdings(root={"shift": -2}, defense="fltrust").reading.endswith("root images moved by -2 pixels")
        assert "root labels" not in holdings(defense="fltrust").reading

    def test_shift_of_what_is_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{k},{k % 2}\n" for k in range(400)), encoding="utf-8")
        given = {"dataset": {"name": str(tmp_path / "t.csv"), "label": "y"}, "defense": "mean", "malicious": 0}
        said = refused({**given, "root": {"shift": 1}})
        assert said == "root.shift moves images, but the samples of csv are none; root.noise works on all numbers"
        assert refused({**text(tmp_path), "root": {"shift": 1}}).startswith("root.shift moves images")

    @pytest.mark.parametrize("shift", [8, -8, 100])
    def test_shift_of_all_there_is(self, shift: int) -> None:
        said = refused({**MANY, "root": {"shift": shift}})
        assert said == f"root.shift={shift} leaves nothing of images that are 8 pixels wide"

    def test_noise_on_texts(self, tmp_path: Path) -> None:
        said = refused({**text(tmp_path), "root": {"noise": 0.1}})
        assert said == "root.noise has no meaning for texts: their tokens are no quantities"
        found = simulation(text(tmp_path), root={"wrong_labels": 0.5}).holdings
        assert f"{len(found.root.y) // 2} of {len(found.root.y)} root labels wrong" in found.reading

    def test_noise_that_overflows(self, tmp_path: Path) -> None:
        x = np.full((200, 4), 3e38, np.float32)
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(200) % 2)
        given = {"dataset": str(tmp_path / "a.npz"), "defense": "mean", "clients": 4, "malicious": 0}
        assert refused({**given, "root": {"noise": 5}}).startswith("root.noise makes values that are not finite")
        assert refused({**given, "odd": {"kind": "brightness"}}).startswith("odd.kind=brightness makes values that are")

    @pytest.mark.parametrize("root", [{"shift": 1}, {"wrong_labels": 0.1}, {"noise": 0.1}])
    def test_without_root_data(self, tmp_path: Path, root: dict[str, Any]) -> None:
        x = np.random.default_rng(0).random((203, 1, 6, 6)).astype(np.float32)
        np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1] * 100 + [2, 3, 4]))
        given = {"dataset": str(tmp_path / "a.npz"), "defense": "mean", "model": "mlp", "clients": 4, "malicious": 0}
        assert len(simulation(given).holdings.root.y) == 0
        ((name, value),) = root.items()
        said = refused({**given, "root": root})
        assert said == f"root.{name}={value} has no effect: these data give no root data by default; set root.size"


class TestOddClients:
    @pytest.mark.parametrize("kind", ["noise", "brightness", "one-class", "more-data"])
    @pytest.mark.parametrize("attack", ["label-flip", "scaling", "min-max"])
    def test_are_the_same_whatever_the_attack(self, kind: str, attack: str) -> None:
        odd = {"kind": kind, "clients": 3, **({"amount": 2} if kind == "more-data" else {})}
        quiet, plain = holdings(odd=odd), holdings()
        for malicious in (1, 9):
            attacked = holdings(odd=odd, attack=attack, malicious=malicious)
            assert attacked.odd == quiet.odd
            assert len(set(quiet.odd)) == 3
            assert not set(attacked.odd) & set(attacked.malicious)
            assert all(equal(attacked.clients[k], quiet.clients[k]) for k in quiet.odd)
            assert all(equal(attacked.clean[k], plain.clients[k]) for k in attacked.malicious)
        for k in range(12):
            assert equal(quiet.clients[k], plain.clients[k]) == (k not in quiet.odd)
        assert equal(quiet.root, plain.root)
        assert equal(quiet.test, plain.test)

    def test_none_by_default(self) -> None:
        assert holdings().odd == ()
        assert "odd" not in holdings().reading

    def test_more_of_them_include_fewer(self) -> None:
        one, many = (holdings(odd={"kind": "noise", "clients": n}) for n in (1, 12))
        assert many.odd == tuple(range(12))
        assert set(one.odd) <= set(many.odd)
        assert torch.equal(one.clients[one.odd[0]].x, many.clients[one.odd[0]].x)
        assert holdings(odd={"kind": "noise"}, seed=1).odd != holdings(odd={"kind": "noise"}).odd

    @pytest.mark.parametrize("amount", [0.3, 1.5])
    def test_noise(self, amount: float) -> None:
        plain, found = holdings(), holdings(odd={"kind": "noise", "amount": amount})
        noise = [found.clients[k].x - plain.clients[k].x for k in found.odd]
        assert [float(n.std()) for n in noise] == pytest.approx([amount] * 3, rel=0.05)
        assert not torch.equal(noise[0][:50], noise[1][:50])
        assert all(torch.equal(found.clients[k].y, plain.clients[k].y) for k in range(12))

    def test_brightness(self) -> None:
        plain, found = holdings(), holdings(odd={"kind": "brightness"})
        for k in found.odd:
            assert torch.equal(found.clients[k].x, plain.clients[k].x + 0.3)
            assert float(found.clients[k].x.max()) == pytest.approx(1.3)  # not clipped

    def test_one_class(self) -> None:
        plain, found = holdings(), holdings(odd={"kind": "one-class", "clients": 5})
        pool = {row for data in plain.clients.values() for row in rows(data)}
        labels = [set(found.clients[k].y.tolist()) for k in found.odd]
        assert all(len(label) == 1 for label in labels)
        assert len(set.union(*labels)) == 5
        for k in found.odd:
            assert len(found.clients[k].y) == len(plain.clients[k].y)
            assert set(rows(found.clients[k])) <= pool
            assert len(set(rows(found.clients[k]))) > 0.9 * len(plain.clients[k].y)  # drawn without replacement

    def test_one_class_for_more_clients_than_classes(self) -> None:
        found = holdings(odd={"kind": "one-class", "clients": 12})
        labels = [int(found.clients[k].y[0]) for k in found.odd]
        assert set(labels) == set(range(10))
        assert labels[10:] == labels[:2]

    def test_one_class_of_few_samples(self, tmp_path: Path) -> None:
        x = np.arange(400, dtype=np.float32)[:, None]
        np.savez(tmp_path / "a.npz", x=x, y=(np.arange(400) < 20).astype(int))
        given = {
            "dataset": str(tmp_path / "a.npz"),
            "defense": "mean",
            "clients": 4,
            "malicious": 0,
            "root": {"size": 0},
        }
        found = simulation(given, odd={"kind": "one-class", "clients": 2}).holdings
        rare = next(found.clients[k] for k in found.odd if int(found.clients[k].y[0]) == 1)
        assert len(rare.y) == 80
        counts = torch.unique(rare.x, return_counts=True)[1]
        assert len(counts) <= 20
        assert int(counts.max() - counts.min()) <= 1  # every sample equally often

    @pytest.mark.parametrize("attack", ["none", "label-flip"])
    def test_more_data(self, attack: str) -> None:
        plain, found = holdings(), holdings(odd={"kind": "more-data", "clients": 2, "amount": 2.5}, attack=attack)
        for k in found.odd:
            own, data = plain.clients[k], found.clients[k]
            n = len(own.y)
            assert len(data.y) == round(2.5 * n)
            assert torch.equal(data.x[:n], own.x)
            assert torch.equal(data.y[:n], own.y)
            others = {row for i, other in plain.clients.items() if i != k for row in rows(other)}
            extra = rows(ClientData(data.x[n:], data.y[n:]))
            assert set(extra) <= others  # with their own classes, not those of the poisoned
            assert len({*extra}) > 0.9 * len(extra)

    def test_a_little_more_data_is_one_sample_at_least(self) -> None:
        plain, found = holdings(), holdings(odd={"kind": "more-data", "clients": 1, "amount": 1.0001})
        (k,) = found.odd
        assert len(found.clients[k].y) == len(plain.clients[k].y) + 1

    def test_more_data_than_there_are(self) -> None:
        given = {**MANY, "odd": {"kind": "more-data", "amount": 50}}
        said = refused(given)
        assert said.startswith("odd.amount=50 gives client ")
        assert ", but all clients together have 1338; at most " in said
        most = float(said.split("at most ")[1].split()[0])
        found = simulation({**given, "odd": {"kind": "more-data", "amount": most}}).holdings
        assert max(len(found.clients[k].y) for k in found.odd) <= 1338
        refused({**given, "odd": {"kind": "more-data", "amount": most + 0.02}})

    @pytest.mark.parametrize("kind", ["noise", "brightness"])
    def test_texts(self, tmp_path: Path, kind: str) -> None:
        said = refused({**text(tmp_path), "odd": {"kind": kind}})
        assert said == f"odd.kind={kind} has no meaning for texts: their tokens are no quantities"

    @pytest.mark.parametrize("kind", ["one-class", "more-data"])
    def test_texts_of_one_class_or_more(self, tmp_path: Path, kind: str) -> None:
        odd = {"kind": kind, "clients": 1, **({"amount": 3} if kind == "more-data" else {})}
        found = simulation(text(tmp_path), odd=odd, root={"size": 2}).holdings
        (k,) = found.odd
        assert len(found.clients[k].y.unique()) == (1 if kind == "one-class" else 2)

    @pytest.mark.parametrize(
        ("odd", "said"),
        [
            ({"kind": "brightness"}, "3 odd clients (brightness 0.3): "),
            ({"kind": "more-data", "clients": 1, "amount": 4}, "1 odd client (more-data 4): "),
            ({"kind": "one-class", "clients": 2}, "2 odd clients (one-class): "),
        ],
        ids=lambda value: value if isinstance(value, str) else value["kind"],
    )
    def test_reading(self, odd: dict[str, Any], said: str) -> None:
        found = holdings(odd=odd, defense="fltrust")
        assert found.reading.endswith(f", {said}{', '.join(map(str, found.odd))}")

    def test_reading_of_many(self) -> None:
        found = holdings(clients=30, odd={"kind": "noise", "clients": 25})
        assert found.reading.endswith(f"(noise 0.3): {', '.join(map(str, found.odd[:20]))} and 5 more")

    def test_samples_that_nobody_has_are_not_counted_as_used(self) -> None:
        found = holdings(odd={"kind": "one-class"})
        used = int(found.reading.split(" of 1438 training")[0].split()[-1])
        held = {row for data in found.clients.values() for row in rows(data)}
        assert used - 100 == pytest.approx(len(held), abs=3)  # a few digits are there twice
        assert used < 1438
        assert "1438 of 1438 training images used" in holdings(odd={"kind": "more-data", "amount": 2}).reading

    def test_they_train_and_count_as_benign(self) -> None:
        sim: Simulation = simulation(MANY, odd={"kind": "more-data", "amount": 2}, attack="min-max", malicious=9)
        (_, record), *_ = sim.rounds()
        assert record.applied
        assert set(record.clients) - set(record.malicious) == set(sim.holdings.odd)

    def test_all_clients_but_the_malicious_may_be_odd(self) -> None:
        found = holdings(odd={"kind": "noise", "clients": 8}, attack="min-max")
        assert sorted([*found.odd, *found.malicious]) == list(range(12))
        said = refused({**MANY, "odd": {"kind": "noise", "clients": 9}, "attack": "min-max"})
        assert said == "odd.clients is 9, more than the 8 benign clients there are"


def test_defects_and_odd_clients_do_not_meet() -> None:
    """The two settings draw from streams of their own."""
    odd = {"kind": "noise"}
    both, one, other = holdings(odd=odd, root=DEFECTS), holdings(odd=odd), holdings(root=DEFECTS)
    assert all(equal(both.clients[k], one.clients[k]) for k in both.clients)
    assert equal(both.root, other.root)


def test_what_is_off_changes_nothing() -> None:
    off = {"root": {"shift": 0, "wrong_labels": 0, "noise": 0}, "odd": {"kind": "none"}}
    plain, found = holdings(), holdings(**off)
    tensors: list[tuple[Tensor, Tensor]] = [(plain.root.x, found.root.x), (plain.root.y, found.root.y)]
    tensors += [(plain.clients[k].x, found.clients[k].x) for k in plain.clients]
    assert all(torch.equal(*pair) for pair in tensors)
    assert plain.reading == found.reading
    assert Experiment.of({**MANY, **off}).key == Experiment.of(MANY).key
