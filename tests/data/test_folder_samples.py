"""Plain folders of images and masks: matched by name, checked, and split."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medsam3.data.folders import FolderSource, hashed_splits, parse_labels, samples_from_folder
from medsam3.errors import InputError


def put(folder: Path, name: str, values: np.ndarray) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(values).save(path)


def folders(root: Path, names: tuple[str, ...] = ("a", "b", "c"), *, value: int = 255) -> tuple[Path, Path]:
    mask = np.zeros((6, 9), np.uint8)
    mask[1:3, 2:6] = value
    for name in names:
        put(root / "eyes" / "images", f"{name}.jpg", np.zeros((6, 9, 3), np.uint8))
        put(root / "eyes" / "masks", f"{name}.png", mask)
    return root / "eyes" / "images", root / "eyes" / "masks"


def test_a_mask_of_one_concept_is_what_is_not_0(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    put(masks, "b.png", np.zeros((6, 9), np.uint8))
    samples = samples_from_folder(FolderSource(images, masks, "optic disc"))
    assert [(sample.name, sample.dataset) for sample in samples] == [(f"eyes/{n}.jpg", "eyes") for n in "abc"]
    assert [sample.targets[0].is_present for sample in samples] == [True, False, True]
    assert int((samples[0].targets[0].load() > 0).sum()) == 2 * 4
    assert not samples[1].targets[0].load().any()
    assert {sample.split for sample in samples} == {"train", "val"}


def test_a_label_map_gives_each_named_concept_and_unions(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, value=1)
    labels = np.zeros((6, 9), np.uint8)
    labels[0, 0], labels[5, 5:8] = 1, 2
    put(masks, "a.png", labels)
    source = FolderSource(images, masks, labels=parse_labels("1|2=optic disc, 2=optic cup"))
    sample, other, _ = samples_from_folder(source)
    assert [(t.concept, int((t.load() > 0).sum())) for t in sample.targets] == [("optic disc", 4), ("optic cup", 3)]
    assert [t.is_present for t in other.targets] == [True, False]


def test_folders_named_after_splits_are_the_splits(tmp_path: Path) -> None:
    source = FolderSource(*folders(tmp_path, ("train/a", "val/b", "test/c")), "polyp")
    assert {sample.name: sample.split for sample in samples_from_folder(source)} == {
        "eyes/train/a.jpg": "train",
        "eyes/val/b.jpg": "val",
        "eyes/test/c.jpg": "test",
    }


def test_what_the_pattern_finds_stays_in_one_split(tmp_path: Path) -> None:
    names = tuple(f"p{patient}_{n}" for patient in range(10) for n in range(3))
    samples = samples_from_folder(FolderSource(*folders(tmp_path, names), "polyp", group_pattern=r"(p\d)_"))
    of_group = {group: {s.split for s in samples if s.group == group} for group in {s.group for s in samples}}
    assert len(of_group) == 10
    assert all(len(splits) == 1 for splits in of_group.values())
    # Groups of 10 % each are cut at 70 % and 80 %.
    assert [sum(s.split == split for s in samples) for split in ("train", "val", "test")] == [21, 3, 6]


def test_a_split_depends_on_names_alone_and_two_groups_are_enough() -> None:
    names = {name: name for name in "abcdefghij"}
    assert hashed_splits(names, "one") == hashed_splits(dict(reversed(names.items())), "one")
    assert hashed_splits(names, "one") != hashed_splits(names, "two")
    assert sorted(hashed_splits({"a": "a", "b": "b"}, "one").values()) == ["train", "val"]
    assert hashed_splits({"a": "a"}, "one") == {"a": "train"}


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, value=1)
    one = FolderSource(images, masks, "optic disc")
    two = np.ones((6, 9), np.uint8)
    two[0] = 3
    put(masks, "a.png", two)
    with pytest.raises(InputError, match=r"a\.png holds the values 1, 3, --concept allows one besides 0"):
        samples_from_folder(one)
    with pytest.raises(InputError, match=r"a\.png holds the values 3, which --labels does not name"):
        samples_from_folder(FolderSource(images, masks, labels=(("optic disc", (1, 2)),)))
    put(masks, "a.png", np.ones((9, 6), np.uint8))
    with pytest.raises(InputError, match=r"a\.png has \(9, 6\) pixels .* its image has \(6, 9\)"):
        samples_from_folder(one)
    (masks / "a.png").unlink()
    with pytest.raises(InputError, match=r"no mask for 1 of 3 images \(a\)"):
        samples_from_folder(one)
    put(images, "b.png", np.zeros((6, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"b\.jpg and b\.png have one name"):
        samples_from_folder(one)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        samples_from_folder(FolderSource(tmp_path / "empty", masks, "polyp"))
    with pytest.raises(InputError, match="finds nothing in"):
        samples_from_folder(FolderSource(masks, masks, "polyp", group_pattern="(patient)"))


def test_a_source_says_what_it_lacks(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        FolderSource(images, tmp_path / "none", "polyp")
    with pytest.raises(InputError, match="needs either --concept PHRASE or --labels"):
        FolderSource(images, masks)
    with pytest.raises(InputError, match="has 0 groups, allowed is 1"):
        FolderSource(images, masks, "polyp", group_pattern="p")
    with pytest.raises(InputError, match="not a regular expression"):
        FolderSource(images, masks, "polyp", group_pattern="(")


@pytest.mark.parametrize("text", ["", "optic disc", "0=polyp", "x=polyp", "1=", "1=polyp,2=polyp", "-1=polyp"])
def test_labels_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--labels has"):
        parse_labels(text)
