"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz): pictures and volumes in, label maps out. The only module that uses nibabel.

NIfTI's index (i, j, k) is (column, row, slice) here, and its world RAS; `geometry` converts both.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, require
from medsam3.geometry import Affine, check_affine, lps_from_nifti, nifti_from_lps
from medsam3.image import Image, Kind, LazyFrames, Masks, Pixels
from medsam3.io.files import check_size, first_line
from medsam3.io.labels import combined_labels
from medsam3.io.place import label_place
from medsam3.io.raw_voxels import check_finite, map_voxels
from medsam3.store import replacing

_MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}
_COMMENT = 6  # NIfTI extension code for plain text


@dataclass(frozen=True)
class _Slices:
    """Reads slices of one time point, in the units that scl_slope and scl_inter give."""

    voxels: NDArray[Any]  # (N, H, W), on disk
    slope: float
    intercept: float

    def __call__(self, n: int) -> Pixels:
        plane = self.voxels[n].astype(self.voxels.dtype.newbyteorder("="))
        if (self.slope, self.intercept) != (1.0, 0.0) or plane.dtype.kind == "f":
            plane = (plane * np.float64(self.slope) + self.intercept).astype(np.float32)
        return np.ascontiguousarray(plane[..., None])


def open_nifti(path: Path, *, frame: int | None = None) -> Image:
    """Open a picture (one slice) or a volume; slices are read when they are asked for.

    A compressed file is unpacked to a temporary one first. Scaled and real voxels are float32. Colour is read whole.

    Args:
        path: The file.
        frame: Time point of a 4-D file, from 0.

    Raises:
        InputError: Not decodable, four dimensions without `frame`, a NaN or singular affine, NaN voxels.
    """
    nibabel = require("nibabel", extra="all")
    with _one_line(nibabel):
        file = nibabel.load(path)
        affine, (width, height, count) = affine_of(file), spatial_shape(file.shape, frame)
        check_size(count, height, width)
        frames = _colours(file, frame) if file.get_data_dtype().names else _lazy(file, path, frame or 0)
    about = {"format": "NIfTI", "bits_stored": str(8 * file.header.get_data_dtype().itemsize)}
    kind: Kind = "picture" if count == 1 else "volume"
    return Image(frames, kind=kind, affine=affine, source=(path,), metadata=about)


def nifti_legend(path: Path) -> str | None:
    """The legend that `write_nifti` left, as JSON; None in files of others."""
    nibabel = require("nibabel", extra="all")
    with _one_line(nibabel):
        for extension in nibabel.load(path).header.extensions:
            text = extension.get_content()
            plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            if extension.get_code() == _COMMENT and plain.lstrip().startswith("["):
                return plain.rstrip("\0 ")
    return None


def write_nifti(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one label map in the image's own place; the legend is a comment extension of the header, as JSON.

    An image without position gets its origin at 0 and its pixel size where it is known, else 1 for one pixel with the
    unit left open; the header's description says so.

    Raises:
        InputError: The file cannot be written.
    """
    suffix = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    file = label_file(masks, image)
    with replacing(path, suffix) as temporary:
        require("nibabel", extra="all").save(file, temporary)


def label_file(masks: Sequence[Masks], image: Image) -> Any:
    """Make the nibabel image that `write_nifti` saves."""
    nibabel = require("nibabel", extra="all")
    labels, legend = combined_labels(masks, image.shape)
    lps, unit, note = _place(image)
    affine = nifti_from_lps(lps)
    file = nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)  # (W, H, N)
    if _is_orthogonal(affine):
        file.set_qform(affine, code=1)
    file.set_sform(affine, code=1)
    file.header.set_xyzt_units(unit)
    file.header["descrip"] = note
    text = json.dumps(legend).encode()
    file.header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, text))
    return file


@contextmanager
def _one_line(nibabel: Any) -> Iterator[None]:
    known = (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        zlib.error,
        OverflowError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.filebasedimages.ImageFileError,
    )
    try:
        yield
    except InputError:
        raise
    except known as error:
        raise InputError(f"the NIfTI file cannot be decoded, it may be cut short ({first_line(error)})") from error


def _mapped(file: Any, path: Path) -> NDArray[Any]:
    """The stored voxels (T, N, H, W), on disk."""
    width, height, frames, times = (*file.shape, 1, 1)[:4]
    with path.open("rb") as stream:
        is_packed = stream.read(2) == b"\x1f\x8b"
    offset, dtype = int(file.dataobj.offset), file.get_data_dtype()
    if not is_packed:
        return map_voxels(path, offset=offset, packing="raw", dtype=dtype, shape=(times, frames, height, width))
    # The header is a part of what is packed: it is unpacked with the voxels, and passed over.
    lead = -(-offset // dtype.itemsize)
    if lead * dtype.itemsize != offset:
        whole: NDArray[Any] = np.asanyarray(file.dataobj.get_unscaled()).reshape(width, height, frames, times)
        return whole.transpose()
    count = lead + times * frames * height * width
    flat = map_voxels(path, offset=0, packing="gzip", dtype=dtype, shape=(count,))
    return flat[lead:].reshape(times, frames, height, width)


def _lazy(file: Any, path: Path, time: int) -> LazyFrames:
    """Slices of grey values at one time point."""
    if file.get_data_dtype().kind == "c":
        raise InputError("the voxels are complex numbers, allowed are real ones: write magnitudes")
    voxels = _mapped(file, path)[time]
    check_finite(voxels)
    slope, intercept = (1.0 if value is None else float(value) for value in (file.dataobj.slope, file.dataobj.inter))
    count, height, width = voxels.shape
    return LazyFrames((count, height, width, 1), _Slices(voxels, slope, intercept))


def _colours(file: Any, frame: int | None) -> Pixels:
    """(N, H, W, 3) of one time point; a fourth channel, alpha, is left out."""
    stored = file.dataobj
    if len(file.shape) > 3:
        stored = stored[:, :, :, frame or 0]
    voxels = np.asanyarray(stored).reshape(spatial_shape(file.shape, frame))
    return np.stack([voxels[name] for name in ("R", "G", "B")], axis=-1).transpose(2, 1, 0, 3)


def spatial_shape(shape: tuple[int, ...], frame: int | None) -> tuple[int, int, int]:
    """Read (W, H, N) of a shape, trailing axes of length 1 dropped.

    Raises:
        InputError: Fewer than two axes, several time points and none chosen, or no such time point.
    """
    if len(shape) < 2 or any(size != 1 for size in shape[4:]):
        raise InputError(f"the NIfTI file has shape {shape}, allowed are two to four dimensions")
    times = shape[3] if len(shape) > 3 else 1
    if frame is None and times > 1:
        raise InputError(f"the NIfTI file has {times} time points: choose one with frame=, from 0 to {times - 1}")
    if frame is not None and not 0 <= frame < times:
        raise InputError(f"frame {frame} was asked for, allowed is 0 to {times - 1}")
    return shape[0], shape[1], shape[2] if len(shape) > 2 else 1


def affine_of(file: Any) -> Affine:
    """Read the place of a NIfTI header, in LPS mm."""
    header = file.header
    if not (int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0):
        # The standard's "method 1": no position, only the spacing.
        ras = np.diag([*(float(size) for size in header["pixdim"][1:4]), 1.0])
        for axis in range(len(file.shape), 3):
            ras[axis, axis] = ras[axis, axis] or 1.0
    else:
        ras = np.array(file.affine, dtype=np.float64)
    ras[:3] *= _MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    return lps_from_nifti(check_affine(ras))


def _place(image: Image) -> tuple[Affine, str, str]:
    """Affine, its unit, and the note for the header."""
    affine, is_mm = label_place(image)
    if image.affine is not None:
        return affine, "mm", "medsam3 label map"
    if is_mm:
        return affine, "mm", "medsam3 label map; no position, pixel size only"
    return affine, "unknown", "medsam3 label map; no position, 1 is one pixel"


def _is_orthogonal(affine: Affine) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(axes.T @ axes, np.eye(3), atol=1e-4))
