"""A page of another module: its text, its charts, and that a browser draws them offline."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsieve.report.document import chart, page_of, table
from tests.report.nasty import NASTY
from tests.report.test_escaping import Document
from tests.report.test_page import browser, js, opened  # noqa: F401 (a fixture)

BARS: dict[str, Any] = {
    "width": "container",
    "height": 100,
    "data": {"values": [{"client": "St. Anna", "n": 3}, {"client": "B", "n": 1}]},
    "mark": "bar",
    "encoding": {"x": {"field": "n", "type": "quantitative"}, "y": {"field": "client", "type": "nominal"}},
}


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_nasty_text_is_text(name: str) -> None:
    plain, nasty = (
        page_of(
            text, chart("bars", text, text) + table([["client", text], [text, text]], text), {"bars": {"title": text}}
        )
        for text in ("x", name)
    )
    assert Document(nasty).tags == Document(plain).tags
    data = json.loads(Document(nasty).scripts[0])
    assert data == {"specs": {"bars": {"title": name}}}


def test_in_a_browser(tmp_path: Path, browser: Any) -> None:  # noqa: F811
    body = f"<main><h1>Audit</h1>{table([['client', 'rounds'], ['St. Anna', '3'], ['<b>B</b>', '1']], 'Rejected')}"
    body += f"{chart('bars', 'Rejected', 'How often.')}{chart('again', 'Once more')}</main>"
    path = tmp_path / "audit.html"
    path.write_text(page_of("Audit & more", body, {"bars": BARS, "again": BARS}), encoding="utf-8")
    tab, said = opened(browser, path, viewport={"width": 400, "height": 800})
    assert tab.title() == "Audit & more"
    assert tab.locator("tbody th").all_inner_texts() == ["St. Anna", "<b>B</b>"]
    assert tab.locator("caption").inner_text() == "Rejected"
    assert js(tab, "Object.keys(views).sort()") == ["again", "bars"]
    assert js(tab, "views.bars.scale('x').domain()") == [0, 3]
    assert 200 < js(tab, "views.bars.width()") < 400
    tab.set_viewport_size({"width": 900, "height": 800})
    tab.wait_for_timeout(500)
    assert js(tab, "views.bars.width()") > 600
    assert js(tab, "views.bars.background()") == js(tab, "colour('panel')")
    assert said == []
    tab.close()
