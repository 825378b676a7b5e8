import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from scipy import ndimage

from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io import write
from medsam3.io.read_masks import read_masks


def test_pycocotools_gets_every_mask_box_and_score_back(tmp_path: Path) -> None:
    image = Image(np.zeros((2, 7, 11, 1), dtype=np.uint8), kind="volume", source=(Path("scan.nii"),))
    dense = np.zeros((2, 2, 7, 11), dtype=bool)
    dense[0, 0, 2:5, 3:9] = dense[0, 1, 6, 10] = True  # over both frames
    dense[0, 0, 3, 4] = False  # a hole
    dense[1, 0, 2:4, 3:4] = True  # overlaps the first
    liver = Masks.from_dense(dense, [0.9, 0.25], concept="liver", presence=0.7)
    spleen = Masks.from_dense(dense[1:], [0.5], concept="spleen", presence=0.6)
    write([liver, spleen], tmp_path / "a.json", image)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "a.json"))
    assert [(item["id"], item["file_name"], item["frame"]) for item in coco.loadImgs([1, 2])] == [
        (1, "scan.nii", 0),
        (2, "scan.nii", 1),
    ]
    assert [(item["name"], item["presence"]) for item in coco.loadCats([1, 2])] == [("liver", 0.7), ("spleen", 0.6)]
    expected = [  # image, category, object, mask, box as left, top, width, height, score
        (1, 1, 1, dense[0, 0], [3, 2, 6, 3], 0.9),
        (2, 1, 1, dense[0, 1], [10, 6, 1, 1], 0.9),
        (1, 1, 2, dense[1, 0], [3, 2, 1, 2], 0.25),
        (1, 2, 3, dense[1, 0], [3, 2, 1, 2], 0.5),
    ]
    assert len(coco.anns) == len(expected)
    for number, (image_id, category, object_id, mask, box, score) in enumerate(expected, start=1):
        found = coco.anns[number]
        assert (found["image_id"], found["category_id"], found["object_id"]) == (image_id, category, object_id)
        assert np.array_equal(coco.annToMask(found).astype(bool), mask)
        assert (found["bbox"], found["score"], found["area"]) == (box, score, mask.sum())


def test_masks_are_polygons_that_other_tools_read_and_none_changes_a_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.normal(size=(60, 80)), 2) > 0.05  # many parts, holes, corners that touch
    write(
        [Masks.from_dense(blobs[None, None], [1.0], concept="gland")],
        tmp_path / "a.json",
        Image(np.zeros((1, 60, 80, 1), dtype=np.uint8)),
    )
    (entry,) = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert all(isinstance(value, float) for polygon in entry["segmentation"] for value in polygon)
    codec = pycocotools.mask
    drawn = codec.decode(codec.merge(codec.frPyObjects(entry["segmentation"], 60, 80)))
    np.testing.assert_array_equal(drawn.astype(bool), blobs)


def test_nothing_found_still_names_the_image_and_the_concept(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 4, 5, 3), dtype=np.uint8))
    write(Masks(image.shape, concept="polyp", presence=0.01), tmp_path / "a.json", image)
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["annotations"] == [] and document["categories"][0]["name"] == "polyp"
    assert (document["images"][0]["height"], document["images"][0]["width"]) == (4, 5)


def test_masks_from_boxes_are_of_the_category_object(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 4, 5, 3), dtype=np.uint8))
    write(Masks.from_dense(np.ones((1, 1, 4, 5), dtype=bool), [1.0]), tmp_path / "a.json", image)
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["categories"][0]["name"] == "object"
    assert document["annotations"][0]["bbox"] == [0, 0, 5, 4]


def rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    coded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def coco_file(path: Path, segmentation: Any, *names: str, of: int = 0, **more: Any) -> Path:
    """One annotation, of image `of` among those named."""
    images = [{"id": 7 + k, "file_name": name, "height": 7, "width": 11} for k, name in enumerate(names)]
    entry = {"id": 1, "image_id": 7 + of, "category_id": 3, "segmentation": segmentation, **more}
    categories = [{"id": 3, "name": "cell"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": [entry]}))
    return path


PICTURE = Image(np.zeros((1, 7, 11, 1), dtype=np.uint8), source=(Path("data/own.png"),))
HELD = np.zeros((7, 11), dtype=bool)
HELD[2:5, 3:9] = True


@pytest.mark.parametrize(
    "segmentation",
    [
        rle(HELD),
        [[3, 2, 9, 2, 9, 5, 3, 5]],
        [3, 2, 9, 2, 9, 5, 3, 5],
        [[[3, 2], [9, 2], [9, 5], [3, 5]]],
        [[3, 2, 6, 2, 6, 5, 3, 5], [6, 2, 9, 2, 9, 5, 6, 5]],
        # Columns run first: 3 columns of 7 and 2 rows, then 3 rows set and 4 not of each of 6 columns, then the rest.
        {"size": [7, 11], "counts": [23, 3, 4, 3, 4, 3, 4, 3, 4, 3, 4, 3, 16]},
    ],
)
def test_masks_of_others_are_read_in_every_form(segmentation: Any, tmp_path: Path) -> None:
    for names, of in ((("own.png",), 0), (("other.png", "images/own.png"), 1), (("other.png", "images\\own.png"), 1)):
        (found,), _ = read_masks(coco_file(tmp_path / "a.json", segmentation, *names, of=of), PICTURE)
        assert found.concept == "cell"
        np.testing.assert_array_equal(found.union()[0], HELD)


def test_of_a_data_sets_file_only_the_images_own_annotations_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = coco_file(tmp_path / "a.json", rle(HELD), "other.png", "own.png", of=0)
    (found,), _ = read_masks(path, PICTURE)
    assert len(found) == 0
    assert caplog.messages == [f"{path}: its 1 annotations are all of other images"]


@pytest.mark.parametrize(
    ("segmentation", "name", "message"),
    [
        (rle(HELD), "other.png", "the masks are of other.png, and not of own.png"),
        ([[3, 2, None, 2, 9, 5]], "own.png", "annotation 1 has a damaged mask"),
        ([[3, 2, 1e9, 2, 9, 5]], "own.png", "annotation 1 has a damaged mask"),
        ({"size": [7, 11], "counts": [70]}, "own.png", "annotation 1 has a damaged mask"),
        ({"size": [7, 11], "counts": [-3, 80]}, "own.png", "annotation 1 has a damaged mask"),
        ([[3, 2, 9, 2, 9, 5, 3]], "own.png", "annotation 1 has a damaged mask"),
        ({"size": [7, 11], "counts": [True] * 77}, "own.png", "annotation 1 has a damaged mask"),
        ({"size": [7, 11], "counts": "zzzz~~~~"}, "own.png", "annotation 1 has a damaged mask"),
        ({"size": [7, 11], "counts": rle(HELD)["counts"][:-1]}, "own.png", "annotation 1 has a damaged mask"),
        ({"size": [7, 11], "counts": rle(HELD)["counts"] + "P"}, "own.png", "annotation 1 has a damaged mask"),
        ({"size": [70_000, 70_000], "counts": "1"}, "own.png", "annotation 1 is no mask over 7 x 11 pixels"),
    ],
)
def test_masks_of_another_picture_or_damaged_are_refused(
    segmentation: Any, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_masks(coco_file(tmp_path / "a.json", segmentation, name), PICTURE)


def test_counts_of_any_run_are_read_as_pycocotools_writes_them(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    picture = Image(np.zeros((1, 90, 70, 1), dtype=np.uint8), source=(Path("own.png"),))
    for share in (0.001, 0.3, 0.999):
        held = chance.random((90, 70)) < share
        content = json.loads(coco_file(tmp_path / "a.json", rle(held), "own.png").read_text())
        content["images"][0] |= {"height": 90, "width": 70}
        (tmp_path / "a.json").write_text(json.dumps(content))
        (found,), _ = read_masks(tmp_path / "a.json", picture)
        np.testing.assert_array_equal(found.union()[0], held)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_of_windows_programs_is_read(encoding: str, tmp_path: Path) -> None:
    path = coco_file(tmp_path / "a.json", rle(HELD), "own.png")
    path.write_text(path.read_text(), encoding=encoding)
    (found,), _ = read_masks(path, PICTURE)
    np.testing.assert_array_equal(found.union()[0], HELD)


@pytest.mark.parametrize("more", [{"image_id": [7]}, {"category_id": {}}, {"id": []}])
def test_identifiers_that_are_no_numbers_or_text_are_refused(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="identifiers that are lists or objects"):
        read_masks(coco_file(tmp_path / "a.json", rle(HELD), "own.png", **more), PICTURE)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": [], "categories": 3, "annotations": []}'])
def test_what_is_not_coco_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="the file is not"):
        read_masks(tmp_path / "a.json", PICTURE)


def test_boxes_without_masks_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = coco_file(tmp_path / "a.json", [], "own.png", bbox=[3, 2, 6, 3])
    (found,), _ = read_masks(path, PICTURE)
    assert (len(found), found.concept) == (0, "cell")
    assert caplog.messages == [f"{path}: 1 annotations without a mask are left out"]
