"""Mixtures: which client runs which attack, what each attack sees, and the order of the rows."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsieve.attacks.label_flip import LabelFlip
from fedsieve.attacks.min_max import MinMax
from fedsieve.attacks.mixture import Mixture
from fedsieve.attacks.none import NoAttack
from fedsieve.attacks.scaling import Scaling
from fedsieve.config import registry
from fedsieve.core.attack import AttackView, Backdoor, PoisonView, Task, poison
from fedsieve.core.errors import FedSieveError, ParameterError


@dataclass(frozen=True)
class Watcher:
    """Sends ``value`` in every coordinate, and keeps the views it gets."""

    value: float = 0.0
    seen: list[Any] = field(default_factory=list)

    def poison(self, x: Tensor, y: Tensor, view: PoisonView, /) -> tuple[Tensor, Tensor]:
        self.seen.append(view)
        return x + self.value, y

    def craft(self, view: AttackView, /) -> Tensor:
        self.seen.append(view)
        return torch.full_like(view.malicious_updates, self.value)


@dataclass(frozen=True)
class OneRow(Watcher):
    """Sends one row in place of one per malicious client."""

    def craft(self, view: AttackView, /) -> Tensor:
        return view.malicious_updates[0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPoison:
    @pytest.mark.parametrize("member", range(7))
    def test_by_turns(
        self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView], member: int
    ) -> None:
        parts = tuple(Watcher(value) for value in (1.0, 2.0, 3.0))
        view = make_poison_view(member=member)
        x, _ = Mixture(parts).poison(*samples, view)
        assert torch.equal(x, samples[0] + (member % 3 + 1))
        seen = replace(view, member=member // 3)
        assert [part.seen for part in parts] == [[seen] if k == member % 3 else [] for k in range(3)]

    def test_by_default(self, samples: tuple[Tensor, Tensor], make_poison_view: Callable[..., PoisonView]) -> None:
        attack = registry.build("attacks", "mixture", {})
        assert attack == Mixture() == Mixture((MinMax(), LabelFlip(), Scaling()))
        lengths = []
        for member in range(4):
            x, y = poison(Mixture(), *samples, make_poison_view(member=member))
            lengths.append(len(x))
            assert torch.equal(y[:20], 3 - samples[1] if member == 1 else samples[1])
        assert lengths == [20, 20, 30, 20]

    def test_clients_of_each_part_are_numbered_from_0(
        self,
        samples: tuple[Tensor, Tensor],
        make_poison_view: Callable[..., PoisonView],
        make_view: Callable[..., AttackView],
    ) -> None:
        """So that all parts of a mixture in a mixture have clients, and all pieces of a trigger."""
        parts = tuple(Watcher(value) for value in (1.0, 2.0, 3.0))
        nested = Mixture((Mixture(parts[:2]), parts[2]))
        for member in range(8):
            nested.poison(*samples, make_poison_view(member=member))
        assert [[view.member for view in part.seen] for part in parts] == [[0, 1], [0, 1], [0, 1, 2, 3]]
        own = normal(8, 4)
        sent = nested.craft(make_view(own, members=torch.arange(8))).updates
        assert sent[:, 0].tolist() == [1, 3, 2, 3, 1, 3, 2, 3]
        assert [part.seen[-1].members.tolist() for part in parts] == [[0, 1], [0, 1], [0, 1, 2, 3]]


class TestCraft:
    def test_rows_go_back_to_their_places(self, make_view: Callable[..., AttackView]) -> None:
        members = torch.tensor([4, 0, 5, 3, 1])
        parts = (Watcher(10.0), NoAttack(), Watcher(30.0))
        own = normal(5, 4)
        sent = Mixture(parts).craft(make_view(own, members=members)).updates
        expected = [own[0].tolist(), [10.0] * 4, [30.0] * 4, [10.0] * 4, own[4].tolist()]
        assert sent.tolist() == expected

    def test_a_part_sees_its_own_clients_only(self, make_view: Callable[..., AttackView]) -> None:
        parts = (Watcher(), Watcher())
        own, others, members = normal(5, 4), normal(6, 4, seed=1), torch.tensor([4, 0, 5, 3, 1])
        view = make_view(own, others, members=members)
        Mixture(parts).craft(view)
        for part, rows in zip(parts, ([0, 1], [2, 3, 4]), strict=True):
            (seen,) = part.seen
            assert torch.equal(seen.malicious_updates, own[rows])
            assert torch.equal(seen.members, members[rows] // 2)
            assert torch.equal(seen.known_updates, torch.cat([own[rows], others]))
            assert seen.n_clients == 11
            for name in ("round", "benign_updates", "global_params", "generator", "layout", "root", "simulate_defense"):
                assert getattr(seen, name) is getattr(view, name)
            start = normal(4, seed=2)
            for how in ({}, {"poisoned": False}, {"poisoned": False, "proximal": 0.5}):
                assert torch.equal(seen.train(start, **how), view.train(start, **how)[rows])

    def test_nothing_is_granted_that_was_not(self, make_view: Callable[..., AttackView]) -> None:
        parts = (Watcher(), Watcher())
        Mixture(parts).craft(make_view(normal(3, 4), n_clients=9))
        for part, m in zip(parts, (2, 1), strict=True):
            assert part.seen[0].benign_updates is None
            assert part.seen[0].simulate_defense is None
            assert part.seen[0].known_updates.shape == (m, 4)

    def test_is_each_attack_on_its_own_rows(self, make_view: Callable[..., AttackView]) -> None:
        own, others = normal(4, 30), normal(8, 30, seed=1)
        sent = Mixture((MinMax(), Scaling())).craft(make_view(own, others)).updates
        assert torch.equal(sent[::2], MinMax().craft(make_view(own[::2], others)))
        # two of twelve clients replace the mean
        torch.testing.assert_close(sent[1::2], 6 * own[1::2])

    def test_a_part_without_clients_is_not_asked(self, make_view: Callable[..., AttackView]) -> None:
        parts = (Watcher(1.0), Watcher(2.0), Watcher(3.0))
        sent = Mixture(parts).craft(make_view(normal(2, 4), members=torch.tensor([7, 1]))).updates
        assert (sent == 2).all()
        assert [len(part.seen) for part in parts] == [0, 1, 0]

    def test_one_attack_alone_is_itself(self, make_view: Callable[..., AttackView]) -> None:
        own, others = normal(4, 30).double(), normal(8, 30, seed=1).double()
        sent = Mixture((MinMax(),)).craft(make_view(own, others)).updates
        assert torch.equal(sent, MinMax().craft(make_view(own, others)))

    @pytest.mark.parametrize(("m", "due"), [(2, "[1, 4]"), (5, "[2, 4]")])
    def test_an_answer_of_the_wrong_shape(self, make_view: Callable[..., AttackView], m: int, due: str) -> None:
        with pytest.raises(FedSieveError) as error:
            Mixture((NoAttack(), OneRow())).craft(make_view(normal(m, 4)))
        said = f"attack mixture: OneRow returned float32 of shape [4] instead of float32 of shape {due}: one row per malicious client"  # noqa: E501
        assert str(error.value) == said

    def test_default_runs(self, make_view: Callable[..., AttackView]) -> None:
        own, others = normal(4, 30), normal(8, 30, seed=1)
        sent = Mixture().craft(make_view(own, others)).updates
        assert torch.equal(sent[[0, 3]], MinMax().craft(make_view(own[[0, 3]], others)))
        assert torch.equal(sent[1], own[1])  # label flipping changes data only
        torch.testing.assert_close(sent[2], 12 * own[2])


class TestTriggered:
    x, y, task = normal(6, 30), torch.arange(6) % 3, Task(3, Path())

    def test_first_backdoor(self) -> None:
        attack = Mixture((NoAttack(), Mixture((MinMax(),)), Scaling(target=2), Scaling(target=1)))
        assert isinstance(attack, Backdoor)
        found = attack.triggered(self.x, self.y, self.task)
        assert found is not None
        assert found.wanted.tolist() == [2] * 6
        assert torch.equal(found.x, Scaling(target=2).trigger(self.x))

    def test_none(self) -> None:
        assert Mixture((NoAttack(), MinMax())).triggered(self.x, self.y, self.task) is None


def test_needs_an_attack() -> None:
    with pytest.raises(ParameterError) as error:
        Mixture(())
    assert str(error.value) == "mixture: attacks must have at least one entry, got none"
