"""Structure sets of other makers: contours are placed right, or left out, counted and said."""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from made_dicom import save, series, world
from medsam3.errors import InputError
from medsam3.image import Image
from medsam3.io import read
from medsam3.io.rtstruct import RTSTRUCT_CLASS, read_rtstruct

Points = Many[Many[float]]


def structures(path: Path, rois: dict[str, list[Points]], *, frame: str = "1.2.3.4", on: str = "") -> Path:
    """A structure set with contours as points (P, 3) in mm."""
    made = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = RTSTRUCT_CLASS
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.Modality = "RTSTRUCT"
    infos, items = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        info, item = Dataset(), Dataset()
        info.ROINumber, info.ROIName, info.ReferencedFrameOfReferenceUID = number, name, frame
        item.ReferencedROINumber = number
        item.ContourSequence = Sequence()
        for points in contours:
            contour, reference = Dataset(), Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{value:.6g}" for point in points for value in point]
            reference.ReferencedSOPInstanceUID = on
            contour.ContourImageSequence = Sequence([reference] if on else [])
            item.ContourSequence.append(contour)
        infos.append(info)
        items.append(item)
    made.StructureSetROISequence, made.ROIContourSequence = Sequence(infos), Sequence(items)
    return save(made, path)


def square(n: float) -> Points:
    """Around the pixels of rows 1 to 3 and columns 2 to 4 at depth `n` of the oblique stack."""
    return [world(n, row, column).tolist() for row, column in ((0.5, 1.5), (0.5, 4.5), (3.5, 4.5), (3.5, 1.5))]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return read(series(tmp_path / "ct"))


def slices(image: Image, path: Path) -> list[int]:
    """Slices that hold the square of nine pixels; no other may hold any."""
    (found,) = read_rtstruct(path, image)
    counts = found.union().sum(axis=(1, 2))
    assert set(counts.tolist()) <= {0, 9}
    assert found.union()[counts > 0][:, 1:4, 2:5].all()
    return np.flatnonzero(counts).tolist()


def test_contours_between_slices_belong_to_the_nearest(image: Image, tmp_path: Path) -> None:
    assert slices(image, structures(tmp_path / "a.dcm", {"liver": [square(0.4), square(1.5)]})) == [0, 2]


def test_of_contours_closer_than_slices_the_nearest_counts(image: Image, tmp_path: Path) -> None:
    assert slices(image, structures(tmp_path / "a.dcm", {"liver": [square(0.75), square(1.0), square(1.25)]})) == [1]


def test_what_lies_outside_is_left_out_and_said(image: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert slices(image, structures(tmp_path / "a.dcm", {"liver": [square(1), square(40)]})) == [1]
    assert caplog.messages == ["'liver': contours left out: 1 outside the image"]


def test_contours_across_the_slices_are_refused_when_there_is_no_other(image: Image, tmp_path: Path) -> None:
    upright = [world(n, row, 3).tolist() for n, row in ((0, 1), (0, 3), (3, 3), (3, 1))]
    with pytest.raises(InputError, match=r"no contour .* lies on the image \(1 across the slices\)"):
        read_rtstruct(structures(tmp_path / "a.dcm", {"liver": [upright]}), image)


def test_another_frame_of_reference_is_refused_unless_it_names_the_images_files(image: Image, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 in another frame of reference"):
        read_rtstruct(structures(tmp_path / "a.dcm", {"liver": [square(1)]}, frame="1.2.9"), image)
    own = str(pydicom.dcmread(image.source[1]).SOPInstanceUID)
    assert slices(image, structures(tmp_path / "b.dcm", {"liver": [square(1)]}, frame="1.2.9", on=own)) == [1]


def test_a_structure_without_points_does_not_cost_the_others(
    image: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = structures(tmp_path / "a.dcm", {"spleen": [[]], "liver": [square(2)], "empty": []})
    found = {one.concept: int(one.union().sum()) for one in read_rtstruct(path, image)}
    assert found == {"spleen": 0, "liver": 9, "empty": 0}
    assert caplog.messages == ["'spleen': contours left out: 1 of fewer than three points, or damaged"]


def changed(path: Path, contour: dict[str, object], roi: dict[str, object]) -> Path:
    """Set attributes of the first contour and of the first structure; None takes one out."""
    made = pydicom.dcmread(path)
    for item, values in (
        (made.ROIContourSequence[0].ContourSequence[0], contour),
        (made.StructureSetROISequence[0], roi),
    ):
        for name, value in values.items():
            if value is None:
                delattr(item, name)
            else:
                setattr(item, name, value)
    made.save_as(path)
    return path


def test_a_contour_of_no_kind_is_taken_for_closed(image: Image, tmp_path: Path) -> None:
    path = structures(tmp_path / "a.dcm", {"liver": [square(1)]})
    assert slices(image, changed(path, {"ContourGeometricType": None, "NumberOfContourPoints": None}, {})) == [1]


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"])
def test_points_and_open_lines_are_told_as_such(
    kind: str, image: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = structures(tmp_path / "a.dcm", {"liver": [square(1)[:1], square(2)]})
    assert slices(image, changed(path, {"ContourGeometricType": kind}, {})) == [2]
    assert caplog.messages == ["'liver': contours left out: 1 that are points or open lines"]


def test_a_name_keeps_its_backslash_and_one_name_is_one_concept(image: Image, tmp_path: Path) -> None:
    path = structures(tmp_path / "a.dcm", {"x": [square(1)], "lesion/left\\upper": [square(2)]})
    (found,) = read_rtstruct(changed(path, {}, {"ROIName": "lesion/left\\upper"}), image)
    assert (found.concept, [item.voxels for item in found.objects]) == ("lesion/left\\upper", [9, 9])
