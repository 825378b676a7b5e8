"""OHIF of the monailabel wheel in Chromium, with Orthanc behind it: the mask it shows is the command line's answer."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from made_archive import PASSWORD, USER, Orthanc, free_port
from made_clients import client_python
from made_dicom import dataset, save
from medsam3.cli.main import main
from page_browser import MINI, NEEDS_CHROMIUM, WITH_GL, browsing, serving

pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.weights, NEEDS_CHROMIUM]
WAIT_MS = 400_000
SLICES, ROWS, COLUMNS = 9, 120, 144
SPACING_MM = (5.0, 2.5, 2.0)  # along (n, row, column)
BAR = (112, 116)
"""Rows of a bright bar below the body, which is 12 columns longer on each slice: it tells which one is seen."""


def chest() -> Any:
    """A body with a large lung at the left of the picture and a small one at the right, in Hounsfield units."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]

    def disc(row: float, column: float, high: float, wide: float) -> Any:
        return ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 < 1

    made = np.full((SLICES, ROWS, COLUMNS), -1000, dtype=np.int16)
    for n in range(SLICES):
        made[n][disc(56, 72, 50, 68)] = 30
        made[n][disc(54, 40, 36 - n, 22 - n)] = -850
        made[n][disc(58, 104, 26 - n, 19 - n)] = -850
        made[n][disc(88, 72, 9, 9)] = 500
        made[n, BAR[0] : BAR[1], 10 : 20 + 12 * n] = 900
    return (made + np.random.default_rng(0).normal(0, 8, made.shape)).astype(np.int16)


def write_series(folder: Path) -> str:
    """Write the body as axial slices, from the feet up; gives the UID of the study."""
    slices = [dataset(plane) for plane in chest()]
    first = slices[0]
    for n, one in enumerate(slices):
        one.StudyInstanceUID, one.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
        one.FrameOfReferenceUID, one.PositionReferenceIndicator = "1.2.3.5", ""
        one.StudyDate, one.StudyTime, one.SeriesDescription = "20260101", "120000", "made up"
        one.ImagePositionPatient = [-144.0, -140.0, SPACING_MM[0] * n]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness, one.InstanceNumber = list(SPACING_MM[1:]), SPACING_MM[0], n + 1
        one.RescaleIntercept, one.RescaleSlope, one.WindowCenter, one.WindowWidth = 0, 1, 0, 2000
        save(one, folder / f"{n:03d}.dcm")
    return str(first.StudyInstanceUID)


def viewer_folder() -> Path:
    """The built OHIF of the wheel; skips the test if it is not there."""
    root = client_python("monailabel").parents[1]
    found = list(root.glob("lib/python*/site-packages/monailabel/endpoints/static/ohif/index.html"))
    if not found:
        pytest.skip("the monailabel wheel holds no OHIF: install monailabel==0.8.5 (docs/clients/README.md)")
    return found[0].parent


def site(viewer: Path, archive: Orthanc) -> Starlette:
    """OHIF at /ohif, and the archive where OHIF's settings look for it, at /proxy/dicom."""
    client = httpx.AsyncClient(timeout=300, auth=(USER, PASSWORD))

    async def asset(request: Request) -> Response:
        path = viewer / str(request.path_params["path"])
        return FileResponse(path if path.is_file() else viewer / "index.html")

    async def dicom(request: Request) -> Response:
        url = f"{archive.origin}/dicom-web/{request.path_params['path']}"
        headers = {name: value for name in ("accept", "content-type") if (value := request.headers.get(name))}
        body = await request.body()
        got = await client.request(
            request.method, url, params=dict(request.query_params), content=body, headers=headers
        )
        return Response(got.content, got.status_code, media_type=got.headers.get("content-type"))

    return Starlette(
        routes=[
            Route("/ohif/{path:path}", asset),
            Route("/proxy/dicom/{kind}/{path:path}", dicom, methods=["GET", "POST"]),
        ]
    )


@contextmanager
def running(app: Starlette, port: int) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)


class Seen:
    """The axial plane as it is seen."""

    def __init__(self, page: Any) -> None:
        box = page.locator("canvas.cornerstone-canvas").first.bounding_box()
        clip = {key: box[key] for key in ("x", "y", "width", "height")}
        self.middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.pixels = np.asarray(PIL.Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")).astype(int)

    @property
    def grey(self) -> Any:
        """Pixels of body, lungs' edges and bar; the words at the corners are coloured."""
        high, low = self.pixels.max(axis=2), self.pixels.min(axis=2)
        return np.where(high - low < 3, high, 0)

    def places(self) -> tuple[Any, Any]:
        """Rows and columns of the screen where the centres of the image's rows and columns lie.

        Body and bar have known edges in the image; where they lie on the screen is looked for, and not computed.
        """
        rows, columns = np.nonzero(self.grey > 100)
        inside = chest() > -500
        of_rows, of_columns = (np.flatnonzero(inside.any(axis=axes)) for axes in ((0, 2), (0, 1)))
        return tuple(
            seen.min() + (np.arange(count) + 0.5 - own[0]) * (seen.max() + 1 - seen.min()) / (own[-1] + 1 - own[0])
            for seen, own, count in ((rows, of_rows, ROWS), (columns, of_columns, COLUMNS))
        )

    def at_voxels(self, values: Any) -> Any:
        rows, columns = self.places()
        return values[np.ix_(rows.astype(int), columns.astype(int))]

    @property
    def slice(self) -> int:
        """The number of the slice, from the length of the bar."""
        length = (self.at_voxels(self.grey)[(BAR[0] + BAR[1]) // 2] > 200).sum()
        return round((int(length) - 10) / 12)


def connect(page: Any, address: str) -> None:
    """Give OHIF's panel the address of the server, and wait until it tells what the server has."""
    page.wait_for_selector("#monailabelServerURL")
    page.fill("#monailabelServerURL", f"{address}monailabel/")
    page.locator(".settingsTable button").first.click()
    page.get_by_text("Options / Configurations").wait_for()
    hide = page.get_by_text("Confirm and Hide")
    if hide.count():
        hide.click()


def ask(page: Any, phrase: str) -> None:
    """Type a phrase into the options of the model `phrase`, and run it."""
    page.get_by_text("Options / Configurations").click()
    page.wait_for_selector(".optionsForm")
    page.locator(".optionsForm input").first.fill(phrase)
    page.get_by_role("button", name="Confirm", exact=True).last.click()
    with page.expect_response(lambda answer: "/infer/phrase" in answer.url) as answered:
        page.get_by_title("Run Segmentation").first.click()
    assert answered.value.status == 200


def settled(page: Any, before: Seen | None = None) -> Seen:
    """The plane once it stands still, and is another one than before."""
    last, deadline = Seen(page), time.monotonic() + WAIT_MS / 1000
    while time.monotonic() < deadline:
        page.wait_for_timeout(1500)
        now = Seen(page)
        is_new = before is None or (now.pixels != before.pixels).any()
        if is_new and (now.grey > 100).any() and (now.pixels == last.pixels).all():
            return now
        last = now
    raise AssertionError("the plane does not change, or never stands still")


def scrolled(page: Any, seen: Seen, steps: int) -> Seen:
    """The plane some slices further on."""
    page.mouse.move(*seen.middle)
    for _ in range(abs(steps)):
        page.mouse.wheel(0, 100 if steps > 0 else -100)
        page.wait_for_timeout(1000)
    page.mouse.move(5, 5)
    return settled(page)


def dice(one: Any, other: Any) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_phrase_in_ohif_shows_the_mask_of_the_command_line_where_it_lies(orthanc: Orthanc, tmp_path: Path) -> None:
    viewer = viewer_folder()
    study = write_series(tmp_path / "ct")
    orthanc.send(tmp_path / "ct")
    out = tmp_path / "out"
    assert main(["segment", str(tmp_path / "ct"), "--text", "lung", "--format", "nifti", "--out", str(out)]) == 0
    (file,) = out.glob("*.nii.gz")
    wanted = np.asarray(nib.load(file).dataobj).transpose(2, 1, 0) > 0
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    command = (*MINI, "--enable", "monailabel", "--archive", orthanc.root, "--allow-origin", origin)
    with running(site(viewer, orthanc), port), serving(command) as server, browsing(WITH_GL) as browser:
        page = browser.new_page(viewport={"width": 1800, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{origin}/ohif/monai-label?StudyInstanceUIDs={study}")
        connect(page, server.address)
        before = {seen.slice: seen for seen in walked(page)}
        ask(page, "lung")
        settled(page, before[SLICES // 2])
        after = {seen.slice: seen for seen in walked(page)}
        page.screenshot(path=tmp_path / "ohif.png")
    assert sorted(before) == sorted(after)
    assert len(after) == 2
    for n, seen in after.items():
        changed = np.abs(seen.pixels - before[n].pixels).max(axis=2) > 2
        assert dice(wanted[n], seen.at_voxels(changed)) > 0.9, f"the mask of slice {n} lies where it belongs"
        others = [dice(wanted[other], seen.at_voxels(changed)) for other in after if other != n]
        assert dice(wanted[n], seen.at_voxels(changed)) > max(others)


def walked(page: Any) -> list[Seen]:
    """The plane as it opens, in the middle, and two slices from there; goes back."""
    middle = settled(page)
    further = scrolled(page, middle, 2)
    scrolled(page, further, -2)
    return [middle, further]
