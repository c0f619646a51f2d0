"""The app in examples/flower: that it builds, trains, and attacks only when it is told to."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import get_project_config

from fedsieve import RunDirectory
from tests.flower.federation import Nodes
from tests.flower.messages import sent_to

APP = Path(__file__).parents[2] / "examples" / "flower"
N = 5


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app's modules, importable by name."""
    monkeypatch.syspath_prepend(APP)
    names = ("task", "red_team", "client_app", "server_app")
    yield type("App", (), {name: importlib.import_module(f"digits_app.{name}") for name in names})
    for name in [name for name in sys.modules if name.startswith("digits_app")]:
        del sys.modules[name]


def configured(**given: Any) -> dict[str, Any]:
    """The app's configuration."""
    config = dict(get_project_config(APP)["tool"]["flwr"]["app"]["config"])
    changes = {name.replace("_", "-"): value for name, value in given.items()}
    assert changes.keys() <= config.keys()
    return {**config, **changes}


def context(partition: int, run: dict[str, Any], **node: Any) -> Context:
    return Context(1, partition + 1, {"partition-id": partition, "num-partitions": N, **node}, RecordDict(), run)


def asked(app: Any, server_round: int = 1) -> Message:
    arrays = ArrayRecord(app.task.initial_model().state_dict())
    return sent_to(1, RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server_round})}))


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # of Flower itself
def test_the_bundle_has_the_app_and_no_more() -> None:
    import io
    import zipfile

    names = set(zipfile.ZipFile(io.BytesIO(build_fab_from_disk(APP))).namelist())
    modules = {f"digits_app/{path.name}" for path in (APP / "digits_app").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "pyproject.toml" in names


def test_partitions_root_and_test_data_share_no_sample(app: Any) -> None:
    parts = [app.task.partition(k, N) for k in range(N)]
    every = torch.cat([app.task.test_data()[0], app.task.root_data()[0], *(x for x, _ in parts)])
    assert len(every) == 1797
    assert len(every.unique(dim=0)) == 1797


class TestRedTeam:
    def test_off_by_default(self, app: Any) -> None:
        assert [app.red_team.attack(context(k, configured(attackers=1.0))) for k in range(N)] == ["none"] * N
        assert app.red_team.attack(context(0, configured(), attack="label-flip")) == "none"

    def test_the_first_share_of_a_simulation(self, app: Any) -> None:
        run = configured(red_team=True, attackers=0.4, attack="sign-flip")
        assert [app.red_team.attack(context(k, run)) for k in range(N)] == ["sign-flip"] * 2 + ["none"] * 3

    def test_a_node_is_told_for_itself(self, app: Any) -> None:
        run = configured(red_team=True)
        assert app.red_team.attack(context(4, run, attack="garbage")) == "garbage"
        assert app.red_team.attack(context(0, run)) == "none"

    def test_an_honest_node_sends_what_it_trained(self, app: Any) -> None:
        reply = app.client_app.app(asked(app), context(0, configured()))
        arrays = reply.content["arrays"].to_torch_state_dict()
        assert {name: tuple(t.shape) for name, t in arrays.items()} == {
            name: tuple(t.shape) for name, t in app.task.Net().state_dict().items()
        }
        assert reply.content["metrics"]["num-examples"] == len(app.task.partition(0, N)[1])
        assert 0 < reply.content["metrics"]["train_loss"] < 2.4

    def test_flipped_labels_move_the_model_elsewhere(self, app: Any) -> None:
        before = torch.cat([t.flatten() for t in app.task.initial_model().state_dict().values()])

        def moved(**node: Any) -> torch.Tensor:
            torch.manual_seed(0)
            reply = app.client_app.app(asked(app), context(0, configured(red_team=True), **node))
            arrays = reply.content["arrays"].to_torch_state_dict()
            return torch.cat([t.flatten() for t in arrays.values()]) - before

        honest, flipped = moved(), moved(attack="label-flip")
        assert torch.equal(honest, moved())
        assert torch.cosine_similarity(honest, flipped, dim=0) < 0.5
        torch.testing.assert_close(moved(attack="sign-flip"), -honest, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("server_round", range(1, 9))
    def test_garbage_is_of_many_kinds(self, app: Any, server_round: int) -> None:
        run, its = configured(red_team=True), {"attack": "garbage"}
        if server_round == 8:
            with pytest.raises(Exception, match="the client crashed"):
                app.client_app.app(asked(app, server_round), context(0, run, **its))
            return
        good = app.client_app.app(asked(app, server_round), context(0, run))
        bad = app.client_app.app(asked(app, server_round), context(0, run, **its))
        shapes = [
            {n: (a.dtype, a.shape, a.numpy().ravel()[0] == a.numpy().ravel()[0]) for n, a in r["arrays"].items()}
            if "arrays" in r
            else {}
            for r in (good.content, bad.content)
        ]
        assert shapes[0] != shapes[1] or server_round == 4
        if server_round == 4:
            assert bad.content["arrays"]["out.bias"].numpy().max() == pytest.approx(1e30)


@pytest.mark.parametrize("defense", ["stock", "multi-krum"])
def test_the_server_app_trains(app: Any, defense: str, tmp_path: Path) -> None:
    run = configured(defense=defense, num_server_rounds=2, out=str(tmp_path / "run"), model=str(tmp_path / "m.pt"))

    def reply(message: Message) -> Message:
        partition = message.metadata.dst_node_id - 1
        try:
            return app.client_app.app(message, context(partition, run))
        except Exception as error:
            return Message(Error(1, str(error)), reply_to=message)

    server = Context(1, 1, {}, RecordDict(), run)
    app.server_app.app(Nodes(range(1, N + 1), reply), server)
    model = app.task.Net()
    model.load_state_dict(torch.load(tmp_path / "m.pt"))
    assert app.task.test(model, *app.task.test_data())[1] > 0.5
    assert (tmp_path / "run").exists() == (defense != "stock")
    if defense != "stock":
        records = RunDirectory(tmp_path / "run").records()
        assert len(records) == 2
        assert records[-1].test_accuracy == pytest.approx(app.task.test(model, *app.task.test_data())[1])


@pytest.mark.slow
def test_it_runs_in_flowers_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.syspath_prepend(Path(__file__).parent / "deployment")
    superlink = importlib.import_module("superlink")
    with superlink.SuperLink(tmp_path / "link", dict(os.environ), simulation=True) as link:
        number = link.run(
            APP,
            nodes=6,
            red_team=True,
            attackers=0.34,
            attack="min-max",
            min_nodes=6,
            num_server_rounds=3,
            out=str(tmp_path / "run"),
        )
        status = link.wait(number, 600)
        assert status == "finished:completed", link.messages(number)
    records = RunDirectory(tmp_path / "run").records()
    assert [len(record.clients) for record in records] == [6, 6, 6]
    assert all(record.malicious is None for record in records)
    assert json.loads((tmp_path / "run" / "clients.json").read_text())["names"][0].startswith("node ")
