"""What a user without Flower is told, and that nothing else of the package asks for it."""

import subprocess
import sys

BLOCKED = """
import sys
sys.modules["flwr"] = None
import fedsieve, fedsieve.cli
try:
    import fedsieve.flower
except ImportError as error:
    print(error)
"""


def test_one_line_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=120, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("fedsieve.flower needs Flower, pip install 'fedsieve[flower]': ")
