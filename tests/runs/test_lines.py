"""A record as a line: what it looks like, how long it is, and what is read of older and of strangers' lines."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsieve.core.records import DiagnosisRecord, RoundRecord, pictured
from fedsieve.runs.lines import line_of, record_of
from tests.report.conftest import diagnosis, record
from tests.runs.conftest import SKYMASK, KilledError, lines_of, run_into

IDS = st.integers(0, 2**62)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def test_by_hand() -> None:
    seen = DiagnosisRecord((), None, (), (), ("far", "", "", "far"))
    found = record(6, 0.5, weights=(0.0, 0.5, 0.5, 0.0), rejected=(0, 3), diagnosis=seen, seconds={"train": 0.25})
    assert line_of(found).decode() == (
        '{"round":6,"clients":4,"malicious":[0],"rejected":[0,3],"screened":[],"weights":[0.0,0.5,0.5,0.0],'
        '"scores":null,"update_norm":1.0,"applied":true,"note":"","test_accuracy":0.5,"test_loss":null,'
        '"attack_success_rate":null,"attack_success_rate_all":null,"false_positive_rate":0.0,"false_negative_rate":0.0,'
        '"diagnosis":{"coordinates":[],"root":null,"layers":[],"kept":[],"reasons":{"far":[0,3]},"updates":null},'
        '"screened_reasons":[],"seconds":{"train":0.25}}\n'
    )
    assert record_of(line_of(found)) == found


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a record; the diagnosis as a tuple."""
    clients = draw(st.lists(IDS, unique=True, max_size=6) | st.integers(0, 6).map(lambda n: list(range(n))))
    some = st.lists(st.sampled_from(clients), unique=True).map(tuple) if clients else st.just(())

    def each(values: st.SearchStrategy[Any]) -> Any:
        return tuple(draw(st.lists(values, min_size=len(clients), max_size=len(clients))))

    pairs, reasons = each(st.tuples(NUMBERS, NUMBERS)), each(st.sampled_from(["", "far", "0", "clients", "\u2028 \0"]))
    pictures = [((), None, (), (), reasons, None), (pairs, (1.0, -2.5), ("a",), ((0.5,),) * len(pairs), reasons, pairs)]
    return {
        "number": draw(st.integers(0, 10**6)),
        "clients": tuple(clients),
        "malicious": draw(some),
        "rejected": draw(st.none() | some),
        "weights": each(NUMBERS),
        "scores": draw(st.none() | st.just(each(NUMBERS))),
        "diagnosis": draw(st.sampled_from([None, *pictures])),
    }


def made(diagnosis: tuple[Any, ...] | None, **more: Any) -> RoundRecord:
    return record(accuracy=None, diagnosis=DiagnosisRecord(*diagnosis) if diagnosis else None, **more)


@given(fields())
def test_is_read_as_it_was(given: dict[str, Any]) -> None:
    found = made(**given)
    line = line_of(found)
    assert record_of(line) == found
    assert line_of(record_of(line)) == line
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@given(fields())
def test_lines_of_earlier_versions_are_read(given: dict[str, Any]) -> None:
    found = made(**given)
    assert record_of(json.dumps(asdict(found)).encode()) == found


def test_lines_of_earlier_versions_without_positions_of_updates() -> None:
    found = record(0, 0.5, diagnosis=replace(diagnosis(), updates=None))
    content = asdict(found)
    del content["diagnosis"]["updates"], content["screened_reasons"]
    assert record_of(json.dumps(content).encode()) == found


def test_a_run_that_an_earlier_version_began_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fedsieve.runs.directory.line_of", lambda found: (json.dumps(asdict(found)) + "\n").encode())
        with pytest.raises(KilledError):
            run_into(SKYMASK, tmp_path / "resumed", kill_after=1, checkpoint_every=0.0)
    before = (tmp_path / "resumed" / "records.jsonl").read_bytes()
    found, _ = run_into(SKYMASK, tmp_path / "resumed", resume=True)
    assert (tmp_path / "resumed" / "records.jsonl").read_bytes().startswith(before)
    straight, _ = run_into(SKYMASK, tmp_path / "straight")
    assert [replace(one, seconds={}) for one in found] == [replace(one, seconds={}) for one in straight]
    assert lines_of(tmp_path / "resumed")[2:] == lines_of(tmp_path / "straight")[2:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"clients": 10**12}, "as many clients as there are weights"),
        ({"clients": -1}, "as many clients as there are weights"),
        ({"clients": 10**4000}, "as many clients as there are weights"),
        ({"clients": 3}, "as many clients as there are weights"),
        ({"clients": 4, "weights": None}, "as many clients as there are weights"),
        ({"clients": True}, "should be a valid array"),
        ({"diagnosis": {"reasons": {"far": [9]}}}, "reasons for clients that did not take part"),
        ({"diagnosis": {"reasons": {"far": 9}}}, "reasons are not lists of clients"),
        ({"diagnosis": {"reasons": {"far": [[9]]}}}, "reasons are not lists of clients"),
        ({"clients": None, "diagnosis": {"reasons": {}}}, "reasons are not lists of clients"),
        ({"clients": [[0]], "diagnosis": {"reasons": {"far": [0]}}}, "reasons are not lists of clients"),
        ({"diagnosis": {"reasons": "far"}}, "should be a valid array"),
    ],
    ids=lambda value: value.replace(" ", "-")[:30] if isinstance(value, str) else "",
)
def test_strangers_lines(content: dict[str, Any], said: str) -> None:
    good = asdict(record(0, 0.5, diagnosis=diagnosis()))
    seen = {**good["diagnosis"], **content.get("diagnosis", {})}
    line = json.dumps({**good, **content, "diagnosis": seen})
    with pytest.raises(ValidationError) as error:
        record_of(line.encode())
    assert said in error.value.errors()[0]["msg"]


@pytest.mark.parametrize("layers", [0, 4, 39])
def test_take_at_most_3_kb_a_round_of_100_clients(layers: int) -> None:
    """2,500 rounds with a detector whose numbers have all their digits; 39 is ResNet20's number of layers."""
    n, masked = 100, layers > 0
    rejected = tuple(range(0, 40, 2))
    reason = "mask not in the root model's cluster" if masked else "joint evidence of a group, evidence over rounds"
    weights = tuple(0.0 if k in rejected else 0.0125 if masked else round(0.01234567 + k / 1e8, 8) for k in range(n))
    picture = DiagnosisRecord(
        ((-1234.5, 1234.5),) * n if masked else ((-12.3, 12.3),) * n,
        (0.0, 0.0),
        tuple(f"blocks.{k // 4}.conv{k}" for k in range(layers)),
        ((0.51,) * layers,) * n if masked else (),
        tuple(reason if k in rejected else "" for k in range(n)),
        ((-0.001234, 0.0001234),) * n,
    )
    whole = record(
        2499,
        0.87123,
        clients=tuple(range(n)),
        malicious=rejected,
        rejected=rejected,
        weights=weights,
        scores=tuple(float(k in rejected) for k in range(n))
        if masked
        else tuple(round(-1.2345 - k / 1e4, 4) for k in range(n)),
        test_loss=0.4312345678901234,
        update_norm=0.12345678901234567,
        diagnosis=picture,
        seconds=dict.fromkeys(("train", "attack", "defend", "evaluate", "record"), 0.123456),
    )
    usual = replace(whole, diagnosis=DiagnosisRecord((), None, (), (), picture.reasons))
    sizes = [len(line_of(whole if pictured(k) else usual)) for k in (2499, 2498)]
    share = sum(map(pictured, range(2500))) / 2500
    assert share == 50 / 2500
    assert share * sizes[0] + (1 - share) * sizes[1] <= 3000
