"""MetaImage (.mha, .mhd) in and out, read as it is needed. Source: ITK's MetaIO documentation.

Its world is LPS in mm, its axes run from the fastest, and TransformMatrix holds one axis's direction after the other.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsam3.errors import InputError
from medsam3.geometry import Affine, affine_from_directions
from medsam3.image import Image, LazyFrames, Masks
from medsam3.io.files import check_size
from medsam3.io.labels import combined_labels
from medsam3.io.place import label_place
from medsam3.io.raw_voxels import RawSlices, check_finite, map_voxels
from medsam3.store import replacing

LEGEND_KEY = "medsam3"
_HEADER_LIMIT = 1 << 20
_NUMPY = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_ELEMENTS = {code: name for name, code in _NUMPY.items()}


def open_metaimage(path: Path) -> Image:
    """A picture or a volume, grey or colour.

    Raises:
        InputError: Not MetaImage, a form that is not read here, cut short, a bad position, NaN voxels.
    """
    fields, length = _read_header(path)
    sizes = [int(size) for size in _wanted(fields, "DimSize").split()]
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    if not 2 <= len(sizes) <= 3 or channels not in (1, 3):
        raise InputError(f"the MetaImage has sizes {sizes} and {channels} channels, allowed are 2 or 3, and 1 or 3")
    width, height, frames = (*sizes, 1)[:3]
    check_size(frames, height, width)
    element = _wanted(fields, "ElementType")
    if element not in _NUMPY:
        raise InputError(f"the MetaImage type is {element!r}, allowed are {', '.join(_NUMPY)}: save it as one of them")
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    data, offset = _data_file(path, fields, length)
    voxels = map_voxels(
        data,
        offset=offset,
        packing="zlib" if _is_true(fields.get("CompressedData", "False")) else "raw",
        dtype=(">" if _is_true(big) else "<") + _NUMPY[element],
        shape=(frames, height, width, channels),
    )
    check_finite(voxels)
    return Image(
        LazyFrames((frames, height, width, channels), RawSlices(voxels)),
        kind="picture" if frames == 1 else "volume",
        affine=_affine(fields, len(sizes)),
        source=(path,),
        metadata={"format": "MetaImage", "bits_stored": str(8 * voxels.dtype.itemsize)},
    )


def write_metaimage(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one label map (.mha) in the image's own place; the legend is the field `medsam3`, as JSON.

    Raises:
        InputError: The file cannot be written.
    """
    labels, legend = combined_labels(masks, image.shape)
    affine = label_place(image).affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = (affine[:3, :3] / sizes).T[::-1]  # one row for each of (col, row, n)
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(plane.tobytes()) for plane in labels.astype(labels.dtype.newbyteorder("<")))
    packed += packer.flush()
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(packed)),
        "TransformMatrix": _numbers(cosines),
        "Offset": _numbers(affine[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(sizes[::-1]),
        "DimSize": " ".join(str(size) for size in image.shape[::-1]),
        LEGEND_KEY: json.dumps(legend),
        "ElementType": _ELEMENTS[labels.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    with replacing(path, ".mha") as temporary:
        header = "".join(f"{name} = {value}\n" for name, value in fields.items())
        temporary.write_bytes(header.encode() + packed)


def metaimage_legend(path: Path) -> str | None:
    """The legend that `write_metaimage` left, as JSON; None in files of others."""
    return _read_header(path)[0].get(LEGEND_KEY)


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Fields, and the number of bytes they take; ElementDataFile is always the last."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while stream.tell() < _HEADER_LIMIT and (line := stream.readline(_HEADER_LIMIT)):
            name, found, value = line.decode("utf-8", "replace").partition("=")
            if not found:
                raise InputError("the file does not begin as MetaImage does: give a .mha or .mhd file")
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                return fields, stream.tell()
    raise InputError("the MetaImage header does not end with ElementDataFile: copy the file again")


def _wanted(fields: dict[str, str], name: str) -> str:
    if not fields.get(name):
        raise InputError(f"the MetaImage header has no {name}: save the file again")
    return fields[name]


def _data_file(path: Path, fields: dict[str, str], length: int) -> tuple[Path, int]:
    if not _is_true(fields.get("BinaryData", "True")):
        raise InputError("the MetaImage holds its voxels as text, binary ones are read here: save it again")
    name, skipped = fields["ElementDataFile"], int(fields.get("HeaderSize", "0"))
    if skipped < 0 or name.upper().startswith("LIST") or "%" in name:
        raise InputError("the MetaImage is in several files or skips an unknown part: save it as one .mha file")
    if name == "LOCAL":
        return path, length
    data = path.parent / name
    if not data.is_file():
        raise InputError(f"the MetaImage names the data file {Path(name).name}, which is not beside it: copy both")
    return data, skipped


def _affine(fields: dict[str, str], dimensions: int) -> Affine | None:
    sizes = fields.get("ElementSpacing", fields.get("ElementSize"))
    origin = fields.get("Offset", fields.get("Position", fields.get("Origin")))
    if sizes is None or dimensions != 3:
        return None
    matrix = fields.get("TransformMatrix", fields.get("Rotation", fields.get("Orientation", "1 0 0 0 1 0 0 0 1")))
    try:
        cosines = np.array([float(value) for value in matrix.split()]).reshape(3, 3)
        column, row, n = cosines * np.array([float(value) for value in sizes.split()])[:, None]
        position = [float(value) for value in (origin or "0 0 0").split()]
        return affine_from_directions(position, n, row, column)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the MetaImage position is not three by three numbers: correct the header") from error


def _numbers(values: np.typing.NDArray[np.float64]) -> str:
    return " ".join(f"{value:.17g}" for value in values.reshape(-1))


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "t")
