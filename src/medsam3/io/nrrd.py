"""NRRD (.nrrd, .nhdr) in and out, read as it is needed. Source: the NRRD format definition, teem.sourceforge.net/nrrd.

Its axes run from the fastest; its world may be left-posterior-superior, as here, or RAS or LAS, which are turned.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import Affine, FloatArray, affine_from_directions
from medsam3.image import Image, LazyFrames, Masks
from medsam3.io.files import check_size
from medsam3.io.labels import combined_labels
from medsam3.io.place import label_place
from medsam3.io.raw_voxels import Packing, RawSlices, check_finite, map_voxels
from medsam3.store import replacing

LEGEND_KEY = "medsam3"
_HEADER_LIMIT = 1 << 20
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_NUMPY = {name: code for code, names in _TYPES.items() for name in names}
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
_PACKINGS: dict[str, Packing] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}


class _Header(NamedTuple):
    fields: dict[str, str]
    legend: str | None
    length: int


def open_nrrd(path: Path) -> Image:
    """A picture or a volume; colour is an axis of three that comes first.

    Raises:
        InputError: Not NRRD, a form that is not read here, cut short, a bad position, NaN voxels.
    """
    header = _read_header(path)
    fields = header.fields
    sizes = [int(size) for size in _wanted(fields, "sizes").split()]
    vectors = _vectors(fields.get("space directions", ""))
    is_colour = bool(vectors and vectors[0] is None) or (not vectors and len(sizes) == 4 and sizes[0] == 3)
    channels, spatial = (sizes[0], sizes[1:]) if is_colour else (1, sizes)
    if channels not in (1, 3) or not 2 <= len(spatial) <= 3:
        raise InputError(f"the NRRD file has sizes {sizes}, allowed are two or three, with 3 colours before them")
    width, height, frames = (*spatial, 1)[:3]
    check_size(frames, height, width)
    data, offset = _data_file(path, header)
    packing = _PACKINGS.get(_wanted(fields, "encoding").lower())
    if packing is None:
        raise InputError(
            f"the NRRD encoding is {fields['encoding']!r}, allowed are raw and gzip: save it as one of them"
        )
    voxels = map_voxels(
        data, offset=offset, packing=packing, dtype=_dtype(fields), shape=(frames, height, width, channels)
    )
    check_finite(voxels)
    return Image(
        LazyFrames((frames, height, width, channels), RawSlices(voxels)),
        kind="picture" if frames == 1 else "volume",
        affine=_affine(fields, [vector for vector in vectors if vector is not None], len(spatial)),
        source=(path,),
        metadata={"format": "NRRD", "bits_stored": str(8 * voxels.dtype.itemsize)},
    )


def write_nrrd(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one label map in the image's own place; the legend is the key `medsam3`, as JSON.

    Raises:
        InputError: The file cannot be written.
    """
    labels, legend = combined_labels(masks, image.shape)
    affine = label_place(image).affine
    directions = " ".join(f"({','.join(f'{value:.17g}' for value in affine[:3, axis])})" for axis in (2, 1, 0))
    frames, height, width = image.shape
    lines = [
        "NRRD0005",
        "# label map by medsam3",
        f"type: {_TYPES[labels.dtype.str[1:]][1]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {width} {height} {frames}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({','.join(f'{value:.17g}' for value in affine[:3, 3])})",
        f"{LEGEND_KEY}:={json.dumps(legend)}",
    ]
    with replacing(path, ".nrrd") as temporary, temporary.open("wb") as stream:
        stream.write("\n".join([*lines, "", ""]).encode())
        with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as packed:
            for plane in labels.astype(labels.dtype.newbyteorder("<")):
                packed.write(plane.tobytes())


def nrrd_legend(path: Path) -> str | None:
    """The legend that `write_nrrd` left, as JSON; None in files of others."""
    return _read_header(path).legend


def _read_header(path: Path) -> _Header:
    with path.open("rb") as stream:
        head = stream.read(_HEADER_LIMIT)
    if not head.startswith(b"NRRD000"):
        raise InputError("the file does not begin as NRRD does: give a .nrrd or .nhdr file")
    end = re.search(rb"\r?\n\r?\n", head)
    length = end.end() if end else len(head)
    fields: dict[str, str] = {}
    legend = None
    for line in head[:length].decode("utf-8", "replace").splitlines()[1:]:
        if line.startswith(f"{LEGEND_KEY}:="):
            legend = line.split(":=", 1)[1]
        elif not line.startswith("#") and ":=" not in line and ":" in line:
            name, value = line.split(":", 1)
            fields[name.strip().lower()] = value.strip()
    return _Header(fields, legend, length)


def _wanted(fields: dict[str, str], name: str) -> str:
    if not fields.get(name):
        raise InputError(f"the NRRD header has no {name!r}: save the file again")
    return fields[name]


def _dtype(fields: dict[str, str]) -> str:
    name = _wanted(fields, "type").lower()
    if name not in _NUMPY:
        raise InputError(f"the NRRD type is {name!r}, allowed are whole and real numbers: save it as one of them")
    return (">" if fields.get("endian", "little").lower() == "big" else "<") + _NUMPY[name]


def _data_file(path: Path, header: _Header) -> tuple[Path, int]:
    if int(header.fields.get("line skip", header.fields.get("lineskip", "0"))) != 0:
        raise InputError("the NRRD header asks to skip lines, which is not read here: save the file again")
    skipped = int(header.fields.get("byte skip", header.fields.get("byteskip", "0")))
    name = header.fields.get("data file", header.fields.get("datafile"))
    if skipped < 0:
        raise InputError("the NRRD header has a negative byte skip, which is not read here: save the file again")
    if name is None:
        return path, header.length + skipped
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError("the NRRD header names several data files, one is read here: save it as one .nrrd file")
    data = path.parent / name
    if not data.is_file():
        raise InputError(f"the NRRD header names the data file {Path(name).name}, which is not beside it: copy both")
    return data, skipped


def _vectors(text: str) -> list[FloatArray | None]:
    """The directions of the axes, fastest first; None for an axis that is not of space."""
    found: list[FloatArray | None] = []
    for part in re.findall(r"none|\([^)]*\)", text):
        found.append(None if part == "none" else _vector(part))
    return found


def _vector(text: str) -> FloatArray:
    try:
        vector = np.array([float(value) for value in text.strip().strip("()").split(",")], dtype=np.float64)
    except ValueError:
        vector = np.zeros(0)
    if vector.shape != (3,):
        raise InputError(f"the NRRD header has a vector {text!r}, allowed are three numbers: correct the header")
    return vector


def _affine(fields: dict[str, str], vectors: list[Any], dimensions: int) -> Affine | None:
    """Index (n, row, col) to LPS mm; None where the file tells no position."""
    space, origin = fields.get("space", "").lower(), fields.get("space origin")
    if not vectors or origin is None:
        return _spacing_only(fields, dimensions)
    if space not in _TO_LPS:
        raise InputError(f"the NRRD space is {space!r}, allowed are {', '.join(list(_TO_LPS)[::2])}: save it in one")
    sign = np.array(_TO_LPS[space], dtype=np.float64)
    steps = [vector * sign for vector in vectors]
    if len(steps) == 2:
        normal = np.cross(steps[0], steps[1])
        steps.append(normal / (np.linalg.norm(normal) or 1.0))
    if len(steps) != 3:
        raise InputError(f"the NRRD header has {len(steps)} directions, allowed are two or three: correct the header")
    return affine_from_directions(_vector(origin) * sign, steps[2], steps[1], steps[0])


def _spacing_only(fields: dict[str, str], dimensions: int) -> Affine | None:
    sizes = [float(value) for value in fields.get("spacings", "").split() if value.lower() != "nan"][-dimensions:]
    if len(sizes) != dimensions or not all(np.isfinite(sizes)) or min(sizes) <= 0:
        return None
    steps: NDArray[np.float64] = np.diag([*sizes, 1.0][:3])
    return affine_from_directions([0.0, 0.0, 0.0], steps[2], steps[1], steps[0])
