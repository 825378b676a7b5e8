"""Several sources at once: what is taken, what is left out, and how often each is drawn."""

import json
import os
import shutil
from pathlib import Path

import PIL.Image
import pytest
from test_folder_samples import folders

from made_data import data_folder, picture
from medsam3.cli.main import main, parse
from medsam3.cli.train import Train
from medsam3.data.folders import FolderSource, samples_from_folder
from medsam3.data.index import COLUMNS, Fold, in_fold, read_index
from medsam3.data.samples import contents_digest
from medsam3.data.sources import CocoSource, Sources, is_open, licences, read_samples
from medsam3.errors import InputError
from medsam3.train.batches import dataset_chances

DATA = os.environ.get("MEDSAM3_DATA", "")


def parsed(*arguments: str) -> Sources:
    args = parse(["train", "--out", "run", *arguments])
    assert isinstance(args, Train)
    return args.sources.sources(args.data)


def both(root: Path) -> Sources:
    """An index with the data set `one` and a plain folder, `eyes`."""
    return Sources(indexes=(data_folder(root / "data"),), folders=(FolderSource(*folders(root), "optic disc"),))


def test_sources_of_all_kinds_are_one(tmp_path: Path) -> None:
    samples = read_samples(both(tmp_path))
    assert {sample.dataset for sample in samples} == {"one", "eyes"}
    assert len(samples) == 3 + 3


def test_a_data_set_that_is_left_out_goes_to_no_split(tmp_path: Path) -> None:
    sources = both(tmp_path)
    left = read_samples(Sources(sources.indexes, folders=sources.folders, left_out=("one",)))
    assert {sample.dataset for sample in left} == {"eyes"}
    only = read_samples(Sources(sources.indexes, folders=sources.folders, only=("one",)))
    assert {sample.dataset for sample in only} == {"one"}
    with pytest.raises(InputError, match="--leave-out: there is no data set two, allowed are eyes, one"):
        read_samples(Sources(sources.indexes, folders=sources.folders, left_out=("two",)))


def test_a_weight_multiplies_how_often_a_data_set_is_drawn(tmp_path: Path) -> None:
    sources = both(tmp_path)
    samples = read_samples(Sources(sources.indexes, folders=sources.folders, weights=(("one", 3.0),)))
    chances = dataset_chances(samples, [sample.dataset for sample in samples], 1.0)
    share = sum(chance for chance, sample in zip(chances, samples, strict=True) if sample.dataset == "one")
    assert chances.sum() == pytest.approx(1)
    assert share == pytest.approx(3 / 4)  # three times as often as an equal number of others


def test_only_open_takes_nothing_that_is_not_known_to_be_open(tmp_path: Path) -> None:
    sources = both(tmp_path)
    with pytest.raises(InputError, match="none of it under an open licence"):
        read_samples(Sources(sources.indexes, is_only_open=True))
    assert is_open("hc18")
    assert not is_open("one")
    # What only the carrying repository says is not open; nor is what another than the authors put on Kaggle.
    assert not any(is_open(name) for name in ("brisc_brain_tumor", "edd2020", "bus_uc", "busi", "kvasir_seg"))
    allowed = ("CC0", "CC BY 4.0", "CC BY-SA 4.0", "MIT")
    assert all(one.licence.startswith(allowed) for one in licences().values() if one.is_open)


def test_a_fold_trains_and_validates_on_no_group_that_its_evaluation_tests(tmp_path: Path) -> None:
    table = [",".join(COLUMNS)]
    for number in range(12):
        image, mask = picture(tmp_path, number)
        table.append(f"one,{image.name},{mask.name},polyp,1,train,g{number // 2},1")  # two images a group
    (tmp_path / "index.csv").write_text("\n".join(table))
    for number in (1, 2, 3):
        fold = Fold(number, 3)
        tested = {row.group for row in in_fold(read_index(tmp_path), fold) if row.split == "test"}
        samples = read_samples(Sources(indexes=(tmp_path,), fold=fold))
        groups = {split: {s.group for s in samples if s.split == split} for split in ("train", "val", "test")}
        assert groups["test"] == tested and len(tested) == 2
        assert not (groups["train"] | groups["val"]) & tested and not groups["train"] & groups["val"]
    assert parsed("data", "--fold", "2/3").fold == Fold(2, 3)
    with pytest.raises(InputError, match="--fold splits an index"):
        read_samples(Sources(folders=(FolderSource(*folders(tmp_path), "optic disc"),), fold=Fold(1, 3)))


def test_an_image_is_given_once(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    with pytest.raises(InputError, match="3 images are given twice"):
        read_samples(Sources(indexes=(data, data)))


def test_the_options_after_a_folder_are_that_folder_s(tmp_path: Path) -> None:
    images, masks = (str(folder) for folder in folders(tmp_path))
    sources = parsed(
        *("--folder", images, masks, "--concept", "optic disc", "--group-pattern", "(.)"),
        *("--folder", images, masks, "--labels", "1=optic cup"),
        *("--leave-out", "a, b", "--weight", "a=2.5", "--weight", "b=c=1", "--only-open", "--slices-every", "0"),
    )
    first, second = sources.folders
    assert (first.concept, first.labels, first.group_pattern) == ("optic disc", (), "(.)")
    assert (second.concept, second.labels, second.group_pattern) == ("", (("optic cup", (1,)),), "")
    assert sources.left_out == ("a", "b")
    assert sources.weights == (("a", 2.5), ("b=c", 1.0))
    assert sources.is_only_open
    assert sources.slices is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concept", "polyp"], "--concept belongs to a --folder"),
        (["--weight", "one=0"], "allowed is SET=W with W above 0"),
        (["--weight", "2"], "allowed is SET=W"),
        (["--fold", "4/3"], "fold is 4/3, allowed are 1/n to n/n"),
        (["--slices-every", "-1"], "--slices-every. Must be >= 0"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", "nowhere", *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.skipif(not DATA, reason="MEDSAM3_DATA is not set")
def test_the_table_of_licences_knows_every_data_set_of_the_pack() -> None:
    assert set(licences()) == {row.dataset for row in read_index(Path(DATA))}


def coco(folder: Path, names: tuple[str, ...], file: str = "_annotations.coco.json") -> Path:
    """A COCO file of pictures beside it, each with one polyp."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        PIL.Image.new("L", (30, 20), 10 * number).save(folder / name)
    images = [{"id": n, "file_name": name, "height": 20, "width": 30} for n, name in enumerate(names)]
    square = [[4, 5, 10, 5, 10, 8, 4, 8]]
    annotations = [{"image_id": n, "category_id": 1, "segmentation": square} for n in range(len(names))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "polyp"}]}
    (folder / file).write_text(json.dumps(content))
    return folder / file


def test_an_export_of_roboflow_is_read_with_its_splits_in_one_go(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    coco(tmp_path / "export" / "train", ("a.png", "b.png"))
    coco(tmp_path / "export" / "valid", ("a.png",))
    samples = read_samples(Sources(indexes=(tmp_path / "export",)))
    assert [(sample.name, sample.split) for sample in samples] == [
        ("train/a.png", "train"),
        ("b.png", "train"),
        ("valid/a.png", "val"),
    ]
    assert {sample.dataset for sample in samples} == {"export"}
    with pytest.raises(InputError, match="--fold splits an index"):
        read_samples(Sources(indexes=(tmp_path / "export",), fold=Fold(1, 3)))


def test_without_val_images_a_fifth_of_the_groups_is_made_val_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pycocotools")
    path = coco(tmp_path, tuple(f"{n}.png" for n in range(10)), "train.json")
    first, again = (read_samples(Sources(coco=(CocoSource(path),))) for _ in range(2))
    assert [sample.split for sample in first].count("val") == 2
    assert [sample.split for sample in first] == [sample.split for sample in again]
    assert "no source has val images: 2 of the 10 train images are val now, 2 of 10 groups" in caplog.text
    with pytest.raises(InputError, match="no image has the split val"):
        read_samples(Sources(coco=(CocoSource(coco(tmp_path / "one", ("a.png",), "train.json")),)))


def test_a_split_that_is_not_wanted_may_be_empty(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    path = coco(tmp_path, ("a.png", "b.png"), "test.json")
    samples = read_samples(Sources(coco=(CocoSource(path, split="test"),)), ("test",))
    assert {sample.split for sample in samples} == {"test"}


def test_a_folder_of_neither_kind_is_one_line_that_says_what_else_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no index\.csv.*--coco.*--folder IMAGES MASKS"):
        read_samples(Sources(indexes=(tmp_path,)))


def test_the_digest_of_samples_follows_contents_and_not_names(tmp_path: Path) -> None:
    images, masks = folders(tmp_path)
    first = contents_digest(samples_from_folder(FolderSource(images, masks, "polyp")))
    moved = tmp_path / "elsewhere" / "eyes"
    shutil.copytree(images.parent, moved)
    assert contents_digest(samples_from_folder(FolderSource(moved / "images", moved / "masks", "polyp"))) == first
    assert contents_digest(samples_from_folder(FolderSource(images, masks, "optic disc"))) != first
    PIL.Image.new("RGB", (9, 6), 77).save(images / "a.jpg")
    changed = contents_digest(samples_from_folder(FolderSource(images, masks, "polyp")))
    assert changed != first
    PIL.Image.new("L", (9, 6), 0).save(masks / "a.png")
    assert contents_digest(samples_from_folder(FolderSource(images, masks, "polyp"))) not in (first, changed)


def test_masks_that_are_all_empty_are_nothing_to_learn(tmp_path: Path) -> None:
    for number in range(4):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            PIL.Image.new("L", (9, 6)).save(tmp_path / folder / f"{number}.png")
    source = FolderSource(tmp_path / "images", tmp_path / "masks", "polyp")
    with pytest.raises(InputError, match="no train image shows any concept, all of their masks are empty"):
        read_samples(Sources(folders=(source,)))
