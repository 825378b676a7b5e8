"""Files, folders and patterns become a list of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dicom_files import write_ct_series
from medsam3.cli.inputs import Input, find_inputs
from medsam3.errors import InputError


def _make(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _found(folder: Path, *arguments: str, leave_out: Path | None = None) -> list[str]:
    paths = [item.path for item in find_inputs([str(folder / name) for name in arguments], leave_out=leave_out)]
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_file_is_taken_as_it_is_named_even_where_it_is_missing(tmp_path: Path) -> None:
    _make(tmp_path, "a.xyz")
    assert _found(tmp_path, "a.xyz", "missing.png") == ["a.xyz", "missing.png"]


def test_of_a_folder_the_images_below_it_are_taken(tmp_path: Path) -> None:
    _make(tmp_path, "b.PNG", "a.nii.gz", "notes.txt", "below/c.jpg", ".hidden.png", ".git/d.png")
    assert _found(tmp_path, ".") == ["a.nii.gz", "b.PNG", "below/c.jpg"]


def test_the_folder_of_results_is_left_out(tmp_path: Path) -> None:
    _make(tmp_path, "a.png", "out/a_polyp.png")
    assert _found(tmp_path, ".", leave_out=tmp_path / "out") == ["a.png"]


def test_the_slices_of_a_dicom_series_are_one_image_and_other_dicom_files_one_each(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "ct", np.zeros((3, 4, 5), dtype=np.int16))
    _make(tmp_path, "ct/notes.txt", "ct/scout.png")
    _make(tmp_path, "xrays/one", "xrays/two.dcm", content=bytes(128) + b"DICM")
    assert _found(tmp_path, ".") == ["ct", "ct/scout.png", "xrays/one", "xrays/two.dcm"]
    assert _found(tmp_path, "ct/*.dcm") == ["ct/0.dcm", "ct/1.dcm", "ct/2.dcm"]


@pytest.mark.parametrize("claims", ["5", '{"a.png": 1}', '["b.png", 7, null, "' + "n" * 300 + '", "a\\u0000.png"]'])
def test_a_list_of_results_that_makes_no_sense_claims_nothing(tmp_path: Path, claims: str) -> None:
    _make(tmp_path, "a.png")
    (tmp_path / "results.jsonl").write_text(f'{{"version": 1}}\n{{"claims": {claims}}}\n')
    assert [item.path.name for item in find_inputs([str(tmp_path)])] == ["a.png"]


def test_a_pattern_takes_the_images_that_it_matches(tmp_path: Path) -> None:
    _make(tmp_path, "a1.png", "a2.png", "a3.txt", "b.png", "below/a4.png")
    assert _found(tmp_path, "a*") == ["a1.png", "a2.png"]
    assert _found(tmp_path, "**/a*.png") == ["a1.png", "a2.png", "below/a4.png"]


def test_a_pattern_that_matches_a_series_and_its_slices_takes_the_series(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "a" / "ct", np.zeros((3, 4, 5), dtype=np.int16))
    _make(tmp_path, "a/p.png", "q.png")
    assert _found(tmp_path, "**/*") == ["a/p.png", "a/ct", "q.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    _make(tmp_path, "scan[1].png", "scan1.png")
    assert _found(tmp_path, "scan[1].png") == ["scan[1].png"]


def test_each_image_comes_once(tmp_path: Path) -> None:
    _make(tmp_path, "a.png", "b.png")
    assert _found(tmp_path, "b.png", ".", "*.png") == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [("*.png", "matches no file"), (".", r"holds no images: allowed are \.png"), ("", "a file name is empty")],
)
def test_what_names_no_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    _make(tmp_path, "notes.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_inputs([argument])


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.b.png", "a.b"), ("scan.nii.gz", "scan"), ("IM0001", "IM0001"), ("x.DCM", "x"), (".png", ".png")],
)
def test_the_stem_leaves_out_what_tells_the_format(name: str, stem: str) -> None:
    assert Input(Path(name)).stem == stem


def test_the_fingerprint_changes_with_the_file_and_with_each_slice(tmp_path: Path) -> None:
    _make(tmp_path, "ct/1.dcm", "ct/2.dcm")
    item = Input(tmp_path / "ct")
    first = item.fingerprint()
    assert item.fingerprint() == first
    os.utime(tmp_path / "ct" / "2.dcm", ns=(0, 2_000_000_000_000_000_000))
    assert item.fingerprint() != first


def test_missing_and_empty_files_have_no_fingerprint(tmp_path: Path) -> None:
    _make(tmp_path, "empty.png", content=b"")
    with pytest.raises(InputError, match=r"missing\.png does not exist: correct the path"):
        Input(tmp_path / "missing.png").fingerprint()
    with pytest.raises(InputError, match=r"empty\.png is empty"):
        Input(tmp_path / "empty.png").fingerprint()
