"""`medsam3 convert`: the same voxels at the same place in every form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_files import write_ct_series
from medsam3.cli.main import main
from medsam3.image import Masks
from medsam3.io import read, write
from medsam3.io.read_masks import read_masks


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_ct_series(tmp_path / "study", np.zeros((3, 5, 8), dtype=np.int16))
    return tmp_path / "study"


def two_livers() -> Masks:
    dense = np.zeros((2, 3, 5, 8), dtype=np.bool_)
    dense[0, 0:2, 1:3, 2:5] = True
    dense[1, 2, 4, 7] = True
    return Masks.from_dense(dense, [0.9, 0.6], concept="liver")


@pytest.mark.parametrize(
    "way", [("nifti", ".nii.gz"), ("nrrd", ".nrrd"), ("mha", ".mha"), ("seg", ".dcm"), ("coco", ".json")]
)
@pytest.mark.parametrize("back", [("nifti", ".nii"), ("rtstruct", ".dcm"), ("seg", ".dcm")])
def test_masks_keep_their_voxels_through_two_forms(
    way: tuple[str, str], back: tuple[str, str], study: Path, tmp_path: Path
) -> None:
    image = read(study)
    first, second = tmp_path / f"first{way[1]}", tmp_path / f"second{back[1]}"
    write(two_livers(), first, image, format=way[0])
    assert main(["convert", str(first), str(second), "--image", str(study), "--format", back[0]]) == 0
    masks, _ = read_masks(second, image)
    total = np.sum([found.dense(k) for found in masks for k in range(len(found))], axis=0)
    np.testing.assert_array_equal(total, two_livers().union())


def test_names_and_scores_come_through_label_maps(study: Path, tmp_path: Path) -> None:
    image = read(study)
    write(two_livers(), tmp_path / "a.nii.gz", image)
    for source, target in (("a.nii.gz", "b.nrrd"), ("b.nrrd", "c.mha"), ("c.mha", "d.nii")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 0
    (found,), over = read_masks(tmp_path / "d.nii")
    assert (found.concept, found.scores) == ("liver", (0.9, 0.6))
    assert over.affine is not None and image.affine is not None
    np.testing.assert_allclose(over.affine, image.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.nii", "out.nrrd"], "there is no such file"),
        (["a.nii.gz", "a.nii.gz"], "exists: name another file"),
        (["seg.dcm", "out.nii"], "give the image with --image"),
        (["a.nii.gz", "out.png", "--format", "montage"], "the format shows the image"),
        (["study/0.dcm", "out.nii", "--image", "study"], "neither a segmentation nor an RT structure set"),
        (
            ["other.nii", "out.nrrd", "--image", "study"],
            "lies on another grid than the image: labels (3, 5, 8) voxels of 1 x 1 x 1 mm",
        ),
    ],
)
def test_what_cannot_be_converted_is_said(
    arguments: list[str], message: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = read(study)
    write(two_livers(), tmp_path / "a.nii.gz", image)
    write(two_livers(), tmp_path / "seg.dcm", image)
    write(two_livers(), tmp_path / "other.nii", type(image)(image.array(), kind="volume", affine=np.eye(4)))
    named = [str(tmp_path / word) if "." in word or word == "study" else word for word in arguments]
    assert main(["convert", *named]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_label_map_of_another_grid_is_laid_over_when_asked(study: Path, tmp_path: Path) -> None:
    image = read(study)
    fine = np.zeros((3, 5, 16, 1), dtype=np.uint8)
    fine[1, 2, 6:10] = 1  # in half columns: columns 3 and 4
    assert image.affine is not None
    affine = image.affine.copy()
    affine[:3, 2] /= 2
    affine[:3, 3] -= affine[:3, 2] / 2  # the same outer edge
    over = type(image)(fine, kind="volume", affine=affine)
    write(Masks.from_dense(fine[None, ..., 0] > 0, [1.0]), tmp_path / "fine.nii", over)
    arguments = ["convert", str(tmp_path / "fine.nii"), str(tmp_path / "out.nrrd"), "--image", str(study)]
    assert main(arguments) == 2
    assert main([*arguments, "--resample"]) == 0
    found = np.argwhere(read(tmp_path / "out.nrrd").array()[..., 0])
    assert found.tolist() == [[1, 2, 3], [1, 2, 4]]
