"""Runs, rounds and clients as data frames, and as files that other programs read."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fedsieve.core.errors import MissingPackageError
from fedsieve.report import frame_files
from fedsieve.report.frames import clients_frame, rounds_frame, runs_frame
from fedsieve.report.load import Run, load
from tests.report.conftest import diagnosis, record
from tests.report.nasty import NASTY

MakeRun = Callable[..., Path]


UNKNOWN: dict[str, Any] = {"screened_reasons": ("not finite",), "weights": (None,) * 4, "note": "late"}


def two(make_run: MakeRun) -> list[Run]:
    """A run of the mean without attack, and one of skymask that loses 25 % in its second round."""
    make_run("a", [0.5, 0.75], attack="none", defense="mean")
    rounds = [
        record(0, 0.5, diagnosis=diagnosis(), scores=(3.0, None, 1.0, 0.5), seconds={"train": 0.5, "defend": 0.25}),
        record(1, 0.5, rejected=None, screened=(2,), **UNKNOWN),
    ]
    path = make_run("b", [], rounds, attack="min-max", defense={"name": "skymask", "tau": 0.3}, rounds=2, seed=0)
    return load([path.parent])


def test_runs(make_run: MakeRun) -> None:
    runs = two(make_run)
    frame = runs_frame(runs).set_index("run")
    a, b = (frame.loc[str(run.path)] for run in runs)
    assert (a["dataset"], a["attack"], a["defense"], a["seed"]) == ("digits", "none", "mean", 0)
    assert (b["defense"], b["clients"], b["malicious"], b["rounds"]) == ("skymask (tau=0.3)", 4, 1, 2)
    assert (bool(b["finished"]), b["rounds_played"], b["problems"]) == (True, 2, "")
    assert b["late_test_accuracy"] == 0.5
    assert (b["reference"], b["lost_per_round"], b["worst_loss"], b["worst_loss_round"]) == ("mean", 0.125, 0.25, 2)
    assert a["reference"] == ""
    assert pd.isna(a["lost_per_round"])
    assert (b["updates_screened"], b["screened_reasons"]) == (1, "not finite (1)")
    assert frame["worst_loss_round"].dtype == "Int64"
    assert frame["attack_success_rate"].dtype == "float64"  # though there is none


def test_settings_that_are_not_the_default_have_a_column(make_run: MakeRun) -> None:
    make_run("a", [0.5])
    path = make_run("b", [0.5], local={"learning_rate": 0.1})
    assert list(runs_frame(load([path.parent]))["local_learning_rate"]) == ["default", "0.1"]


def test_rounds(make_run: MakeRun) -> None:
    frame = rounds_frame(two(make_run))
    assert list(frame["round"]) == [1, 2, 1, 2]
    first, second = frame.iloc[2], frame.iloc[3]
    assert (first["clients"], first["malicious"], first["rejected"], first["screened"]) == (4, 1, 1, 0)
    assert (first["seconds_train"], first["seconds_defend"]) == (0.5, 0.25)
    assert pd.isna(first["seconds_attack"])
    assert pd.isna(second["rejected"])
    assert (second["screened"], second["note"], second["test_accuracy"]) == (1, "late", 0.5)


def test_clients(make_run: MakeRun) -> None:
    runs = two(make_run)
    frame = clients_frame(runs[1:])
    assert len(frame) == 8
    assert list(frame["client"]) == [0, 1, 2, 3] * 2
    assert list(frame["malicious"]) == [True, False, False, False] * 2
    assert list(frame["rejected"][:4]) == [True, False, False, False]
    assert frame["rejected"][4:].isna().all()
    assert list(frame["screened"][4:]) == [False, False, True, False]
    assert list(frame["reason"]) == ["residual norm", "", "", "", "", "", "not finite", ""]
    assert frame["score"].tolist()[:1] == [3.0]
    assert frame["weight"][4:].isna().all()
    assert frame["name"][2] == "client 2"


def test_nobody_knows_who_is_malicious(make_run: MakeRun) -> None:
    unknown: dict[str, Any] = {"malicious": None, "false_positive_rate": None, "false_negative_rate": None}
    runs = load([make_run("a", [], [record(0, 0.5, **unknown)], rounds=1)])
    assert runs_frame(runs)["malicious"].isna().all()
    assert rounds_frame(runs)["malicious"].isna().all()
    assert clients_frame(runs)["malicious"].isna().all()
    assert list(clients_frame(runs)["rejected"]) == [True, False, False, False]


def test_no_round_or_no_settings(make_run: MakeRun) -> None:
    path = make_run("a", [], rounds=1)
    broken = make_run("b", [0.5])
    (broken / "experiment.yaml").unlink()
    runs = load([path.parent])
    frame = runs_frame(runs)
    assert list(frame["finished"]) == [False, False]
    assert list(frame["attack"]) == ["none", ""]
    assert pd.isna(frame["clients"][1])
    assert list(rounds_frame(runs[:1]).columns) == list(rounds_frame(runs).columns)
    assert len(rounds_frame(runs[:1])) == len(clients_frame(runs[:1])) == 0
    assert list(rounds_frame([])["round"]) == []


def nasty(make_run: MakeRun) -> list[Run]:
    for k, name in enumerate(NASTY.values()):
        path = make_run(str(k), [], [record(0, 0.5, note=name.encode("utf-8", "replace").decode())], rounds=1)
        settings = yaml.safe_load((path / "experiment.yaml").read_text())
        settings["defense"] = {"name": name.encode("utf-8", "replace").decode()}
        (path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    return load([path.parent])


def test_csv(make_run: MakeRun, tmp_path: Path) -> None:
    runs = nasty(make_run)
    frame_files.write_csv(runs, tmp_path)
    for name, frame in (("runs", runs_frame(runs)), ("rounds", rounds_frame(runs))):
        lines = list(csv.reader(io.StringIO((tmp_path / f"{name}.csv").read_bytes().decode(), newline="")))
        assert lines[0] == list(frame.columns)
        assert len(lines) == 1 + len(NASTY)
        numbers = [field for line in lines[1:] for field in line if field.replace(".", "").replace("-", "").isdigit()]
        texts = [field for line in lines[1:] for field in line if field not in numbers]
        assert not [field for field in texts if field.lstrip()[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert not list(tmp_path.glob("*.part"))


def test_parquet(make_run: MakeRun, tmp_path: Path) -> None:
    runs = two(make_run)
    frame_files.write_parquet(runs, tmp_path)
    for name, made in (("runs", runs_frame), ("rounds", rounds_frame), ("clients", clients_frame)):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{name}.parquet"), made(runs))


def test_without_pyarrow_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"report --parquet needs pyarrow: pip install 'fedsieve\[parquet\]'"):
        frame_files.needs_parquet()
