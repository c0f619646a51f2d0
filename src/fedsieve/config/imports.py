"""Loading ``package.module:Class``, which runs the module's code: only where the user asked for it, and announced.

A name that the user typed, in a command or in a program, is loaded. A name that only a file holds is refused unless
the user allows it (:func:`named_in`), since a file may be a stranger's. Reading records (``Experiment.recorded``) loads
nothing. Classes that installed packages register are loaded by name without further ado: installing them was consent.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsieve.core.errors import ParameterError, UnknownNameError
from fedsieve.core.escaping import printable

# Told what is loaded; by default the log of the library, which a program may show.
_announce: ContextVar[Callable[[str], object]] = ContextVar("announce", default=logging.getLogger("fedsieve").info)
# Texts of the file whose names may not be loaded, the names of it that the user typed too, and the file.
_refused: ContextVar[tuple[tuple[str, ...], frozenset[str], Path] | None] = ContextVar("refused", default=None)


@contextmanager
def named_in(file: Path, settings: Any, typed: Any = (), allow_imports: bool = False) -> Iterator[None]:
    """Within this context, a ``module:Class`` that only a file names is not loaded: a ParameterError says so.

    Args:
        file: Where ``settings`` come from.
        settings: Mappings, lists and scalars as they stand in the file.
        typed: The same, from the user.
        allow_imports: Load them all the same.
    """
    own = frozenset(part.strip() for text in _texts(typed) for part in text.split(","))
    token = _refused.set(None if allow_imports else (tuple(_texts(settings)), own, file))
    try:
        yield
    finally:
        _refused.reset(token)


@contextmanager
def announced(announce: Callable[[str], object]) -> Iterator[None]:
    """Within this context, ``announce`` gets a line about every ``module:Class`` before it is loaded; each once."""
    told: set[str] = set()

    def tell_once(said: str) -> None:
        if said not in told:
            told.add(said)
            announce(said)

    token = _announce.set(tell_once)
    try:
        yield
    finally:
        _announce.reset(token)


def load_path(kind: str, path: str) -> Any:
    """What ``package.module:Class`` names; the current folder is searched last, after what is installed.

    Raises:
        ParameterError: If a file names it and imports from files are not allowed.
        UnknownNameError: If there is no such thing, or the module can't be imported.
    """
    module, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UnknownNameError(f"can't load {kind[:-1]} {path!r:.100}: package.module:Class was expected")
    refused = _refused.get()
    if refused is not None and path not in refused[1] and any(path in text for text in refused[0]):
        raise ParameterError(
            f"{kind[:-1]}: {refused[2]} names {path}, and loading that runs the code of module {module}; "
            "if you trust both, add --allow-imports"
        )
    with _current_folder_last():
        try:
            said = _announcement(path, module)
        except ModuleNotFoundError as error:
            raise UnknownNameError(f"can't load {kind[:-1]} {path!r}: {error}") from error
        _announce.get()(said)
        return imported(kind, path, module, attribute)


def imported(kind: str, name: str, module: str, attribute: str | None) -> Any:
    """An attribute of a module; what goes wrong, in the module's own code too, is an UnknownNameError for ``name``."""
    try:
        found = import_module(module)
        for part in filter(None, (attribute or "").split(".")):
            found = getattr(found, part)
        return found
    except (Exception, SystemExit) as error:
        said = printable(str(error)) if isinstance(error, ImportError | AttributeError) else repr(error)
        raise UnknownNameError(f"can't load {kind[:-1]} {name!r}: {said}") from error


def source(module: str) -> Path:
    """The file of a module, found without importing any package.

    Raises:
        ModuleNotFoundError: If its outermost package does not exist.
        Exception: If the module is not found without importing one.
    """
    outermost, *below = module.split(".")
    spec, name = find_spec(outermost), outermost
    if spec is None:
        raise ModuleNotFoundError(f"No module named {outermost!r}")
    for part in below:
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations or ()))
        if spec is None:
            raise FileNotFoundError(name)
    return Path(str(spec.origin))


def _announcement(path: str, module: str) -> str:
    """What is said before a module's code runs. Raises ModuleNotFoundError if nothing is there."""
    try:
        return f"loading {path} from {source(module)}"
    except ModuleNotFoundError:
        raise
    except Exception:  # it was made by a program, or is a nested namespace
        return f"loading {path}"


@contextmanager
def _current_folder_last() -> Iterator[None]:
    """The current folder at the end of the module search path: it can't hide what is installed."""
    folder = str(Path().absolute())
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.reverse()  # so that the last one is removed
        sys.path.remove(folder)
        sys.path.reverse()


@contextmanager
def new_process() -> Iterator[None]:
    """Within this context, a Python process that is started does not look for modules in the current folder first."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _texts(tree: Any) -> Iterable[str]:
    """All texts in a tree of mappings and lists, keys included."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _texts(item)
