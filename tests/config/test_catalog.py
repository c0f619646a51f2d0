"""The catalog, read from source files, says what the imported classes say."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedsieve.config import catalog, registry
from fedsieve.config import installed as installed_module
from fedsieve.core.attack import DataAttack, UpdateAttack
from fedsieve.core.errors import UnknownNameError
from fedsieve.core.traits import Traits

EVERY = [(kind, name) for kind in catalog.KINDS for name in registry.names(kind)]


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the components that were imported, because their source did not say enough."""
    found: list[str] = []
    real = catalog._imported

    def watched(kind: str, name: str) -> catalog.Entry:
        found.append(name)
        return real(kind, name)

    monkeypatch.setattr(catalog, "_imported", watched)
    return found


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Installs a module ``other_package.plugin`` with this source, its classes registered in one group."""
    points: list[EntryPoint] = []

    def install(kind: str, source: str, *classes: str) -> None:
        folder = tmp_path / "other_package"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise_if_imported = 1\n")
        (folder / "plugin.py").write_text(source)
        points.extend(EntryPoint(c.lower(), f"other_package.plugin:{c}", f"fedsieve.{kind}") for c in classes)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(installed_module, "entry_points", lambda group: EntryPoints(points).select(group=group))
    installed_module.registered.cache_clear()
    yield install
    installed_module.registered.cache_clear()
    for module in ("other_package", "other_package.plugin"):
        sys.modules.pop(module, None)


class TestOurs:
    def test_everything_is_listed(self) -> None:
        assert catalog.KINDS == registry.KINDS
        for kind in catalog.KINDS:
            assert tuple(entry.name for entry in catalog.entries(kind)) == registry.names(kind)
        assert len(EVERY) >= 50

    @pytest.mark.parametrize(("kind", "name"), EVERY)
    def test_says_what_the_class_says(self, kind: str, name: str) -> None:
        entry = catalog._read(kind, installed_module.registered(kind)[name])  # without the way out, to import it
        cls = registry.load(kind, name)
        assert entry.name == name
        assert entry.traits == registry.traits(kind, name)
        assert entry.parameters == {**registry.complete(kind, name, {}), **getattr(cls, "parts", {})}
        assert list(entry.parameters) == list(registry.complete(kind, name, {}))
        assert entry.stage == (registry.stage(name) if kind == "defenses" else "")
        changed = {"data": issubclass(cls, DataAttack), "updates": issubclass(cls, UpdateAttack)}
        assert entry.targets == (tuple(t for t in changed if changed[t]) if kind == "attacks" else ())

    def test_a_component_made_of_others_has_their_names(self) -> None:
        mixture = next(entry for entry in catalog.entries("attacks") if entry.name == "mixture")
        assert mixture.parameters == {"attacks": ("min-max", "label-flip", "scaling")}

    def test_imports_nothing_heavy(self) -> None:
        code = (
            "import sys; from fedsieve.config import catalog; [catalog.entries(kind) for kind in catalog.KINDS];"
            "heavy = {'torch', 'sklearn', 'pandas', 'pydantic', 'numpy', 'rich', 'yaml'};"
            "print(*heavy & set(sys.modules))"
        )
        start = time.perf_counter()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.split() == []
        assert time.perf_counter() - start < 5  # about 0.3 s on an idle machine; torch alone takes longer than 1 s


PLAIN = """
import os
import no_such_module  # reading the source does not run it
from dataclasses import dataclass
from typing import Any, ClassVar

from fedsieve.core.traits import Traits

_PAPER = "Doe et al., Plugins, 2025"
_LIMIT = 3
_TWICE = 2 * _LIMIT
_LIST = ["krum"]


@dataclass(frozen=True)
class Plain:
    level: float = -_TWICE / 4
    mode: str | None = None
    names: tuple[str, ...] = ("a", "b")
    table: Any = None
    traits: ClassVar[Traits] = Traits(summary="Plain", paper=_PAPER, needs=("f", "root data"))

    def detect(self, updates, view, /): ...


class Built:
    traits: ClassVar[Traits] = Traits("Built", cost="O(n)")

    def __init__(self, depth: int = 3, *, wide: bool = False) -> None: ...

    def preaggregate(self, updates, view, /): ...
"""

# Classes whose source does not say everything: they are imported.
UNUSUAL = {
    "Computed": "level: int = round(2.6)",
    "Field": "level: int = field(default=3, repr=False)",
    "ComputedConstant": "level: int = LATE",
    "Derived": "level: int = 3",
    "CallForTraits": "level: int = 3",
    "ClassAttribute": "level: int = 3",
}
HEADER = """
from dataclasses import dataclass, field
from typing import ClassVar

from fedsieve.core.traits import Traits

LATE = sum([1, 2])


def described(summary):
    return Traits(summary=summary.title())


class Base:
    def __call__(self, updates, view, /): ...
"""


def unusual(name: str, field: str) -> str:
    made = {"CallForTraits": 'described("said so")', "ClassAttribute": 'Traits("Said So")'}
    traits = made.get(name, 'Traits(summary="Said So")')
    annotation = "" if name == "ClassAttribute" else ": ClassVar[Traits]"
    base = "(Base)" if name == "Derived" else ""
    method = "    pass\n" if base else "    def __call__(self, updates, view, /): ...\n"
    return (
        f"\n\n@dataclass(frozen=True)\nclass {name}{base}:\n    {field}\n    traits{annotation} = {traits}\n\n{method}"
    )


class TestThirdParties:
    def test_literals_constants_and_arithmetic_are_read(
        self, installed: Callable[..., None], imported: list[str]
    ) -> None:
        installed("defenses", PLAIN, "Plain", "Built")
        built, plain = catalog.entries("defenses")
        assert plain == catalog.Entry(
            "plain",
            Traits("Plain", "Doe et al., Plugins, 2025", ("f", "root data")),
            {"level": -1.5, "mode": None, "names": ("a", "b"), "table": None},
            "detector",
        )
        assert built == catalog.Entry(
            "built", Traits("Built", cost="O(n)"), {"depth": 3, "wide": False}, "pre-aggregator"
        )
        assert imported == []
        assert not {"other_package", "other_package.plugin"} & set(sys.modules)

    @pytest.mark.parametrize(("name", "field"), UNUSUAL.items())
    def test_others_are_imported(
        self, installed: Callable[..., None], imported: list[str], name: str, field: str
    ) -> None:
        installed("defenses", HEADER + unusual(name, field), name)
        (entry,) = catalog.entries("defenses")
        assert imported == [name.lower()]
        assert entry == catalog.Entry(name.lower(), Traits("Said So"), {"level": 3}, "aggregator")

    def test_a_class_from_elsewhere(self, installed: Callable[..., None], imported: list[str]) -> None:
        installed("attacks", "from fedsieve.attacks.sign_flip import SignFlip\n", "SignFlip")
        (entry,) = catalog.entries("attacks")
        assert imported == ["signflip"]
        assert (entry.parameters, entry.targets) == ({"factor": 1.0}, ("updates",))

    def test_a_model_gets_some_arguments_from_the_data(
        self, installed: Callable[..., None], imported: list[str]
    ) -> None:
        source = (
            "from torch import nn\nfrom typing import ClassVar\nfrom fedsieve.core.traits import Traits\n\n\n"
            "class Net(nn.Module):\n    traits: ClassVar[Traits] = Traits(summary='Net')\n\n"
            "    def __init__(self, input_shape, n_classes, vocabulary=(), width=5): ...\n\n"
            "    def forward(self, x): ...\n\n\n"
            "class Wider(Net):\n    traits: ClassVar[Traits] = Traits(summary='Wider')\n"
        )
        installed("models", source, "Net", "Wider")
        net, wider = catalog.entries("models")
        assert net == catalog.Entry("net", Traits("Net"), {"width": 5})
        assert imported == ["wider"]
        assert wider == catalog.Entry("wider", Traits("Wider"), {"width": 5})

    def test_a_single_file(self, monkeypatch: pytest.MonkeyPatch, doubles: ModuleType, imported: list[str]) -> None:
        points: Any = EntryPoints([EntryPoint("tiny", "doubles:Tiny", "fedsieve.datasets")])
        monkeypatch.setattr(installed_module, "entry_points", lambda group: points.select(group=group))
        installed_module.registered.cache_clear()
        (entry,) = catalog.entries("datasets")
        installed_module.registered.cache_clear()
        assert entry == catalog.Entry("tiny", doubles.Tiny.traits, {"n": 120})
        assert imported == []

    def test_one_name_for_two_classes(self, installed: Callable[..., None]) -> None:
        installed("attacks", HEADER, "Same", "SAME")
        with pytest.raises(UnknownNameError, match=r"two packages register attack 'same': .*; uninstall one"):
            catalog.entries("attacks")
