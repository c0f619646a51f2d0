"""Fuzzes one parser with atheris, guided by coverage: ``python -m torture.fuzz TARGET COUNTS FOLDER OPTIONS``.

The numbers of inputs that were tried and refused are written to COUNTS, two integers of 64 bits.
"""

import mmap
import struct
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedsieve", "yaml"]):
    from torture.targets import TARGETS, seeds

from fedsieve.core.errors import FedSieveError


def main() -> None:
    """Fuzz; never returns. A loss ends it with a traceback and the input."""
    name, counts, folder, *options = sys.argv[1:]
    target, numbers = TARGETS[name], [0, 0]
    Path(counts).write_bytes(bytes(16))
    with Path(counts).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 16)
    for number, content in enumerate(seeds(name)):
        Path(folder, f"seed-{number}").write_bytes(content)

    def one(content: bytes) -> None:
        numbers[0] += 1
        try:
            target(content)
        except FedSieveError as error:
            if "\n" in str(error):
                raise AssertionError(f"told in more than one line: {error}") from error
            numbers[1] += 1
        shared[:] = struct.pack("<QQ", *numbers)

    atheris.Setup([sys.argv[0], *options, folder], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
