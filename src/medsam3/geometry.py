"""Axes, positions and boxes: the only place where they are converted.

Axes are named once, here: N frame or slice, H row, W column, C channel, K object, P point, B batch, Q query, D feature.
Images are (N, H, W, C), masks (K, N, H, W) bool, an index is (n, row, col). Points are (x, y) and boxes are
xyxy in float pixels with pixel centres at integers, so that pixel column 3 spans x from 2.5 to 3.5.
World positions are LPS (left, posterior, superior) in millimetres, as in DICOM PS3.3 C.7.6.2; an affine (4, 4) takes
the index (n, row, col, 1) to it. RAS, cxcywh, xywh and normalised boxes exist only inside the functions below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam3.errors import InputError

Affine = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

_FLIP_LR_AP = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSE_AXES = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def check_affine(affine: ArrayLike) -> Affine:
    """The affine as (4, 4) float64.

    Raises:
        InputError: Not 4 x 4, not finite, a last row other than 0 0 0 1, or singular.
    """
    checked = np.array(affine, dtype=np.float64)
    if checked.shape != (4, 4):
        raise InputError(f"affine has shape {checked.shape}, allowed is (4, 4): correct the image header")
    if not np.isfinite(checked).all():
        raise InputError("affine holds NaN or infinity, all 16 values must be finite: correct the image header")
    if not np.allclose(checked[3], [0, 0, 0, 1]):
        raise InputError(f"affine's last row is {checked[3].tolist()}, it must be 0 0 0 1: correct the image header")
    lengths = np.linalg.norm(checked[:3, :3], axis=0)
    if lengths.min() <= 0 or abs(np.linalg.det(checked[:3, :3] / lengths)) < 1e-6:
        raise InputError("affine is singular, its three axes must span space: correct the image header")
    return checked


def spacing_mm(affine: Affine) -> FloatArray:
    """Distance between neighbouring voxel centres along (n, row, col), (3,) in mm."""
    lengths: FloatArray = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def world_from_index(affine: Affine, index: ArrayLike) -> FloatArray:
    """LPS positions in mm, (..., 3), of indices (..., 3) in the order (n, row, col); fractions are allowed."""
    points: FloatArray = np.asarray(index, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return points


def index_from_world(affine: Affine, world_mm: ArrayLike) -> FloatArray:
    """Fractional indices (..., 3) in the order (n, row, col) of LPS positions (..., 3) in mm."""
    offsets = np.asarray(world_mm, dtype=np.float64) - affine[:3, 3]
    index: FloatArray = np.linalg.solve(affine[:3, :3], offsets[..., None])[..., 0].astype(np.float64)
    return index


def affine_from_directions(
    origin_mm: ArrayLike, slice_step_mm: ArrayLike, row_step_mm: ArrayLike, column_step_mm: ArrayLike
) -> Affine:
    """The affine whose index (0, 0, 0) lies at `origin_mm` and whose axes advance by the given LPS vectors (3,).

    `row_step_mm` leads from one row to the next (down the picture), `column_step_mm` from one column to the next.
    """
    affine = np.eye(4)
    steps = (slice_step_mm, row_step_mm, column_step_mm)
    for axis, step in enumerate(steps):
        affine[:3, axis] = np.asarray(step, dtype=np.float64)
    affine[:3, 3] = np.asarray(origin_mm, dtype=np.float64)
    return check_affine(affine)


def lps_from_nifti(affine_ras_xyz: ArrayLike) -> Affine:
    """NIfTI's affine, index (i, j, k) to RAS mm, as index (n, row, col) = (k, j, i) to LPS mm."""
    return check_affine(_FLIP_LR_AP @ np.asarray(affine_ras_xyz, dtype=np.float64) @ _REVERSE_AXES)


def nifti_from_lps(affine: Affine) -> Affine:
    """The inverse of `lps_from_nifti`: index (col, row, n) to RAS mm."""
    result: Affine = _FLIP_LR_AP @ affine @ _REVERSE_AXES
    return result


def xyxy_from_normalised_cxcywh(boxes: ArrayLike, height: int, width: int) -> FloatArray:
    """Pixel boxes xyxy (..., 4) from boxes cxcywh in 0..1 of the image's full extent (edge to edge)."""
    cx, cy, w, h = np.moveaxis(np.asarray(boxes, dtype=np.float64), -1, 0)
    edges = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
    return np.stack(edges, axis=-1) - 0.5


def normalised_cxcywh_from_xyxy(boxes: ArrayLike, height: int, width: int) -> FloatArray:
    """The inverse of `xyxy_from_normalised_cxcywh`."""
    x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes, dtype=np.float64) + 0.5, -1, 0)
    parts = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    return np.stack(parts, axis=-1)


def coco_xywh_from_xyxy(box: ArrayLike) -> tuple[float, float, float, float]:
    """COCO's box: left edge, top edge, width, height in pixels, where pixel column 0 spans x from 0 to 1."""
    x0, y0, x1, y1 = (float(value) for value in np.asarray(box, dtype=np.float64))
    return (x0 + 0.5, y0 + 0.5, x1 - x0, y1 - y0)


def box_of_mask(mask: BoolArray) -> tuple[float, float, float, float] | None:
    """The smallest box xyxy around the true pixels of (H, W), outer edges included; None where there are none."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return (columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5)


def box_iou(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Intersection over union of every pair of boxes xyxy: (A, 4) and (B, 4) give (A, B) in [0, 1]."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    overlap = sides.prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    ratio: FloatArray = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ratio
