"""How well a predicted mask fits the reference mask, one case at a time, in physical units. numpy and scipy only.

All functions take pictures (H, W) and volumes (N, H, W) alike. What both masks being empty means is left to the caller:
overlap and distances are then NaN. The choices made here are argued in `docs/metrics.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.errors import InputError
from medsam3.geometry import BoolArray, FloatArray


def dice(reference: BoolArray, predicted: BoolArray) -> float:
    """Overlap of two masks, 2|A∩B| / (|A|+|B|), in [0, 1]; NaN when both are empty.

    Raises:
        InputError: The masks differ in shape, or are not bool.

    Source: Dice, Ecology 26(3), 1945.
    """
    _check_pair(reference, predicted)
    total = int(reference.sum()) + int(predicted.sum())
    return 2 * int((reference & predicted).sum()) / total if total else float("nan")


def iou(reference: BoolArray, predicted: BoolArray) -> float:
    """Intersection over union, |A∩B| / |A∪B|, in [0, 1]; NaN when both are empty.

    Raises:
        InputError: The masks differ in shape, or are not bool.

    Source: Jaccard, New Phytologist 11(2), 1912.
    """
    _check_pair(reference, predicted)
    union = int((reference | predicted).sum())
    return int((reference & predicted).sum()) / union if union else float("nan")


@dataclass(frozen=True)
class BoundaryDistances:
    """Distances between the boundaries of two masks, both ways.

    A boundary is made of the pixel edges (in a volume: voxel faces) between inside and outside; the outside begins at
    the image's border. Each edge counts by its length (face: area).

    Attributes:
        from_reference: Distance of each edge's centre of the reference to the nearest point of the predicted boundary.
        reference_sizes: Lengths (areas) of these edges.
        from_predicted: The same from the predicted boundary to the reference.
        predicted_sizes: Lengths (areas) of these edges.
        diagonal: Length of the image's diagonal: what a missed or invented object counts as.
    """

    from_reference: FloatArray
    reference_sizes: FloatArray
    from_predicted: FloatArray
    predicted_sizes: FloatArray
    diagonal: float

    @property
    def is_one_sided(self) -> bool:
        """Exactly one of the masks is empty: the object was missed or invented."""
        return (self.reference_sizes.size == 0) != (self.predicted_sizes.size == 0)

    @property
    def _both_empty(self) -> bool:
        return self.reference_sizes.size == 0 and self.predicted_sizes.size == 0

    def hausdorff(self, percentile: float = 95.0) -> float:
        """The larger of the two one-way percentiles of the distances; the image's diagonal when one mask is empty.

        A one-way percentile is the least distance within which that part of the boundary's length lies.

        Source: Huttenlocher et al., IEEE TPAMI 15(9), 1993, for the partial distance.
        """
        if self._both_empty:
            return float("nan")
        if self.is_one_sided:
            return self.diagonal
        return max(
            _weighted_percentile(self.from_reference, self.reference_sizes, percentile),
            _weighted_percentile(self.from_predicted, self.predicted_sizes, percentile),
        )

    def assd(self) -> float:
        """Average symmetric surface distance over both boundaries together; the diagonal when one mask is empty.

        Source: Heimann et al., IEEE TMI 28(8), 2009.
        """
        if self._both_empty:
            return float("nan")
        if self.is_one_sided:
            return self.diagonal
        total = self.reference_sizes.sum() + self.predicted_sizes.sum()
        covered = self.from_reference @ self.reference_sizes + self.from_predicted @ self.predicted_sizes
        return float(covered / total)

    def nsd(self, tolerance: float) -> float:
        """Normalised surface distance: the share of both boundaries within `tolerance` of each other, in [0, 1].

        0 when one mask is empty. `tolerance` has the spacing's unit.

        Source: Nikolov et al., J. Med. Internet Res. 23(7), 2021.

        Raises:
            InputError: A negative tolerance.
        """
        if tolerance < 0:
            raise InputError(f"tolerance is {tolerance}, allowed is 0 or more")
        total = self.reference_sizes.sum() + self.predicted_sizes.sum()
        if total == 0:
            return float("nan")
        limit = tolerance * (1 + 1e-9)  # rounding of spacings such as 0.1 must not turn 3 x 0.1 into more than 0.3
        near = self.reference_sizes[self.from_reference <= limit].sum()
        near += self.predicted_sizes[self.from_predicted <= limit].sum()
        return float(near / total)


def boundary_distances(
    reference: BoolArray, predicted: BoolArray, spacing: Sequence[float] | None = None
) -> BoundaryDistances:
    """Distances between two boundaries, exact for boundaries made of pixel edges.

    Seen from the centre of one edge (face), the nearest point of another lies on the lattice of half steps: its ends
    and its centre do, and so does a foot of the perpendicular. One distance transform on that lattice is thus exact.

    Args:
        reference: (H, W) or (N, H, W) bool.
        predicted: Same shape.
        spacing: Distance of neighbouring pixel centres along each axis, in mm; None counts in pixels.

    Raises:
        InputError: Other shapes or types, or a spacing that does not fit.
    """
    _check_pair(reference, predicted)
    if reference.ndim not in (2, 3):
        raise InputError(f"masks have {reference.ndim} axes, allowed are (H, W) and (N, H, W)")
    steps = np.ones(reference.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if steps.shape != (reference.ndim,) or not np.isfinite(steps).all() or steps.min() <= 0:
        raise InputError(f"spacing is {spacing}, allowed are {reference.ndim} positive lengths, one for each axis")
    diagonal = float(np.linalg.norm(np.array(reference.shape) * steps))
    block = _joint_block(reference, predicted)
    faces = [_faces(mask[block], steps) for mask in (reference, predicted)]
    there = _distances(faces[0], faces[1], steps)
    back = _distances(faces[1], faces[0], steps)
    return BoundaryDistances(there, faces[0].sizes, back, faces[1].sizes, diagonal)


@dataclass(frozen=True)
class _Faces:
    """Edges (faces) of one mask on the lattice of half steps, where pixel centres are even and edges odd."""

    shape: tuple[int, ...]
    centres: tuple[NDArray[np.intp], ...]  # ndim arrays (F,)
    normals: NDArray[np.intp]  # (F,) the axis that each face is normal to
    sizes: FloatArray  # (F,)

    def surface(self) -> BoolArray:
        """All lattice points on the closed faces: centres, and half a step to either side within the face."""
        surface = np.zeros(self.shape, dtype=np.bool_)
        for normal in range(len(self.shape)):
            own = self.normals == normal
            part = np.zeros(self.shape, dtype=np.bool_)
            part[tuple(centre[own] for centre in self.centres)] = True
            for axis in range(len(self.shape)):
                if axis != normal:
                    part = ndimage.binary_dilation(part, _line(axis, len(self.shape)))
            surface |= part
        return surface


def _line(axis: int, ndim: int) -> BoolArray:
    shape = [1] * ndim
    shape[axis] = 3
    return np.ones(shape, dtype=np.bool_)


def _faces(mask: BoolArray, steps: FloatArray) -> _Faces:
    padded = np.pad(mask, 1)
    centres: list[NDArray[np.intp]] = []
    normals, sizes = [], []
    for axis in range(mask.ndim):
        found = np.argwhere(np.diff(padded, axis=axis)) * 2  # (F, ndim)
        found[:, axis] += 1
        centres.append(found)
        normals.append(np.full(len(found), axis))
        sizes.append(np.full(len(found), np.delete(steps, axis).prod()))
    shape = tuple(2 * length - 1 for length in padded.shape)
    return _Faces(shape, tuple(np.concatenate(centres).T), np.concatenate(normals), np.concatenate(sizes))


def _distances(source: _Faces, target: _Faces, steps: FloatArray) -> FloatArray:
    if not source.sizes.size or not target.sizes.size:
        return np.full(source.sizes.size, np.inf)
    field: FloatArray = ndimage.distance_transform_edt(~target.surface(), sampling=steps / 2)
    return field[source.centres]


def _joint_block(reference: BoolArray, predicted: BoolArray) -> tuple[slice, ...]:
    either = reference | predicted
    if not either.any():
        return tuple(slice(0, 0) for _ in either.shape)
    axes = range(either.ndim)
    spans = [np.flatnonzero(either.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)


def _weighted_percentile(values: FloatArray, weights: FloatArray, percentile: float) -> float:
    order = np.argsort(values)
    covered = np.cumsum(weights[order])
    needed = percentile / 100 * covered[-1] * (1 - 1e-12)
    return float(values[order][min(int(np.searchsorted(covered, needed)), len(order) - 1)])


def _check_pair(reference: BoolArray, predicted: BoolArray) -> None:
    if reference.shape != predicted.shape:
        raise InputError(f"masks have shapes {reference.shape} and {predicted.shape}, they must be the same")
    if reference.dtype != np.bool_ or predicted.dtype != np.bool_:
        raise InputError(f"masks are of types {reference.dtype} and {predicted.dtype}, allowed is bool")
