"""The page with the real `mini`: what is taken away from it is the command line's answer, voxel by voxel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from made_dicom import write_oblique_series
from medsam3.cli.main import main
from page_browser import (
    HERO,
    MINI,
    NEEDS_CHROMIUM,
    WITH_GL,
    Process,
    ask,
    browsing,
    click,
    drag,
    dropped,
    idle,
    place_of,
    serving,
    shown,
    taken,
)

pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.weights, NEEDS_CHROMIUM]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with serving(MINI) as made:
        yield made


@pytest.fixture(scope="module")
def page(server: Process) -> Iterator[Any]:
    with browsing(WITH_GL) as browser, shown(browser, server.address) as made:
        yield made


def chest() -> Any:
    """Slices of a body with two lungs in Hounsfield units, (3, 160, 192) int16."""
    rows, columns = np.mgrid[:160, :192]

    def disc(row: float, column: float, high: float, wide: float) -> Any:
        return ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 < 1

    made = np.full((3, 160, 192), -1000, dtype=np.int16)
    for n in range(3):
        made[n][disc(80, 96, 70, 88)] = 30
        for column in (55, 137):
            made[n][disc(78, column, 44 - 2 * n, 28 - n)] = -850
        made[n][disc(125, 96, 12, 12)] = 500
    noise = np.random.default_rng(0).normal(0, 12, made.shape)
    return (made + noise).astype(np.int16)


def by_command(path: Path, form: str, out: Path, *asked: str) -> Path:
    """The one file that the command line writes."""
    assert main(["segment", str(path), *asked, "--format", form, "--out", str(out / form)]) == 0
    (made,) = [one for one in (out / form).iterdir() if one.name != "results.jsonl" and not one.name.startswith(".")]
    return made


def of_coco(path: Path) -> dict[str, Any]:
    """Masks by concept and frame, by pycocotools."""
    from pycocotools.coco import COCO  # noqa: PLC0415

    coco = COCO(str(path))
    found: dict[str, Any] = {}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        name = f"{coco.cats[annotation['category_id']]['name']} {annotation['image_id']}"
        found[name] = found.get(name, 0) | coco.annToMask(annotation)
    return found


def test_a_photograph_of_two_phrases_equals_the_command_line(page: Any, tmp_path: Path) -> None:
    from skimage import data  # noqa: PLC0415

    path = tmp_path / "fundus.jpg"
    path.write_bytes((Path(data.data_dir) / "retina.jpg").read_bytes())
    dropped(page, path)
    ask(page, "optic disc, opptic cup")
    assert page.locator("#found h3").all_inner_texts() == ["optic disc", "opptic cup"]
    assert "Read as “optic cup”" in page.inner_text("#found")
    got = of_coco(taken(page, "coco", tmp_path))
    wanted: dict[str, Any] = {}
    for phrase in ("optic disc", "opptic cup"):  # a file for each
        wanted |= of_coco(by_command(path, "coco", tmp_path / phrase, "--text", phrase))
    assert len(wanted) == 2 and wanted.keys() == got.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])
    page.click("#copy-shell")
    page.wait_for_selector("#copied:has-text('Copied')")
    line = page.evaluate("navigator.clipboard.readText()")
    assert line == "medsam3 segment fundus.jpg --text 'optic disc' --text 'opptic cup' --format coco"


def test_a_dicom_folder_becomes_a_seg_that_equals_the_command_lines(page: Any, tmp_path: Path) -> None:
    import highdicom  # noqa: PLC0415

    write_oblique_series(tmp_path / "study", chest(), "CT")
    dropped(page, tmp_path / "study", "study")
    assert page.locator("#facts").inner_text().startswith("CT")
    ask(page, "lung")
    wanted = highdicom.seg.segread(by_command(tmp_path / "study", "seg", tmp_path, "--text", "lung"))
    got = highdicom.seg.segread(taken(page, "seg", tmp_path))
    assert wanted.pixel_array.sum() > 10_000
    np.testing.assert_array_equal(got.pixel_array, wanted.pixel_array)
    for mine, theirs in zip(got.PerFrameFunctionalGroupsSequence, wanted.PerFrameFunctionalGroupsSequence, strict=True):
        assert mine.PlanePositionSequence == theirs.PlanePositionSequence


def test_a_nifti_is_asked_corrected_undone_and_copied_as_python(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chest.nii.gz"
    nib.save(nib.Nifti1Image(chest().transpose(2, 1, 0), np.diag([-2.0, -2.0, 5.0, 1.0])), path)
    dropped(page, path)
    page.wait_for_selector("#gl:not([hidden])")
    ask(page, "lung")
    wanted = np.asarray(nib.load(by_command(path, "nifti", tmp_path, "--text", "lung")).dataobj)
    got = np.asarray(nib.load(taken(page, "nifti", tmp_path)).dataobj)
    assert (wanted > 0).sum() > 10_000
    np.testing.assert_array_equal(got, wanted)
    page.locator("#canvas").focus()
    page.keyboard.press("n")
    click(page, place_of(page, 55, 78, (192, 160), HERO))
    corrected = np.asarray(nib.load(taken(page, "nifti", tmp_path)).dataobj)
    assert (corrected != wanted).any()
    page.click("#copy-python")
    page.wait_for_selector("#copied:has-text('Copied')")
    monkeypatch.chdir(tmp_path)
    exec(compile(page.evaluate("navigator.clipboard.readText()"), "copied", "exec"), {})
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "masks.nii.gz").dataobj) > 0, corrected > 0)
    page.locator("#canvas").focus()
    page.keyboard.press("Control+z")
    idle(page)
    np.testing.assert_array_equal(np.asarray(nib.load(taken(page, "nifti", tmp_path)).dataobj), wanted)


def test_a_clip_is_boxed_followed_and_equals_the_command_line(page: Any, tmp_path: Path) -> None:
    import av  # noqa: PLC0415
    from skimage import data  # noqa: PLC0415

    picture = PIL.Image.open(Path(data.data_dir) / "retina.jpg").resize((320, 320))
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for n in range(3):
            frame = av.VideoFrame.from_image(picture.crop((2 * n, 20, 2 * n + 256, 276)))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    dropped(page, path)
    page.keyboard.press("Home")
    page.wait_for_selector("#slice-number:text-is('1 of 3')")
    idle(page)
    ask(page, "optic disc")
    wanted, got = (
        of_coco(by_command(path, "coco", tmp_path, "--text", "optic disc")),
        of_coco(taken(page, "coco", tmp_path)),
    )
    assert len(wanted) == 3 and wanted.keys() == got.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])
    page.click("#reset")
    idle(page)
    page.locator("#canvas").focus()
    page.keyboard.press("b")
    drag(page, place_of(page, 22, 95, (256, 256)), place_of(page, 75, 160, (256, 256)))
    page.keyboard.press("g")
    idle(page)
    boxed = json.loads(taken(page, "json", tmp_path).read_text())
    assert boxed
    with av.open(str(taken(page, "mp4", tmp_path))) as shown_file:
        assert sum(1 for _ in shown_file.decode(video=0)) == 3
