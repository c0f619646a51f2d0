"""Attacks around one other attack: they hand on all that it is, and can be put around each other."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.fresh_identity import FreshIdentity
from fedsieve.attacks.jitter import Jitter
from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.mixture import Mixture
from fedsieve.attacks.none import NoAttack
from fedsieve.attacks.on_off import OnOff
from fedsieve.attacks.scaling import Scaling
from fedsieve.attacks.sleeper import Sleeper
from fedsieve.config import registry
from fedsieve.config.experiment import Experiment
from fedsieve.config.yaml_files import parse_yaml
from fedsieve.core.attack import (
    Attack,
    AttackView,
    Backdoor,
    Crafted,
    DataAttack,
    Identities,
    PoisonView,
    Task,
    UpdateAttack,
    craft,
    poison,
)
from fedsieve.core.errors import FedSieveError
from fedsieve.federation.simulation import Simulation
from fedsieve.runs.packing import pack, unpack

SENT = 7.0


@dataclass(frozen=True)
class Counts:
    """Sends the number of rounds in which it was asked, from its memory; keeps the views."""

    seen: list[AttackView] = field(default_factory=list)

    def craft(self, view: AttackView, /) -> Crafted:
        self.seen.append(view)
        count = 1 + (view.memory or 0)
        return Crafted(torch.full_like(view.malicious_updates, count), count)


@dataclass(frozen=True)
class Full:
    """Everything that an attack can be."""

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        return x + view.member, y

    def craft(self, view: AttackView, /) -> Tensor:
        return torch.full_like(view.malicious_updates, SENT)

    def identity(self, member: int, round: int, /) -> int:
        return (round + 1) // 2 if member else 0


@dataclass(frozen=True)
class OneRow:
    """Sends one row in place of one per malicious client."""

    def craft(self, view: AttackView, /) -> Tensor:
        return view.malicious_updates[0]


# what is put around an attack so that it attacks in every round
WRAPPERS: dict[str, Callable[[Attack], Any]] = {
    "sleeper": lambda attack: Sleeper(attack, start=0),
    "on-off": lambda attack: OnOff(attack, period=3, duty=3),
    "jitter": lambda attack: Jitter(attack, share=1e-12),
}
every_wrapper = pytest.mark.parametrize("name", WRAPPERS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def played(attack: UpdateAttack, view: AttackView, rounds: int) -> list[Tensor]:
    """What is sent in each round, the memory handed on from one to the next."""
    sent = []
    for k in range(rounds):
        crafted = craft(attack, replace(view, round=k), "attack")
        sent.append(crafted.updates)
        view = replace(view, memory=crafted.memory)
    return sent


@every_wrapper
class TestHandsOn:
    def test_data(self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView], name: str) -> None:
        x, y = poison(WRAPPERS[name](Full()), *samples, make_poison_view(member=3))
        assert torch.equal(x, samples[0] + 3)
        assert torch.equal(y, samples[1])
        x, y = poison(WRAPPERS[name](Counts()), *samples, make_poison_view(member=3))
        assert torch.equal(x, samples[0])
        assert torch.equal(y, samples[1])

    def test_updates(self, make_view: Callable[..., AttackView], name: str) -> None:
        view = make_view(normal(3, 5), normal(4, 5, seed=1), round=8)
        torch.testing.assert_close(WRAPPERS[name](Full()).craft(view).updates, torch.full((3, 5), SENT))

    def test_those_of_an_attack_on_data_alone(self, make_view: Callable[..., AttackView], name: str) -> None:
        own = normal(3, 5)
        torch.testing.assert_close(WRAPPERS[name](LabelFlip()).craft(make_view(own)).updates, own)

    def test_the_view(self, make_view: Callable[..., AttackView], name: str) -> None:
        view = make_view(normal(3, 5), normal(4, 5, seed=1), round=8, memory=5)
        inner = Counts()
        WRAPPERS[name](inner).craft(view)
        assert inner.seen == [view]

    def test_the_memory(self, make_view: Callable[..., AttackView], name: str) -> None:
        sent = played(WRAPPERS[name](Counts()), make_view(normal(2, 3)), 4)
        for k, rows in enumerate(sent):
            torch.testing.assert_close(rows, torch.full((2, 3), k + 1.0))

    def test_samples_with_a_trigger(self, name: str) -> None:
        x, y, task = normal(6, 30), torch.arange(6) % 3, Task(3, Path())
        attack = WRAPPERS[name](Scaling(target=2))
        assert isinstance(attack, Backdoor)
        found = attack.triggered(x, y, task)
        assert found is not None
        assert torch.equal(found.x, Scaling(target=2).trigger(x))
        assert WRAPPERS[name](NoAttack()).triggered(x, y, task) is None

    def test_client_ids(self, name: str) -> None:
        attack = WRAPPERS[name](Full())
        assert isinstance(attack, Identities)
        assert [attack.identity(3, k) for k in range(5)] == [0, 1, 1, 2, 2]
        assert [attack.identity(0, k) for k in range(5)] == [0] * 5
        assert [WRAPPERS[name](NoAttack()).identity(3, k) for k in range(5)] == [0] * 5

    def test_an_answer_of_the_wrong_shape(self, make_view: Callable[..., AttackView], name: str) -> None:
        with pytest.raises(FedSieveError) as error:
            WRAPPERS[name](OneRow()).craft(make_view(normal(3, 5)))
        said = f"attack {name}: OneRow returned float32 of shape [5] instead of float32 of shape [3, 5]: one row per malicious client"  # noqa: E501
        assert str(error.value) == said

    def test_what_it_needs(self, name: str) -> None:
        for inner, said in (
            ("adaptive-skymask", "must know the defense; grant it with knows_defense=true"),
            ("copycat", "must see the benign updates; grant them with knowledge=full"),
        ):
            with pytest.raises(FedSieveError, match=f"attack {name} {said}"):
                Experiment.of({"attack": {"name": name, "attack": inner}, "knowledge": "partial"})

    @pytest.mark.parametrize("outer", WRAPPERS)
    def test_through_another(self, make_view: Callable[..., AttackView], name: str, outer: str) -> None:
        attack = WRAPPERS[outer](WRAPPERS[name](Counts()))
        for k, rows in enumerate(played(attack, make_view(normal(2, 3)), 3)):
            torch.testing.assert_close(rows, torch.full((2, 3), k + 1.0))
        assert isinstance(attack, DataAttack)
        assert attack.triggered(normal(6, 30), torch.arange(6) % 3, Task(3, Path())) is None


class TestNested:
    def test_sleeper_around_on_off_around_mixture(self, make_view: Callable[..., AttackView]) -> None:
        attack = Sleeper(OnOff(Mixture((Counts(), Full())), period=2, off="zeros"), start=3)
        view = make_view(normal(3, 4), members=torch.tensor([2, 1, 0]))
        clean = view.train(view.global_params, poisoned=False)
        assert not torch.equal(clean, view.malicious_updates)
        sent = played(attack, view, 8)
        for k, rows in enumerate(sent):
            if k < 3:
                assert torch.equal(rows, clean)
            elif k % 2 == 0:
                assert torch.equal(rows, torch.zeros(3, 4))
            else:  # rounds 3, 5 and 7
                assert rows[:, 0].tolist() == [k // 2, SENT, k // 2]

    def test_in_a_mixture(self, make_view: Callable[..., AttackView]) -> None:
        attack = Mixture((Sleeper(Counts(), start=2), OnOff(Counts(), period=2)))
        own = normal(2, 4)
        honest = [[own[0].tolist(), own[1].tolist()] for _ in range(5)]
        expected = [
            [[k - 1.0] * 4 if k >= 2 else honest[k][0], [(k + 1) / 2] * 4 if k % 2 else honest[k][1]] for k in range(5)
        ]
        assert [rows.tolist() for rows in played(attack, make_view(own), 5)] == expected

    def test_data_are_poisoned_through_all(
        self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]
    ) -> None:
        attack = Sleeper(OnOff(Jitter(Mixture((LabelFlip(), NoAttack())))))
        for member in (0, 1):
            _, y = poison(attack, *samples, make_poison_view(member=member))
            assert torch.equal(y, samples[1] if member else 3 - samples[1])

    def test_new_ids_begin_with_the_attack(self, play: Callable[..., Any]) -> None:
        fresh = {"name": "fresh-identity", "attack": "sign-flip", "every": 2}
        first = play("none")[0].bad_ids
        sent = play({"name": "sleeper", "attack": fresh, "start": 3}, rounds=6)
        assert [rows.bad_ids == first for rows in sent] == [True, True, True, True, False, False]
        assert sent[4].bad_ids == sent[5].bad_ids
        assert Sleeper(FreshIdentity(every=2), start=3).identity(0, 9) == 3


STEP = {"name": "on-off", "attack": {"name": "free-rider", "what": "last-step"}, "period": 2}
MIXTURE = {"name": "mixture", "attacks": [STEP, {"name": "jitter", "attack": "label-flip"}]}


def test_memory_through_all(play: Callable[..., Any]) -> None:
    sent = play({"name": "sleeper", "attack": MIXTURE, "start": 2}, rounds=6)
    honest = play("none")
    for k in range(2):
        assert torch.equal(sent[k].bad, honest[k].bad)
        assert torch.equal(sent[k].params, honest[k].params)
    # members 0 and 2 send zeros in round 3, their first, and what the model moved since then in round 5
    moved = sent[5].params - sent[3].params
    assert sorted(torch.equal(row, torch.zeros_like(row)) for row in sent[3].bad) == [False, True, True]
    assert sorted(torch.equal(row, moved) for row in sent[5].bad) == [False, True, True]


def test_memory_in_a_checkpoint() -> None:
    settings = {"attack": {"name": "sleeper", "attack": MIXTURE, "start": 1}, "clients": 8, "defense": "mean"}
    simulation = Simulation.of(Experiment.of({**settings, "malicious": 3, "rounds": 6}), Path(), torch.device("cpu"))
    states = [state for state, _ in simulation.rounds()]
    tensors: dict[str, Tensor] = {}
    kept = unpack(pack(states[3].adversary, "memory", tensors), tensors)
    resumed = [state for state, _ in simulation.rounds(replace(states[3], adversary=kept))]
    assert torch.equal(resumed[-1].server.params, states[-1].server.params)
    forgotten = [state for state, _ in simulation.rounds(replace(states[3], adversary=None))]
    assert not torch.equal(forgotten[-1].server.params, states[-1].server.params)


def test_examples_of_the_docs(make_view: Callable[..., AttackView]) -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    specs = [Experiment.of(parse_yaml(block)).attack for block in blocks]
    periodic, once, mixed = (registry.build("attacks", spec.name, spec.parameters) for spec in specs)
    view = make_view(normal(4, 5), n_clients=8)
    own = view.malicious_updates
    for k in range(60):
        at = replace(view, round=k)
        assert torch.equal(craft(periodic, at, "").updates, 2 * own if k % 20 == 19 else torch.zeros(4, 5))
        assert torch.equal(craft(once, at, "").updates, 2 * own if k else torch.zeros(4, 5))
        if k >= 30:
            sent = craft(mixed, at, "").updates
            assert torch.equal(sent[::2], -own[::2] if k % 2 else own[::2])
            assert 0 < (sent[1] - sent[3]).norm() < 0.11 * sent[1].norm()
