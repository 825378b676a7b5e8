"""Remakes the pictures of the page in docs/: `python benchmarks/page_pictures.py http://127.0.0.1:8080 docs [NAME...]`.

They show what comes with packages: the fundus photograph of scikit-image and the head (MR) of nibabel's tests. Chromium
and Playwright are needed.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image

WAIT_MS = 1_200_000
GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
QUALITY = 88


def idle(page: Any) -> None:
    page.wait_for_selector("#find:not([disabled])")
    page.wait_for_timeout(700)


def ask(page: Any, phrases: str) -> None:
    page.fill("#phrase", phrases)
    page.keyboard.press("Enter")
    page.wait_for_selector("#find[disabled]")
    idle(page)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(4, 700)


def head(folder: Path) -> Path:
    """The first time point of nibabel's example."""
    whole = nib.load(Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz")
    path = folder / "head.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(whole.dataobj)[..., 0], whole.affine), path)
    return path


def photograph(page: Any) -> None:
    ask(page, "optic cup, polyp")


def volume(page: Any) -> None:
    """A box around the brain in one slice of a volume."""
    with tempfile.TemporaryDirectory() as folder:
        page.set_input_files("#files", str(head(Path(folder))))
        page.wait_for_selector('#images [aria-current="true"][title="head.nii.gz"]')
        idle(page)
    box = page.locator("#canvas").bounding_box()
    width, height = box["width"] * 0.64, box["height"]
    page.locator("#canvas").focus()
    page.keyboard.press("b")
    page.mouse.move(box["x"] + width * 0.22, box["y"] + height * 0.27)
    page.mouse.down()
    page.mouse.move(box["x"] + width * 0.78, box["y"] + height * 0.76, steps=5)
    page.mouse.up()
    idle(page)


def completion(page: Any) -> None:
    page.fill("#phrase", "optic disc, colon")
    page.wait_for_selector("#concepts:not([hidden])")


def keys(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")


def assistant(page: Any) -> None:
    page.click("#agent summary")
    page.fill("#instruction", "Outline the optic cup")
    page.click("#agent-begin")
    page.wait_for_selector("#agent-said:not(:empty)")
    idle(page)


State = tuple[Callable[[Any], None], int, int, str]
STATES: dict[str, State] = {
    "server": (photograph, 1280, 760, "dark"),
    "server-volume": (volume, 1280, 800, "dark"),
    "server-light": (completion, 820, 760, "light"),
    "server-keys": (keys, 1280, 760, "light"),
    "server-assistant": (assistant, 1280, 800, "dark"),
}


def main(address: str, folder: Path, names: list[str]) -> None:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=GL)
        for name in names or list(STATES):
            show, width, height, theme = STATES[name]
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            page.set_default_timeout(WAIT_MS)
            page.goto(address)
            page.wait_for_selector("#found h3")
            idle(page)
            if page.get_attribute("html", "data-theme") != theme:
                page.click("#theme")
            show(page)
            shot = PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            path = folder / f"{name}.jpg"
            shot.save(path, quality=QUALITY, optimize=True)
            print(path, path.stat().st_size)
            page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
