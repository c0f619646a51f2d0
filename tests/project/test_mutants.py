"""The mutation tests' own tests: which defects are planted where, and that the harness tells killed from survived."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "torture" / "mutants.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torture_mutants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def planted(tool: ModuleType, line: str) -> set[str]:
    """The line, inside a function, with each defect in turn."""
    found = tool.mutants("f.py", f"def f(x, y):\n    {line}\n".encode())
    assert all(m.line == 2 and m.function == "f" and m.before == line for m in found)
    return {m.after for m in found}


class TestOperators:
    @pytest.mark.parametrize(
        ("line", "wrong"),
        [
            ("z = x < y", {"z = x <= y"}),
            ("z = x is not y", {"z = x is y"}),
            ("z = (x) not in (y)", {"z = (x) in (y)"}),
            ("z = x < y <= x", {"z = x <= y <= x", "z = x < y < x"}),
            ("z = (x + y) * (x - y)", {"z = (x - y) * (x - y)", "z = (x + y) / (x - y)", "z = (x + y) * (x + y)"}),
            ("z = x ** y // x", {"z = x * y // x", "z = x ** y * x"}),
            ("z = x & ~y", {"z = x | ~y", "z = x & y"}),
            ("z = not x and y", {"z =  x and y".replace("  ", " "), "z = not x or y"}),
            ("z = -x", {"z = x"}),
            ("z = x[:y]", {"z = x[y:]"}),
            ("z = x[3]", {"z = x[4]"}),
            ("z = 1e-9", {"z = 1.000000001"}),
            ("z = True", {"z = False"}),
            ("z = x if y else z", {"z = x if not (y) else z"}),
            ("z = [v for v in x if v]", {"z = [v for v in x if True]"}),
            ("z = x.abs().max()", {"z = x.max()", "z = x.abs().min()"}),
            ("z = (x - y).square()", {"z = (x - y)", "z = (x + y).square()"}),
            ("z = torch.sqrt(x)", {"z = x"}),
            ("z = x.clamp(min=y)", {"z = x", "z = x.clamp(max=y)"}),
            ("z = x.sum(dim=0)", {"z = x.mean(dim=0)", "z = x.sum(dim=1)"}),
            ("z = x.sort(dim=1)", {"z = x.sort(dim=0)"}),
            ("z = x.softmax(dim=-1)", {"z = x.softmax(dim=0)"}),
            ("x += y", {"x -= y", "pass"}),
            ("x[y] = y", {"pass"}),
            ("x.update(y)", {"pass"}),
            ("raise ValueError(f'{x + 1}')", {"pass"}),
            ("return x", {"return None"}),
        ],
    )
    def test_what_they_make(self, tool: ModuleType, line: str, wrong: set[str]) -> None:
        assert planted(tool, line) == wrong

    @pytest.mark.parametrize(
        "line",
        [
            '"""A text: 1 + 1."""',
            "z: int | None = y",
            "z = f'{x + 1}'",
            "z = x + 'text'",
            "z = torch.zeros(x, device=x.device)",
            "z = zip(x, y, strict=True)",
            "z = x.cpu()",
            "import x",
        ],
    )
    def test_what_they_leave_alone(self, tool: ModuleType, line: str) -> None:
        assert planted(tool, line) - {z for z in planted(tool, line) if "zeros" in line and "ones" in z} == set()

    def test_modules_and_classes(self, tool: ModuleType) -> None:
        source = b"""
Kind = int | str
__all__ = ["x" * 2]
LIMIT = 3

@dataclass(frozen=True)
class A:
    traits: ClassVar[Traits] = Traits(f=1)
    share: float = 0.5

    @direct("a", spreads=True)
    def f(self, n: Literal[1] = 2) -> int:
        return n
"""
        found = tool.mutants("f.py", source)
        assert [(m.line, m.function, m.after, m.inside) for m in found] == [
            (4, "", "LIMIT = 4", False),
            (9, "A", "share: float = 1.5", False),
            (12, "A.f", "def f(self, n: Literal[1] = 3) -> int:", False),
            (13, "A.f", "return None", True),
        ]

    def test_only_the_place_is_changed(self, tool: ModuleType) -> None:
        source = "a = 'é' # ü\nb = (1 +\n     2)\nc = 3\n".encode()
        found = {m.after: m.planted(source).decode() for m in tool.mutants("f.py", source)}
        assert found["c = 4"] == "a = 'é' # ü\nb = (1 +\n     2)\nc = 4\n"
        assert found["2)".replace("2", "3")] == "a = 'é' # ü\nb = (1 +\n     3)\nc = 3\n"
        assert found["b = (1 -"] == "a = 'é' # ü\nb = (1 -\n     2)\nc = 3\n"


class TestSample:
    def test_the_same_line_twice(self, tool: ModuleType) -> None:
        found = tool.mutants("f.py", b"def f(x):\n    x += 1\n    x += 1\n")
        assert [m.again for m in found if m.after == "pass"] == [0, 1]
        assert len({m.key for m in found}) == len(found)

    def test_other_lines_may_change(self, tool: ModuleType) -> None:
        lines = [f"def f{k}(x):\n    return x + {k}\n" for k in range(20)]
        one = tool.mutants("f.py", "".join(lines).encode())
        other = tool.mutants("f.py", ("# a comment\n" + "".join(lines)).encode())
        assert [m.key for m in tool.sample(one, 15)] == [m.key for m in tool.sample(other, 15)]
        assert {m.key for m in tool.sample(one, 15)} <= {m.key for m in tool.sample(one, 16)}
        assert tool.sample(one, 15) != tool.sample(one, 15, seed=1)
        assert [m.start for m in tool.sample(one, 15)] == sorted(m.start for m in tool.sample(one, 15))


class TestSubjects:
    def test_all_can_be_planted(self, tool: ModuleType) -> None:
        count = 0
        for file in tool.SUBJECTS:
            source = (tool.PACKAGE / file).read_bytes()
            found = tool.mutants(file, source)
            chosen = tool.sample(found, tool.SAMPLE)
            count += len(chosen)
            assert found, file
            for m in chosen:
                ast.parse(m.planted(source))
        assert count >= 500

    def test_their_tests_are_there(self, tool: ModuleType) -> None:
        names = {name for stages in tool.SUBJECTS.values() for stage in stages for name in stage}
        missing = {name for name in names if name.endswith(".py") and not (ROOT / "tests" / name).is_file()}
        assert missing == set()

    def test_all_files_that_decide_are_subjects(self, tool: ModuleType) -> None:
        rooms = ("aggregators", "detectors")
        files = {
            path.relative_to(tool.PACKAGE).as_posix() for room in rooms for path in (tool.PACKAGE / room).rglob("*.py")
        }
        without_code = {"aggregators/__init__.py", "detectors/__init__.py"}
        on_a_gpu_only = {"detectors/skymask/fused.py"}
        assert files - set(tool.SUBJECTS) == without_code | on_a_gpu_only

    def test_survivors_that_are_explained_exist(self, tool: ModuleType) -> None:
        known = {m.key for file in tool.SUBJECTS for m in tool.mutants(file, (tool.PACKAGE / file).read_bytes())}
        assert set(tool.reasons()) - known == set()
