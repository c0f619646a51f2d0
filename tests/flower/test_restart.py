"""A ServerApp that is killed and started again goes on with the model and the memory of the last round."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy
from torch import Tensor

from fedsieve.core.errors import BusyError, CorruptDataError, FedSieveError, ParameterError
from fedsieve.core.records import RoundRecord
from fedsieve.flower import Defended
from fedsieve.report.load import read
from fedsieve.runs.directory import CHECKPOINT, PREVIOUS, RunDirectory
from tests.flower.federation import FIRST, Nodes, content, honest, ids, normalised, small, trained

X, Y = torch.randn(60, 4, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
N = 8


class KilledError(Exception):
    """What stands in for a kill: it comes out of a node in mid-round."""


def answering(last: int | None = None) -> Callable[[Message], Message]:
    """Honest nodes but one, which pushes; from round ``last`` + 1 on, the server is killed."""

    def reply(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return honest(message)
        if last is not None and message.content["config"]["server-round"] > last:
            raise KilledError
        arrays, node = trained(message), message.metadata.dst_node_id - FIRST
        if node == 3:
            arrays = {k: t + 9 if t.is_floating_point() else t for k, t in arrays.items()}
        extra = {"partition-id": node} if node % 2 else {}
        return Message(content(arrays, 10, **extra), reply_to=message)

    return reply


def defended(kind: type[Strategy], out: Path | None, defense: Any = "sieve", **options: Any) -> Defended:
    module = normalised()
    given: dict[str, Any] = {"module": module, "root": (X, Y), "local": {"learning_rate": 0.1}, "seed": 5}
    return Defended(kind(), defense, out=out, **{**given, **options})


def run(strategy: Defended, rounds: int, last: int | None = None, evaluate: Any = None) -> dict[str, Tensor]:
    grid = Nodes(ids(N), answering(last))
    result = strategy.start(grid, ArrayRecord(normalised().state_dict()), num_rounds=rounds, evaluate_fn=evaluate)
    return dict(result.arrays.to_torch_state_dict())


def killed(strategy: Defended, rounds: int, last: int, evaluate: Any = None) -> None:
    with pytest.raises(KilledError):
        run(strategy, rounds, last, evaluate)


def without_times(records: list[RoundRecord]) -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(record).items() if k != "seconds"} for record in records]


class TestGoingOn:
    @pytest.mark.parametrize("kind", [FedAvg, FedAdam])
    @pytest.mark.parametrize("defense", ["sieve", "momentum,fldetector", {"name": "fltrust"}])
    def test_to_the_bit(self, kind: type[Strategy], defense: Any, tmp_path: Path) -> None:
        options = {} if defense != "momentum,fldetector" else {"root": None, "local": None}
        straight = run(defended(kind, tmp_path / "straight", defense, **options), 5)
        killed(defended(kind, tmp_path / "run", defense, **options), 5, last=2)
        killed(defended(kind, tmp_path / "run", defense, **options), 5, last=3)
        model = run(defended(kind, tmp_path / "run", defense, **options), 5)
        assert all(torch.equal(model[name], straight[name]) for name in straight)
        records = [RunDirectory(tmp_path / name).records() for name in ("straight", "run")]
        assert [r.round for r in records[0]] == [0, 1, 2, 3, 4]
        assert without_times(records[0]) == without_times(records[1])
        names = [RunDirectory(tmp_path / name).read_names() for name in ("straight", "run")]
        assert names[0] == names[1]
        assert names[0][:2] == (f"node {FIRST}", f"node {FIRST + 1} (partition-id 1)")

    def test_with_a_server_optimizer_and_a_drawn_seed(self, tmp_path: Path) -> None:
        options = {"optimizer": "Adam", "server_learning_rate": 0.01, "seed": None}
        killed(defended(FedAvg, tmp_path / "run", **options), 4, last=2)
        copied = tmp_path / "copy"
        copied.mkdir()
        for file in (tmp_path / "run").iterdir():
            (copied / file.name).write_bytes(file.read_bytes())
        first, second = (run(defended(FedAvg, tmp_path / name, **options), 4) for name in ("run", "copy"))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert RunDirectory(copied).read_settings()["seed"] == 0  # type: ignore[index]

    def test_rounds_are_counted_on(self, tmp_path: Path) -> None:
        seen: list[int] = []

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            seen.append(server_round)
            return MetricRecord({"accuracy": server_round / 10, "loss": float("nan")})

        killed(defended(FedAvg, tmp_path), 4, 2, evaluate)
        strategy = defended(FedAvg, tmp_path)
        result = strategy.start(
            Nodes(ids(N), answering()), ArrayRecord(normalised().state_dict()), num_rounds=4, evaluate_fn=evaluate
        )
        assert seen == [0, 1, 2, 2, 3, 4]
        assert sorted(result.train_metrics_clientapp) == [3, 4]
        assert sorted(result.evaluate_metrics_serverapp) == [2, 3, 4]
        assert [d.round for d in strategy.decisions] == [3, 4]
        records = RunDirectory(tmp_path).records()
        assert [r.test_accuracy for r in records] == [0.1, 0.2, 0.3, 0.4]
        assert [r.test_loss for r in records] == [None] * 4
        assert [r.malicious for r in records] == [None] * 4

    def test_a_finished_run_is_not_run_again(self, tmp_path: Path) -> None:
        model = run(defended(FedAvg, tmp_path), 3)
        strategy = defended(FedAvg, tmp_path)
        again = run(strategy, 3, last=0)
        assert all(torch.equal(model[name], again[name]) for name in model)
        assert strategy.decisions == []
        longer = run(defended(FedAvg, tmp_path), 4)
        straight = run(defended(FedAvg, None), 4)
        assert all(torch.equal(longer[name], straight[name]) for name in straight)

    def test_new_nodes_get_new_ids(self, tmp_path: Path) -> None:
        killed(defended(FedAvg, tmp_path, "mean", root=None, local=None), 3, last=1)
        strategy = defended(FedAvg, tmp_path, "mean", root=None, local=None)
        grid = Nodes([FIRST - 1, *ids(N)[1:], 2**64 - 1], answering())
        strategy.start(grid, ArrayRecord(normalised().state_dict()), num_rounds=2)
        assert strategy.nodes == (*ids(N), FIRST - 1, 2**64 - 1)
        assert RunDirectory(tmp_path).records()[1].clients == (1, 2, 3, 4, 5, 6, 7, 8, 9)

    def test_a_loop_of_ones_own(self, tmp_path: Path) -> None:
        from flwr.app import ConfigRecord

        straight = run(defended(FedAvg, None), 2)
        model = ArrayRecord(normalised().state_dict())
        for server_round in (1, 2):
            strategy = defended(FedAvg, tmp_path)  # a new process each round
            grid = Nodes(ids(N), answering())
            messages = strategy.configure_train(server_round, model, ConfigRecord(), grid)
            found, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
            strategy.close()
            assert found is not None
        assert all(torch.equal(t, straight[k]) for k, t in found.to_torch_state_dict().items())


class TestDamage:
    def spoil(self, file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))

    def test_the_checkpoint_before_is_used(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        straight = run(defended(FedAvg, None), 4)
        killed(defended(FedAvg, tmp_path), 4, last=3)
        self.spoil(tmp_path / CHECKPOINT)
        model = run(defended(FedAvg, tmp_path), 4)
        assert "its checksum is wrong; going on with checkpoint.previous.safetensors, after round 2" in caplog.text
        assert all(torch.equal(model[name], straight[name]) for name in straight)
        assert [r.round for r in RunDirectory(tmp_path).records()] == [0, 1, 2, 3]

    def test_both_are_damaged(self, tmp_path: Path) -> None:
        killed(defended(FedAvg, tmp_path), 4, last=3)
        for name in (CHECKPOINT, PREVIOUS):
            self.spoil(tmp_path / name)
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
        with pytest.raises(CorruptDataError, match=r"can't go on in .*its checksum is wrong.*choose another out="):
            run(defended(FedAvg, tmp_path), 4)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before

    def test_they_are_gone(self, tmp_path: Path) -> None:
        killed(defended(FedAvg, tmp_path), 4, last=3)
        for name in (CHECKPOINT, PREVIOUS):
            (tmp_path / name).unlink()
        with pytest.raises(CorruptDataError, match="it has records but no checkpoint"):
            run(defended(FedAvg, tmp_path), 4)

    def test_changed_records(self, tmp_path: Path) -> None:
        killed(defended(FedAvg, tmp_path), 4, last=3)
        records = tmp_path / "records.jsonl"
        records.write_bytes(records.read_bytes().replace(b'"round":0', b'"round":7'))
        with pytest.raises(CorruptDataError, match=r"records\.jsonl was changed"):
            run(defended(FedAvg, tmp_path), 4)

    @pytest.mark.parametrize("cut", [1, 10**9], ids=["half a line", "the whole line"])
    def test_a_kill_before_the_record_was_written(self, cut: int, tmp_path: Path) -> None:
        straight = run(defended(FedAvg, tmp_path / "straight"), 4)
        killed(defended(FedAvg, tmp_path / "run"), 4, last=3)
        records = tmp_path / "run" / "records.jsonl"
        lines = records.read_bytes().splitlines(keepends=True)
        records.write_bytes(b"".join(lines[:-1]) + lines[-1][: max(0, len(lines[-1]) - cut)])
        model = run(defended(FedAvg, tmp_path / "run"), 4)
        assert all(torch.equal(model[name], straight[name]) for name in straight)
        found = [without_times(RunDirectory(tmp_path / name).records()) for name in ("straight", "run")]
        assert found[0] == found[1]

    def test_a_full_disk_does_not_end_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        strategy = defended(FedAvg, tmp_path)

        def full(*given: Any, **named: Any) -> None:
            raise OSError(28, "No space left on device")

        straight = run(defended(FedAvg, None), 3)
        monkeypatch.setattr("fedsieve.runs.files._write_all", full)
        with pytest.raises(FedSieveError, match="No space left"):
            run(strategy, 3)
        monkeypatch.undo()
        strategy = defended(FedAvg, tmp_path)

        def evaluate(server_round: int, arrays: ArrayRecord) -> None:
            if server_round == 1:
                monkeypatch.setattr("fedsieve.runs.files._write_all", full)

        model = run(strategy, 3, evaluate=evaluate)
        assert all(torch.equal(model[name], straight[name]) for name in straight)
        assert "No space left on device; a restart would lose this round" in caplog.text


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"defense": "fltrust"}, "defense: .*sieve.* there, .*fltrust.* asked for"),
            ({"local": {"learning_rate": 0.2}}, "local: .* there"),
            ({"server_learning_rate": 0.5}, "server: "),
        ],
    )
    def test_another_run(self, options: dict[str, Any], said: str, tmp_path: Path) -> None:
        killed(defended(FedAvg, tmp_path), 4, last=1)
        with pytest.raises(ParameterError, match=f"holds another run .*{said}.*; choose another out="):
            run(defended(FedAvg, tmp_path, **options), 4)

    def test_another_model(self, tmp_path: Path) -> None:
        killed(defended(FedAvg, tmp_path, "mean", root=None, local=None, module=None), 4, last=1)
        strategy = Defended(FedAvg(), "mean", out=tmp_path, seed=5)
        with pytest.raises(FedSieveError, match="other names, shapes or types"):
            strategy.start(Nodes(ids(3), honest), ArrayRecord(small()), num_rounds=4)

    def test_no_resume(self, tmp_path: Path) -> None:
        killed(defended(FedAvg, tmp_path), 4, last=2)
        with pytest.raises(ParameterError, match="holds a run of 2 rounds: resume=True goes on with it"):
            run(defended(FedAvg, tmp_path, resume=False), 4)

    def test_settings_of_others(self, tmp_path: Path) -> None:
        (tmp_path / "experiment.yaml").write_text("rounds: 3\n")
        with pytest.raises(ParameterError, match="holds the settings of another run"):
            run(defended(FedAvg, tmp_path), 4)

    def test_two_at_once(self, tmp_path: Path) -> None:
        def evaluate(server_round: int, arrays: ArrayRecord) -> None:
            with pytest.raises(BusyError, match="another process runs in"):
                run(defended(FedAvg, tmp_path), 4)

        run(defended(FedAvg, tmp_path), 1, evaluate=evaluate)


def test_the_report_reads_it(tmp_path: Path) -> None:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.75, "loss": 0.5})

    def reply(message: Message) -> Message:
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == FIRST + 6:
            return Message(content({}), reply_to=message)
        return answering()(message)

    strategy = defended(FedAvg, tmp_path)
    strategy.start(Nodes(ids(N), reply), ArrayRecord(normalised().state_dict()), num_rounds=4, evaluate_fn=evaluate)
    found = read(tmp_path)
    assert found.problems == ()
    assert (found.finished, found.truth) == (True, False)
    assert found.name(3) == f"node {FIRST + 3} (partition-id 3)"
    for record in found.records:
        assert (record.screened, record.clients[-1]) == ((6,), 6)
        assert record.screened_reasons == ("no array 0.weight; 0 arrays, 9 expected",)
        assert {3, 6} <= set(record.rejected or ())
        assert (record.test_accuracy, record.malicious, record.false_positive_rate) == (0.75, None, None)
    assert found.defense == "sieve"
    assert found.setting["clients"] == "8"
