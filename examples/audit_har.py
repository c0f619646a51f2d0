"""The audit of HAR's thirty people, each a site, with and without one person's labels flipped.

    python examples/audit_har.py docs/results/audit       # needs HAR under FEDSIEVE_DATA, downloaded if missing

Person 7's labels become others: walking is sitting, and so on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fedsieve.core.seeding import stream
from fedsieve.data.har import HAR
from fedsieve.data.store import data_folder

PERSON = 7


def written(file: Path, flipped: bool) -> None:
    """HAR as an array file of samples, classes and people."""
    data = HAR().load(data_folder(), stream(0, "split"))
    assert data.owners is not None
    assert data.test_owners is not None
    x = np.concatenate([data.x_train.numpy(), data.x_test.numpy()])
    y = np.concatenate([data.y_train.numpy(), data.y_test.numpy()])
    people = np.array(data.owner_names)[np.concatenate([data.owners.numpy(), data.test_owners.numpy()])]
    if flipped:
        here = people == f"person {PERSON}"
        y[here] = data.n_classes - 1 - y[here]
    np.savez(file, x=x, y=y, clients=people)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def main() -> None:
    """Audit both files and write the page."""
    folder = Path(sys.argv[1])
    parts = []
    with tempfile.TemporaryDirectory() as temporary:
        for flipped in (False, True):
            file = Path(temporary, f"har{'-flipped' * flipped}.npz")
            written(file, flipped)
            command = ["fedsieve", "audit", file.name, "--quiet"]
            found = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=True)
            what = f"Person {PERSON}'s labels flipped" if flipped else "As published"
            parts.append(f"## {what}\n\n```text\n$ {' '.join(command)}\n{_trimmed(found.stdout)}\n```\n")
    folder.mkdir(parents=True, exist_ok=True)
    head = "# The audit of HAR's thirty people\n\n`python examples/audit_har.py docs/results/audit` makes this page.\n"
    (folder / "har.md").write_text("\n".join([head, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
