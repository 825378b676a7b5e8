"""Headers and voxels of NRRD and MetaImage files through SimpleITK, as plain values.

ITK reads in a process apart (`io/apart.py`): headers that make no sense end it, and it writes notes of its own on
stderr. Axes run from the fastest in a header, from the slowest in voxels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, require
from medsam3.io.apart import run_apart
from medsam3.io.files import check_bytes, utf8_path

_READERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"nrrd": ("NRRD", "NrrdImageIO"), "metaimage": ("MetaImage", "MetaImageIO")}
)
_DAMAGED = "cannot be read, the file may be cut short or damaged"


@dataclass(frozen=True)
class ItkHeader:
    """What ITK makes of a header.

    Attributes:
        size: Voxels along each axis.
        spacing: Millimetres between voxels along each axis.
        origin: World position of the first voxel.
        direction: (D, D), the columns the directions of the axes.
        components: Values a voxel.
        pixel: ITK's name of the voxels' type.
        dtype: The type of one value; None if it is no real number.
        metadata: Further fields.
        is_streamed: A part can be read without the others.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: NDArray[np.float64]
    components: int
    pixel: str
    dtype: np.dtype[Any] | None
    metadata: Mapping[str, str]
    is_streamed: bool

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels."""
        size = 1
        for count in self.size:
            size *= count
        return size * self.components * (self.dtype.itemsize if self.dtype else 1)


def read_header(path: Path, kind: str) -> ItkHeader:
    """Read a header.

    Raises:
        InputError: ITK cannot make sense of it.
    """
    return run_apart(_header, path, kind)


def read_values(path: Path, kind: str, header: ItkHeader, n: int | None = None) -> NDArray[Any]:
    """Read the voxels, or slice `n` of three dimensions; vectors come last.

    Raises:
        InputError: Damaged or cut short, or more bytes than allowed.
    """
    check_bytes(header.data_bytes)
    wanted = header.data_bytes if n is None else header.data_bytes // max(1, header.size[-1])
    return run_apart(_values, path, kind, n, data_bytes=wanted)


def _header(path: Path, kind: str) -> ItkHeader:
    sitk = require("SimpleITK", extra="all")
    with utf8_path(path) as name:
        reader = _reader(sitk, name, kind)
        dimensions, pixel = reader.GetDimension(), reader.GetPixelIDValue()
        real = (*range(sitk.sitkUInt8, sitk.sitkFloat64 + 1), *range(sitk.sitkVectorUInt8, sitk.sitkVectorFloat64 + 1))
        dtype = None
        if pixel in real and 2 <= dimensions <= 4:
            dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1] * dimensions, pixel)).dtype)
        return ItkHeader(
            size=tuple(reader.GetSize()),
            spacing=tuple(reader.GetSpacing()),
            origin=tuple(reader.GetOrigin()),
            direction=np.array(reader.GetDirection()).reshape(dimensions, dimensions),
            components=reader.GetNumberOfComponents(),
            pixel=sitk.GetPixelIDValueAsString(pixel),
            dtype=dtype,
            metadata={key: _text(reader, key) for key in reader.GetMetaDataKeys()},
            is_streamed=bool(reader.CanStreamRead()),
        )


def _values(path: Path, kind: str, n: int | None) -> NDArray[Any]:
    sitk = require("SimpleITK", extra="all")
    with utf8_path(path) as name:
        reader = _reader(sitk, name, kind)
        if n is not None:
            width, height, _ = reader.GetSize()
            reader.SetExtractIndex([0, 0, n])
            reader.SetExtractSize([width, height, 0])
        try:
            values: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise _unreadable(f"{_READERS[kind][0]} voxels", error) from error
    return values


def _reader(sitk: Any, name: str, kind: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[kind][1])
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(f"{_READERS[kind][0]} header", error) from error
    return reader


def _unreadable(what: str, error: Exception) -> InputError:
    """Tell a form that ITK does not read from damage."""
    reason = _reason(error)
    if "not supported" in reason or "not available" in reason:
        return InputError(f"the form of the {what} is not read here ({reason}): save the file in another form")
    return InputError(f"the {what} {_DAMAGED} ({reason}): copy the file again")


def _text(reader: Any, key: str) -> str:
    try:
        return str(reader.GetMetaData(key))
    except (RuntimeError, TypeError, UnicodeError):  # bytes that are no UTF-8, in the name or in the value
        return ""


def _reason(error: Exception) -> str:
    """The last line of ITK's message, which names the cause, without what surrounds it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^(.*ITK ERROR: \w+\(\w+\): |\[nrrd\] \w+: )", "", lines[-1]) if lines else type(error).__name__
    return last[:160].replace("Reason: Success", "fewer bytes than the header tells of")
