"""One oblique, anisotropic phantom through every reader and writer of stacks: a marked voxel keeps its world position.

The phantom is that of `made_dicom`: 4 x 5 x 6 voxels of 2.5 x 0.75 x 0.5 mm, turned about two axes. Expected positions
come from the standard's formula in `made_dicom.world`, never from the code under test.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from made_dicom import (
    COLUMN_DIRECTION,
    NORMAL,
    ORIGIN_MM,
    ROW_DIRECTION,
    SPACING_MM,
    placed,
    ramp,
    save,
    series,
    world,
)
from medsam3.geometry import world_from_index
from medsam3.image import Image, Masks
from medsam3.io import read, write
from medsam3.io.rtstruct import read_rtstruct

TOLERANCE_MM = 1e-3
MARKED = (2, 3, 1)  # (n, row, col); its value in the ramp is 231
SHAPE = (4, 5, 6)


def itk_phantom() -> SimpleITK.Image:
    """The phantom as ITK has it: axes (col, row, n)."""
    image = SimpleITK.GetImageFromArray(ramp())
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin(ORIGIN_MM.tolist())
    image.SetDirection(np.stack([ROW_DIRECTION, COLUMN_DIRECTION, NORMAL], axis=1).reshape(-1).tolist())
    return image


def as_series(folder: Path) -> Path:
    return series(folder / "series")


def as_nifti(folder: Path) -> Path:
    SimpleITK.WriteImage(itk_phantom(), str(folder / "phantom.nii"))
    return folder / "phantom.nii"


def as_packed_nifti(folder: Path) -> Path:
    SimpleITK.WriteImage(itk_phantom(), str(folder / "phantom.nii.gz"))
    return folder / "phantom.nii.gz"


def as_nrrd(folder: Path) -> Path:
    SimpleITK.WriteImage(itk_phantom(), str(folder / "phantom.nrrd"), useCompression=True)
    return folder / "phantom.nrrd"


def as_raw_nrrd(folder: Path) -> Path:
    SimpleITK.WriteImage(itk_phantom(), str(folder / "phantom.nhdr"), useCompression=False)
    return folder / "phantom.nhdr"


def as_ras_nrrd(folder: Path) -> Path:
    text = as_raw_nrrd(folder).read_text()
    lines = []
    for line in text.splitlines():
        if line.startswith(("space directions", "space origin")):
            name, vectors = line.split(": ", 1)
            flipped = [
                "({:.17g},{:.17g},{:.17g})".format(*(np.array(eval_vector(part)) * (-1, -1, 1)))
                for part in vectors.split(" ")
            ]
            lines.append(f"{name}: {' '.join(flipped)}")
            continue
        lines.append(line.replace("left-posterior-superior", "right-anterior-superior"))
    (folder / "ras.nhdr").write_text("\n".join(lines) + "\n")
    return folder / "ras.nhdr"


def eval_vector(text: str) -> list[float]:
    return [float(value) for value in text.strip("()").split(",")]


def as_mha(folder: Path) -> Path:
    SimpleITK.WriteImage(itk_phantom(), str(folder / "phantom.mha"), useCompression=True)
    return folder / "phantom.mha"


def as_mhd(folder: Path) -> Path:
    SimpleITK.WriteImage(itk_phantom(), str(folder / "phantom.mhd"), useCompression=False)
    return folder / "phantom.mhd"


WAYS_IN = [as_series, as_nifti, as_packed_nifti, as_nrrd, as_raw_nrrd, as_ras_nrrd, as_mha, as_mhd]


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_every_reader_finds_the_marked_voxel_where_it_lies(way_in: Callable[[Path], Path], tmp_path: Path) -> None:
    stack = read(way_in(tmp_path))
    whole = np.stack([stack.pixels(n)[..., 0] for n in range(stack.shape[0])])
    marked = np.argwhere(whole == 231)
    assert stack.shape == SHAPE
    assert stack.affine is not None
    np.testing.assert_allclose(world_from_index(stack.affine, marked[0]), world(*MARKED), atol=TOLERANCE_MM)
    np.testing.assert_array_equal(whole, ramp())


def marked_mask() -> Masks:
    """An L of three voxels, so that a swapped axis shows, and the marked voxel in it."""
    dense = np.zeros((1, *SHAPE), dtype=np.bool_)
    for index in (MARKED, (2, 3, 2), (1, 3, 1)):
        dense[(0, *index)] = True
    return Masks.from_dense(dense, [0.9], concept="liver", presence=0.9, is_present=True)


def expected_positions() -> NDArray[np.float64]:
    return np.array([world(1, 3, 1), world(2, 3, 1), world(2, 3, 2)])


@pytest.fixture
def stack(tmp_path: Path) -> Image:
    return read(as_series(tmp_path))


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz", "mask.nrrd", "mask.mha"])
def test_simpleitk_finds_written_voxels_where_they_lie(name: str, stack: Image, tmp_path: Path) -> None:
    write(marked_mask(), tmp_path / name, stack)
    image = SimpleITK.ReadImage(str(tmp_path / name))
    found = np.argwhere(SimpleITK.GetArrayFromImage(image) > 0)
    positions = [image.TransformIndexToPhysicalPoint([int(value) for value in index[::-1]]) for index in found]
    np.testing.assert_allclose(positions, expected_positions(), atol=TOLERANCE_MM)


def test_nibabel_finds_written_voxels_where_they_lie(stack: Image, tmp_path: Path) -> None:
    write(marked_mask(), tmp_path / "mask.nii.gz", stack)
    image = nibabel.load(tmp_path / "mask.nii.gz")
    found = np.argwhere(np.asarray(image.dataobj) > 0)
    ras = found @ image.affine[:3, :3].T + image.affine[:3, 3]
    expected = expected_positions() * (-1, -1, 1)
    np.testing.assert_allclose(sorted(ras.tolist()), sorted(expected.tolist()), atol=TOLERANCE_MM)


def test_highdicom_finds_seg_voxels_where_they_lie(stack: Image, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    write(marked_mask(), tmp_path / "mask.dcm", stack)
    volume = highdicom.seg.segread(tmp_path / "mask.dcm").get_volume(combine_segments=True)
    found = np.argwhere(volume.array > 0)
    positions = volume.map_indices_to_reference(found)
    np.testing.assert_allclose(sorted(positions.tolist()), sorted(expected_positions().tolist()), atol=TOLERANCE_MM)


def test_simpleitk_finds_seg_voxels_where_they_lie(tmp_path: Path) -> None:
    # ITK unpacks single bits only of frames of whole bytes: 5 x 8 pixels, where the phantom has 5 x 6.
    uid = generate_uid()
    for n in range(4):
        made = placed(ramp(4, 5, 8)[n], n, SeriesInstanceUID=uid, StudyInstanceUID="1.2.3.5")
        save(made, tmp_path / "wide" / f"{n}.dcm")
    wide = read(tmp_path / "wide")
    dense = np.zeros((1, 4, 5, 8), dtype=np.bool_)
    for index in (MARKED, (2, 3, 2), (1, 3, 1)):
        dense[(0, *index)] = True
    write(Masks.from_dense(dense, [0.9], concept="liver"), tmp_path / "mask.dcm", wide)
    image = SimpleITK.ReadImage(str(tmp_path / "mask.dcm"))
    voxels = np.argwhere(SimpleITK.GetArrayFromImage(image) > 0)
    points = [image.TransformIndexToPhysicalPoint([int(value) for value in index[::-1]]) for index in voxels]
    np.testing.assert_allclose(sorted(points), sorted(expected_positions().tolist()), atol=TOLERANCE_MM)


def test_contours_of_a_structure_set_run_around_the_voxels_where_they_lie(stack: Image, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    write(marked_mask(), tmp_path / "mask.dcm", stack, format="rtstruct")
    contours = pydicom.dcmread(tmp_path / "mask.dcm").ROIContourSequence[0].ContourSequence
    points = [np.array([float(value) for value in one.ContourData]).reshape(-1, 3) for one in contours]
    # Slice 1 holds the one voxel (3, 1), slice 2 the two voxels (3, 1) and (3, 2); edges lie half a voxel off.
    single = [world(1, 3 + y, 1 + x) for y, x in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))]
    double = [world(2, 3 + y, 1 + x) for y, x in ((-0.5, -0.5), (-0.5, 1.5), (0.5, 1.5), (0.5, -0.5))]
    for got, expected in zip(points, (single, double), strict=True):
        np.testing.assert_allclose(sorted(got.tolist()), sorted(np.array(expected).tolist()), atol=TOLERANCE_MM)


def test_a_structure_set_is_read_back_as_the_same_voxels(stack: Image, tmp_path: Path) -> None:
    write(marked_mask(), tmp_path / "mask.dcm", stack, format="rtstruct")
    (back,) = read_rtstruct(tmp_path / "mask.dcm", stack)
    np.testing.assert_array_equal(back.union(), marked_mask().union())


@pytest.mark.parametrize("name", ["seg", "rtstruct"])
def test_dciodvfy_finds_no_error(name: str, stack: Image, tmp_path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy, of Debian's package dicom3tools")
    write(marked_mask(), tmp_path / "mask.dcm", stack, format=name)
    said = subprocess.run(["dciodvfy", str(tmp_path / "mask.dcm")], capture_output=True, text=True, check=False)
    assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == []
