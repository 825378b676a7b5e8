"""nnInteractive's and VoxTell's protocols, asked by their own clients; and their arrays, whole and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medsam3
from made_clients import TOKEN, asked, client_python, scan, serving
from medsam3.errors import InputError
from medsam3.server.clients import arrays
from slow_segmenter import TaughtSegmenter

pytest.importorskip("blosc2")


@pytest.fixture(scope="module")
def address() -> Any:
    client_python("napari")
    with serving("nninteractive", "voxtell", tokens=(TOKEN,)) as place:
        yield place


@pytest.fixture(scope="module")
def nninteractive(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("nninteractive")
    np.save(folder / "image.npy", scan()[1].transpose(2, 1, 0))
    told = asked("napari", "ask_nninteractive.py", address, TOKEN, folder / "image.npy", folder / "out.npz")
    told["masks"] = dict(np.load(folder / "out.npz"))
    return told


@pytest.fixture(scope="module")
def voxtell(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("voxtell")
    image = folder / "scan.nii.gz"
    image.write_bytes(scan()[0])
    out, exported = folder / "out.npz", folder / "labels.nii.gz"
    told = asked("napari", "ask_voxtell.py", address, TOKEN, image, out, exported)
    return told | {"arrays": dict(np.load(out)), "image": image, "exported": exported}


def session() -> medsam3.Session:
    """A session of the library over the same voxels (n, row, column)."""
    image = medsam3.as_image(scan()[1].transpose(2, 1, 0), spacing_mm=(3.0, 1.3, 0.8))
    return medsam3.Session(image, TaughtSegmenter())


def test_clicks_are_answered_on_their_slice_and_followed_by_predict(nninteractive: Any) -> None:
    masks, one = nninteractive["masks"], session()
    one.click(4, 5, frame=2)
    np.testing.assert_array_equal(masks["click"] > 0, one.masks.union())
    assert nninteractive["box of the click"] == [[2, 3], [3, 8], [2, 8]]
    one.click(2, 3, positive=False, frame=2)
    np.testing.assert_array_equal(masks["negative"] > 0, one.masks.union())
    one.propagate()
    assert len(np.flatnonzero(one.masks.union().any(axis=(1, 2)))) == 3
    assert nninteractive["undone"] is True
    for name in ("undone", "queued"):
        np.testing.assert_array_equal(masks[name], masks["click"])
    np.testing.assert_array_equal(masks["predicted"] > 0, one.masks.union())
    assert not masks["reset"].any()


def test_boxes_scribbles_and_lassos_are_those_of_a_session(nninteractive: Any) -> None:
    masks, one = nninteractive["masks"], session()
    one.box(0.5, 1.5, 8.5, 8.5, frame=2)
    for name in ("box", "lasso"):
        np.testing.assert_array_equal(masks[name] > 0, one.masks.union())
    assert masks["scribble"][2, 5, 3:7].all() or masks["scribble"][2, 6, 3:7].all()
    assert nninteractive["shape"] == [1, 5, 9, 12]
    assert nninteractive["supported"]["points"] is True


def test_nninteractives_client_is_told_what_is_wrong(nninteractive: Any) -> None:
    assert nninteractive["ping"] is True
    assert nninteractive["no token"][0] == 401
    assert "set one first" in nninteractive["no image"][1]
    assert "connect again" in nninteractive["late"]
    assert 0 < nninteractive["left"] <= 3600
    for case, message in {
        "outside": "outside the volume of 5 x 9 x 12 voxels",
        "negative first": "there is no object that a negative click could be taken from",
        "3D box": "the box spans 3 slices",
        "other size": "the image has (5, 9, 12)",
        "empty": "nothing was drawn",
        "initial": "a mask to begin with is not taken",
        "two channels": "send one channel",
    }.items():
        assert nninteractive["refused"][case][0] == 400, case
        assert message in nninteractive["refused"][case][1]


def test_voxtell_gets_masks_in_the_turned_volume(voxtell: Any) -> None:
    turned = nib.as_closest_canonical(nib.load(voxtell["image"]))
    wanted = np.asarray(turned.dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(voxtell["arrays"]["image"], wanted)
    assert voxtell["shape"] == list(wanted.shape)
    np.testing.assert_allclose(voxtell["spacing"], turned.header.get_zooms()[::-1], rtol=1e-5)
    masks = voxtell["arrays"]["masks"]
    assert masks.dtype == np.uint8
    for mask, expected in zip(masks, (wanted > 90, wanted > 200, wanted > 300), strict=True):
        np.testing.assert_array_equal(mask > 0, expected)
    np.testing.assert_array_equal(voxtell["arrays"]["largest"][0], masks[0])


def test_voxtells_labels_go_back_to_the_files_own_order(voxtell: Any) -> None:
    written, image = nib.load(voxtell["exported"]), nib.load(voxtell["image"])
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-4)
    voxels = scan()[1]
    np.testing.assert_array_equal(np.asarray(written.dataobj), (voxels > 90).astype(int) + (voxels > 200))


def test_voxtells_jobs_tell_their_progress_and_their_end(voxtell: Any) -> None:
    assert voxtell["health"] is True
    assert voxtell["capabilities"]["available_embeddings"] == ["kidney", "liver"]
    assert voxtell["no token"][0] == 401
    *steps, end = voxtell["events"]
    assert steps and all(0 <= one["done"] <= one["total"] for one in steps)
    assert end == {"status": "done"}
    assert voxtell["cancelled"] == {"status": "cancelled"}
    assert voxtell["killed"]["status"] == "error"
    assert "the process that did this ended" in voxtell["killed"]["message"]
    for case, (status, message) in {
        "no image": (404, "there is no such image"),
        "no phrase": (400, "none of them empty"),
        "no volume": (400, "image.nii.gz"),
        "other size": (400, "the label map is uint8"),
        "killed": (500, "the process that did this ended"),
        "cancelled": (409, "it is cancelled"),
    }.items():
        assert voxtell["refused"][case][0] == status, case
        assert message in voxtell["refused"][case][1]


@pytest.mark.parametrize("frame", ["NNIA", "VXA2"])
@pytest.mark.parametrize("dtype", ["uint8", "<i2", "float32", "float16"])
def test_arrays_come_back_as_they_were(frame: Any, dtype: str) -> None:
    values = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(dtype)
    back = arrays.unpacked(arrays.packed(values, frame), frame, 10**6)
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("frame", ["NNIA", "VXA2"])
def test_broken_arrays_are_refused(frame: Any) -> None:
    good = arrays.packed(np.arange(60, dtype=np.int16), frame)
    for broken in (b"", good[:9], good[:-5], b"XXXX" + good[4:], good[:-1] + b"\0\0\0", good + good[-30:]):
        with pytest.raises(InputError):
            arrays.unpacked(broken, frame, 10**6)
    with pytest.raises(InputError, match="allowed are numbers in at most 100 bytes"):
        arrays.unpacked(good, frame, 100)


def test_a_thick_scribble_becomes_a_way_through_each_of_its_parts(tmp_path: Path) -> None:
    mask = np.zeros((3, 9, 12), dtype=np.uint8)
    mask[1, 2:4, 1:9] = 1  # two rows of eight
    mask[1, 7, 5] = 1
    (tmp_path / "mask").write_bytes(arrays.packed(mask, "NNIA"))
    first, second = arrays.strokes_in(tmp_path / "mask", None, (3, 9, 12))
    assert second == (1, [(5.0, 7.0)])
    line = np.array(first[1])
    assert first[0] == 1 and len(line) == 8
    assert sorted(line[:, 0]) == list(range(1, 9))
    assert (np.abs(np.diff(line, axis=0)).max(axis=1) == 1).all()
    assert all(mask[1, int(y), int(x)] for x, y in line)
