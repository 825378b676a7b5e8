"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz, .hdr with .img): pictures and volumes in, label maps out.

The only module that uses nibabel. NIfTI's index (i, j, k) is (column, row, slice) here, and its world RAS; `geometry`
converts both. Headers are read from the content, whatever the name, so that a packed file may be called `.nii`.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, check_frame, require
from medsam3.geometry import Affine, check_affine, lps_from_nifti, nifti_from_lps
from medsam3.image import Image, Kind, LazyFrames, Masks, Pixels
from medsam3.io.files import GZIP_MAGIC, check_bytes, check_finite, check_size, first_line, unpacked
from medsam3.io.labels import combined_labels, label_place
from medsam3.store import JsonObject, replacing

_log = logging.getLogger(__name__)

_MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}
_FIRST_BYTE = 352
_COMMENT = 6  # NIfTI extension code for plain text
_LARGEST_HEADER = 1 << 22
_SAME_MM = 0.01
_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


class _File(NamedTuple):
    """A file whose header was read: nibabel's header, the file of the voxels, their first byte, and if it is packed."""

    header: Any
    data: Path
    offset: int
    is_packed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of (i, j, k, t, ...)."""
        return tuple(int(size) for size in self.header.get_data_shape())


@dataclass(frozen=True)
class _NiftiSlices:
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

    A compressed file is unpacked to a temporary one first, its checksums verified. Scaled and real voxels are float32.
    Colour is read whole.

    Args:
        path: The file.
        frame: Time point of a 4-D file, from 0.

    Raises:
        InputError: Not decodable, four dimensions without `frame`, a NaN or singular affine, NaN voxels.
    """
    with _one_line():
        file = _opened(path)
        dtype, affine = file.header.get_data_dtype(), affine_of(file.header)
        width, height, count = spatial_shape(file.shape, frame)
        check_size(count, height, width)
        check_bytes(int(np.prod(file.shape, dtype=np.int64)) * dtype.itemsize)
        voxels = _mapped(file)[frame or 0]
        if dtype.names:
            frames: Any = np.stack([voxels[name] for name in ("R", "G", "B")], axis=-1)
        else:
            frames = _lazy(voxels, file.header)
    about = {"format": "NIfTI", "bits_stored": str(8 * dtype.itemsize)}
    kind: Kind = "picture" if count == 1 else "volume"
    return Image(frames, kind=kind, affine=affine, source=(path,), metadata=about)


def nifti_legend(path: Path) -> list[JsonObject]:
    """Read what the numbers of a label map mean, by the legend that `write_nifti` left; empty in files of others."""
    with _one_line():
        for extension in _opened(path).header.extensions:
            if extension.get_code() != _COMMENT:
                continue  # nibabel cannot take all others apart
            text = extension.get_content()
            plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            if plain.lstrip().startswith("["):
                legend: list[JsonObject] = json.loads(plain.rstrip("\0 "))
                return legend
    return []


def write_nifti(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one label map in the image's own place; the legend is a comment extension of the header, as JSON.

    Over an image from NIfTI, the header places the mask as the image's own does, so that every program that lays one
    over the other agrees. An image without position gets its origin at 0 and its pixel size where it is known, else 1
    for one pixel with the unit left open; the header's description says so.

    Raises:
        InputError: The file cannot be written.
    """
    nibabel = require("nibabel", extra="all")
    file = label_file(masks, image)
    content = nibabel.Nifti1Image(file.dataobj, None, file.header).to_bytes()  # with an affine it would set the codes
    with replacing(path, ".nii") as temporary:
        packed = gzip.compress(content, mtime=0) if path.name.lower().endswith(".gz") else content
        temporary.write_bytes(packed)


def write_slices(image: Image, plane: Callable[[int], NDArray[Any]], path: Path) -> None:
    """Write slices over an image's grid in its own place, one after the other, packed if the name ends in .gz.

    Args:
        image: Says how many slices there are and where they lie; its pixels are not read.
        plane: Gives slice n, (H, W) of numbers or (H, W, 3) uint8 of colours. If a later slice needs a wider type than
            those before, writing begins again with that.
        path: The file.

    Raises:
        InputError: The file cannot be written; colours of more than 8 bits.
    """
    first = plane(0)
    if first.ndim == 3 and first.dtype != np.uint8:
        raise InputError(f"the colours are {first.dtype}, allowed are those of 8 bits: save the picture with 8 bits")
    needed, dtype = _stored(first.dtype), None
    with replacing(path, ".nii") as temporary:
        while dtype != needed:
            dtype = needed
            with _opened_to_write(temporary, path) as stream:
                stream.write(_header(image, "RGB" if first.ndim == 3 else dtype))
                needed = _write_planes(stream, image.shape[0], plane, dtype)


def _write_planes(
    stream: IO[bytes], count: int, plane: Callable[[int], NDArray[Any]], dtype: np.dtype[Any]
) -> np.dtype[Any]:
    """Write slices until one does not fit the type, and give the type that it needs."""
    for n in range(count):
        values = plane(n)
        wider = _stored(np.result_type(dtype, values.dtype))
        if wider != dtype:
            return wider
        stream.write(values.astype(dtype, order="C").tobytes())
    return dtype


def _opened_to_write(temporary: Path, path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.open(temporary, "wb", compresslevel=1))
    return temporary.open("wb")


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that every viewer reads and that holds the values of another one."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    known = ("uint8", "int16", "uint16", "int32", "float32")
    return next((np.dtype(name) for name in known if np.can_cast(dtype, name)), np.dtype(np.float32))


def _header(image: Image, dtype: Any) -> bytes:
    """A header with four zeros after it, which say that nothing comes before the voxels."""
    nibabel = require("nibabel", extra="all")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(image.shape[::-1])
    header["vox_offset"] = _FIRST_BYTE
    header["magic"] = b"n+1"
    _set_place(header, image)
    content: bytes = header.binaryblock
    return content + bytes(4)


def label_file(masks: Sequence[Masks], image: Image) -> Any:
    """Make the nibabel image that `write_nifti` saves."""
    nibabel = require("nibabel", extra="all")
    labels, legend = combined_labels(masks, image.shape)
    affine = nifti_from_lps(_place(image)[0])
    file = nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)  # (W, H, N)
    _set_place(file.header, image)
    text = json.dumps(legend).encode()
    file.header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, text))
    return file


def _set_place(header: Any, image: Image) -> None:
    lps, unit, note = _place(image)
    affine = nifti_from_lps(lps)
    if _is_orthogonal(affine):
        header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units(unit)
    _keep_geometry(image, header)
    header["descrip"] = note


@contextmanager
def _one_line() -> Iterator[None]:
    nibabel = require("nibabel", extra="all")
    known = (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        zlib.error,
        OverflowError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.filebasedimages.ImageFileError,
        nibabel.wrapstruct.WrapStructError,
    )
    try:
        yield
    except InputError:
        raise
    except known as error:
        raise InputError(
            f"the NIfTI file cannot be decoded, it may be cut short ({first_line(error)}): copy it again"
        ) from error


def _opened(path: Path) -> _File:
    """Read the header of a single file, or of a pair of .hdr and .img."""
    nibabel = require("nibabel", extra="all")
    with path.open("rb") as stream:
        is_packed = stream.read(2) == GZIP_MAGIC
    with cast("IO[bytes]", gzip.open(path)) if is_packed else path.open("rb") as stream:
        start = stream.read(8)
        stream.seek(0)
        is_second = 540 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
        kind = nibabel.nifti2.Nifti2Header if is_second else nibabel.Nifti1Header
        header = kind.from_fileobj(stream, check=False)
        if not _LARGEST_HEADER > int(header["vox_offset"]) >= 0:
            raise InputError(
                f"the NIfTI header puts the voxels at byte {header['vox_offset']}: it is damaged, copy it again"
            )
    if header["magic"].item()[:2] not in (b"ni",):
        return _File(header, path, int(header["vox_offset"]) or header.single_vox_offset, is_packed)
    for name in (path.with_suffix(".img"), path.with_suffix(".img.gz"), path.with_suffix("").with_suffix(".img.gz")):
        if name.is_file():
            return _File(header, name, int(header["vox_offset"]), name.suffix == ".gz")
    raise InputError(f"the header's voxels, {path.with_suffix('.img').name}, are not beside it: copy both")


def _mapped(file: _File) -> NDArray[Any]:
    """The stored voxels (T, N, H, W), on disk."""
    width, height, frames, times = (*file.shape, 1, 1)[:4]
    dtype, shape = file.header.get_data_dtype(), (times, frames, height, width)
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize + file.offset
    stream = unpacked(file.data, wanted) if file.is_packed else file.data.open("rb")
    with stream:
        held = stream.seek(0, 2)
        if held < wanted:
            raise InputError(f"the file is cut short: it holds {held:,} of {wanted:,} bytes, copy it again")
        return np.memmap(stream, dtype=dtype, mode="r", offset=file.offset, shape=shape)


def _lazy(voxels: NDArray[Any], header: Any) -> LazyFrames:
    """Slices of the grey values (N, H, W)."""
    if voxels.dtype.kind not in "buif":
        what = "complex numbers" if voxels.dtype.kind == "c" else f"of type {voxels.dtype}"
        raise InputError(f"the voxels are {what}, allowed are real ones: write magnitudes")
    slope, intercept = header.get_slope_inter()
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    count, height, width = voxels.shape
    frames = LazyFrames((count, height, width, 1), _NiftiSlices(voxels, slope, intercept))
    if voxels.dtype.kind == "f":
        check_finite(frames)
    return frames


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
    if frame is not None:
        check_frame(frame, times)
    return shape[0], shape[1], shape[2] if len(shape) > 2 else 1


def affine_of(header: Any) -> Affine:
    """Read a header's place in LPS mm: the sform, else the qform, else the voxel sizes alone ("method 1")."""
    has_sform = int(header["sform_code"]) > 0 and any(header[f"srow_{axis}"][:3].any() for axis in "xyz")
    has_qform = int(header["qform_code"]) > 0
    if has_sform:
        ras = np.array(header.get_sform(), dtype=np.float64)
        if has_qform:
            _say_disagreement(header, ras)
    elif has_qform:
        ras = np.array(header.get_qform(), dtype=np.float64)
    else:
        ras = np.diag([*(abs(float(size)) or 1.0 for size in header["pixdim"][1:4]), 1.0])
    ras[:3] *= _MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    return lps_from_nifti(check_affine(ras))


def _say_disagreement(header: Any, sform: Affine) -> None:
    """Warn if the two places of a header differ, as programs choose either."""
    with suppress(ValueError, require("nibabel", extra="all").spatialimages.HeaderDataError):
        corners = np.array([[0, 0, 0, 1], [*(size - 1 for size in (*header.get_data_shape(), 1, 1)[:3]), 1]])
        distance = np.abs(corners @ (np.asarray(header.get_qform()) - sform).T).max()
        if distance > max(_SAME_MM, 0.1 * float(np.abs(header["pixdim"][1:4]).max())):
            _log.warning("the NIfTI header's sform and qform differ by %.3g mm: the sform is used", distance)


def _keep_geometry(image: Image, header: Any) -> None:
    """Take over all that places the voxels from the image's own header, if the image is one whole NIfTI file."""
    if image.metadata.get("format") != "NIfTI" or len(image.source) != 1 or image.affine is None:
        return
    with suppress(InputError), _one_line():
        source = _opened(image.source[0]).header
        places, shape = (affine_of(source), image.affine), (*source.get_data_shape(), 1)[:3]
        if shape != image.shape[::-1] or source["magic"].item()[:1] != b"n" or not np.allclose(*places, atol=_SAME_MM):
            return
        for name in _GEOMETRY:
            header[name] = source[name]
        for axis in range(len(source.get_data_shape()) + 1, 4):
            header["pixdim"][axis] = header["pixdim"][axis] or 1.0


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


def to_canonical(values: NDArray[Any], affine: Affine | None) -> NDArray[Any]:
    """Turn voxels (N, H, W) so that (Z, Y, X) run superior, anterior and right, as near as whole turns come to it."""
    if affine is None:
        return values
    nibabel = require("nibabel", extra="all")
    turned: NDArray[Any] = nibabel.apply_orientation(values.T, nibabel.io_orientation(nifti_from_lps(affine))).T
    return turned


def canonical_axes(affine: Affine | None) -> tuple[int, int, int]:
    """Name the axes of the file, 0 to 2 for (n, row, col), that Z, Y and X of `to_canonical` come from."""
    if affine is None:
        return 0, 1, 2
    nibabel = require("nibabel", extra="all")
    goes_to = [int(axis) for axis in nibabel.io_orientation(nifti_from_lps(affine))[:, 0]]  # of i, j, k
    z, y, x = (2 - goes_to.index(axis) for axis in (2, 1, 0))
    return z, y, x


def from_canonical(values: NDArray[Any], affine: Affine | None) -> NDArray[Any]:
    """Turn voxels (Z, Y, X) of `to_canonical` back to the file's own order (N, H, W)."""
    if affine is None:
        return values
    nibabel = require("nibabel", extra="all")
    own = nibabel.io_orientation(nifti_from_lps(affine))
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), own)
    turned: NDArray[Any] = nibabel.apply_orientation(values.T, back).T
    return turned
