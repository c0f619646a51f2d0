"""SkyMask's parameters: the presets' values, what each parameter changes, and values out of range."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsieve.core.defense import Detection
from fedsieve.core.errors import ParameterError
from fedsieve.detectors.skymask import SkyMask
from fedsieve.detectors.skymask.clusters import principal_components
from fedsieve.detectors.skymask.masks import first_coordinates, train_masks
from fedsieve.detectors.skymask.recipe import Recipe
from fedsieve.detectors.skymask.without_root import SkyMaskNR

# The rates of mask training are made for the gradients of a network's mean loss; these fit the quadratic's.
FITS: dict[str, Any] = {"mask_learning_rate": 1e6, "mask_clip": 1e-7}
both = pytest.mark.parametrize(("cls", "name"), [(SkyMask, "skymask"), (SkyMaskNR, "skymask-nr")])
SHARED: dict[str, Any] = {
    "reduction": "mean",
    "mask_learning_rate": 1e7,
    "mask_clip": 1e-7,
    "mask_steps": 20,
    "tau": 0.5,
    "n_components": 2,
    "gap_references": 10,
    "slices": False,
}


class TestPresets:
    def test_paper_is_the_default(self) -> None:
        assert SkyMask() == SkyMask("paper")
        assert SkyMaskNR() == SkyMaskNR("paper")

    @both
    def test_paper(self, cls: type, name: str) -> None:
        assert Recipe.of(name, **asdict(cls("paper"))) == Recipe(
            clusters="bic", loss="cross-entropy", tolerance=1e-3, early_stop=False, update_scale=1.0, **SHARED
        )

    @both
    def test_code(self, cls: type, name: str) -> None:
        assert Recipe.of(name, **asdict(cls("code"))) == Recipe(
            clusters="two", loss="batch", tolerance=0.0, early_stop=True, update_scale=0.5, **SHARED
        )

    @both
    @pytest.mark.parametrize("preset", ["paper", "code"])
    def test_given_values_win(self, cls: type, name: str, preset: str) -> None:
        given = {
            "clusters": "gap",
            "loss": "batch",
            "reduction": "sum",
            "mask_learning_rate": 2.0,
            "mask_clip": None,
            "mask_steps": 15,
            "tolerance": 0.5,
            "early_stop": False,
            "tau": 0.6,
            "n_components": 3,
            "gap_references": 4,
            "update_scale": 0.7,
            "slices": True,
        }
        recipe = Recipe.of(name, **asdict(cls(preset, **given)))
        assert {key: getattr(recipe, key) for key in given} == given

    def test_both_detectors_have_the_same_parameters(self) -> None:
        assert asdict(SkyMask()) == asdict(SkyMaskNR())


def detect(make: SimpleNamespace, fed: SimpleNamespace, **parameters: Any) -> Detection:
    return SkyMask(**{**FITS, **parameters}).detect(fed.updates, make.view(fed.updates, root=fed.root))


def same(one: Detection, other: Detection) -> bool:
    assert one.accepted is not None
    assert other.accepted is not None
    assert one.diagnosis is not None
    assert other.diagnosis is not None
    return torch.equal(one.accepted, other.accepted) and torch.equal(one.diagnosis.kept, other.diagnosis.kept)


def recorded(make: SimpleNamespace, fed: SimpleNamespace, **parameters: Any) -> list[Tensor]:
    """The models whose root gradient is asked for: one before each step of training, and no other."""
    asked: list[Tensor] = []

    class Recorder(make.Quadratic):  # type: ignore[misc, name-defined]
        def gradient(self, flat: Tensor, loss: Any = "cross-entropy", /) -> tuple[Tensor, Tensor]:
            asked.append(flat.clone())
            return super().gradient(flat)  # type: ignore[no-any-return]

    root = Recorder(fed.root.target, fed.root.sent)
    detect(make, SimpleNamespace(updates=fed.updates, root=root), **parameters)
    return asked


class TestEffects:
    @pytest.mark.parametrize("tau", [0.3, 0.5, 0.7])
    def test_tau_is_a_threshold_on_the_gate(
        self, make: SimpleNamespace, tau: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Tensor] = []

        def watched(binary: Tensor, n_components: int) -> np.ndarray:
            seen.append(binary)
            return principal_components(binary, n_components)

        monkeypatch.setattr("fedsieve.detectors.skymask.recipe.principal_components", watched)
        fed = make.federation(10, 3, -1, dtype=torch.float64)
        detect(make, fed, tau=tau)
        candidates = torch.cat([fed.updates.matrix, fed.root.sent[None]])
        start = torch.zeros_like(fed.root.sent)
        masks, _ = train_masks(candidates, start, fed.root, learning_rate=1e6, clip=1e-7, max_steps=20, tolerance=1e-3)
        (binary,) = seen
        clear = (masks.sigmoid() - tau).abs() > 1e-9  # rounding decides about masks on the threshold
        assert clear.double().mean() > 0.5
        assert torch.equal(binary[clear], (masks.sigmoid() > tau)[clear])
        assert 0 < binary.double().mean() < 1

    def test_sum_is_k_times_the_mean(self, make: SimpleNamespace) -> None:
        # k = 20 root samples: the same as 20 times the rate with a 20th of the clip
        fed = make.federation(12, 4, -1, dtype=torch.float64)
        k = len(fed.root.data[1])
        summed = detect(make, fed, reduction="sum", mask_learning_rate=0.5, mask_clip=0.1)
        assert same(summed, detect(make, fed, mask_learning_rate=0.5 * k, mask_clip=0.1 / k))
        assert not same(summed, detect(make, fed, mask_learning_rate=0.5, mask_clip=0.1))

    def test_no_clip(self, make: SimpleNamespace) -> None:
        fed = make.federation(12, 4, -1, dtype=torch.float64)
        free = detect(make, fed, mask_learning_rate=20.0, mask_clip=None)
        assert same(free, detect(make, fed, mask_learning_rate=20.0, mask_clip=1e6))
        assert not same(free, detect(make, fed, mask_learning_rate=20.0, mask_clip=1e-3))

    @pytest.mark.parametrize("steps", [1, 7, 20])
    def test_mask_steps(self, make: SimpleNamespace, steps: int) -> None:
        fed = make.federation(12, 4, -1)
        assert len(recorded(make, fed, mask_steps=steps, tolerance=0.0)) == steps

    def test_tolerance(self, make: SimpleNamespace) -> None:
        fed = make.federation(12, 4, -1, dtype=torch.float64)
        more = {"mask_learning_rate": 100.0, "mask_clip": 1.0, "mask_steps": 400}
        calls = [len(recorded(make, fed, tolerance=tolerance, **more)) for tolerance in (0.0, 0.05, 0.1, 0.99)]
        assert calls[0] == 400
        assert calls == sorted(calls, reverse=True)
        assert len(set(calls)) == 4
        assert calls[-1] == 1  # no gate can move so far in the first step

    def test_early_stop(self, make: SimpleNamespace) -> None:
        fed = make.federation(12, 4, -1)
        more = {"mask_learning_rate": 1e-3, "mask_clip": None, "tolerance": 0.0}
        assert len(recorded(make, fed, early_stop=True, **more)) == 11
        assert len(recorded(make, fed, early_stop=False, **more)) == 20
        more["mask_learning_rate"] = 100.0  # the loss falls
        assert len(recorded(make, fed, early_stop=True, **more)) == 20

    @pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
    def test_update_scale(self, make: SimpleNamespace, scale: float) -> None:
        fed = make.federation(12, 4, -1, dtype=torch.float64)
        (masked,) = recorded(make, fed, update_scale=scale, mask_steps=1)
        torch.testing.assert_close(masked, scale * torch.cat([fed.updates.matrix, fed.root.sent[None]]).mean(dim=0))

    def test_slices_fill_every_tensor_with_the_first_coordinates(self, make: SimpleNamespace) -> None:
        fed = make.federation(12, 4, -1, dtype=torch.float64)
        everything = torch.cat([fed.updates.matrix, fed.root.sent[None]])
        (masked,) = recorded(make, fed, slices=True, mask_steps=1)
        tensors = fed.updates.layout.unflatten(masked)
        assert len(tensors) == 3
        for tensor in tensors.values():
            flat = tensor.flatten()
            torch.testing.assert_close(flat, everything.mean(dim=0)[: len(flat)])
        sliced = replace(fed.updates, matrix=first_coordinates(fed.updates.matrix, fed.updates.layout))
        root = replace(fed.root, sent=first_coordinates(fed.root.sent[None], fed.updates.layout)[0])
        assert same(detect(make, fed, slices=True), detect(make, SimpleNamespace(updates=sliced, root=root)))

    @pytest.mark.parametrize(("clusters", "n"), [("bic", 30), ("gap", 101)])
    def test_clusters_without_attack(self, make: SimpleNamespace, clusters: str, n: int) -> None:
        clean = make.federation(n, 0, 1)
        one, two = (detect(make, clean, clusters=c).accepted for c in (clusters, "two"))
        assert one is not None
        assert one.all()
        assert two is not None
        assert not two.all()


class TestErrors:
    @both
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"tau": 0.0}, "tau must be in (0, 1), got 0.0"),
            ({"tau": 1.0}, "tau must be in (0, 1), got 1.0"),
            ({"tau": math.nan}, "tau must be in (0, 1), got nan"),
            ({"mask_steps": 0}, "mask_steps must be at least 1, got 0"),
            ({"n_components": 0}, "n_components must be at least 1, got 0"),
            ({"gap_references": 0, "clusters": "gap"}, "gap_references must be at least 1, got 0"),
            ({"mask_learning_rate": 0.0}, "mask_learning_rate must be positive and finite, got 0.0"),
            ({"mask_learning_rate": math.inf}, "mask_learning_rate must be positive and finite, got inf"),
            ({"mask_clip": -1.0}, "mask_clip must be positive and finite, got -1.0"),
            ({"mask_clip": math.nan}, "mask_clip must be positive and finite, got nan"),
            ({"update_scale": 0.0}, "update_scale must be positive and finite, got 0.0"),
            ({"tolerance": -0.1}, "tolerance must be in [0, 1), got -0.1"),
            ({"tolerance": 1.0}, "tolerance must be in [0, 1), got 1.0"),
            (
                {"gap_references": 5},
                "gap_references=5 has no effect with clusters=bic; it needs clusters=gap",
            ),
            (
                {"gap_references": 5, "preset": "code"},
                "gap_references=5 has no effect with clusters=two; it needs clusters=gap",
            ),
            (
                {"early_stop": True, "mask_steps": 11},
                "early_stop has no effect with mask_steps=11; it stops after step 11",
            ),
        ],
    )
    def test_out_of_range_or_without_effect(
        self, cls: type, name: str, parameters: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ParameterError) as error:
            cls(**parameters)
        assert str(error.value) == f"{name}: {message}"

    @both
    def test_limits_are_allowed(self, cls: type, name: str) -> None:
        cls(mask_steps=1, n_components=1, tau=0.999, tolerance=0.0)
        cls(mask_steps=12, early_stop=True)
        cls("code", mask_steps=5)
        cls(clusters="gap", gap_references=1)
