"""The page in a real browser with the fake model: one short test of all of it, and slow ones of each part."""

from __future__ import annotations

import io
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import medsam3
from made_server import png
from page_browser import (
    NEEDS_CHROMIUM,
    WAIT_MS,
    Process,
    ask,
    click,
    drag,
    drop,
    dropped,
    idle,
    place_of,
    serving,
    shown,
    taken,
)
from slow_segmenter import SlowSegmenter

pytest.importorskip("playwright.sync_api")
pytestmark = NEEDS_CHROMIUM
SIZE = (60, 40)


@pytest.fixture
def own_server() -> Iterator[Process]:
    """One that may be killed."""
    with serving() as made:
        yield made


@pytest.fixture
def block(tmp_path: Path) -> Path:
    path = tmp_path / "block.png"
    path.write_bytes(png())
    return path


def by_library(path: Path, *steps: Any) -> medsam3.Masks:
    """The block after steps of a session, by the library."""
    session = medsam3.Session(path, SlowSegmenter())
    session.segment("block")
    for name, *arguments in steps:
        more = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        getattr(session, name)(*arguments, **more)
    return session.masks


def test_a_picture_is_dropped_asked_corrected_undone_and_taken_away(page: Any, block: Path, tmp_path: Path) -> None:
    dropped(page, block)
    ask(page, "block")
    assert page.locator(".said").inner_text() == "The image shows it: 1 object."
    assert page.locator(".presence").get_attribute("aria-valuenow") == "90"
    assert page.locator(".objects .pick span").inner_text().startswith("150 px")
    click(page, place_of(page, 40, 15, SIZE))
    wanted = by_library(block, ("click", 40, 15)).union()[0]
    page.wait_for_selector(f"text={wanted.sum()} px")
    got = np.asarray(PIL.Image.open(taken(page, "png", tmp_path)))
    np.testing.assert_array_equal(got > 0, wanted)
    page.keyboard.press("Control+z")
    page.wait_for_selector("text=150 px")
    assert page.locator("text=Not a medical device.").is_visible()


@pytest.mark.slow
def test_brush_eraser_scribble_and_example_are_the_librarys(page: Any, block: Path, tmp_path: Path) -> None:
    dropped(page, block)
    ask(page, "block")
    done: list[Any] = []
    page.locator("#canvas").focus()
    strokes = (  # no pixel lies just at the radius, where rounding would decide
        ("e", ("paint", [(40.25, 12.5), (44.25, 12.5)], {"radius": 3})),
        ("r", ("paint", [(22.5, 14.25), (22.5, 17.25)], {"radius": 3, "adding": False})),
    )
    for key, step in strokes:
        page.keyboard.press(key)
        page.fill("#radius", "3")
        page.locator("#canvas").focus()
        drag(page, *(place_of(page, x, y, SIZE) for x, y in step[1]))
        done.append(step)
        page.wait_for_selector(f"text={by_library(block, *done).union().sum()} px")
    page.keyboard.press("s")
    drag(page, place_of(page, 36, 18, SIZE), place_of(page, 39, 18, SIZE))
    done.append(("scribble", [(36, 18), (39, 18)]))
    wanted = by_library(block, *done).union()[0]
    got = np.asarray(PIL.Image.open(taken(page, "png", tmp_path)))
    np.testing.assert_array_equal(got > 0, wanted)
    page.keyboard.press("l")
    drag(page, place_of(page, 19, 9, SIZE), place_of(page, 36, 21, SIZE))
    assert not page.locator("#error").is_visible()
    page.keyboard.press("Control+z")
    idle(page)
    page.keyboard.press("Control+Shift+z")
    idle(page)
    assert page.locator("#redo").is_disabled()


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(page: Any, block: Path, tmp_path: Path) -> None:
    page.set_input_files("#files", str(block))
    page.wait_for_selector('#images [aria-current="true"][title="block.png"]')
    idle(page)
    page.keyboard.press("Tab")
    for _ in range(40):  # from the beginning of the page to the phrase, by the skip link or on foot
        if page.evaluate("document.activeElement.id") == "phrase":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("block")
    page.wait_for_selector("#concepts:not([hidden])")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=150 px")
    idle(page)
    page.locator("#canvas").focus()
    page.keyboard.press("n")
    page.keyboard.press("ArrowUp")  # the cross begins in the middle, at (30, 20), and goes to the block at (30, 19)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text={by_library(block, ('click', 30, 19, {'positive': False})).union().sum()} px")
    idle(page)
    page.keyboard.press("e")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    idle(page)
    page.keyboard.press("Control+z")
    idle(page)
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    page.locator("#take").focus()
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".png")


@pytest.mark.slow
def test_several_phrases_have_a_colour_each_and_can_be_hidden(page: Any, block: Path) -> None:
    dropped(page, block)
    ask(page, "block, absent")
    assert page.locator("#found h3").all_inner_texts() == ["block", "absent"]
    assert page.locator(".said").nth(1).inner_text() == "The image does not show it."
    colours = page.eval_on_selector_all(".swatch", "all => all.map(one => one.style.getPropertyValue('--colour'))")
    assert len(set(colours)) == 2
    inside = place_of(page, 27, 14, SIZE)

    def seen() -> list[int]:
        shot = page.screenshot(clip={"x": inside[0], "y": inside[1], "width": 1, "height": 1})
        return list(np.asarray(PIL.Image.open(io.BytesIO(shot)).convert("RGB"))[0, 0])

    page.mouse.move(5, 5)
    coloured = seen()
    assert coloured != [255, 255, 255]
    page.locator(".swatch").first.click()
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    assert seen() == [255, 255, 255]


@pytest.mark.slow
def test_dropped_pictures_are_an_image_each_asked_together_and_saved_as_one_zip(page: Any, tmp_path: Path) -> None:
    folder = tmp_path / "eyes"
    folder.mkdir()
    dark = io.BytesIO()
    PIL.Image.new("L", (30, 20)).save(dark, "PNG")
    for name, content in (("a.png", png()), ("b.png", png(50, 70)), ("c.png", dark.getvalue())):
        (folder / name).write_bytes(content)
    drop(page, folder)
    page.wait_for_selector("text=Find in all 4")  # with the sample
    idle(page)
    page.click("#images [title='Remove retina.jpg']")
    page.wait_for_selector("text=Find in all 3")
    idle(page)
    page.fill("#phrase", "block, absent")
    page.click("#find-all")
    page.wait_for_selector("#find-all:not([disabled])")
    assert page.locator(".answers").all_inner_texts() == [
        "block: yes, absent: no",
        "block: yes, absent: no",
        "block: no, absent: no",
    ]
    page.select_option("#format", "png")
    with page.expect_download() as download:
        page.click("#take-all")
    download.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as packed:
        assert sorted(packed.namelist()) == ["a_mask.png", "b_mask.png", "c_mask.png", "found.csv"]
        for name, size in (("a_mask.png", (60, 40)), ("b_mask.png", (70, 50)), ("c_mask.png", (30, 20))):
            mask = PIL.Image.open(io.BytesIO(packed.read(name)))
            assert (mask.size, int(np.count_nonzero(np.asarray(mask)))) == (size, 0 if name == "c_mask.png" else 150)


@pytest.mark.slow
def test_known_concepts_are_offered_and_others_marked(page: Any) -> None:
    page.fill("#phrase", "optic dis")
    page.locator("#phrase").press("End")
    page.wait_for_selector("#concepts li:has-text('optic disc')")
    assert page.locator("#concepts li").last.inner_text().split("\n")[-1] == "not in the list, a guess"
    page.keyboard.press("ArrowDown")
    assert page.input_value("#phrase") == page.locator("#concepts [aria-selected=true] span").inner_text()
    page.fill("#phrase", "colonic polyp")
    page.wait_for_selector("#concepts small:has-text('read as polyp')")


@pytest.mark.slow
def test_what_is_drawn_while_the_server_is_gone_is_done_when_it_is_back(
    browser: Any, own_server: Process, block: Path
) -> None:
    with shown(browser, own_server.address) as page:
        _lose_and_find(page, own_server, block)


def _lose_and_find(page: Any, server: Process, block: Path) -> None:
    dropped(page, block)
    ask(page, "block")
    click(page, place_of(page, 40, 15, SIZE))
    page.wait_for_selector(f"text={by_library(block, ('click', 40, 15)).union().sum()} px")
    left = set(Path(tempfile.gettempdir()).glob("medsam3-server-*"))
    server.kill()
    page.wait_for_selector("#lost:not([hidden])")
    click(page, place_of(page, 44, 18, SIZE))
    assert page.locator("#error").inner_text() == "The server does not answer. What you drew is kept."
    server.start()
    page.wait_for_selector("#lost", state="hidden")
    wanted = by_library(block, ("click", 40, 15), ("click", 44, 18)).union().sum()
    page.wait_for_selector(f"text={wanted} px")
    idle(page)
    page.keyboard.press("Control+z")
    page.wait_for_selector(f"text={by_library(block, ('click', 40, 15)).union().sum()} px")
    now = set(Path(tempfile.gettempdir()).glob("medsam3-server-*"))
    assert len(now) <= len(left), "the killed server's folder was removed by the next one"


@pytest.mark.slow
def test_the_page_asks_once_for_the_token(browser: Any, own_server: Process) -> None:
    own_server.end()
    own_server.start("0123456789abcdef")
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(own_server.address)
    page.fill("#token", "0123456789abcdef")
    page.keyboard.press("Enter")
    page.wait_for_selector("#found h3")
    assert not page.locator("#token-dialog").is_visible()
    page.close()


@pytest.mark.slow
def test_two_browsers_do_not_see_each_others_images(browser: Any, page_server: Process, block: Path) -> None:
    with shown(browser, page_server.address) as mine, shown(browser, page_server.address) as theirs:
        dropped(mine, block)
        assert theirs.locator("#images .open").count() == 1  # the sample, its own
        theirs.reload()
        theirs.wait_for_selector("#found h3")
        assert "block.png" not in theirs.inner_text("body")
        assert mine.locator("#images .open").count() == 2


@pytest.mark.slow
def test_no_process_and_no_file_is_left_when_the_server_ends(own_server: Process) -> None:
    server = own_server
    children = _children(server.process.pid)
    deadline = time.monotonic() + 20
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        children = _children(server.process.pid)
    folders = {one for one in Path(tempfile.gettempdir()).glob("medsam3-server-*")}
    assert children
    assert folders
    server.end()
    deadline = time.monotonic() + 10
    while any(_is_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_is_alive(pid) for pid in children)
    assert any(not folder.exists() for folder in folders)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in tasks.read_text().split()] if tasks.exists() else []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1][:3]
