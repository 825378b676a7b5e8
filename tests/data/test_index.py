from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medsam3.data.index import Fold, IndexRow, concept_mask, in_fold, load_label_map, read_index
from medsam3.errors import InputError

HEADER = "dataset,image,mask,concept,label_value,split,group,present"
ROW = "eyes,eyes/images/a.png,eyes/masks/a.png,optic disc,1|2,test,p1,1"


def write_index(folder: Path, *lines: str) -> Path:
    (folder / "index.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_row_holds_paths_values_and_presence(tmp_path: Path) -> None:
    (row,) = read_index(write_index(tmp_path, HEADER, ROW))
    assert row.image == tmp_path / "eyes/images/a.png"
    assert row.mask == tmp_path / "eyes/masks/a.png"
    assert row.concept == "optic disc"
    assert row.label_values == (1, 2)
    assert (row.split, row.group, row.is_present) == ("test", "p1", True)
    assert row.instances is None and not row.is_volume


def test_rows_keep_the_files_order_and_any_order_of_columns(tmp_path: Path) -> None:
    columns = "present,group,split,label_value,concept,mask,image,dataset,remark"
    lines = ["0,p2,train,3,cup,e/masks/b.png,e/images/b.png,e,x", "1,p1,test,1,disc,e/masks/a.png,e/images/a.png,e,"]
    rows = read_index(write_index(tmp_path, columns, *lines))
    assert [(row.concept, row.is_present, row.split) for row in rows] == [
        ("cup", False, "train"),
        ("disc", True, "test"),
    ]


def test_a_map_of_instances_beside_the_masks_is_found(tmp_path: Path) -> None:
    (tmp_path / "eyes/instances").mkdir(parents=True)
    (tmp_path / "eyes/instances/a.png").touch()
    (row,) = read_index(write_index(tmp_path, HEADER, ROW))
    assert row.instances == tmp_path / "eyes/instances/a.png"


def test_nifti_rows_are_volumes(tmp_path: Path) -> None:
    line = "brain,brain/images/a.nii.gz,brain/masks/a.nii.gz,hippocampus,1,train,p1,1"
    (row,) = read_index(write_index(tmp_path, HEADER, line))
    assert row.is_volume


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("test", "tset", "line 2: split is 'tset', allowed are train, val and test"),
        (",p1,1", ",p1,yes", "line 2: present is 'yes', allowed are 0 and 1"),
        ("1|2", "1|x", r"line 2: label_value is '1\|x'"),
        ("1|2", "0", "line 2: label_value is '0'"),
        ("eyes/images", "../images", "line 2: path '../images/a.png' leaves the folder"),
        ("eyes/masks", "/masks", "line 2: path '/masks/a.png' leaves the folder"),
        ("optic disc", " ", "line 2: concept empty"),
        ("p1,1", "p1", "line 2: present empty"),
    ],
)
def test_a_field_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_index(write_index(tmp_path, HEADER, ROW.replace(old, new, 1)))


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    lines = (HEADER, ROW, ROW.replace("/a.png", "/b.png").replace("test", "train"))
    with pytest.raises(InputError, match="group 'p1' of eyes is in test and in train"):
        read_index(write_index(tmp_path, *lines))


def test_a_group_name_of_another_data_set_may_be_in_another_split(tmp_path: Path) -> None:
    rows = read_index(write_index(tmp_path, HEADER, ROW, ROW.replace("eyes", "ears").replace("test", "train")))
    assert [row.dataset for row in rows] == ["eyes", "ears"]


def test_missing_file_missing_column_and_no_rows_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no index\.csv"):
        read_index(tmp_path)
    with pytest.raises(InputError, match="lacks the columns present"):
        read_index(write_index(tmp_path, HEADER.removesuffix(",present"), ROW))
    with pytest.raises(InputError, match="has no rows"):
        read_index(write_index(tmp_path, HEADER))
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8 CSV"):
        read_index(tmp_path)


def test_label_maps_of_8_and_16_bits_and_palettes_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [3, 2, 1]], dtype=np.uint8)
    PIL.Image.fromarray(values).save(tmp_path / "grey.png")
    deep = values.astype(np.uint16) * 300
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    palette = PIL.Image.fromarray(values, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png")
    for name, expected in (("grey", values), ("deep", deep), ("palette", values)):
        labels = load_label_map(tmp_path / f"{name}.png")
        assert labels.dtype == expected.dtype
        np.testing.assert_array_equal(labels, expected)


def test_a_concept_is_the_union_of_its_values() -> None:
    labels = np.array([[0, 1, 2], [3, 2, 1]], dtype=np.uint8)
    np.testing.assert_array_equal(concept_mask(labels, (1, 3)), [[False, True, False], [True, False, True]])


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, message in (
        ("colour.png", "mode RGB"),
        ("text.png", "of no known form, a picture is wanted"),
        ("none.png", "does not exist"),
        ("a.nii.gz", "is a volume"),
    ):
        with pytest.raises(InputError, match=message):
            load_label_map(tmp_path / name)


def fold_rows() -> list[IndexRow]:
    """Two data sets; in `a`, 12 groups of one to three images each, every second one with the concept."""
    rows = []
    for group in range(12):
        for image in range(group % 3 + 1):
            path = Path(f"a/{group}_{image}.png")
            rows.append(IndexRow("a", path, path, "polyp", (1,), "train", f"g{group}", group % 2 == 0))
    rows += [IndexRow("b", Path(f"b/{n}.png"), Path("m.png"), "liver", (1,), "test", str(n), True) for n in range(5)]
    return rows


def test_every_group_is_tested_in_exactly_one_fold_and_never_cut() -> None:
    rows = fold_rows()
    tested: list[tuple[str, str]] = []
    for number in range(1, 6):
        split = in_fold(rows, Fold(number, 5))
        assert [row.image for row in split] == [row.image for row in rows]
        by_group: dict[tuple[str, str], set[str]] = {}
        for row in split:
            by_group.setdefault((row.dataset, row.group), set()).add(row.split)
        assert all(len(splits) == 1 for splits in by_group.values())
        tested += [group for group, splits in by_group.items() if splits == {"test"}]
        assert {row.split for row in split if row.dataset == "a"} == {"train", "val", "test"}
    assert sorted(tested) == sorted({(row.dataset, row.group) for row in rows})


def test_folds_are_alike_in_size_and_in_what_they_show_and_do_not_follow_the_old_split() -> None:
    rows = fold_rows()
    sizes = [sum(row.split == "test" for row in in_fold(rows, Fold(n, 3)) if row.dataset == "a") for n in (1, 2, 3)]
    assert sum(sizes) == 24 and max(sizes) - min(sizes) <= 3  # a group has at most three images
    present = [
        sum(row.split == "test" and row.is_present for row in in_fold(rows, Fold(n, 3)) if row.dataset == "a")
        for n in (1, 2, 3)
    ]
    assert min(present) >= 3  # of 12
    moved = [replace(row, split="val") for row in rows]
    assert in_fold(moved, Fold(1, 3)) == in_fold(rows, Fold(1, 3))


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "1/21", "a/b", "1", "1/2/3", "-1/5", "\u00b2/5"])
def test_a_fold_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="allowed are 1/n to n/n"):
        Fold.from_text(text)
    assert str(Fold.from_text("2/5")) == "2/5"
