"""What CI installs with hashes is what constraints.txt pins."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pinned(path: Path) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", path.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, version in found}


def test_all_but_torch_are_locked_with_their_hashes() -> None:
    expected = pinned(ROOT / "constraints.txt")
    assert expected.pop("torch")
    locked = ROOT / ".ci" / "requirements.txt"
    assert pinned(locked) == expected
    entries = re.split(r"^(?=[A-Za-z])", locked.read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) == len(expected)
    assert all("--hash=sha256:" in entry for entry in entries)
