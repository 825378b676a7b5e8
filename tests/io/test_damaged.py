"""Damaged files, each found by changing bytes of good ones at random: one line of `InputError`, whatever the reader."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from fuzz_seeds import seeds

from made_dicom import dataset, ramp, save, series
from medsam3.errors import InputError
from medsam3.image import Image
from medsam3.io import read
from medsam3.io.read_masks import read_masks
from medsam3.io.video import write_mp4
from medsam3.models.sam3.checkpoints import read_adapter
from medsam3.models.sam3.lora import LoraSource


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path).array()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_dicom_value_of_unknown_kind(tmp_path: Path) -> None:
    path = save(dataset(ramp()[0]), tmp_path / "a.dcm")
    content = path.read_bytes().replace(b"\x02\0\x02\0UI", b"\x02\0\x02\0U1", 1)  # the class, in the file's header
    path.write_bytes(content.replace(b"\x08\0\x16\0UI", b"\x08\0\x15\0UI", 1))  # and another tag for it below
    assert "the DICOM" in one_line(path) or "as DICOM" in one_line(path)


def test_a_dicom_number_of_an_odd_length(tmp_path: Path) -> None:
    path = save(dataset(ramp()[0]), tmp_path / "a.dcm")
    rows = b"\x28\0\x10\0US\x02\0"  # (0028,0010), two bytes
    path.write_bytes(path.read_bytes().replace(rows + b"\x05\0", rows[:-2] + b"\x03\0\x05\0\0", 1))
    one_line(path)


def test_a_video_of_an_unknown_codec(tmp_path: Path) -> None:
    write_mp4([np.zeros((48, 64, 3), dtype=np.uint8)] * 3, tmp_path / "a.mp4", fps=25)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.count(b"avc1") > 0
    (tmp_path / "a.mp4").write_bytes(content.replace(b"avc1", b"xxxx"))
    assert "the video cannot be decoded" in one_line(tmp_path / "a.mp4")


def test_a_data_file_with_a_null_in_its_name(tmp_path: Path) -> None:
    head = b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 2 2\nencoding: raw\ndata file: a\0b.raw\n"
    (tmp_path / "a.nhdr").write_bytes(head)
    assert "which is not beside it" in one_line(tmp_path / "a.nhdr")


def test_an_annotation_of_a_category_that_is_not_listed(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "", "height": 4, "width": 5}],
        "categories": [],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 9, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (found,), _ = read_masks(tmp_path / "a.json", Image(np.zeros((1, 4, 5, 1), dtype=np.uint8)))
    assert (found.concept, found.union().sum()) == ("unknown category", 9)


def test_a_structure_set_whose_class_is_damaged(tmp_path: Path) -> None:
    path = save(dataset(ramp()[0], sop_class="1.2.840.10008.5.1.4.1.1.481.3"), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"\x08\0\x16\0UI", b"\x08\0\x16\0US", 1))
    with pytest.raises(InputError):
        read_masks(path, read(series(tmp_path / "ct")))


def test_nifti_voxels_of_bits(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(ramp(), np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[70:72] = (1).to_bytes(2, "little")  # the type DT_BINARY
    (tmp_path / "a.nii").write_bytes(content)
    one_line(tmp_path / "a.nii")


def seed(name: str, folder: Path) -> Path:
    (found,) = (one for one in seeds() if one.name == name)
    folder.mkdir(exist_ok=True)
    found.make(folder)
    return folder / found.file


@pytest.mark.parametrize(
    ("name", "start", "at", "value"),
    [
        ("dicom-jpeg-ls", b"\xff\xd8", 6, 0xF5),  # GDCM throws where nobody catches
        ("dicom-jpeg-lossless", b"\xff\xd8", 6, 0xF5),  # GDCM reads where there is no memory
        ("dicom-jpeg2000", b"\xff\x4f\xff\x51", 42, 0x71),
    ],
)
def test_a_picture_that_ends_the_native_decoder_is_one_line(
    tmp_path: Path, name: str, start: bytes, at: int, value: int
) -> None:
    path = seed(name, tmp_path)
    content = bytearray(path.read_bytes())
    content[content.rindex(start) + at] = value
    path.write_bytes(content)
    assert "ended its decoder (SIG" in one_line(path)


def test_metaimage_of_minus_one_dimensions(tmp_path: Path) -> None:
    path = seed("mha-packed", tmp_path)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = -1", 1))
    assert "ended its decoder" in one_line(path)


def test_nrrd_with_directions_without_end(tmp_path: Path) -> None:
    path = seed("nrrd", tmp_path)
    content = path.read_bytes()
    assert content.count(b",3)") == 1
    path.write_bytes(content.replace(b",3)", b",3)" + b" (0.75,-1.299038100000000858953)" * 60, 1))
    one_line(path)


def test_a_line_break_in_a_dicom_class(tmp_path: Path) -> None:
    made = dataset(ramp()[0])
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2\n3"
    del made.PixelData
    made.save_as(tmp_path / "a.dcm")
    assert "DICOM without pixels (1.2 3)" in one_line(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "legend", ['[{"value": NaN}]', '[{"value": [1]}]', "7", '[{"value": 1, "score": "much"}]', "["]
)
def test_a_legend_of_a_label_map_that_makes_no_sense(tmp_path: Path, legend: str) -> None:
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("medsam3", legend)
    PIL.Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(InputError, match="the legend in the file is damaged"):
        read_masks(tmp_path / "a.png")


def test_metaimage_fields_that_are_no_utf8(tmp_path: Path) -> None:
    path = seed("mha", tmp_path)
    path.write_bytes(path.read_bytes().replace(b"AnatomicalOrientation", b"Anatomical\xffrientation", 1))
    assert read(path).shape == (4, 20, 24)


def test_nifti2_that_ends_within_its_header(tmp_path: Path) -> None:
    path = seed("nifti2", tmp_path)
    path.write_bytes(path.read_bytes()[:400])
    assert "cut short" in one_line(path)


def test_a_null_in_a_name() -> None:
    assert "no such file" in one_line(Path("a\0.png"))


def test_a_pickle_that_refers_to_what_it_lacks(tmp_path: Path) -> None:
    path = seed("pickle", tmp_path)
    with zipfile.ZipFile(path) as packed:
        held = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in held.items():
            packed.writestr(name, content.replace(b"h\x03", b"h\x63") if name.endswith("data.pkl") else content)
    with pytest.raises(InputError, match="cut short or damaged"):
        read_adapter(LoraSource(path, alpha=2.0))
