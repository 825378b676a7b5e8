"""The page for those who see little, use no mouse, or have a small screen: WCAG 2.2 AA by axe, focus, two widths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from page_browser import NEEDS_CHROMIUM, browsing, serving, shown

pytest.importorskip("playwright.sync_api")
pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install axe-playwright-python")
pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(scope="module", params=[(1280, 800), (820, 1180)], ids=["desk", "tablet"])
def page(request: Any) -> Iterator[Any]:
    with serving() as server, browsing() as browser, shown(browser, server.address, *request.param) as made:
        yield made


def violations(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe  # noqa: PLC0415

    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_axe_finds_nothing_in_any_state(page: Any, theme: str) -> None:
    if page.get_attribute("html", "data-theme") != theme:
        page.click("#theme")
    assert violations(page) == []
    page.fill("#phrase", "optic")
    page.wait_for_selector("#concepts:not([hidden])")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.locator("#canvas").focus()
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    assert violations(page) == []
    page.keyboard.press("Escape")


def test_nothing_hangs_over_the_edge_and_the_notice_is_in_sight(page: Any) -> None:
    wide, high = page.evaluate(
        "[document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight - innerHeight]"
    )
    assert (wide, high) == (0, 0)
    notice = page.locator(".notice").bounding_box()
    assert notice["y"] >= 0 and notice["x"] + notice["width"] <= page.viewport_size["width"]
    stage = page.locator("#stage").bounding_box()
    assert stage["width"] > 400 and stage["height"] > 400


def test_every_stop_of_the_tab_key_shows_its_focus(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    seen: dict[int, str] = {}
    for _ in range(80):
        page.keyboard.press("Tab")
        number, name, style, width = page.evaluate(
            "(() => { const one = document.activeElement; const s = getComputedStyle(one);"
            " const number = [...document.querySelectorAll('*')].indexOf(one);"
            " const name = one === document.body ? '' : one.id || one.textContent || one.tagName;"
            " return [number, name, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if name == "":  # past the last stop, before the first
            continue
        if number in seen:
            break
        seen[number] = name
        assert style != "none" and width >= 2, name
    assert {"phrase", "canvas", "take", "pick-files"} <= set(seen.values())
