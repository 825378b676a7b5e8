"""Samples from COCO JSON and from an index, with the same truth."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medsam3.errors import InputError
from medsam3.train.data import samples_from_coco, samples_from_index


def write_coco(folder: Path) -> Path:
    PIL.Image.new("L", (30, 20)).save(folder / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "optic_disc"}, {"id": 2, "name": "optic cup"}],
        "annotations": [
            # A rectangle from the pixel corner (4, 5) to (10, 8): columns 4..9, rows 5..7.
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[4, 5, 10, 5, 10, 8, 4, 8]]},
            # Column-major runs: the first column's rows 0 and 1.
            {"id": 2, "image_id": 7, "category_id": 1, "segmentation": {"size": [20, 30], "counts": [0, 2, 598]}},
        ],
    }
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_categories_become_phrases_and_annotations_objects(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    (sample,) = samples_from_coco(write_coco(tmp_path), tmp_path)
    assert [(target.concept, target.is_present) for target in sample.targets] == [
        ("optic disc", True),
        ("optic cup", False),
    ]
    instances = sample.targets[0].load()
    assert instances.shape == (20, 30)
    assert (instances == 1).sum() == 6 * 3
    assert instances[5:8, 4:10].min() == 1
    assert np.argwhere(instances == 2).tolist() == [[0, 0], [1, 0]]
    assert not sample.targets[1].load().any()
    assert sample.load_rgb().shape == (20, 30, 3)


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', "not json"])
def test_what_is_not_coco_is_one_line(tmp_path: Path, text: str) -> None:
    pytest.importorskip("pycocotools")
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"is not COCO JSON"):
        samples_from_coco(path, tmp_path)


def test_a_missing_coco_image_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    path = write_coco(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png does not exist"):
        samples_from_coco(path, tmp_path)


def test_an_index_joins_label_values_and_keeps_true_negatives(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    labels = np.zeros((6, 9), np.uint8)
    labels[1, 1], labels[4, 7] = 1, 2
    PIL.Image.fromarray(labels).save(tmp_path / "masks" / "a.png")
    PIL.Image.new("RGB", (9, 6)).save(tmp_path / "images" / "a.png")
    head = "dataset,image,mask,concept,label_value,split,group,present\n"
    line = "eye,images/a.png,masks/a.png,{},{},train,p1,{}\n"
    rows = [("optic disc", "1|2", 1), ("optic cup", "2", 1), ("bleeding", "3", 0)]
    (tmp_path / "index.csv").write_text(head + "".join(line.format(*row) for row in rows))
    (sample,) = samples_from_index(tmp_path)
    assert [int(target.load().max()) for target in sample.targets] == [2, 1, 0]
    assert [target.is_present for target in sample.targets] == [True, True, False]
