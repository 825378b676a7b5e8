"""The assistant on the page: its steps, its answer and transcript, and nothing sent before it was agreed to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from test_agent_jobs import scripted, two_blocks

from llm_server import LlmServer
from page_browser import FAKE, NEEDS_CHROMIUM, browsing, dropped, idle, serving, shown

pytest.importorskip("playwright.sync_api")
pytest.importorskip("pydantic_ai")
pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmServer]:
    with LlmServer(scripted) as made:
        yield made


@pytest.fixture(scope="module")
def page(llm: LlmServer) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        command = (*FAKE, f"--llm={llm.model(patch, 'openai')}")
        with serving(command) as server, browsing() as browser, shown(browser, server.address) as made:
            yield made


def test_the_assistant_shows_its_steps_and_sends_nothing_unasked(page: Any, llm: LlmServer, tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    path.write_bytes(two_blocks())
    dropped(page, path)
    page.click("#agent summary")
    assert page.locator("#agent-where").inner_text().startswith("Nothing leaves the server")
    page.fill("#instruction", "the larger of the two nodules")
    page.click("#agent-begin")
    page.wait_for_selector("#agent-said:has-text('Found.')")
    idle(page)
    calls = page.locator("#agent-steps b").all_inner_texts()
    assert (calls[0], calls[-1]) == ("segment", "accept")
    assert llm.requests == []
    page.wait_for_selector("#found h3:has-text('the larger of the two nodules')")
    page.select_option("#format", "png")
    with page.expect_download() as download:
        page.click("#found button:has-text('Save')")
    download.value.save_as(tmp_path / "taken.png")
    mask = np.asarray(PIL.Image.open(tmp_path / "taken.png")) > 0
    assert mask[6:14, 8:18].all() and mask.sum() == 80  # the larger block
    with page.expect_download() as download:
        page.click("#agent-transcript")
    assert "the larger of the two nodules" in Path(download.value.path()).read_text()
    idle(page)
    page.check("[name=policy][value=llm]")
    page.check("#agent-images")
    page.click("#agent-begin")
    page.wait_for_selector("#send-dialog[open]")
    assert page.locator("#send-what img").count() >= 1
    assert "openai" in page.inner_text("#send-what") and "the larger of the two nodules" in page.inner_text(
        "#send-what"
    )
    page.click("text=Send nothing")
    idle(page)
    assert llm.requests == []
    page.click("#agent-begin")
    page.wait_for_selector("#send-dialog[open]")
    page.click("text=Send and begin")
    page.wait_for_selector("#agent-said:has-text('the larger one')")
    assert llm.requests and llm.requests[0].pictures
