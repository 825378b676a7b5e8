"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) in and out: what their headers mean, as an `Image`.

ITK's world is LPS in mm, as here. Uncompressed MetaImage is read slice by slice; all else that ITK must read whole is
kept in a temporary file when it is large.
"""

from __future__ import annotations

import json
import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam3.errors import InputError, check_frame, require
from medsam3.geometry import Affine, affine_from_directions, spacing_mm
from medsam3.image import Image, LazyFrames, Masks, Pixels
from medsam3.io.files import check_bytes, check_finite, check_size, on_disk, utf8_path
from medsam3.io.itk_files import ItkHeader, read_header, read_values
from medsam3.io.labels import Legend, combined_labels, label_place
from medsam3.store import JsonObject, replacing

LEGEND_KEY = "medsam3"
_WRITTEN = (".mha", ".nii.gz", ".nii")
_HEADER_LIMIT = 1 << 20
_BLOCK_BYTES = 1 << 20
_COLOURS = frozenset({"RGB-color", "RGBA-color", "HSV-color", "XYZ-color", "3-color", "4-color"})


@dataclass(frozen=True)
class _Kind:
    """One of the two formats.

    Attributes:
        name: As people know it.
        splits: What stands between a field's name and its value.
        data: Fields that name a data file.
        place: Fields of which one tells where the voxels lie.
    """

    name: str
    splits: str
    data: tuple[str, ...]
    place: tuple[str, ...]


_KINDS = {
    "nrrd": _Kind("NRRD", ":", ("data file", "datafile"), ("space directions", "spacings", "space origin")),
    "metaimage": _Kind(
        "MetaImage",
        "=",
        ("elementdatafile",),
        ("elementspacing", "elementsize", "offset", "position", "origin", "transformmatrix"),
    ),
}


class _Chosen(NamedTuple):
    """Which of a file's values make the image: of several volumes one, of several channels some."""

    time: int = 0
    channels: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class _Slices:
    """Reads slices (H, W, C), through a region of the file if ITK can, else from the whole."""

    path: Path
    kind: str
    header: ItkHeader
    chosen: _Chosen

    def __call__(self, n: int) -> Pixels:
        if len(self.header.size) != 3 or not self.header.is_streamed:
            plane = self._whole[n]
            return np.ascontiguousarray(plane.astype(plane.dtype.newbyteorder("=")))
        values = read_values(self.path, self.kind, self.header, n)
        return np.ascontiguousarray(_with_channels(values, 2, self.chosen)[0])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "kind": self.kind, "header": self.header, "chosen": self.chosen}

    @cached_property
    def _whole(self) -> NDArray[Any]:
        """(N, H, W, C)."""
        header, fields = self.header, _fields(self.path, self.kind)
        if _is_true(fields.get("compresseddata", "false")):
            values = _unzipped(self.path, fields, header)
            return _with_channels(values, len(header.size), self.chosen)
        values = read_values(self.path, self.kind, header)
        return on_disk(_with_channels(values, len(header.size), self.chosen))


@dataclass(frozen=True)
class _Numbered:
    """Gives slices of one label map of all segments; a later one lies over an earlier one."""

    path: Path
    shape: tuple[int, int, int]

    def __call__(self, n: int) -> Pixels:
        labels: Pixels = self._labels[n]
        return labels

    @cached_property
    def _labels(self) -> NDArray[np.uint16]:
        """(N, H, W, 1)."""
        labels = np.zeros((*self.shape, 1), dtype=np.uint16)
        for number, (_, mask) in enumerate(label_layers(self.path), start=1):
            labels[mask] = number
        return labels


def open_itk(path: Path, kind: str, *, frame: int | None = None) -> Image:
    """Open a picture or a volume, grey or colour; of a segmentation, its label map.

    Args:
        path: The file.
        kind: `nrrd` or `metaimage`.
        frame: Time point, or one of several values a voxel, or else a slice, from 0; None takes all slices.

    Raises:
        InputError: Damaged or cut short, too large, of another number of dimensions, NaN voxels, or no such frame.
    """
    fields = _fields(path, kind)
    header = read_header(path, kind)
    size, dtype = header.size, header.dtype
    if not 2 <= len(size) <= 4 or dtype is None:
        raise InputError(f"the file holds {len(size)} dimensions of {header.pixel}, allowed are 2 to 4 of real numbers")
    width, height, frames = (*size, 1)[:3]
    check_size(frames, height, width)
    check_bytes(header.data_bytes)
    metadata = {"format": _KINDS[kind].name, "bits_stored": str(8 * dtype.itemsize)}
    if header.components > 1 and frame is None and _is_segmentation(path, header):
        lazy = LazyFrames((frames, height, width, 1), _Numbered(path, (frames, height, width)))
        metadata["layers"] = str(header.components)
    else:
        chosen = _choose(header, frame)
        lazy = LazyFrames((frames, height, width, len(chosen.channels)), _Slices(path, kind, header, chosen))
        if dtype.kind == "f":
            check_finite(lazy)
        else:
            lazy[frames - 1]  # so that a file that is cut short is refused before the work begins
    has_place = any(name in fields for name in _KINDS[kind].place)
    image = Image(
        lazy,
        kind="picture" if frames == 1 else "volume",
        affine=affine_of(header.origin, header.spacing, header.direction) if has_place else None,
        source=(path,),
        metadata=metadata,
    )
    return image if frame is None or _several(header)[0] > 1 else image.frame(frame)


def write_itk(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one label map in the image's own place, as NRRD or MetaImage by the ending of `path`.

    The legend is the field `medsam3`, as JSON. The same masks give the same bytes.

    Raises:
        InputError: The file cannot be written.
    """
    made, legend = label_image(masks, image)
    _write(made, path, legend=legend)


def write_numbers(labels: NDArray[Any], image: Image, path: Path, *, is_packed: bool = True) -> None:
    """Write a label map (N, H, W) in the image's own place, as NRRD, MetaImage or NIfTI by the ending of `path`.

    Raises:
        InputError: The file cannot be written.
    """
    _write(_placed(labels, image), path, is_packed=is_packed)


def _write(made: Any, path: Path, *, legend: Legend | None = None, is_packed: bool = True) -> None:
    sitk = require("SimpleITK", extra="all")
    if legend is not None:
        made.SetMetaData(LEGEND_KEY, json.dumps(legend))
    suffix = next((one for one in _WRITTEN if path.name.lower().endswith(one)), ".nrrd")
    with replacing(path, suffix) as temporary, utf8_path(temporary) as name:
        try:
            sitk.WriteImage(made, name, useCompression=is_packed)
        except RuntimeError as error:
            raise OSError(0, "no space, or no right to write") from error


def label_image(masks: Sequence[Masks], image: Image) -> tuple[Any, Legend]:
    """Make the label map of masks in the image's own place, as SimpleITK's image, and say what its numbers mean."""
    labels, legend = combined_labels(masks, image.shape)
    return _placed(labels, image), legend


def _placed(labels: NDArray[Any], image: Image) -> Any:
    affine = label_place(image).affine
    sizes = spacing_mm(affine)
    made = require("SimpleITK", extra="all").GetImageFromArray(labels)
    made.SetOrigin(affine[:3, 3].tolist())
    made.SetSpacing(sizes[::-1].tolist())
    made.SetDirection((affine[:3, :3] / sizes)[:, ::-1].reshape(-1).tolist())
    return made


def write_volume(values: NDArray[Any], spacing_mm: Sequence[float], path: Path) -> None:
    """Write voxels (N, H, W) as MetaImage with its spacing (n, row, col), to be read slice by slice."""
    sitk = require("SimpleITK", extra="all")
    made = sitk.GetImageFromArray(values)
    made.SetSpacing([float(size) for size in spacing_mm][::-1])
    sitk.WriteImage(made, str(path), useCompression=False)


def itk_legend(path: Path, kind: str) -> list[JsonObject]:
    """What the numbers of a label map mean, by the legend of `write_itk` or by 3D Slicer's; empty without one."""
    header = read_header(path, kind)
    if LEGEND_KEY in header.metadata:
        entries: list[JsonObject] = json.loads(header.metadata[LEGEND_KEY])
        return entries
    return [{"value": value, "concept": name} for (layer, value), name in _segment_names(header).items() if layer == 0]


def label_layers(path: Path) -> list[tuple[str, NDArray[np.bool_]]]:
    """Names and masks (N, H, W) of the segments of a NRRD segmentation, which may overlap, as 3D Slicer writes them."""
    header = read_header(path, "nrrd")
    names = _segment_names(header)
    layers = _with_channels(
        read_values(path, "nrrd", header), len(header.size), _Chosen(channels=tuple(range(header.components)))
    )
    found: list[tuple[str, NDArray[np.bool_]]] = []
    for layer in range(layers.shape[3]):
        for value in (value for value in np.unique(layers[..., layer]).tolist() if value):
            name = names.get((layer, int(value)), f"label {len(found) + 1}")
            found.append((name, layers[..., layer] == value))
    return found


def _is_segmentation(path: Path, header: ItkHeader) -> bool:
    return path.name.lower().endswith(".seg.nrrd") or bool(_segment_names(header))


def _segment_names(header: ItkHeader) -> dict[tuple[int, int], str]:
    """3D Slicer's names of segments, by layer and value."""
    about: dict[str, dict[str, str]] = {}
    for key, value in header.metadata.items():
        match = re.fullmatch(r"Segment(\d+)_(Name|LabelValue|Layer)", key)
        if match:
            about.setdefault(match[1], {})[match[2]] = value
    names: dict[tuple[int, int], str] = {}
    for number, one in about.items():
        with suppress(ValueError):
            names[int(one.get("Layer", "0")), int(one.get("LabelValue", "1"))] = one.get("Name", f"segment {number}")
    return names


def _several(header: ItkHeader) -> tuple[int, str, bool]:
    """How many images the file holds, what they are, and whether one voxel holds a colour.

    Raises:
        InputError: Time points of several values each.
    """
    size, components = header.size, header.components
    kind = header.metadata.get("NRRD_kinds[pixel]")
    is_colour = components in (3, 4) and (kind is None or kind in _COLOURS or (kind == "vector" and components == 3))
    times, values = size[3] if len(size) > 3 else 1, 1 if is_colour else components
    if times > 1 and values > 1:
        raise InputError(f"the file has {times} time points of {values} values a voxel: save one of these")
    return (times, "time points", is_colour) if times > 1 else (values, "values a voxel", is_colour)


def _choose(header: ItkHeader, frame: int | None) -> _Chosen:
    """The time point or value that is asked for, and the channels.

    Raises:
        InputError: Several and none asked for, or one that is not there.
    """
    count, what, is_colour = _several(header)
    if frame is None and count > 1:
        raise InputError(f"the file has {count} {what}: choose one with frame=, from 0 to {count - 1}")
    asked = 0 if frame is None or count == 1 else check_frame(frame, count)
    if is_colour or what == "time points":
        return _Chosen(asked, (0, 1, 2) if is_colour else (0,))
    return _Chosen(0, (asked,))


def _with_channels(values: NDArray[Any], dimensions: int, chosen: _Chosen) -> NDArray[Any]:
    """ITK's array, slowest axis first, as (N, H, W, C) of what is chosen."""
    stack = values if values.ndim > dimensions else values[..., None]
    if dimensions == 4:
        stack = stack[chosen.time]
    elif dimensions == 2:
        stack = stack[None]
    first, last = chosen.channels[0], chosen.channels[-1]
    return stack[..., first : last + 1]


def _fields(path: Path, kind: str) -> Mapping[str, str]:
    """The header's fields, lower case, so that ITK is only asked for files that lie where they should.

    Raises:
        InputError: A data file outside the header's folder or missing, or a header without an end.
    """
    about, fields = _KINDS[kind], dict[str, str]()
    with path.open("rb") as stream:
        head = stream.read(_HEADER_LIMIT)
    lines = head.decode("utf-8", "replace").splitlines()
    for at, line in enumerate(lines):
        name, found, value = line.partition(about.splits)
        if kind == "nrrd" and not line.strip():
            break
        if line.startswith("#") or not found:
            continue
        fields[name.strip().lower()] = value.strip()
        if name.strip().lower() in about.data:
            _check_data_files(path.parent, value.strip(), lines[at + 1 :])
            return fields
    if kind == "metaimage":
        raise InputError("the MetaImage header does not end with ElementDataFile: copy the file again")
    return fields


def _check_data_files(folder: Path, value: str, following: Sequence[str]) -> None:
    """Refuse data files outside the header's folder; a header may name one, a pattern with numbers, or a list."""
    if value.upper().startswith("LIST"):
        names = [line.strip() for line in following if line.strip()]
    elif value.upper() in ("LOCAL", ""):
        return
    else:
        names = [value.split(maxsplit=1)[0] if "%" in value else value]
    for name in names:
        place = folder / name.replace("\0", "?")
        if Path(name).is_absolute() or not place.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"the header names the data file {name!r} outside its own folder: put it beside it")
        if "%" not in name and not place.is_file():
            raise InputError(f"the header names the data file {Path(name).name}, which is not beside it: copy both")


def _unzipped(path: Path, fields: Mapping[str, str], header: ItkHeader) -> NDArray[Any]:
    """The voxels of a compressed MetaImage, read here: ITK gives wrong ones if the compressed bytes are damaged.

    Raises:
        InputError: Damaged bytes, or fewer or more than the header tells of.
    """
    assert header.dtype is not None, "checked when the file was opened"
    wanted, count = header.data_bytes, 0
    decoder, plain = zlib.decompressobj(), tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the array
    with (path if fields["elementdatafile"] == "LOCAL" else path.parent / fields["elementdatafile"]).open(
        "rb"
    ) as stream:
        while fields["elementdatafile"] == "LOCAL" and not stream.readline().lower().startswith(b"elementdatafile"):
            pass
        try:
            while count <= wanted and not decoder.eof and (block := stream.read(_BLOCK_BYTES)):
                while block and count <= wanted:
                    count += plain.write(decoder.decompress(block, _BLOCK_BYTES))
                    block = decoder.unconsumed_tail
        except zlib.error as error:
            raise InputError(f"the compressed voxels are damaged ({error}): copy the file again") from error
    if count > wanted:
        raise InputError(
            f"the voxels unpack to more than the {wanted:,} bytes of the header: it is damaged, copy it again"
        )
    if count < wanted or not decoder.eof:
        raise InputError(f"the file is cut short: it holds {count:,} of {wanted:,} voxel bytes, copy it again")
    plain.flush()
    is_big = _is_true(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false")))
    shape = (*header.size[::-1], *([header.components] if header.components > 1 else []))
    return np.memmap(plain, dtype=header.dtype.newbyteorder(">" if is_big else "<"), mode="r", shape=shape)


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1", "t")


def affine_of(origin: Sequence[float], spacing: Sequence[float], direction: ArrayLike) -> Affine:
    """Index (n, row, col) to LPS mm of ITK's place, a flat picture at z = 0."""
    directions = np.reshape(direction, (len(spacing), len(spacing))) * np.array(spacing)
    steps, corner = np.eye(3), np.zeros(3)
    kept = min(len(spacing), 3)
    steps[:kept, :kept], corner[:kept] = directions[:kept, :kept], origin[:kept]
    return affine_from_directions(corner, steps[:, 2], steps[:, 1], steps[:, 0])
