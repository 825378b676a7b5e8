"""The place of DICOM slices: orientation, position and order, checked, as one affine.

Works on plain numbers and on data sets that were read elsewhere; reads no files. Source: DICOM PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam3.errors import InputError
from medsam3.geometry import Affine, FloatArray, affine_from_directions

POSITION_TOLERANCE = 0.05
"""How far a slice may lie from its place in an even stack, in slice distances."""
_DIRECTION_TOLERANCE = 1e-3


class Placed(NamedTuple):
    """An even stack: `order[n]` is the input's index of slice n."""

    order: NDArray[np.intp]
    affine: Affine


class Plane(NamedTuple):
    """One slice: (3,) mm, (6,) direction cosines, (2,) mm between rows and between columns, mm along the normal."""

    position: FloatArray
    orientation: FloatArray
    spacing: FloatArray
    thickness_mm: float


def stack_planes(planes: list[Plane]) -> Placed:
    """Sort slices along their normal and check that they make one even stack (a sheared one is even too).

    Raises:
        InputError: Mixed orientation or pixel spacing, slices at the same place, missing or uneven slices.
    """
    first = planes[0]
    for name, index in (("orientation", 1), ("pixel spacing", 2)):
        values = np.stack([np.asarray(plane[index]) for plane in planes])
        if np.abs(values - values[0]).max() > _DIRECTION_TOLERANCE:
            raise InputError(
                f"the slices differ in {name}, a volume needs the same for all: separate them (localizers?)"
            )
    row_direction, column_direction, normal = axes_of(first.orientation)
    positions = np.stack([plane.position for plane in planes])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    if len(planes) == 1:
        slice_step = normal * first.thickness_mm
    else:
        _check_even(heights[order])
        slice_step = (positions[order[-1]] - positions[order[0]]) / (len(planes) - 1)
        _check_straight(positions[order], slice_step)
    origin = positions[order[0]]
    affine = affine_from_directions(
        origin, slice_step, column_direction * first.spacing[0], row_direction * first.spacing[1]
    )
    return Placed(order, affine)


def axes_of(orientation: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Unit vectors along a row, down a column, and normal to both, from direction cosines rounded in the header.

    Raises:
        InputError: They are not nearly two perpendicular unit vectors.
    """
    cosines = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-2):
        raise InputError("ImageOrientationPatient is not two perpendicular unit vectors: correct the DICOM header")
    row_direction = cosines[0] / np.linalg.norm(cosines[0])
    normal = np.cross(row_direction, cosines[1])
    normal = normal / np.linalg.norm(normal)
    return row_direction, np.cross(normal, row_direction), normal


def plane_of(dataset: Any) -> Plane | None:
    """Read where a single-frame data set says that its picture lies; None if it does not say."""
    detectors = dataset.get("DetectorInformationSequence") or [{}]  # nuclear medicine tells it there
    position, orientation = (
        dataset.get(name) or detectors[0].get(name) for name in ("ImagePositionPatient", "ImageOrientationPatient")
    )
    spacing = dataset.get("PixelSpacing") or _macro(_shared(dataset), "PixelMeasuresSequence", "PixelSpacing")
    if not (position and orientation and spacing):
        return None
    return _plane(position, orientation, spacing, _thickness(dataset))


def planes_of_frames(dataset: Any) -> list[Plane] | None:
    """The places of an enhanced multi-frame's frames; None where they are not told."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return None
    planes: list[Plane] = []
    for frame in frames:
        groups = [frame, *_shared(dataset)]
        position = _macro(groups, "PlanePositionSequence", "ImagePositionPatient")
        orientation = _macro(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _macro(groups, "PixelMeasuresSequence", "PixelSpacing")
        if not (position and orientation and spacing):
            return None
        thickness = _macro(groups, "PixelMeasuresSequence", "SliceThickness")
        planes.append(_plane(position, orientation, spacing, float(thickness or 0) or 1.0))
    return planes


def planes_of_offsets(dataset: Any) -> list[Plane] | None:
    """The places of a dose grid's frames, by GridFrameOffsetVector (PS3.3 C.8.8.3.2); None without one."""
    offsets, first = dataset.get("GridFrameOffsetVector"), plane_of(dataset)
    if first is None or not offsets:
        return None
    normal = axes_of(first.orientation)[2]
    steps = np.atleast_1d(np.asarray(offsets, dtype=np.float64))
    is_relative = steps[0] == 0
    if not is_relative:  # absolute positions along the patient's axis
        steps = steps - steps[0]
    return [first._replace(position=first.position + step * normal) for step in steps]


def stack_of_slices(dataset: Any, count: int, *, frame: int | None = None) -> Placed | None:
    """Place the frames of a nuclear medicine reconstruction, in the file's order, or one of them; None if it is none.

    A negative distance stacks them against the normal. Source: DICOM PS3.3 C.8.4.15 and C.7.6.2.1.

    Raises:
        InputError: Several frames show one slice, as in a gated study, and none was chosen.
    """
    vector, first = dataset.get("SliceVector"), plane_of(dataset)
    numbers = [] if vector is None else [int(n) for n in np.atleast_1d(vector)]
    if first is None or len(numbers) != count:
        return None
    if frame is None and len(set(numbers)) < count:
        raise InputError(
            f"the file's {count} frames show {len(set(numbers))} slices several times (gates, time slots, energies?)"
        )
    if frame is None and numbers != list(range(1, count + 1)):
        return None
    row_direction, column_direction, normal = axes_of(first.orientation)
    distance = float(dataset.get("SpacingBetweenSlices") or 0) or first.thickness_mm
    origin = first.position + normal * distance * (0 if frame is None else numbers[frame] - 1)
    affine = affine_from_directions(
        origin, normal * distance, column_direction * first.spacing[0], row_direction * first.spacing[1]
    )
    return Placed(np.arange(count) if frame is None else np.array([frame]), affine)


def tile_corners(dataset: Any, count: int) -> NDArray[np.int64]:
    """Rows and columns of a whole slide at which its tiles begin, (N, 2) from 0.

    Raises:
        InputError: Several focal planes or colours for one place, or tiles that tell no place.

    Source: DICOM PS3.3 C.7.6.17.3 (TILED_FULL) and C.8.12.14.1 (column and row of a tile, from 1).
    """
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    corners = []
    for frame in frames:
        place = (frame.get("PlanePositionSlideSequence") or [{}])[0]
        corner = [place.get(f"{axis}PositionInTotalImagePixelMatrix") for axis in ("Row", "Column")]
        if None not in corner:
            corners.append(corner)
    found = np.array(corners, dtype=np.int64).reshape(-1, 2) - 1
    if not corners:
        rows = range(0, int(dataset.TotalPixelMatrixRows), int(dataset.Rows))
        columns = range(0, int(dataset.TotalPixelMatrixColumns), int(dataset.Columns))
        found = np.array([(row, column) for row in rows for column in columns], dtype=np.int64)
    if len(found) != count or len(np.unique(found, axis=0)) != count:
        raise InputError(
            f"the slide has {count} tiles for {len(np.unique(found, axis=0))} places (focal planes or colours?), which "
            "is not read as one picture: choose one tile with frame="
        )
    return found


def _shared(dataset: Any) -> list[Any]:
    """The shared functional group of an enhanced file, as a list of one or none."""
    return list((dataset.get("SharedFunctionalGroupsSequence") or [])[:1])


def macro(dataset: Any, frame: int, sequence: str) -> Any:
    """One functional group of an enhanced multi-frame: the frame's own, else the shared one, else None."""
    for name, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = dataset.get(name)
        if items and index < len(items) and items[index].get(sequence):
            return items[index].get(sequence)[0]
    return None


def pixel_spacing_mm(dataset: Any) -> tuple[float, float] | None:
    """(between rows, between columns) of a picture without position; None where the file does not say.

    On a projection image ImagerPixelSpacing is measured at the detector, so that lengths in the body are smaller.
    """
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    measures = macro(dataset, 0, "PixelMeasuresSequence")
    if not spacing and measures is not None:
        spacing = measures.get("PixelSpacing")
    if not spacing:
        spacing = dataset.get("NominalScannedPixelSpacing")
    if spacing:
        row_mm, column_mm = float(spacing[0]), float(spacing[1])
    else:
        regions = dataset.get("SequenceOfUltrasoundRegions") or []
        if len(regions) != 1 or any(regions[0].get(f"PhysicalUnits{axis}Direction") != 3 for axis in "XY"):
            return None  # 3: centimetres; several regions have several scales
        row_mm = abs(float(regions[0].get("PhysicalDeltaY") or 0)) * 10
        column_mm = abs(float(regions[0].get("PhysicalDeltaX") or 0)) * 10
    return (row_mm, column_mm) if row_mm > 0 and column_mm > 0 else None


def _macro(groups: list[Any], sequence: str, name: str) -> Any:
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(name):
            return items[0].get(name)
    return None


def _plane(position: Any, orientation: Any, spacing: Any, thickness_mm: float) -> Plane:
    numbers = [np.asarray(values, dtype=np.float64) for values in (position, orientation, spacing)]
    if [value.shape for value in numbers] != [(3,), (6,), (2,)]:
        raise InputError("the DICOM position, orientation or pixel spacing has a wrong number of values: correct it")
    if not all(np.isfinite(value).all() for value in numbers):
        raise InputError("the DICOM position, orientation or pixel spacing is not finite: correct the DICOM header")
    return Plane(numbers[0], numbers[1], numbers[2], thickness_mm)


def _thickness(dataset: Any) -> float:
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        value = dataset.get(name)
        if value and float(value) > 0:
            return float(value)
    return 1.0


def _check_even(heights: FloatArray) -> None:
    """Sorted positions along the normal, (N,) in mm."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    same = int((steps < max(0.01, POSITION_TOLERANCE * usual)).sum())
    if same:
        raise InputError(
            f"{same} slices lie at the same place as another (time points, echoes or copies?): separate them"
        )
    gaps = np.rint(steps / usual) - 1
    is_whole = np.abs(steps / usual - np.rint(steps / usual)) < 2 * POSITION_TOLERANCE
    if gaps.max() > 0 and is_whole.all():
        where = int(gaps.argmax())
        raise InputError(
            f"{int(gaps.sum())} slices are missing, the first after slice {where} (slices lie {usual:.3f} mm apart): "
            "complete the folder"
        )
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() > POSITION_TOLERANCE * usual:
        raise InputError(
            f"the slices lie unevenly, {steps.min():.3f} to {steps.max():.3f} mm apart: resample them to one distance"
        )


def _check_straight(positions: FloatArray, slice_step: FloatArray) -> None:
    even = positions[0] + np.arange(len(positions))[:, None] * slice_step
    if np.abs(positions - even).max() > max(POSITION_TOLERANCE * float(np.linalg.norm(slice_step)), 0.01):
        raise InputError("the slices shift sideways unevenly, a volume needs one straight stack: resample them")
