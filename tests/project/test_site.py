"""The documentation's site: what the API reference has, and the code blocks of the pages."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import fedsieve

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs/conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_page(conf: ModuleType) -> None:
    on_pages = {module for room in conf.ROOMS for module in conf.modules(room)}
    homes = {f"fedsieve.{home}" for home in fedsieve._HOMES.values()}
    assert homes <= on_pages


def test_every_registered_class_has_a_page(conf: ModuleType) -> None:
    on_pages = {module for room in conf.ROOMS for module in conf.modules(room)}
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    homes = {found[1] for line in lines if (found := re.search(r'"(fedsieve(?:\.\w+)+):\w+"', line))}
    assert len(homes) > 60
    assert homes - {"fedsieve.cli"} <= on_pages


def test_every_room_has_a_page(conf: ModuleType) -> None:
    rooms = {path.name for path in (ROOT / "src/fedsieve").iterdir() if (path / "__init__.py").exists()}
    assert rooms - {"cli"} == set(conf.ROOMS)


def test_pages_list_modules(conf: ModuleType) -> None:
    page = conf.api_page("aggregators")
    assert page.startswith("# Aggregators")
    assert ".. automodule:: fedsieve.aggregators.krum\n   :members:" in page


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages == {line for line in menu.splitlines() if re.fullmatch(r"[a-z-]+", line)}


def test_formulas_need_no_script(conf: ModuleType) -> None:
    assert "<math" in conf.convert(r"\alpha n")
