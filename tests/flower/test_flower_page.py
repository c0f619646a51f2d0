"""The code of docs/flower.md runs as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("flwr")

import torch
from flwr.app import Context, Message, RecordDict
from torch import Tensor, nn

from fedsieve import RunDirectory
from tests.flower.federation import Nodes, content, ids, trained

PAGE = (Path(__file__).parents[2] / "docs" / "flower.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the quickstart's ``task.py`` has, and a file for the root data."""
    module = ModuleType("task")

    class Net(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)

    def root_data() -> tuple[Tensor, Tensor]:
        return torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3

    module.Net, module.root_data = Net, root_data  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "task", module)
    return module


def played(code: str) -> list[Message]:
    """Run a server app of three rounds; the messages that its nodes got."""
    asked: list[Message] = []

    def reply(message: Message) -> Message:
        asked.append(message)
        return Message(content(trained(message)), reply_to=message)

    names: dict[str, Any] = {}
    exec(compile(code, "server_app.py", "exec"), names)
    names["app"](Nodes(ids(5), reply), Context(1, 1, {}, RecordDict(), {}))
    return asked


def test_the_diff_adds_two_lines_and_both_sides_run(
    task: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (diff,) = blocks("diff")
    lines = diff.splitlines()
    added = [line for line in lines if line.startswith("+ ")]
    assert len(added) == 2
    assert not [line for line in lines if line.startswith("-")]
    stock = "\n".join(line[2:] for line in lines if not line.startswith("+"))
    assert len(played(stock)) == 15
    assert not (tmp_path / "runs").exists()
    (tmp_path / "final_model.pt").unlink()
    assert len(played("\n".join(line[2:] for line in lines))) == 15
    assert (tmp_path / "final_model.pt").exists()
    run = RunDirectory(tmp_path / "runs" / "flower")
    assert run.n_records() == 3
    assert run.read_names() == tuple(f"node {node}" for node in ids(5))


def test_other_code_runs() -> None:
    ran = [block for block in blocks("python") if "nvflare" not in block]
    assert len(ran) == 2
    for block in ran:
        exec(compile(block, "docs/flower.md", "exec"), {})


def test_what_was_not_run_says_so() -> None:
    assert "**was not run here**" in PAGE.partition("## Inside NVFlare")[2]
