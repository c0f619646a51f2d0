"""FLDetector's state between rounds, partial participation, and edge cases."""

import json
from dataclasses import replace
from math import isclose
from statistics import fmean, median
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fedsieve.core.defense import Detection, Updates
from fedsieve.core.layout import Layout
from fedsieve.detectors.fldetector import FLDetector
from fedsieve.runs.packing import pack, unpack


def accepted(found: Detection) -> list[bool]:
    assert found.accepted is not None
    return found.accepted.tolist()


def same(one: Detection, other: Detection) -> bool:
    assert one.scores is not None
    assert other.scores is not None
    if one.accepted is None or other.accepted is None:
        return one.accepted is other.accepted and torch.equal(one.scores, other.scores)
    return torch.equal(one.accepted, other.accepted) and torch.equal(one.scores, other.scores)


ATTACKERS_FOUND = [False] * 5 + [True] * 15


class TestState:
    def test_survives_a_checkpoint(self, rounds: SimpleNamespace) -> None:
        detector = FLDetector(window=4, start=5)
        straight, resumed = rounds.Rounds(attack="noise"), rounds.Rounds(attack="noise")
        for _ in range(14):
            expected, found = straight.play(detector), resumed.play(detector)
            tensors: dict[str, Tensor] = {}
            text = json.dumps(pack(resumed.state, "state", tensors))
            resumed.state = unpack(json.loads(text), tensors)
            assert same(found, expected)
        assert accepted(expected) == ATTACKERS_FOUND

    def test_does_not_grow(self, rounds: SimpleNamespace) -> None:
        fed, detector = rounds.Rounds(), FLDetector(window=3, start=2)
        for _ in range(12):
            fed.play(detector)
        assert fed.state["steps"].shape == fed.state["changes"].shape == (3, 12)
        assert fed.state["updates"].shape == (20, 12)
        assert set(fed.state["distances"]) == set(range(100, 120))
        assert {len(found) for found in fed.state["distances"].values()} == {3}

    def test_of_the_last_round_is_unchanged(self, rounds: SimpleNamespace) -> None:
        fed, detector = rounds.Rounds(attack="noise"), FLDetector(window=3, start=2)
        for _ in range(9):
            fed.play(detector)
        tensors: dict[str, Tensor] = {}
        before, held = json.dumps(pack(fed.state, "state", tensors)), fed.state
        copies = {key: tensor.clone() for key, tensor in tensors.items()}
        fed.play(detector)
        after: dict[str, Tensor] = {}
        assert json.dumps(pack(held, "state", after)) == before
        assert all(torch.equal(copies[key], after[key]) for key in copies)


class TestPartialParticipation:
    def test_newcomers_are_accepted_and_get_the_median_score(self, rounds: SimpleNamespace) -> None:
        fed, detector = rounds.Rounds(attack="noise"), FLDetector(window=3, start=2)
        for _ in range(10):
            fed.play(detector, clients=torch.arange(18))
        found = fed.play(detector)
        assert found.scores is not None
        assert accepted(found) == ATTACKERS_FOUND
        middle = median(found.scores[:18].tolist())
        assert found.scores[18:].tolist() == pytest.approx([middle] * 2)
        assert set(found.state["distances"]) == set(range(100, 118))

    def test_absent_clients_keep_their_history(self, rounds: SimpleNamespace) -> None:
        fed, detector = rounds.Rounds(attack="noise"), FLDetector(window=3, start=2)
        for _ in range(10):
            fed.play(detector)
        fed.play(detector, clients=torch.arange(1, 20))
        before = list(fed.state["distances"][100])
        found = fed.play(detector)
        assert not accepted(found)[0]
        assert found.state["distances"][100] == before

    def test_distances_have_mean_one_in_every_round(self, rounds: SimpleNamespace) -> None:
        fed, detector = rounds.Rounds(attack="noise"), FLDetector(window=3, start=2)
        for t in range(9):
            fed.play(detector, clients=torch.arange(20 if t % 2 else 12))
        found = fed.state["distances"]
        for back in (1, 2):
            assert isclose(fmean(found[100 + c][-back] for c in range(12)), 1)


class TestEdges:
    @pytest.mark.parametrize("n", [1, 2])
    def test_few_clients_are_accepted(self, rounds: SimpleNamespace, n: int) -> None:
        fed = rounds.Rounds(n=n, m=1, attack="noise")
        for t in range(8):
            found = fed.play(FLDetector(window=2, start=1))
            assert found.accepted is None if t < 4 else all(accepted(found))

    @pytest.mark.parametrize("row", [0.0, 1.5])
    def test_equal_updates(self, rounds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, row: float) -> None:
        monkeypatch.setitem(rounds.attacks, "equal", lambda u, m, seed: torch.full_like(u, row))
        fed = rounds.Rounds(attack="equal")
        for t in range(8):
            found = fed.play(FLDetector(window=2, start=1))
            assert found.scores is not None
            assert found.accepted is None if t < 4 else all(accepted(found))
            assert not found.scores.any()

    def test_largest_numbers(self, rounds: SimpleNamespace) -> None:
        fed = rounds.Rounds(attack="largest", dtype=torch.float32)
        for _ in range(9):
            found = fed.play(FLDetector(window=2, start=1))
            assert found.scores is not None
            assert found.scores.isfinite().all()
        assert accepted(found) == ATTACKERS_FOUND

    def test_a_model_that_does_not_move(self, rounds: SimpleNamespace) -> None:
        fed = rounds.Rounds()
        start = fed.w.clone()
        for _ in range(8):
            found = fed.play(FLDetector(window=2, start=1))
            fed.w = start.clone()
            assert found.scores is not None
            assert found.scores.isfinite().all()

    def test_running_statistics_are_ignored(self, rounds: SimpleNamespace) -> None:
        plain, with_statistics = rounds.Rounds(attack="noise"), rounds.Rounds(attack="noise")
        detector, state = FLDetector(window=3, start=2), None
        layout = Layout.of({"w": torch.empty(12)}, {"running": torch.empty(2)})
        for t in range(9):
            statistics = 100 * rounds.normal(20, 2, seed=t)
            u = Updates(torch.cat([with_statistics.sent(), statistics], dim=1), 100 + torch.arange(20), layout)
            view = with_statistics.view()
            params = torch.cat([view.global_params, statistics[0]])
            found = detector.detect(u, replace(view, global_params=params, state=state))
            expected = plain.play(detector)
            state, with_statistics.w, with_statistics.round = found.state, plain.w, plain.round
            assert same(found, expected)
        assert accepted(found) == ATTACKERS_FOUND
