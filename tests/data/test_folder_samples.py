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
    with pytest.raises(InputError, match=r"a\.png: the mask of .*a\.jpg has \(9, 6\) pixels .* its image has \(6, 9\)"):
        samples_from_folder(one)
    (masks / "a.png").unlink()
    with pytest.raises(InputError, match=r"no mask for 1 of 3 images \(a\)"):
        samples_from_folder(one)
    put(images.with_name("more"), "b.png", np.zeros((6, 9, 3), np.uint8))
    put(images, "b.png", np.zeros((6, 9, 3), np.uint8))
    with pytest.raises(InputError, match=r"b\.jpg and b\.png have one name"):
        samples_from_folder(one)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        samples_from_folder(FolderSource(tmp_path / "empty", masks, "polyp"))
    with pytest.raises(InputError, match="finds nothing in"):
        samples_from_folder(FolderSource(images.with_name("more"), masks, "polyp", group_pattern="(patient)"))


def test_a_source_says_what_it_lacks(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        FolderSource(images, tmp_path / "none", "polyp")
    with pytest.raises(InputError, match="needs either --concept PHRASE or --labels"):
        FolderSource(images, masks)
    with pytest.raises(InputError, match="has 0 groups, allowed is 1"):
        FolderSource(images, masks, "polyp", group_pattern="p")
    for phrase in ("  ", "a\x1b[2J"):
        with pytest.raises(InputError, match=r"the phrase (is empty|holds characters that cannot be printed)"):
            FolderSource(images, masks, phrase)
    with pytest.raises(InputError, match="not a regular expression"):
        FolderSource(images, masks, "polyp", group_pattern="(")


@pytest.mark.parametrize("text", ["", "optic disc", "x=polyp", "1=", "1=polyp,2=polyp", "-1=polyp"])
def test_labels_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--labels has"):
        parse_labels(text)


BLOCK = np.zeros((6, 9), np.uint8)
BLOCK[1:3, 2:6] = 1


def read_mask(root: Path, values: np.ndarray, name: str = "a.png", mode: str | None = None) -> np.ndarray:
    """What a mask of one concept is read as."""
    put(root / "images", "a.png", np.zeros((*BLOCK.shape, 3), np.uint8))
    (root / "masks").mkdir(exist_ok=True)
    picture = PIL.Image.fromarray(values)
    if mode == "P":
        picture = PIL.Image.fromarray(values, mode="P")
        picture.putpalette([0, 0, 0, 128, 0, 0])
    elif mode is not None:
        picture = picture.convert(mode)
    picture.save(root / "masks" / name)
    (sample,) = samples_from_folder(FolderSource(root / "images", root / "masks", "polyp"))
    return sample.targets[0].load() > 0


@pytest.mark.parametrize("mode", [None, "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_all_usual_kinds_are_read_alike(tmp_path: Path, mode: str | None, value: int) -> None:
    if mode == "P" and value == 255:
        pytest.skip("a palette of two colours has no index 255")
    assert (read_mask(tmp_path, BLOCK * np.uint8(value), mode=mode) == (BLOCK > 0)).all()


def test_black_and_white_that_was_saved_as_jpeg_is_cut_in_the_middle_and_other_noise_is_refused(tmp_path: Path) -> None:
    large = np.roll(np.kron(BLOCK, np.ones((64, 64), np.uint8)), 3, axis=(0, 1))  # across the blocks of JPEG
    folder = tmp_path / "one"
    put(folder / "images", "a.png", np.zeros((*large.shape, 3), np.uint8))
    (folder / "masks").mkdir()
    PIL.Image.fromarray(large * 255).save(folder / "masks" / "a.jpg", quality=90)
    assert len(np.unique(np.asarray(PIL.Image.open(folder / "masks" / "a.jpg")))) > 2
    (sample,) = samples_from_folder(FolderSource(folder / "images", folder / "masks", "polyp"))
    assert ((sample.targets[0].load() > 0) == (large > 0)).all()
    noise = np.random.default_rng(0).integers(0, 255, BLOCK.shape).astype(np.uint8)
    with pytest.raises(InputError, match="--concept allows one besides 0: use --labels"):
        read_mask(tmp_path / "two", noise)
    colours = np.zeros((*BLOCK.shape, 3), np.uint8)
    colours[0, 0] = (255, 0, 0)
    with pytest.raises(InputError, match="is of mode RGB, a label map has one channel"):
        read_mask(tmp_path / "three", colours)


def test_inverted_masks_are_refused_and_read_right_by_their_value(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    for name in "abc":
        put(masks, f"{name}.png", (1 - BLOCK) * np.uint8(255))
    with pytest.raises(InputError, match=r"3 of 3 masks cover all corners.*--labels '0=polyp'.*--labels '255=polyp'"):
        samples_from_folder(FolderSource(images, masks, "polyp"))
    for text, expected in (("0=polyp", BLOCK > 0), ("255=polyp", BLOCK == 0)):
        sample, *_ = samples_from_folder(FolderSource(images, masks, labels=parse_labels(text)))
        assert ((sample.targets[0].load() > 0) == expected).all()
        assert sample.targets[0].is_present


def test_masks_beside_their_pictures_are_found_by_their_endings(tmp_path: Path) -> None:
    other = np.zeros((6, 9), np.uint8)
    other[4:6, 0:2] = 255
    root = tmp_path / "BUSI"
    for name in ("benign/benign (1)", "normal/normal (2)"):
        put(root, f"{name}.png", np.zeros((6, 9, 3), np.uint8))
    put(root, "benign/benign (1)_mask.png", BLOCK * np.uint8(255))
    put(root, "benign/benign (1)_mask_1.png", other)
    put(root, "normal/normal (2)_mask.png", np.zeros((6, 9), np.uint8))
    benign, normal = samples_from_folder(FolderSource(root, root, "breast tumor"))
    assert (benign.name, benign.dataset) == ("BUSI/benign/benign (1).png", "BUSI")
    assert (benign.targets[0].load() == BLOCK + 2 * (other > 0)).all()  # two masks, two objects
    assert [sample.targets[0].is_present for sample in (benign, normal)] == [True, False]
    assert {sample.split for sample in (benign, normal)} == {"train", "val"}


def test_endings_of_masks_in_another_folder_are_found_too_and_the_exact_name_comes_first(tmp_path: Path) -> None:
    images, masks = tmp_path / "isic" / "images", tmp_path / "isic" / "masks"
    put(images, "ISIC_1.jpg", np.zeros((6, 9, 3), np.uint8))
    put(masks, "ISIC_1_Segmentation.png", BLOCK * np.uint8(255))
    (sample,) = samples_from_folder(FolderSource(images, masks, "skin lesion"))
    assert (sample.targets[0].load() == BLOCK).all()
    put(masks, "ISIC_1.png", np.zeros((6, 9), np.uint8))
    (sample,) = samples_from_folder(FolderSource(images, masks, "skin lesion"))
    assert not sample.targets[0].is_present


def test_masks_may_be_gif_and_others_are_said_to_be_of_no_use(tmp_path: Path) -> None:
    images, masks = tmp_path / "drive" / "images", tmp_path / "drive" / "masks"
    put(images, "21.png", np.zeros((6, 9, 3), np.uint8))
    put(masks, "21.gif", BLOCK * np.uint8(255))
    (sample,) = samples_from_folder(FolderSource(images, masks, "vessel"))
    assert (sample.targets[0].load() == BLOCK).all()
    (masks / "21.gif").rename(masks / "21.nii.gz")
    with pytest.raises(InputError, match=r"has no mask for 1 of 1 images .* and is \.png, .*\.gif"):
        samples_from_folder(FolderSource(images, masks, "vessel"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_that_a_camera_turned_keep_their_masks(
    tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    shown = np.zeros((24, 36, 3), np.uint8)
    shown[4:12, 8:24] = 255
    upright = PIL.Image.fromarray(shown)
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    undo |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    name = undo.get(orientation)
    stored = upright if name is None else upright.transpose(PIL.Image.Transpose[name])
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    stored.save(tmp_path / "images" / "a.png", exif=exif)
    put(tmp_path / "masks", "a.png", shown[..., 0])
    (sample,) = samples_from_folder(FolderSource(tmp_path / "images", tmp_path / "masks", "polyp"))
    assert ((sample.targets[0].load() > 0) == (sample.load_rgb()[..., 0] > 128)).all()
    assert ("1 pictures are turned or mirrored by EXIF (a)" in caplog.text) == (orientation in (2, 3, 4))
    if orientation > 4:  # a mask drawn on the picture as it is stored is turned with it
        put(tmp_path / "masks", "a.png", np.asarray(stored)[..., 0])
        (sample,) = samples_from_folder(FolderSource(tmp_path / "images", tmp_path / "masks", "polyp"))
        assert ((sample.targets[0].load() > 0) == (sample.load_rgb()[..., 0] > 128)).all()


@pytest.mark.parametrize("concept", ["Gleason 3+4", "HER2+/ER-", "POLYP", "息肉", 'Größe & Form ("x")'])
def test_own_concepts_may_have_odd_names(tmp_path: Path, concept: str) -> None:
    images, masks = folders(tmp_path)
    by_concept = samples_from_folder(FolderSource(images, masks, concept))
    by_label = samples_from_folder(FolderSource(images, masks, labels=parse_labels(f"255={concept}")))
    assert {target.concept for sample in (*by_concept, *by_label) for target in sample.targets} == {concept}
