"""Samples from COCO JSON and from an index, with the same truth."""

import codecs
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from made_data import data_folder
from medsam3.data.coco import samples_from_coco
from medsam3.data.index import load_label_map, shown_size
from medsam3.data.samples import samples_from_index
from medsam3.errors import InputError

SQUARE = [[4, 5, 10, 5, 10, 8, 4, 8]]
"""A rectangle from the pixel corner (4, 5) to (10, 8): columns 4..9, rows 5..7."""

Entry = dict[str, Any]


def annotated(image: object, category: object, segmentation: object = SQUARE, **more: object) -> Entry:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, **more}


def write_coco(
    folder: Path, annotations: Sequence[Entry], categories: Sequence[Entry], images: Sequence[object]
) -> Path:
    """A COCO file of pictures of 30 x 20 pixels, named by their ids."""
    for image in images:
        PIL.Image.new("L", (30, 20)).save(folder / f"{image}.png")
    content = {
        "images": [{"id": image, "file_name": f"{image}.png", "height": 20, "width": 30} for image in images],
        "categories": list(categories),
        "annotations": list(annotations),
    }
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    return path


def read_coco(
    folder: Path, annotations: Sequence[Entry], categories: Sequence[Entry], images: Sequence[object] = (7,)
) -> dict[str, dict[str, bool]]:
    """Which concepts are present or absent, by image."""
    pytest.importorskip("pycocotools")
    samples = samples_from_coco(write_coco(folder, annotations, categories, images), folder)
    return {sample.name: {target.concept: target.is_present for target in sample.targets} for sample in samples}


DISC, CUP = {"id": 1, "name": "optic_disc"}, {"id": 2, "name": "optic cup"}


def test_coco_categories_become_phrases_and_annotations_objects(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    runs = {"size": [20, 30], "counts": [0, 2, 598]}  # column-major: the first column's rows 0 and 1
    annotations = [annotated(7, 1), annotated(7, 1, runs, iscrowd=1), annotated(8, 2)]
    sample, other = samples_from_coco(write_coco(tmp_path, annotations, [DISC, CUP], [7, 8]), tmp_path)
    assert [(target.concept, target.is_present) for target in sample.targets] == [
        ("optic disc", True),
        ("optic cup", False),
    ]
    assert [target.is_present for target in other.targets] == [False, True]
    instances = sample.targets[0].load()
    assert instances.shape == (20, 30)
    assert (instances == 1).sum() == 6 * 3
    assert instances[5:8, 4:10].min() == 1
    assert np.argwhere(instances == 2).tolist() == [[0, 0], [1, 0]]
    assert not sample.targets[1].load().any()
    assert sample.load_rgb().shape == (20, 30, 3)


def test_compressed_rle_is_decoded_and_one_of_another_size_is_refused(tmp_path: Path) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[3:9, 20:30] = 1
    runs = {"size": [20, 30], "counts": codec.encode(mask)["counts"].decode()}
    (sample,) = samples_from_coco(write_coco(tmp_path, [annotated(7, 1, runs)], [DISC], [7]), tmp_path)
    assert (sample.targets[0].load() == mask).all()
    with pytest.raises(InputError, match=r"RLE of 30 x 20 with 600 pixels in 7.png, which is 20 x 30"):
        read_coco(tmp_path, [annotated(7, 1, runs | {"size": [30, 20]})], [DISC])
    with pytest.raises(InputError, match=r"RLE of 20 x 30 with 601 pixels"):
        read_coco(tmp_path, [annotated(7, 1, {"size": [20, 30], "counts": [0, 2, 599]})], [DISC])


def drawn(folder: Path, *rings: list[float]) -> NDArray[np.bool_]:
    pytest.importorskip("pycocotools")
    (sample,) = samples_from_coco(write_coco(folder, [annotated(7, 1, list(rings))], [DISC], [7]), folder)
    return sample.targets[0].load() > 0


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def test_a_ring_inside_another_is_a_hole_and_one_beside_it_is_not(tmp_path: Path) -> None:
    expected = np.zeros((20, 30), np.bool_)
    expected[2:18, 4:20], expected[5:12, 8:16], expected[7:9, 10:12] = True, False, True
    expected[0:3, 24:30] = True
    outer, hole, island, beside = (4, 2, 20, 18), (8, 5, 16, 12), (10, 7, 12, 9), (24, -3, 40, 3)
    rings = [rectangle(*corners) for corners in (hole, outer, beside, island)]
    assert (drawn(tmp_path, *rings) == expected).all()
    twice = drawn(tmp_path, rectangle(*outer), rectangle(*outer))
    assert twice.sum() == 16 * 16
    overlapping = drawn(tmp_path, rectangle(4, 2, 10, 8), rectangle(7, 5, 13, 11))
    assert overlapping.sum() == 6 * 6 + 6 * 6 - 3 * 3


def test_polygons_are_drawn_as_pycocotools_draws_them(tmp_path: Path) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(50):
        ring = (rng.uniform(-0.2, 1.2, (5, 2)) * (30, 20)).ravel().tolist()
        whole = codec.decode(codec.frPyObjects([ring], 20, 30))[..., 0] > 0
        assert (drawn(tmp_path, ring) == whole).all()
    assert not drawn(tmp_path, rectangle(40, 2, 50, 9)).any()


def test_what_nobody_annotated_is_no_concept_and_an_image_without_annotations_lacks_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = [
        {"id": 0, "name": "polyps", "supercategory": "none"},
        {"id": 1, "name": "polyp", "supercategory": "polyps"},
    ]
    assert read_coco(tmp_path, [annotated(7, 1)], parent, [7, 8]) == {
        "7.png": {"polyp": True},
        "8.png": {"polyp": False},
    }
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("train.json: 1 categories that nobody annotated are no concepts here (polyps)")


def test_a_category_is_not_absent_where_a_synonym_or_a_part_of_it_is_annotated(tmp_path: Path) -> None:
    lesions = [{"id": 1, "name": "skin lesion"}, {"id": 2, "name": "melanoma", "supercategory": "skin_lesion"}]
    found = read_coco(tmp_path, [annotated(7, 1), annotated(8, 2)], lesions, [7, 8, 9])
    assert found == {
        "7.png": {"skin lesion": True, "melanoma": False},
        "8.png": {"melanoma": True},  # a melanoma is a skin lesion, with an outline or without
        "9.png": {"skin lesion": False, "melanoma": False},
    }
    spelt = [{"id": 1, "name": "Optic_Disc"}, {"id": 2, "name": "optic disk"}, {"id": 3, "name": "teapot"}]
    found = read_coco(tmp_path, [annotated(7, 1), annotated(8, 2), annotated(8, 3)], spelt, [7, 8])
    assert found == {
        "7.png": {"Optic Disc": True, "teapot": False},
        "8.png": {"Optic Disc": True, "teapot": True},
    }


def test_a_category_is_not_absent_where_one_two_steps_below_it_is_annotated(tmp_path: Path) -> None:
    line = [
        {"id": 1, "name": "melanoma", "supercategory": "pigmented lesion"},
        {"id": 2, "name": "pigmented lesion", "supercategory": "finding"},  # annotated nowhere
        {"id": 3, "name": "finding", "supercategory": "melanoma"},  # a ring of three ends
    ]
    found = read_coco(tmp_path, [annotated(7, 1), annotated(8, 3)], line, [7, 8, 9])
    assert found["7.png"] == {"melanoma": True}
    assert found["9.png"] == {"melanoma": False, "finding": False}


def test_a_byte_order_mark_is_no_part_of_coco_json(tmp_path: Path) -> None:
    read_coco(tmp_path, [annotated(7, 1)], [DISC], [7])
    path = tmp_path / "train.json"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    (sample,) = samples_from_coco(path, tmp_path)
    assert [target.concept for target in sample.targets] == ["optic disc"]


def test_ids_as_texts_are_the_numbers_they_write(tmp_path: Path) -> None:
    found = read_coco(tmp_path, [annotated("7", 1.0), annotated(8, "2")], [{**DISC, "id": "1"}, CUP], [7, "8"])
    assert found["7.png"] == {"optic disc": True, "optic cup": False}
    assert found["8.png"] == {"optic disc": False, "optic cup": True}


@pytest.mark.parametrize(
    ("annotations", "categories", "images", "message"),
    [
        ([annotated(7, 1), annotated(7, 3)], [DISC], [7], "1 annotations of category ids that its categories lack (3)"),
        ([annotated(0, 1), annotated("x", 1)], [DISC], [7], "image_id is 0, x, the images are 7: make the ids fit"),
        ([annotated(7, 1)], [DISC, {**CUP, "id": "1"}], [7], "two categories of one id"),
        ([annotated(7, 1)], [DISC], [7, "7"], "two images of one id"),
        (
            [annotated(7, None)],
            [DISC],
            [7],
            "annotations[0].category_id is null: an id is a whole number or a text",
        ),
        ([], [DISC], [7], "has no outline"),
        ([annotated(7, 1)], [{**DISC, "name": " "}], [7], "categories without a name (1)"),
    ],
)
def test_ids_that_fit_nothing_or_two_things_are_refused(
    tmp_path: Path, annotations: list[Entry], categories: list[Entry], images: list[object], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        read_coco(tmp_path, annotations, categories, images)
    assert "\n" not in str(raised.value)


def test_annotations_of_images_that_are_not_listed_are_counted_and_no_image_lacks_a_concept_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_coco(tmp_path, [annotated(7, 1), annotated(8, 2), annotated(99, 1)], [DISC, CUP], [7, 8, 9])
    assert list(found) == ["7.png", "8.png"]  # the third may have lost its annotation
    assert "1 annotations are of images that are not listed (image_id 99)" in caplog.text
    assert "1 images are left out, as they say nothing of any concept" in caplog.text


NO_OUTLINE: list[object] = [[], None, [[]], [[4, 5, 10, 8]], [4, 5, 10, 8], [[4, 5, 10, 8, 4]]]


@pytest.mark.parametrize("segmentation", NO_OUTLINE)
def test_a_box_alone_says_nothing_of_its_concept(
    tmp_path: Path, segmentation: object, caplog: pytest.LogCaptureFixture
) -> None:
    boxed = annotated(8, 1, segmentation, bbox=[4, 5, 6, 3])
    found = read_coco(tmp_path, [annotated(7, 1), annotated(7, 2), boxed], [DISC, CUP], [7, 8])
    assert found["8.png"] == {"optic cup": False}
    assert "1 annotations have a box alone: their image says nothing of their concept; draw an outline" in caplog.text
    with pytest.raises(InputError, match="has no outline, only boxes or nothing: training needs polygons or RLE"):
        read_coco(tmp_path, [boxed], [DISC], [7, 8])


def test_a_segmentation_that_is_missing_is_a_box_and_a_flat_polygon_is_one_ring(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no outline"):
        read_coco(tmp_path, [{"image_id": 7, "category_id": 1, "bbox": [4, 5, 6, 3]}], [DISC])
    (sample,) = samples_from_coco(write_coco(tmp_path, [annotated(7, 1, SQUARE[0])], [DISC], [7]), tmp_path)
    assert (sample.targets[0].load() == 1).sum() == 6 * 3


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', "not json"])
def test_what_is_not_coco_is_one_line(tmp_path: Path, text: str) -> None:
    pytest.importorskip("pycocotools")
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"is not COCO JSON.*: \S") as raised:
        samples_from_coco(path, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_coco_image_is_named_and_a_path_of_windows_is_found(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    path = write_coco(tmp_path, [annotated(7, 1)], [DISC], [7])
    (tmp_path / "sub").mkdir()
    (tmp_path / "7.png").rename(tmp_path / "sub" / "7.png")
    with pytest.raises(InputError, match=r"7\.png does not exist"):
        samples_from_coco(path, tmp_path)
    path.write_text(path.read_text().replace("7.png", r"sub\\7.png"))
    (sample,) = samples_from_coco(path, tmp_path)
    assert sample.image == tmp_path / "sub" / "7.png"


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


def test_an_index_may_be_written_on_windows_and_leads_nowhere_else(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    (data / "a b").mkdir()
    for name in ("0.png", "0_mask.png"):
        (data / name).rename(data / "a b" / name)
    table = data / "index.csv"
    table.write_text(table.read_text().replace("0.png", r"a b\0.png").replace("0_mask.png", r"a b\0_mask.png"))
    first = samples_from_index(data)[-1]
    assert first.image == data / "a b" / "0.png" and (first.targets[0].load() == 1).sum() == 22 * 30
    for name in (r"C:\0.png", r"..\0.png", "/0.png", "../0.png", r"\\host\0.png"):
        changed = table.read_text().replace(r"a b\0.png", name)
        (data / "index.csv").write_text(changed)
        with pytest.raises(InputError, match=r"index\.csv line 2: path .* leaves the folder .*: write it relative"):
            samples_from_index(data)
        table.write_text(changed.replace(name, r"a b\0.png"))


def test_several_pages_are_no_picture_to_train_on(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    pages = [PIL.Image.new("L", (64, 48), value) for value in (10, 20)]
    pages[0].save(data / "0.png", "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"0\.png holds 2 pages, slices or frames, a picture is wanted: save one"):
        samples_from_index(data)[0].load_rgb()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no picture, though so named " * 20, "the file is of no known form, a picture is wanted"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), r"cannot be decoded, it may be cut short .*: copy it again"),
        (b"\x1f\x8b" + bytes(400), "the file is of no known form"),
        (bytes(128) + b"DICM" + bytes(40), "the file is dicom, a picture is wanted: save it as PNG"),
    ],
)
def test_a_mask_that_is_no_picture_is_said_to_be_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"mask\.png: .*{said}"):
        load_label_map(tmp_path / "mask.png")
    with pytest.raises(InputError, match=rf"mask\.png: .*{said}"):
        shown_size(tmp_path / "mask.png")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("height", '"20 px"', r'images\[0\]\.height is "20 px": input should be a valid integer'),
        ("height", "null", r"images\[0\]\.height is null: input should be a valid integer"),
        ("height", "0", r"images\[0\]\.height is 0: input should be greater than 0"),
        ("segmentation", '[[{"x": 1}]]', r'segmentation\[0\]\[0\] is {"x": 1}: input should be a valid number'),
    ],
)
def test_a_wrong_value_of_coco_is_named_with_its_place(tmp_path: Path, field: str, value: str, said: str) -> None:
    path = write_coco(tmp_path, [annotated(7, 1)], [DISC], [7])
    content = json.loads(path.read_text())
    content["images" if field == "height" else "annotations"][0][field] = json.loads(value)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        samples_from_coco(path, tmp_path)


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", "1e9", "-1e9", "1e400"])
def test_a_coordinate_that_is_none_or_far_outside_is_refused_before_it_is_drawn(tmp_path: Path, value: str) -> None:
    path = write_coco(tmp_path, [annotated(7, 1, [[4, 5, 10, 5, 12345, 8, 4, 8]])], [DISC], [7])
    path.write_text(path.read_text().replace("12345", value))
    with pytest.raises(InputError, match=r"coordinate|is not COCO JSON") as raised:
        samples_from_coco(path, tmp_path)
    assert "\n" not in str(raised.value)


def test_a_picture_that_claims_another_size_is_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotated(7, 1)], [DISC], [7])
    path.write_text(path.read_text().replace('"height": 20', '"height": 1000000000'))
    with pytest.raises(InputError, match=r"7\.png is 20 x 30 .*the COCO file says 1000000000 x 30"):
        samples_from_coco(path, tmp_path)


@pytest.mark.parametrize(
    "name", ["../7.png", "/etc/passwd", r"..\7.png", r"C:\7.png", "a/../../7.png", r"\\host\7.png"]
)
def test_a_file_name_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = write_coco(tmp_path, [annotated(7, 1)], [DISC], [7])
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"file_name .* leaves the folder .*: write it relative to that"):
        samples_from_coco(path, tmp_path)


@pytest.mark.parametrize("counts", ["0", "zz", "\u00e9", "P" * 9, "0`"])
def test_a_damaged_rle_is_refused_before_it_is_decoded(tmp_path: Path, counts: str) -> None:
    with pytest.raises(InputError, match=r"RLE|counts") as raised:
        read_coco(tmp_path, [annotated(7, 1, {"size": [20, 30], "counts": counts})], [DISC])
    assert "\n" not in str(raised.value)


def test_run_lengths_are_read_as_pycocotools_reads_them(tmp_path: Path) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.9):
        mask = np.asfortranarray(rng.random((20, 30)) < share, np.uint8)
        runs = {"size": [20, 30], "counts": codec.encode(mask)["counts"].decode()}
        (sample,) = samples_from_coco(write_coco(tmp_path, [annotated(7, 1, runs)], [DISC], [7]), tmp_path)
        assert (sample.targets[0].load() == mask).all()


def test_pictures_beside_the_file_need_no_folder_and_ids_from_1_are_no_group_of_two_splits(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
    train, val = tmp_path / "train", tmp_path / "valid"
    first = samples_from_coco(write_coco(train, [annotated(1, 1)], [DISC], [1]))
    second = samples_from_coco(write_coco(val, [annotated(1, 1)], [DISC], [1]), split="val")
    assert [sample.dataset for sample in (*first, *second)] == [tmp_path.name] * 2
    assert first[0].image.parent == train and second[0].image.parent == val
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = samples_from_coco(write_coco(train, [annotated(1, 1)], [DISC], [1]), train)
    path = write_coco(val, [annotated(1, 1)], [DISC], [1])
    (val / "1.png").rename(val / "other.png")
    path.write_text(path.read_text().replace("1.png", "other.png"))
    two = samples_from_coco(path, val, "val")
    assert one[0].group != two[0].group


def test_thousands_of_objects_are_drawn_in_a_second_or_two(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    corners = [(x, y) for x in range(0, 1000, 20) for y in range(0, 1000, 25)]  # 50 x 40 = 2,000
    PIL.Image.new("L", (1000, 1000)).save(tmp_path / "7.png")
    path = write_coco(tmp_path, [annotated(7, 1, [rectangle(x, y, x + 10, y + 10)]) for x, y in corners], [DISC], [7])
    PIL.Image.new("L", (1000, 1000)).save(tmp_path / "7.png")
    path.write_text(path.read_text().replace('"height": 20, "width": 30', '"height": 1000, "width": 1000'))
    (sample,) = samples_from_coco(path, tmp_path)
    started = time.process_time()
    labels = sample.targets[0].load()
    assert time.process_time() - started < 3
    assert labels.max() == 2000 and (labels > 0).sum() == 2000 * 100


@pytest.mark.parametrize("apart", [";", "\t"])
def test_a_spreadsheets_other_separators_are_read(tmp_path: Path, apart: str) -> None:
    data = data_folder(tmp_path / "data")
    expected = samples_from_index(data)
    table = data / "index.csv"
    table.write_text(table.read_text().replace(",", apart))
    assert [sample.name for sample in samples_from_index(data)] == [sample.name for sample in expected]


def test_a_folder_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    with pytest.raises(InputError, match=r"index\.csv is a file: name the folder that it lies in"):
        samples_from_index(data / "index.csv")
    with pytest.raises(InputError, match=r"data/no does not exist: correct the path"):
        samples_from_index(data / "no")
