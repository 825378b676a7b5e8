import os
from pathlib import Path

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io import FORMATS, info, read, write, write_format
from medsam3.store import replacing

PICTURE = Image(np.zeros((1, 40, 50, 3), dtype=np.uint8))
FOUND = Masks.from_dense(np.ones((1, 1, 40, 50), dtype=bool), [0.9], concept="polyp")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png: it is a pipe, a socket or a device: give a file"):
        read(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "there is no such file or folder"),
        ("empty.dcm", b"", "the file is empty; allowed are PNG"),
        ("notes.txt", b"hello", "the format is not known; allowed are PNG"),
        ("noise.dcm", bytes(range(256)) * 4, "not a DICOM file"),
        ("noise", b"\x07" * 500, "not a DICOM file"),
        ("clip.mp4", b"\0\0\0\x18ftypmp42", "the video cannot be decoded, it may be cut short"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    write(FOUND, tmp_path / "mask.png", PICTURE)
    (tmp_path / "mask.png").rename(tmp_path / "mask.dcm")
    assert read(str(tmp_path / "mask.dcm")).metadata["format"] == "PNG"


def test_series_is_for_folders_only(tmp_path: Path) -> None:
    write(FOUND, tmp_path / "mask.png", PICTURE)
    with pytest.raises(InputError, match="series= applies to a folder"):
        read(tmp_path / "mask.png", series=1)


@pytest.mark.parametrize("name", ["png", "overlay", "coco", "nifti"])
def test_each_format_is_written_under_its_own_name_and_replaced(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        path = write_format(name, FOUND, PICTURE, folder, "case_1")
        assert path == folder / f"case_1{FORMATS[name].suffix}"
    assert list(folder.iterdir()) == [path]  # no temporary file is left


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    for name in ("png", "overlay", "coco", "nifti"):
        for attempt in (
            lambda name=name: write_format(name, FOUND, PICTURE, blocker / "out", "a"),
            lambda name=name: write(FOUND, tmp_path / "missing" / "a.out", PICTURE, format=name),
        ):
            with pytest.raises(InputError, match=r"cannot be (written|made)") as caught:
                attempt()
            assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path, ".txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_masks_of_another_shape_or_none_at_all_are_refused(tmp_path: Path) -> None:
    other = Masks((1, 40, 51))
    for name in ("a.png", "a.json", "a.nii", "a.dcm"):
        with pytest.raises(InputError, match=r"masks are over \(1, 40, 51\) but the image is \(1, 40, 50\)"):
            write(other, tmp_path / name, PICTURE)
    with pytest.raises(InputError, match="no masks to write"):
        write([], tmp_path / "a.png", PICTURE)


def test_unknown_endings_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ending that no format has, allowed are .nii.gz, .nii, .nrrd, .mha, .json"):
        write(FOUND, tmp_path / "a.jpg", PICTURE)
    with pytest.raises(InputError, match="format 'gif' is not known, allowed are png, overlay, coco, nifti, seg"):
        write(FOUND, tmp_path / "a.png", PICTURE, format="gif")


def test_info_of_a_picture_leaves_out_what_is_not_known(tmp_path: Path) -> None:
    write(FOUND, tmp_path / "mask.png", PICTURE)
    assert info(tmp_path / "mask.png") == {
        "kind": "picture",
        "frames": 1,
        "rows": 40,
        "columns": 50,
        "channels": 1,
        "dtype": "uint8",
        "value_range": [1, 1],
        "format": "PNG",
        "bits_stored": "8",
        "files": 1,
    }
