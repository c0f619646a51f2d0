"""Every registered component with its traits and default parameters, read from source files without importing them.

Importing them takes seconds, because of torch and scikit-learn; ``fedsieve list`` should not. A component whose source
does not state these things in literals, such as a third party's with a computed default, is imported.
"""

import ast
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from inspect import cleandoc
from typing import Any

from fedsieve.config.imports import source
from fedsieve.config.installed import KINDS, MODEL_ARGUMENTS, registered
from fedsieve.core.traits import Traits

__all__ = ["KINDS", "Entry", "described", "entries"]

# Methods that decide what a defense or an attack is; of a defense, the first one that it has.
_STAGES = {"detect": "detector", "preaggregate": "pre-aggregator", "__call__": "aggregator"}
_TARGETS = {"poison": "data", "craft": "updates"}


@dataclass(frozen=True)
class Entry:
    """One registered component.

    Attributes:
        name: Registered name.
        traits: What the class states about itself.
        parameters: Default value of each parameter; names of components where the component is made of others.
        stage: Of a defense: ``detector``, ``pre-aggregator`` or ``aggregator``; else "".
        targets: What an attack changes: ``data``, ``updates`` or both; else empty.
        about: What each parameter is, in one sentence, as far as the class's docstring says it.
    """

    name: str
    traits: Traits
    parameters: Mapping[str, Any]
    stage: str = ""
    targets: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)


def entries(kind: str) -> list[Entry]:
    """Every registered component of a kind (one of ``KINDS``), sorted by name."""
    return [_entry(kind, point) for point in registered(kind).values()]


def described(kind: str, name: str) -> Entry | None:
    """The entry of a component that this package brings; None for any other, of which nothing is read or imported."""
    try:
        point = registered(kind).get(name)
        return _read(kind, point) if point and point.module.startswith("fedsieve.") else None
    except Exception:  # two packages register the name, or an unusual source
        return None


def _entry(kind: str, point: EntryPoint) -> Entry:
    try:
        return _read(kind, point)
    except Exception:  # an unusual source is no error: the class itself is asked
        return _imported(kind, point.name)


def _read(kind: str, point: EntryPoint) -> Entry:
    """The entry from the source file; raises any exception if it does not state everything in literals."""
    module = ast.parse(source(point.module).read_text(encoding="utf-8"))
    scope: dict[str, Any] = {"__builtins__": {}, "Traits": Traits}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(Exception):
                scope[node.targets[0].id] = _value(node.value, scope)
    (cls,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == point.attr)
    if cls.bases and kind != "models":
        raise ValueError(f"{point.value} may inherit parameters and methods")
    methods = {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}
    fields = {ast.unparse(node.target): node for node in cls.body if isinstance(node, ast.AnnAssign)}
    traits = _value(fields["traits"].value, scope)
    parts = _value(fields["parts"].value, scope) if "parts" in fields else {}
    if "__init__" in methods:
        defaults = _arguments(methods["__init__"])
    elif any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        defaults = {n: f.value for n, f in fields.items() if "ClassVar" not in ast.unparse(f.annotation)}
    else:
        raise ValueError(f"{point.value} has parameters of unknown origin")
    if kind == "models":
        defaults = {name: node for name, node in defaults.items() if name not in MODEL_ARGUMENTS}
    parameters = {name: parts[name] if name in parts else _value(node, scope) for name, node in defaults.items()}
    return _made(kind, point.name, traits, parameters, methods, _docs(cls))


def _arguments(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    """Default of each argument but ``self``, None without one."""
    given = function.args
    if given.vararg or given.kwarg or given.posonlyargs:
        raise ValueError(f"unusual arguments on line {function.lineno}")
    defaults: list[ast.expr | None] = [None] * (len(given.args) - len(given.defaults))
    positional = dict(zip((a.arg for a in given.args), [*defaults, *given.defaults], strict=True))
    keywords = dict(zip((a.arg for a in given.kwonlyargs), given.kw_defaults, strict=True))
    return {name: node for name, node in {**positional, **keywords}.items() if name != "self"}


def _value(node: ast.expr | None, scope: dict[str, Any]) -> Any:
    """The value of an expression in which only constants of its module and ``Traits`` are known, no function."""
    if node is None:
        raise ValueError("no default")
    return eval(compile(ast.Expression(node), "<catalog>", "eval"), scope)


def _imported(kind: str, name: str) -> Entry:
    """The entry from the class itself."""
    from fedsieve.config import registry

    cls = registry.load(kind, name)
    parameters = {**registry.complete(kind, name, {}), **getattr(cls, "parts", {})}
    doc = "\n".join(cleandoc(text) for text in (cls.__doc__, getattr(vars(cls).get("__init__"), "__doc__", "")) if text)
    return _made(kind, name, registry.traits(kind, name), parameters, dir(cls), doc)


def _made(
    kind: str, name: str, traits: Traits, parameters: Mapping[str, Any], methods: Container[str], doc: str
) -> Entry:
    stage = next((stage for method, stage in _STAGES.items() if method in methods), "")
    targets = tuple(target for method, target in _TARGETS.items() if method in methods)
    about = {parameter: text for parameter, text in documented(doc).items() if parameter in parameters}
    return Entry(name, traits, parameters, stage * (kind == "defenses"), targets * (kind == "attacks"), about)


def documented(doc: str) -> dict[str, str]:
    """The first sentence about each attribute or argument in a docstring of Google's style, without quotes of code.

    >>> documented("Attributes:" + chr(10) + "    trim: Values ``cut off``. None: f.")
    {'trim': 'Values cut off'}
    """
    found: dict[str, str] = {}
    for section in re.findall(r"^(?:Attributes|Args):\n((?:(?:[ \t]+.*)?\n?)*)", doc, re.MULTILINE):
        for name, text in re.findall(r"^ {4}(\w+)[^:\n]*: *((?:.*\n?)(?: {5,}.*\n?)*)", section, re.MULTILINE):
            words = " ".join(re.sub(r"``?|:\w+:", "", text).split())
            found[name] = re.split(r"(?<=[^.]{3})\. |\.$", words, maxsplit=1)[0]
    return found


def _docs(cls: ast.ClassDef) -> str:
    """The docstrings of a class and its constructor, and that of the class to which they refer for the attributes."""
    functions = (node for node in cls.body if isinstance(node, ast.FunctionDef))
    docs = [ast.get_docstring(cls) or ""]
    docs += [ast.get_docstring(function) or "" for function in functions if function.name == "__init__"]
    if other := re.search(r"Attributes as in :class:`([\w.]+)\.(\w+)`", docs[0]):
        tree = ast.parse(source(other[1]).read_text(encoding="utf-8"))
        docs += [_docs(found) for found in tree.body if isinstance(found, ast.ClassDef) and found.name == other[2]]
    return "\n".join(docs)
