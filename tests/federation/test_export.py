"""A model that is written loads into its own module, by the line that says how, and computes the same."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsieve.core.errors import ParameterError
from fedsieve.federation.evaluation import outputs
from fedsieve.federation.export import check_export, check_loads, exported, loading, state_dict
from fedsieve.federation.simulation import Simulation
from fedsieve.models.flat import FlatModel
from tests.federation.conftest import DIGITS, TINY, simulation

MODULES = """
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.one = nn.Linear(64, 64)
        self.two = nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.out = nn.Linear(64, n_classes)
        self.register_buffer("scale", torch.full((1,), 0.5))
        self.register_buffer("hidden", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.out(self.two(self.one(x.flatten(1)).relu()).relu() * self.scale)


class Lazy(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(n_classes))


class Frozen(nn.Sequential):
    def __init__(self, input_shape, n_classes, width=8):
        first = nn.Linear(64, width)
        first.weight.requires_grad_(False)
        super().__init__(nn.Flatten(), first, nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, n_classes))


class Late(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.out = nn.Linear(64, n_classes)

    def forward(self, x):
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1))
        return self.out(x.flatten(1))


class Extra(nn.Linear):
    def __init__(self, n_classes):
        super().__init__(64, n_classes)

    def forward(self, x):
        return super().forward(x.flatten(1))

    def get_extra_state(self):
        return {"version": 1}
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of models, in the current folder; its name."""
    (tmp_path / "exported_nets.py").write_text(MODULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "exported_nets"


def written(sim: Simulation, path: Path) -> Tensor:
    """Run it, write the model, and return its outputs for the test samples."""
    *_, (state, _) = sim.rounds()
    path.write_bytes(exported(sim, state))
    return outputs(sim.trainer.model, sim.evaluated(state), sim.holdings.test.x)


@pytest.mark.parametrize(
    "model",
    [
        "mlp",
        {"name": "mlp", "hidden": [16, 8]},
        "logistic-regression",
        "resnet20",
        "{nets}:Tied",
        "{nets}:Frozen",
        {"name": "{nets}:Frozen", "width": 5},
    ],
)
def test_the_line_works_when_pasted(nets: str, tmp_path: Path, model: Any) -> None:
    named = {"name": model} if isinstance(model, str) else model
    named = {**named, "name": named["name"].format(nets=nets)}
    sim, path = simulation(DIGITS, model=named), tmp_path / "it's a model.safetensors"
    check_loads(sim)
    expected = written(sim, path)
    line = loading(sim, path)
    assert "\n" not in line
    found: dict[str, Any] = {}
    exec(line, found)
    module: nn.Module = found["model"].eval()
    with torch.no_grad():
        torch.testing.assert_close(module(sim.holdings.test.x), expected)
    assert load_file(path).keys() == module.state_dict().keys()


def test_in_a_process_without_anything_of_ours(nets: str, tmp_path: Path) -> None:
    sim, path = simulation(DIGITS, model=f"{nets}:Tied"), tmp_path / "m.safetensors"
    written(sim, path)
    check = "import sys; print(sum(p.numel() for p in model.parameters()), 'fedsieve' in sys.modules)"
    code = [sys.executable, "-W", "error", "-c", f"{loading(sim, path)}\n{check}"]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(64 * 64 + 64 + 64 + 650), "False"]


def test_lazy_layers(nets: str, tmp_path: Path) -> None:
    sim, path = simulation(DIGITS, model=f"{nets}:Lazy"), tmp_path / "m.safetensors"
    check_loads(sim)
    expected, found = written(sim, path), dict[str, Any]()
    exec(loading(sim, path), found)
    with torch.no_grad():
        torch.testing.assert_close(found["model"](sim.holdings.test.x), expected)


def test_text(tmp_path: Path) -> None:
    lines = ["text,y", *(f"{word} {'good' if k % 2 else 'bad'} it's,{k % 2}" for k, word in enumerate("abcdefgh" * 5))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    dataset = {"name": "csv", "file": str(tmp_path / "t.csv"), "label": "y", "text": "text"}
    settings = {"dataset": dataset, "partition": "iid", "clients": 2, "malicious": 0, "defense": "mean", "rounds": 1}
    sim, path = simulation(settings, model={"name": "lstm", "embedding": 4, "hidden": 4}), tmp_path / "m.safetensors"
    expected, found = written(sim, path), dict[str, Any]()
    exec(loading(sim, path), found)
    with torch.no_grad():
        torch.testing.assert_close(found["model"].eval()(sim.holdings.test.x), expected)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert json.loads(said["classes"]) == ["0", "1"]
    assert {"good", "bad"} < set(json.loads(said["vocabulary"]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Late", "made anew, it does not take its own state dict"),
        ("Extra", "_extra_state in its state dict is no tensor"),
    ],
)
def test_refused_before_training(nets: str, name: str, said: str) -> None:
    with pytest.raises(ParameterError, match=f"can't be exported: .*{said}|can't be exported: {said}"):
        check_loads(simulation(DIGITS, model=f"{nets}:{name}"))


def test_global_random_numbers_stay(doubles: ModuleType) -> None:
    sim = simulation(TINY)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_loads(sim)
    assert torch.equal(torch.rand(2), expected)


class TestPath:
    def test_good(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        check_export(Path("model.safetensors"))
        (tmp_path / "there.safetensors").write_text("old")
        check_export(tmp_path / "there.safetensors")

    def test_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match=r"as \.safetensors, got m\.pt: try m\.safetensors"):
            check_export(Path("m.pt"))
        with pytest.raises(ParameterError, match="there is no folder"):
            check_export(tmp_path / "no" / "m.safetensors")
        (tmp_path / "m.safetensors").mkdir()
        with pytest.raises(ParameterError, match="it is a folder"):
            check_export(tmp_path / "m.safetensors")


def test_the_model_in_memory_stays() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    model, params = FlatModel.of(module)
    found = state_dict(model, params + 1)
    torch.testing.assert_close(found["weight"], before + 1)
    assert torch.equal(module.weight, before)
    assert torch.equal(state_dict(model, params)["weight"], before)
