"""The laws about the code itself: which module imports which, what a class may be, where random numbers come from."""

import ast
import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from textwrap import dedent

import pytest

import fedsieve
from fedsieve.config import registry
from fedsieve.core.traits import Traits

PACKAGE = Path(fedsieve.__file__).parent
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

# The floor of every room, a folder of modules; the package itself is above all.
FLOORS = {
    "core": 0,
    "models": 1,
    "data": 1,
    "aggregators": 1,
    "detectors": 1,
    "preaggregators": 1,
    "attacks": 1,
    "config": 2,
    "federation": 3,
    "runs": 4,
    "report": 5,
    "flower": 5,
    "reproduce": 6,
    "audit": 6,
    "cli": 7,
    "notebook": 8,
    "__main__": 9,
    "": 9,
}
# Rooms with one paper per file, or per folder of files, which do not import each other.
SEPARATE = ("aggregators", "detectors", "preaggregators", "attacks")
# What is made of others in its room, and helpers that several share.
COMPOSED = {"aggregators.chain", "aggregators.weighting"} | {
    f"attacks.{name}" for name in ("mixture", "split_layers", "fresh_identity", "sleeper", "on_off", "jitter")
}
SHARED = {f"attacks.{name}" for name in ("triggers", "pauses", "noise", "stand_ins", "hiding", "searching", "columns")}
MOST_LINES = 300


def sources(folder: Path) -> dict[str, ast.Module]:
    """The syntax tree of every file below ``folder``, by module name; ``""`` is the package itself."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = list(path.relative_to(folder).with_suffix("").parts)
        if parts[-1] == "__init__":
            del parts[-1]
        found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def is_package(module: str, modules: Mapping[str, object]) -> bool:
    return module == "" or any(other.startswith(f"{module}.") for other in modules)


def imports(module: str, modules: Mapping[str, ast.Module]) -> set[str]:
    """Modules of the package that ``module`` imports anywhere, in functions and under TYPE_CHECKING too."""

    def resolved(name: str) -> str:
        assert name == "" or name in modules, f"{module or 'the package'} imports {name}, which is nowhere"
        return name

    def inside(name: str) -> str | None:
        return name.removeprefix("fedsieve").removeprefix(".") if name.split(".")[0] == "fedsieve" else None

    found: set[str] = set()
    for node in ast.walk(modules[module]):
        if isinstance(node, ast.Import):
            found |= {resolved(name) for alias in node.names if (name := inside(alias.name)) is not None}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                up = module.split(".") if module else []
                up = up[: len(up) - node.level + is_package(module, modules)]
                base: str | None = ".".join([*up, *(node.module.split(".") if node.module else [])])
            else:
                base = inside(node.module or "")
            if base is None:
                continue
            for alias in node.names:
                below = f"{base}.{alias.name}".removeprefix(".")
                found.add(below if below in modules else resolved(base))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                name = inside(str(node.args[0].value))
                found |= {resolved(name)} if name is not None else set()
    return found - {module}


def breaches(modules: Mapping[str, ast.Module]) -> list[str]:
    """Every import that does not go down, and every circle inside a room."""
    wrong = []
    for module in modules:
        room = module.split(".")[0]
        if room not in FLOORS:
            wrong.append(f"{module} has no floor")
            continue
        for other in sorted(imports(module, modules)):
            below = other.split(".")[0]
            if below not in FLOORS:
                continue  # told above
            if room == below:
                apart = other != room and other.split(".")[:2] != module.split(".")[:2]
                if room in SEPARATE and apart and module not in COMPOSED and other not in SHARED:
                    wrong.append(f"{module} imports {other}: one paper per file")
            elif FLOORS[room] == FLOORS[below]:
                wrong.append(f"{module} imports {other} on its own floor {FLOORS[room]}")
            elif FLOORS[room] < FLOORS[below]:
                wrong.append(f"{module}, floor {FLOORS[room]}, imports {other} on floor {FLOORS[below]}")
    return wrong + [f"a circle: {' -> '.join(circle)}" for circle in circles(modules)]


def circles(modules: Mapping[str, ast.Module]) -> list[list[str]]:
    """Modules that import each other, directly or through others; a package's own file may import what is below it."""
    graph = {
        module: {o for o in imports(module, modules) if o and not o.startswith(f"{module}.")} for module in modules
    }
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            visit(other, [*path, module])
        done.add(module)

    for module in graph:
        visit(module, [])
    return found


def planted(**files: str) -> dict[str, ast.Module]:
    """Modules from source text; ``__`` in a name is a dot."""
    return {name.replace("__", "."): ast.parse(dedent(text)) for name, text in files.items()} | {"": ast.parse("")}


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    found = sources(PACKAGE)
    assert len(found) >= 35
    assert len(found) == len(list(PACKAGE.rglob("*.py")))
    return found


class TestFloors:
    def test_imports_only_go_down(self, modules: dict[str, ast.Module]) -> None:
        assert breaches(modules) == []

    def test_every_floor_is_used(self, modules: dict[str, ast.Module]) -> None:
        assert set(FLOORS) == {module.split(".")[0] for module in modules}
        assert set(modules) >= COMPOSED | SHARED

    def test_imports_are_found(self, modules: dict[str, ast.Module]) -> None:
        found = {module: imports(module, modules) for module in modules}
        assert sum(map(len, found.values())) >= 200
        assert found["core.errors"] == set()
        assert {"runs.run", "config.experiment", "data.store"} <= found["cli.run"]
        assert found["__main__"] == {"cli"}
        assert {"core.ranks", "core.defense", "core.traits"} <= found["aggregators.trimmed_mean"]
        assert {"config.registry", "federation.server", "federation.clients"} <= found["federation.simulation"]

    @pytest.mark.parametrize(
        ("module", "text", "said"),
        [
            ("core__a", "from fedsieve.config.x import X", "core.a, floor 0, imports config.x on floor 2"),
            ("core__a", "import fedsieve.config.x", "core.a, floor 0, imports config.x on floor 2"),
            ("core__a", "import fedsieve.config.x as s", "core.a, floor 0, imports config.x on floor 2"),
            ("core__a", "from fedsieve.config import x", "core.a, floor 0, imports config.x on floor 2"),
            ("core__a", "from ..config import x", "core.a, floor 0, imports config.x on floor 2"),
            ("core__a", "from ..config.x import X", "core.a, floor 0, imports config.x on floor 2"),
            ("core__a", "def f():\n    from fedsieve.config import x", "core.a, floor 0, imports config.x on floor 2"),
            (
                "core__a",
                "if TYPE_CHECKING:\n    import fedsieve.config.x",
                "core.a, floor 0, imports config.x on floor 2",
            ),
            ("core__a", "importlib.import_module('fedsieve.config.x')", "core.a, floor 0, imports config.x on floor 2"),
            ("core__a", "import fedsieve", "core.a, floor 0, imports  on floor 9"),
            ("models__a", "from fedsieve.data.b import B", "models.a imports data.b on its own floor 1"),
            ("detectors__a", "from fedsieve.attacks import b", "detectors.a imports attacks.b on its own floor 1"),
            ("detectors__a", "from ..attacks.b import B", "detectors.a imports attacks.b on its own floor 1"),
            ("detectors__a", "from .b import B", "detectors.a imports detectors.b: one paper per file"),
            ("attacks__a", "from . import b", "attacks.a imports attacks.b: one paper per file"),
            ("detectors__a__c", "from ..b import B", "detectors.a.c imports detectors.b: one paper per file"),
            ("attic__a", "", "attic.a has no floor"),
            ("data__a", "from fedsieve.data.a import b", ""),
            ("data__b", "import fedsieve.data.c", "a circle: data.b -> data.c -> data.b"),
        ],
    )
    def test_planted_faults_are_found(self, module: str, text: str, said: str) -> None:
        names = ("core", "config", "config__x", "models", "data", "attacks", "attacks__b", "detectors", "detectors__b")
        circle = {"data__b": "", "data__c": "from fedsieve.data import b"}
        tree = planted(**{**dict.fromkeys(names, ""), **circle, module: text})
        assert breaches(tree) == ([said] if said else [])

    @pytest.mark.parametrize(
        ("module", "text"),
        [
            ("federation__server", "from fedsieve.core.linalg import x\nfrom fedsieve.core import linalg"),
            ("data__store", "from fedsieve.data.dataset import x\nfrom . import dataset\nfrom .dataset import y"),
            ("__main__", "from fedsieve.cli import main"),
            ("detectors__a__b", "from fedsieve.detectors.a.c import x"),
            ("attacks__mixture", "from fedsieve.attacks.b import B"),
            ("attacks__c", "from fedsieve.attacks.triggers import mark"),
            ("core__linalg", "import torch\nfrom fedsieve_more import server\nimport fedsieveless.server"),
        ],
    )
    def test_what_is_allowed_is_no_fault(self, module: str, text: str) -> None:
        parts = ("core", "core__linalg", "data", "data__dataset", "cli", "attacks", "attacks__b", "attacks__triggers")
        tree = planted(**dict.fromkeys((*parts, "detectors", "detectors__a", "detectors__a__c"), ""))
        tree[module if module == "__main__" else module.replace("__", ".")] = ast.parse(text)
        assert breaches(tree) == []

    def test_a_name_that_does_not_exist(self) -> None:
        with pytest.raises(AssertionError, match=r"core.a imports core.sever, which is nowhere"):
            breaches(planted(core="", core__a="from fedsieve.core.sever import Server"))

    def test_sources_are_read_from_files(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        for name in ("__init__.py", "cli.py", "data/__init__.py", "data/store.py"):
            (tmp_path / name).write_text("import fedsieve.data.store\n")
        found = sources(tmp_path)
        assert set(found) == {"", "cli", "data", "data.store"}
        assert imports("cli", found) == {"data.store"}

    def test_no_file_is_long(self) -> None:
        lengths = {
            path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
            for path in PACKAGE.rglob("*")
            if path.suffix in (".py", ".html", ".js", ".css")
        }
        assert len(lengths) >= 100
        assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


# --- Classes ------------------------------------------------------------------------------------------------

TORCHS = ("nn.Module", "torch.nn.Module", "Optimizer")
FOREIGN_BASES = {"Protocol", *TORCHS, "Exception", "BaseModel"}
# The only way to say which classes a pickle may name.
EXCEPTIONS = [
    "data.cifar10._Unpickler inherits from pickle.Unpickler",
    "flower.strategy.Defended inherits from Strategy",
    "models.convolution.ByClient inherits from TorchFunctionMode",
    "models.convolution._Convolution inherits from torch.autograd.Function",
]


def classes(modules: Mapping[str, ast.Module]) -> dict[str, tuple[str, ast.ClassDef]]:
    found: dict[str, tuple[str, ast.ClassDef]] = {}
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                assert node.name not in found, f"two classes {node.name}"
                found[node.name] = (module, node)
    return found


def has_code(node: ast.ClassDef) -> bool:
    """Whether a method does anything."""
    return any(
        isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
        and not all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in item.body)
        for item in node.body
    )


def base_names(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).partition("[")[0] for base in node.bases]


def heirs(modules: Mapping[str, ast.Module]) -> list[str]:
    """Every class that inherits code of ours, or of anybody but the few whose bases are a convention."""
    known = classes(modules)
    wrong = []
    for name, (module, node) in known.items():
        for base in base_names(node):
            ours = known.get(base)
            if (ours is None and base not in FOREIGN_BASES) or (ours is not None and has_code(ours[1])):
                wrong.append(f"{module}.{name} inherits from {base}")
    return wrong


def supers(modules: Mapping[str, ast.Module]) -> list[str]:
    """Every ``super()`` that is not in the constructor of a class of torch's."""
    wrong = []
    for module, tree in modules.items():
        allowed = {
            id(call)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and base_names(node) in [[base] for base in TORCHS]
            for method in node.body
            if isinstance(method, ast.FunctionDef) and method.name == "__init__"
            for call in ast.walk(method)
        }
        wrong += [
            f"{module}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id == "super" and not any(id(node) == a for a in allowed)
        ]
    return wrong


class TestClasses:
    def test_nobody_inherits_code(self, modules: dict[str, ast.Module]) -> None:
        known = classes(modules)
        assert len(known) >= 40
        assert sum(bool(node.bases) for _, node in known.values()) >= 20
        assert heirs(modules) == EXCEPTIONS

    def test_super_only_where_torch_asks_for_it(self, modules: dict[str, ast.Module]) -> None:
        asked = sum(base_names(node) in (["nn.Module"], ["Optimizer"]) for _, node in classes(modules).values())
        found = sum(
            isinstance(node, ast.Name) and node.id == "super" for tree in modules.values() for node in ast.walk(tree)
        )
        assert found == asked >= 5
        assert supers(modules) == []

    @pytest.mark.parametrize(
        ("text", "wrong"),
        [
            ("class A:\n    def f(self): return 1\nclass B(A): pass", ["m.B inherits from A"]),
            ("class A(Mapping): pass", ["m.A inherits from Mapping"]),
            ("class A:\n    x = 1\nclass B(A): pass", []),
            ("class A(Protocol):\n    def f(self):\n        '''Do.'''\n        ...\nclass B(A): pass", []),
            ("class A(Protocol[T]): pass\nclass B(nn.Module):\n    def forward(self, x): return x", []),
            ("class B(nn.Module):\n    def forward(self): return 1\nclass C(B): pass", ["m.C inherits from B"]),
            ("def f():\n    class A(dict): pass", ["m.A inherits from dict"]),
        ],
    )
    def test_planted_heirs(self, text: str, wrong: list[str]) -> None:
        assert heirs({"m": ast.parse(text)}) == wrong

    @pytest.mark.parametrize(
        ("text", "wrong"),
        [
            ("class A(nn.Module):\n    def __init__(self):\n        super().__init__()", []),
            ("class A(nn.Module):\n    def forward(self):\n        return super().forward()", ["m:3"]),
            ("class A:\n    def __init__(self):\n        super().__init__()", ["m:3"]),
            ("class A(BaseModel):\n    def __init__(self):\n        super().__init__()", ["m:3"]),
        ],
    )
    def test_planted_supers(self, text: str, wrong: list[str]) -> None:
        assert supers({"m": ast.parse(text)}) == wrong

    def test_methods_are_frozen_dataclasses(self) -> None:
        found = [registry.load(kind, name) for kind in ("defenses", "attacks") for name in registry.names(kind)]
        assert len(found) >= 10
        for cls in found:
            assert dataclasses.is_dataclass(cls), cls
            assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]


# --- Randomness ---------------------------------------------------------------------------------------------

DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}
DRAWS_LIKE = {"rand_like", "randn_like", "randint_like"}
DRAWS_IN_PLACE = {
    "normal_",
    "uniform_",
    "bernoulli_",
    "random_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
}
GIVEN_START = {"weights_init", "means_init", "precisions_init"}  # with these scikit-learn casts no dice
RANDOM_MODULES = {"random", "secrets"}
SEEDS_FOR_USERS = "models.forward"  # a user's module may draw from global generators: seeded, then as they were before


def with_ancestors(tree: ast.AST, above: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    yield tree, above
    for child in ast.iter_child_nodes(tree):
        yield from with_ancestors(child, (*above, tree))


def global_dice(modules: Mapping[str, ast.Module]) -> list[str]:
    """Every draw from, and every seeding of, a generator that was not handed in."""
    wrong = []
    for module, tree in modules.items():
        for node, above in with_ancestors(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                wrong += [f"{module}:{node.lineno} imports {n}" for n in names if n in RANDOM_MODULES]
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            owner, _, last = called.rpartition(".")
            given = {k.arg for k in node.keywords}
            forked = any(
                isinstance(a, ast.With) and any("fork_rng" in ast.unparse(i.context_expr) for i in a.items)
                for a in above
            )
            bad = (
                (owner == "torch" and last in DRAWS and "generator" not in given)
                or (owner == "torch" and last in DRAWS_LIKE)
                or (last in DRAWS_IN_PLACE and not owner.startswith("nn.init") and "generator" not in given)
                or (owner in ("torch", "torch.random", "torch.cuda") and last in ("manual_seed", "seed") and not forked)
                or (
                    owner in ("np.random", "numpy.random")
                    and not (last in ("default_rng", "SeedSequence") and node.args)
                )
                or (last in ("GaussianMixture", "KMeans") and "random_state" not in given and not given >= GIVEN_START)
                or (owner.endswith("nn.init") and not _in_module_constructor(above))
            )
            if bad:
                wrong.append(f"{module}:{node.lineno} {called}")
    return wrong


def _in_module_constructor(above: tuple[ast.AST, ...]) -> bool:
    """``build_module`` draws weights in a fork of the global generator, seeded from its own."""
    inside_class = any(isinstance(a, ast.ClassDef) and base_names(a) == ["nn.Module"] for a in above)
    return inside_class and any(isinstance(a, ast.FunctionDef) and a.name == "__init__" for a in above)


class TestRandomness:
    def test_only_generators_that_are_handed_in(self, modules: dict[str, ast.Module]) -> None:
        assert global_dice({name: tree for name, tree in modules.items() if name != SEEDS_FOR_USERS}) == []

    def test_there_is_something_to_check(self, modules: dict[str, ast.Module]) -> None:
        calls = [ast.unparse(n.func) for tree in modules.values() for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert sum(c in {f"torch.{d}" for d in DRAWS} for c in calls) >= 10
        assert not {"torch.manual_seed", "torch.default_generator.manual_seed"} & set(calls)
        assert len(global_dice({SEEDS_FOR_USERS: modules[SEEDS_FOR_USERS]})) == 4

    @pytest.mark.parametrize(
        "text",
        [
            "torch.rand(3)",
            "torch.randperm(3)",
            "torch.rand_like(x)",
            "x.normal_()",
            "torch.manual_seed(0)",
            "with torch.no_grad():\n    torch.manual_seed(0)",
            "np.random.rand(3)",
            "np.random.seed(3)",
            "np.random.default_rng()",
            "import random",
            "from random import choice",
            "GaussianMixture(2)",
            "GaussianMixture(2, weights_init=w, means_init=m)",
            "nn.init.normal_(w)",
            "class A:\n    def __init__(self):\n        nn.init.normal_(w)",
        ],
    )
    def test_planted_dice(self, text: str) -> None:
        assert len(global_dice({"m": ast.parse(text)})) == 1

    @pytest.mark.parametrize(
        "text",
        [
            "torch.rand(3, generator=g)",
            "x.normal_(generator=g)",
            "torch.Generator().manual_seed(3)",
            "with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",
            "np.random.default_rng(3)",
            "GaussianMixture(2, random_state=3)",
            "GaussianMixture(2, weights_init=w, means_init=m, precisions_init=p)",
            "class A(nn.Module):\n    def __init__(self):\n        nn.init.zeros_(w)",
        ],
    )
    def test_what_is_allowed_is_no_fault(self, text: str) -> None:
        assert global_dice({"m": ast.parse(text)}) == []


# --- Names --------------------------------------------------------------------------------------------------


class TestEntryPoints:
    def test_installed_ones_are_those_of_pyproject(self) -> None:
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        declared = {(group, *entry) for group, table in project["entry-points"].items() for entry in table.items()}
        declared |= {("console_scripts", *entry) for entry in project["scripts"].items()}
        installed = {(e.group, e.name, e.value) for e in distribution("fedsieve").entry_points}
        assert len(declared) >= 20
        assert installed == declared, "pyproject.toml changed since fedsieve was installed: install it again"

    def test_groups_are_the_registrys_kinds(self) -> None:
        groups = {e.group for e in distribution("fedsieve").entry_points} - {"console_scripts"}
        assert groups == {f"fedsieve.{kind}" for kind in registry.KINDS}

    def test_every_method_is_registered(self, modules: dict[str, ast.Module]) -> None:
        registered = {
            e.value.partition(":")[0].removeprefix("fedsieve.") for e in distribution("fedsieve").entry_points
        }
        papers = {".".join(m.split(".")[:2]) for m in modules if m.split(".")[0] in SEPARATE}
        methods = papers - {*SEPARATE, "aggregators.chain", "aggregators.weighting"} - SHARED
        assert len(methods) >= 33
        assert methods - {".".join(r.split(".")[:2]) for r in registered} == set()
        models = {m.removeprefix("models.") for m in modules if m.startswith("models.") and m not in registered}
        shared = {"build", "convolution", "flat", "forward", "losses", "normalisation", "precision", "replay", "size"}
        assert models == shared

    def test_everything_registered_loads_and_says_what_it_is(self) -> None:
        found = [(kind, name) for kind in registry.KINDS for name in registry.names(kind)]
        assert len(found) >= 20
        for kind, name in found:
            traits = registry.load(kind, name).traits  # type: ignore[attr-defined]
            assert isinstance(traits, Traits)
            assert traits.summary, name
            assert name == name.lower()
            assert "_" not in name
