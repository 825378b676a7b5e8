"""Volumes on the page: which way they are shown, where prompts fall, masks in all planes, windows, no WebGL."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

import medsam3
from page_browser import (
    CHROMIUM,
    HERO,
    NEEDS_CHROMIUM,
    WITH_GL,
    WITHOUT_GL,
    Process,
    ask,
    browsing,
    click,
    drag,
    dropped,
    idle,
    place_of,
    shown,
    taken,
)
from slow_segmenter import SlowSegmenter

pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
SPACING = 3.0
EXTENT = (40, 50, 20)
"""Voxels from right to left, from front to back, from top to bottom."""
MARK = (8, 6, 4)
"""The marked corner lies to the right, in front, on top; as many voxels along each of these ways."""
TILES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
"""Ways across and down the screen: a radiologist sees right, front and top at the left or at the top of each plane."""


@dataclass(frozen=True)
class Phantom:
    """A volume whose corner is marked; `axes` says which way each axis of the file runs, and `flips` if against it."""

    name: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    turn: float = 0.0

    @property
    def slices(self) -> str:
        """The plane of its slices."""
        through = self.axes[2]
        return next(name for name, ways in TILES.items() if through not in ways)

    def voxels(self) -> Any:
        body = np.zeros(EXTENT, dtype=np.uint8)
        body[4:-4, 4:-4, 2:-2] = 60
        body[: MARK[0], : MARK[1], : MARK[2]] = 255
        made = body.transpose(self.axes)
        for axis, flip in enumerate(self.flips):
            made = np.flip(made, axis) if flip else made
        return np.ascontiguousarray(made)

    def index(self, place: tuple[int, int, int]) -> tuple[int, int, int]:
        """The file's voxel of a place, counted from the marked corner."""
        at = [
            EXTENT[way] - 1 - place[way] if flip else place[way]
            for way, flip in zip(self.axes, self.flips, strict=True)
        ]
        return at[0], at[1], at[2]

    def write(self, folder: Path) -> Path:
        ways = np.diag([-1.0, -1.0, -1.0]) * SPACING  # in NIfTI's RAS, towards the left, the back and the feet
        c, s = np.cos(self.turn), np.sin(self.turn)
        ways = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ ways
        affine = np.eye(4)
        for axis, (way, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            affine[:3, axis] = -ways[:, way] if flip else ways[:, way]
        affine[:3, 3] = (17, -23, 31)
        path = folder / f"{self.name}.nii.gz"
        nib.save(nib.Nifti1Image(self.voxels(), affine), path)
        return path


PHANTOMS = (
    Phantom("lps", (0, 1, 2), (False, False, True)),
    Phantom("ras", (0, 1, 2), (True, True, True)),
    Phantom("coronal", (0, 2, 1), (False, False, False)),
    Phantom("sagittal", (1, 2, 0), (False, True, True)),
    Phantom("oblique", (0, 1, 2), (True, False, False), turn=0.3),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing(WITH_GL) as made:
        yield made


def tile_place(page: Any, plane: str, slices: str, place: tuple[float, float, float]) -> tuple[float, float]:
    """Where a place, in voxels from the marked corner, lies in a plane's part of the viewer."""
    across, down = TILES[plane]
    size = EXTENT[across], EXTENT[down]
    if plane == slices:
        return place_of(page, place[across], place[down], size, HERO)
    others = [name for name in TILES if name != slices]
    box = page.locator("#canvas").bounding_box()
    width, height = box["width"] * (1 - HERO), box["height"] / 2
    left, top = box["x"] + box["width"] * HERO, box["y"] + height * others.index(plane)
    scale = min(width / size[0], height / size[1])
    return (
        left + (width - size[0] * scale) / 2 + (place[across] + 0.5) * scale,
        top + (height - size[1] * scale) / 2 + (place[down] + 0.5) * scale,
    )


def seen(page: Any, at: tuple[float, float]) -> list[int]:
    """The colour of one pixel of the page."""
    shot = page.screenshot(clip={"x": round(at[0]), "y": round(at[1]), "width": 1, "height": 1})
    return [int(one) for one in np.asarray(PIL.Image.open(io.BytesIO(shot)).convert("RGB"))[0, 0]]


def go_to(page: Any, frame: int) -> None:
    page.evaluate(
        "n => { const one = document.getElementById('slice'); one.value = n; one.dispatchEvent(new Event('input')); }",
        frame,
    )
    at_slice(page, frame + 1)


def at_slice(page: Any, number: int) -> None:
    """Wait for it by a selector: the page lets nobody evaluate text, which waiting for a function does."""
    page.wait_for_selector(f"#slice-number:text-matches('^{number} of')")


def by_library(path: Path, phrase: str, x: int, y: int, frame: int) -> Any:
    session = medsam3.Session(path, SlowSegmenter())
    session.segment(phrase)
    session.click(x, y, frame=frame)
    return session.masks.union()


@pytest.mark.parametrize("phantom", PHANTOMS, ids=lambda one: one.name)
def test_the_marked_corner_is_seen_where_it_is_and_clicks_fall_on_it(
    page: Any, phantom: Phantom, tmp_path: Path
) -> None:
    path = phantom.write(tmp_path)
    dropped(page, path)
    page.wait_for_selector("#gl:not([hidden])")
    inside, beside = (3, 2, 1), (12, 10, 1)
    x, y, frame = phantom.index(inside)
    go_to(page, frame)
    click(page, tile_place(page, phantom.slices, phantom.slices, inside))  # begins an object; the other planes follow
    page.mouse.move(5, 5)
    for plane in TILES:
        corner = tile_place(page, plane, phantom.slices, (5.5, 4.5, 2.5))  # beside the lines through the click
        page.screenshot(path=tmp_path / "seen.png")
        assert min(seen(page, corner)) > 120, f"the mark is at the upper left of the {plane} plane"
        far = [EXTENT[way] - 1 - 3.0 for way in range(3)]
        assert max(seen(page, tile_place(page, plane, phantom.slices, (far[0], far[1], far[2])))) < 40
    page.keyboard.press("Control+z")
    idle(page)
    ask(page, "block")
    go_to(page, frame)
    click(page, tile_place(page, phantom.slices, phantom.slices, beside))
    bx, by, _ = phantom.index(beside)
    wanted = by_library(path, "block", bx, by, frame)
    got = np.asarray(nib.load(taken(page, "nifti", tmp_path)).dataobj) > 0
    np.testing.assert_array_equal(got.transpose(2, 1, 0), wanted)
    assert wanted[frame, y, x] and wanted[frame, by, bx]


def test_masks_are_seen_in_all_planes_and_values_are_told(page: Any, tmp_path: Path) -> None:
    phantom = PHANTOMS[0]
    dropped(page, phantom.write(tmp_path))
    ask(page, "block")
    inside = (3, 2, 1)
    go_to(page, phantom.index(inside)[2])
    page.mouse.move(*tile_place(page, "axial", "axial", inside))
    x, y, frame = phantom.index(inside)
    assert page.locator("#place").inner_text() == f"x {x}  y {y}  slice {frame + 1} · 255"
    page.mouse.click(*tile_place(page, "coronal", "axial", (3, 0, 2)))  # the others follow a click there too
    page.mouse.move(5, 5)
    at_slice(page, 18)
    page.mouse.click(*tile_place(page, "sagittal", "axial", (0, 2, 2)))
    page.mouse.move(5, 5)
    for plane in TILES:
        red, green, blue = seen(page, tile_place(page, plane, "axial", (5.5, 4.5, 2.5)))
        assert red > blue + 30 and green > blue, f"the mask's colour lies over the {plane} plane"


def test_a_window_is_chosen_dragged_and_asked_in(page: Any, tmp_path: Path) -> None:
    values = np.full((30, 40, 10), -1000, dtype=np.int16)
    values[5:25, 5:35, 1:9] = 40
    values[10:20, 10:20, 3:7] = 300
    path = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(values, np.diag([-2.0, -2.0, 4.0, 1.0])), path)
    dropped(page, path)
    assert page.locator("#level").inner_text() == "C 40  W 400"
    bone = place_of(page, 13, 17, (30, 40), HERO)
    page.mouse.move(*bone)
    assert page.locator("#place").inner_text().split(" · ")[1] == "300"
    page.mouse.move(5, 5)
    assert seen(page, bone)[0] > 250
    page.select_option("#window", "bone")
    assert page.locator("#level").inner_text() == "C 400  W 1,800"
    assert 90 < seen(page, bone)[0] < 130  # (300 + 500) / 1800 of white is 113
    page.mouse.move(*bone)
    page.mouse.down(button="right")
    page.mouse.move(bone[0] + 50, bone[1], steps=3)
    page.mouse.up(button="right")
    assert page.locator("#window").evaluate("one => one.selectedOptions[0].textContent") == "by hand"
    assert float(page.locator("#level").inner_text().split("W ")[1].replace(",", "")) > 1900
    ask(page, "block")
    page.select_option("#window", "bone")
    page.click("#window-model")
    idle(page)
    page.click("#copy-shell")
    page.wait_for_selector("#copied:has-text('Copied')")
    assert (
        page.evaluate("navigator.clipboard.readText()")
        == "medsam3 segment ct.nii.gz --text block --window bone --model threshold --format nifti"
    )


def test_a_long_job_tells_its_progress_and_can_be_stopped(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.nii.gz"
    nib.save(nib.Nifti1Image(np.full((30, 30, 80), 200, dtype=np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    dropped(page, path)
    page.fill("#phrase", "slow")
    page.keyboard.press("Enter")
    page.wait_for_selector("#busy-bar[value]:not([value='0'])")
    page.click("#cancel")
    idle(page)
    assert page.locator("#found .empty").is_visible()
    assert page.locator("#undo").is_disabled()


def test_a_box_is_followed_through_the_slices_as_the_library_does(page: Any, tmp_path: Path) -> None:
    phantom = PHANTOMS[1]
    path = phantom.write(tmp_path)
    dropped(page, path)
    frame = phantom.index((0, 0, 2))[2]
    go_to(page, frame)
    page.keyboard.press("b")
    page.locator("#canvas").focus()
    page.keyboard.press("b")
    corners = [(-0.4, -0.4, 2), (8.6, 6.6, 2)]
    drag(page, *(tile_place(page, "axial", "axial", one) for one in corners))
    page.click("#propagate")
    idle(page)
    got = np.asarray(nib.load(taken(page, "nifti", tmp_path)).dataobj) > 0
    np.testing.assert_array_equal(got, phantom.voxels() == 255)


def test_without_webgl_one_plane_is_shown_and_answers_alike(browser: Any, page_server: Process, tmp_path: Path) -> None:
    phantom = PHANTOMS[4]
    path = phantom.write(tmp_path)
    plain = browser.browser_type.launch(executable_path=CHROMIUM, args=list(WITHOUT_GL))
    with shown(plain, page_server.address) as page:
        dropped(page, path)
        assert "WebGL" in page.locator("#one-plane").inner_text()
        assert page.locator("#gl").is_hidden()
        ask(page, "block")
        x, y, frame = phantom.index((12, 10, 1))
        go_to(page, frame)
        page.wait_for_timeout(1000)
        click(page, place_of(page, 12, 10, EXTENT[:2]))
        got = np.asarray(nib.load(taken(page, "nifti", tmp_path)).dataobj) > 0
        np.testing.assert_array_equal(got.transpose(2, 1, 0), by_library(path, "block", x, y, frame))
    plain.close()
