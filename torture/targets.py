"""The parsers of files that may be a stranger's, each as a function of bytes; for hypothesis and for the fuzzer.

A target returns if it read the bytes, raises FedSieveError if it refused them, and anything else is a loss.
"""

import gzip
import hashlib
import io
import os
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsieve.config.experiment import Experiment
from fedsieve.config.yaml_files import parse_yaml, yaml_text
from fedsieve.core.errors import ParameterError
from fedsieve.core.records import RoundRecord
from fedsieve.data.arrays import NPZ
from fedsieve.data.dataset import Dataset
from fedsieve.data.table import CSV
from fedsieve.federation.server import ServerState
from fedsieve.federation.simulation import SimulationState
from fedsieve.runs.checkpoint import Stamp, decode, encode
from fedsieve.runs.directory import RunDirectory
from fedsieve.runs.lines import line_of
from torture.common import SETTINGS, expect

CPU = torch.device("cpu")


def parser(content: bytes) -> None:
    """A YAML text; what is read is written and read again, the same."""
    try:
        value = parse_yaml(content.decode("utf-8", "replace"))
    except ValueError as error:
        raise ParameterError(str(error)) from error
    if isinstance(value, dict | list):
        expect(parse_yaml(yaml_text(value)) == value, "written and read again, it is another value")


def recorded(content: bytes) -> None:
    """The experiment of a run directory."""
    found = Experiment.recorded(_file("experiment.yaml", content))
    again = Experiment.recorded(_file("experiment.yaml", found.to_yaml().encode()))
    expect(again.key == found.key, "written and read again, it is another experiment")


def records(content: bytes) -> None:
    """The records of a run directory."""
    directory = RunDirectory(_file("records.jsonl", content).parent)
    found = directory.records()
    expect([line_of(record) for record in found] == [line_of(record) for record in directory.records()], "read twice")


def checkpoint(content: bytes) -> None:
    """A checkpoint, by one who knows how to compute its checksum."""
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
    if found:
        zeros = content[: found.start(1)] + b"0" * 64 + content[found.end(1) :]
        seal = hashlib.sha256(zeros).hexdigest().encode()
        content = zeros[: found.start(1)] + seal + zeros[found.end(1) :]
    stamp, state = decode(content, CPU)
    expect(isinstance(stamp, Stamp) and isinstance(state, SimulationState), "decoded to something else")


def table(content: bytes) -> None:
    """A table: the first byte chooses its kind and its columns."""
    kind = content[0] if content else 0
    name = ("t.csv", "t.tsv", "t.csv.gz", "t.csv")[kind % 4]
    more: dict[str, Any] = ({}, {"client": "a"}, {"text": "a"}, {"fill": "mean"})[kind // 4 % 4]
    loader = CSV(file=str(_file(name, content[1:])), label="y", **more)
    loader.implied_defaults()
    _usable(loader.load(Path(), torch.Generator().manual_seed(0)))


def arrays(content: bytes) -> None:
    """Numpy's arrays; the first byte chooses what they are."""
    kind = content[0] if content else 0
    loader = NPZ(file=str(_file("a.npz", content[1:])), tokens=bool(kind & 1))
    loader.implied_defaults()
    _usable(loader.load(Path(), torch.Generator().manual_seed(0)))


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function for function in (parser, recorded, records, checkpoint, table, arrays)
}


def _usable(data: Dataset) -> None:
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        expect(len(x) == len(y) > 0, "samples without classes")
        expect(bool(torch.isfinite(x.double()).all()), "values that are not finite")
        expect(0 <= int(y.min()) <= int(y.max()) < data.n_classes, "classes out of range")


_folder: list[Path] = []


def _file(name: str, content: bytes) -> Path:
    """A file with this content, in a folder of this process."""
    if not _folder:
        _folder.append(Path(tempfile.mkdtemp(prefix="torture-")))
    path = _folder[0] / name
    path.write_bytes(content)
    return path


# --- Good files to begin with -------------------------------------------------------------------------------


def record(number: int) -> RoundRecord:
    """A round as it is recorded."""
    weights, scores = (0.5, 0.5, 0.0), (1.0, None, 3.0)
    rates = {"test_accuracy": 0.5, "test_loss": 1.5, "attack_success_rate": None, "attack_success_rate_all": None}
    return RoundRecord(
        number, (0, 1, 2), (2,), (2,), (), weights, scores, 1.0, True, "", **rates,
        false_positive_rate=0.0, false_negative_rate=0.0, seconds={"train": 0.1},
    )  # fmt: skip


def seeds(name: str) -> list[bytes]:
    """Good inputs of a target."""
    experiment = Experiment.of(SETTINGS)
    if name in ("parser", "recorded"):
        return [experiment.to_yaml().encode(), b"{a: [1, -2.5e-3, true, ~, 'x'], b: {c: no}}\n"][
            : 1 + (name == "parser")
        ]
    if name == "records":
        return [b"".join(line_of(record(k)) for k in range(3))]
    if name == "checkpoint":
        server = ServerState(torch.ones(4), 2, {"a": [torch.zeros(2), (1, None, "x")]}, {"m": torch.ones(4)})
        return [encode(SimulationState(server, None, {3: 0.5}), Stamp(experiment.model_dump(mode="json"), 2, "0" * 64))]
    if name == "table":
        text = "".join(f"{k},{k % 3},word {k % 4},{'yes' if k % 2 else 'no'}\n" for k in range(12))
        rows = [
            f"a,b,c,y\n{text}",
            '"a","b","y"\r\n"1,5",2,x\r\n"2",3,y\r\n"-",4,x\r\n',
            "a\tb\ty\n1\t2\t0\n2\t3\t1\n3\t4\t0\n",
        ]
        return [bytes([k]) + row.encode() for k, row in zip((0, 12, 1), rows, strict=True)]
    file = io.BytesIO()
    x, y = np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(8) % 2
    np.savez(file, x=x, y=y, clients=np.arange(8) // 2)
    tokens = io.BytesIO()
    np.savez_compressed(tokens, x=np.arange(24).reshape(8, 3), y=y)
    return [b"\0" + file.getvalue(), b"\1" + tokens.getvalue()]


# --- Files that unpack to far more than they take ---------------------------------------------------------------


def bombs(folder: Path, size: int) -> dict[str, Callable[[], object]]:
    """Files that would fill ``size`` bytes of memory or more, each with what reads it."""

    def packed(name: str, line: bytes) -> Path:
        block = line * (2**20 // len(line))
        with gzip.open(folder / name, "wb", 1) as file:
            file.write(b"a,y\n")
            for _ in range(size // len(block)):
                file.write(block)
        return folder / name

    def sparse(name: str) -> Path:
        with (folder / name).open("wb") as file:
            os.truncate(file.fileno(), 2**34)
        return folder / name

    def npz(name: str, header: bytes, most: int) -> Path:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("x.npy", "w", force_zip64=True) as file:
                file.write(header)
                for _ in range(most // 2**20):
                    file.write(bytes(2**20))
            archive.writestr("y.npy", header)
        return folder / name

    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 2)}"
    head = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + (text % (size // 8)).ljust(117) + b"\n"
    vast = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + (text % 10**12).ljust(117) + b"\n"
    g = torch.Generator()
    rows, line = packed("rows.csv.gz", b"1,0\n2,1\n"), packed("line.csv.gz", b"x" * 1024)
    full, empty, files = npz("full.npz", head, size), npz("empty.npz", vast, 0), sparse("experiment.yaml").parent
    sparse("records.jsonl"), sparse("t.csv"), sparse("a.npz")
    deep = b"[" * 100_000
    return {
        "a table of many rows": lambda: CSV(file=str(rows), label="y").load(folder, g),
        "a table of one line": lambda: CSV(file=str(line), label="y").load(folder, g),
        "a table of 16 GiB of zeros": lambda: CSV(file=str(files / "t.csv"), label="y").load(folder, g),
        "arrays of zeros": lambda: NPZ(file=str(full)).load(folder, g),
        "arrays that are said to be of 8 TB": lambda: NPZ(file=str(empty)).load(folder, g),
        "an archive of 16 GiB of zeros": lambda: NPZ(file=str(files / "a.npz")).load(folder, g),
        "settings of 16 GiB of zeros": lambda: Experiment.read(files / "experiment.yaml"),
        "recorded settings of 16 GiB of zeros": lambda: Experiment.recorded(files / "experiment.yaml"),
        "records of 16 GiB without an end": lambda: RunDirectory(files).records(),
        "settings of 100,000 levels": lambda: parser(deep),
        "a record of 100,000 levels": lambda: records(deep + b"\n"),
        "an integer of 100,000 digits": lambda: records(b'{"round": ' + b"9" * 100_000 + b"}\n"),
    }
