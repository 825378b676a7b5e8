import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from medsam3.image import Image, Masks
from medsam3.io import write


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
