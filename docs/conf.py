"""The documentation's site: `make docs` builds it into build/docs, with warnings as errors."""

import re
import sys
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project, author, project_copyright = "FedSieve", "The FedSieve authors", "The FedSieve authors"
version = release = installed("fedsieve")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = f"FedSieve {version}"
html_theme_options = {
    "source_repository": "https://github.com/fedsieve/fedsieve/",
    "source_branch": "main",
    "source_directory": "docs/",
}

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # types stand in the signature


class _StandIn(ModuleType):
    """A module of Flower, which needs other versions of some packages than this environment has: empty classes."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {"__module__": self.__name__}))
        return self.__dict__[name]


# Rooms of the package that have a page in the API reference, with its title.
ROOMS = {
    "core": "Core: what a defense and an attack see and return",
    "aggregators": "Aggregators: rules from updates [n, d] to one update [d]",
    "detectors": "Detectors: who stays",
    "preaggregators": "Pre-aggregators: from updates to updates",
    "attacks": "Attacks",
    "models": "Models and losses",
    "data": "Datasets, partitions, root data",
    "config": "Experiments and the registry of names",
    "federation": "Server, simulation, any defense on a matrix",
    "runs": "Run directories, checkpoints, sweeps",
    "flower": "The Flower strategy",
    "report": "Reports",
    "reproduce": "Published tables and figures",
    "audit": "The audit of sites",
    "notebook": "From Python: run and load",
}

# What lies outside docs/ is shown where the code is.
_CODE = "https://github.com/fedsieve/fedsieve/tree/main/"
_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(((?:\.\./)+[^)\s#]*)")


def modules(room: str) -> list[str]:
    """Names of a room's modules that define something, in order."""
    found = []
    for file in sorted((_ROOT / "src/fedsieve" / room).rglob("*.py")):
        parts = file.relative_to(_ROOT / "src").with_suffix("").parts
        if re.search(r"^(class|def) (?!_)", file.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(".".join(part for part in parts if part != "__init__"))
    return found


def api_page(room: str) -> str:
    """The page of a room: every module with its public names."""
    title = f"# {ROOMS[room]}\n"
    body = "## {name}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"
    return "\n".join([title, *(body.format(module=m, name=m.removeprefix("fedsieve.")) for m in modules(room))])


def _api_pages(app: Sphinx) -> None:
    """Write the pages of the API reference, which follow the folders of the package."""
    folder = Path(app.srcdir, "api")
    for room in ROOMS:
        page, text = folder / f"{room}.md", api_page(room)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn relative links that leave ``docs/`` into addresses."""
    here = Path(app.srcdir, page).parent

    def absolute(found: re.Match[str]) -> str:
        target = (here / found[1]).resolve()
        if target.is_relative_to(Path(app.srcdir).resolve()):
            return found[0]
        return f"]({_CODE}{target.relative_to(_ROOT)}"

    source[0] = _LINK.sub(absolute, source[0])


# Docstrings write |x| for a norm and [k, *shape] for a shape; reStructuredText would read marks of its own in them.
_AS_IT_IS = re.compile(r"``.*?``|(?P<mark>\||(?<![\w*])\*(?=\w))")


def _literally(app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]) -> None:
    """Escape what docstrings write of mathematics, but in code; "Departs:" begins a paragraph."""
    lines[:] = [part for line in lines for part in (["", line] if line.startswith("Departs:") else [line])]
    lines[:] = [
        line
        if line.lstrip().startswith((">>>", "...", "*"))
        else _AS_IT_IS.sub(lambda found: f"\\{found['mark']}" if found["mark"] else found[0], line)
        for line in lines
    ]


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _mathml(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers draw by themselves: no script from elsewhere."""
    app.add_node(nodes.math, override=True, html=(_inline, None))
    app.add_node(nodes.math_block, override=True, html=(_block, None))


def setup(app: Sphinx) -> None:
    """Register the hooks above."""
    if find_spec("flwr") is None:
        for name in ("flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"):
            sys.modules[name] = _StandIn(name)
    app.connect("autodoc-process-docstring", _literally, priority=100)  # before napoleon adds marks of its own
    app.connect("source-read", _outside)
    app.connect("builder-inited", _mathml)
    app.connect("builder-inited", _api_pages)
