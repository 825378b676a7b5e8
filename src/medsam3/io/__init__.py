"""Files in and out: `read` makes an `Image` of a file or series, `write` puts masks beside it in standard forms.

The readers' libraries are loaded when they are first needed.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypedDict, get_args

import numpy as np

from medsam3.errors import InputError, printable
from medsam3.image import Frames, Image, Kind, LazyFrames, Masks, Pixels
from medsam3.io.files import SlidePart, file_format, header_beside, is_dicom

_log = logging.getLogger(__name__)

Writer = Callable[..., None]
"""Takes the masks, their image and a path; one of a form with identifiers also their `identity`."""


class ImageFacts(TypedDict, total=False):
    """Technical facts of an image; what is not known is left out."""

    kind: Kind
    frames: int
    rows: int
    columns: int
    channels: int
    dtype: str
    value_range: list[float]
    spacing_mm: list[float]
    orientation: str
    origin_mm: list[float]
    frames_per_second: float
    window: list[float]
    format: str
    level: str
    levels: str
    modality: str
    sop_class: str
    transfer_syntax: str
    photometric: str
    bits_stored: str
    pixel_spacing_mm: str
    files: int


@dataclass(frozen=True)
class Format:
    """A form of results.

    Attributes:
        suffix: Ending of the names of files that `write_format` makes.
        module: Module that holds the writer, loaded when it is used.
        function: The writer's name, a `Writer`.
        has_uids: Whether a result carries identifiers of its own, as in DICOM.
    """

    suffix: str
    module: str
    function: str
    has_uids: bool = False

    @property
    def writer(self) -> Writer:
        """The function that writes this form."""
        writer: Writer = getattr(importlib.import_module(self.module), self.function)
        return writer


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "png": Format("_mask.png", "medsam3.io.raster", "write_label_png"),
        "overlay": Format("_overlay.png", "medsam3.io.stack_pictures", "write_overlay_png"),
        "coco": Format(".coco.json", "medsam3.io.coco", "write_coco"),
        "nifti": Format("_mask.nii.gz", "medsam3.io.nifti", "write_nifti"),
        "seg": Format("_seg.dcm", "medsam3.io.dicom_seg", "write_seg", has_uids=True),
        "nrrd": Format("_mask.nrrd", "medsam3.io.itk", "write_itk"),
        "rtstruct": Format("_rtstruct.dcm", "medsam3.io.rtstruct", "write_rtstruct", has_uids=True),
        "mp4": Format("_overlay.mp4", "medsam3.io.stack_pictures", "write_overlay_mp4"),
        "montage": Format("_montage.png", "medsam3.io.stack_pictures", "write_montage"),
        "planes": Format("_planes.png", "medsam3.io.stack_pictures", "write_three_planes"),
        "csv": Format("_measures.csv", "medsam3.io.measures", "write_measures_csv"),
        "json": Format("_measures.json", "medsam3.io.measures", "write_measures_json"),
        "mha": Format("_mask.mha", "medsam3.io.itk", "write_itk"),
        "geojson": Format(".geojson", "medsam3.io.geojson", "write_geojson"),
    }
)
DEFAULT_FORMATS: dict[Kind, tuple[str, ...]] = {
    "picture": ("png", "overlay"),
    "volume": ("nifti",),
    "video": ("coco",),
}
"""Formats that results are written in if none is named, by the kind of image."""
NEEDS_PIXELS = frozenset({"overlay", "mp4", "montage", "planes"})
"""Formats that show the image; all others write masks alone, and read no pixels."""
_Told = Literal[
    "format",
    "level",
    "levels",
    "modality",
    "sop_class",
    "transfer_syntax",
    "photometric",
    "bits_stored",
    "pixel_spacing_mm",
]
_TOLD: tuple[_Told, ...] = get_args(_Told)
"""Metadata that is shown: it says what a file is, never whose."""
_BY_ENDING = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".mha": "mha",
    ".json": "coco",
    ".geojson": "geojson",
    ".dcm": "seg",
    ".png": "png",
}


def read(
    path: str | Path, *, frame: int | None = None, series: str | int | None = None, part: SlidePart | None = None
) -> Image:
    """Open a picture, a volume or a video; what the file holds decides, not its name.

    The frames of a stack are read when they are asked for, so the files have to stay where they are.

    Args:
        path: PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MetaImage, video or DICOM file, a folder with a DICOM series, or one
            with pictures, which are then the frames of a video.
        frame: Time point of a 4-D NIfTI, else a frame, slice or page of one file, from 0.
        series: Which series of a folder with several: its number, or the last 8 or more characters of its UID.
        part: Of a whole slide, which level and which region of it; None takes the finest level that is not too large.

    Raises:
        InputError: In one line, beginning with the path; of a frame that cannot be decoded, when it is asked for.
    """
    place = Path(path)
    try:
        if place.is_dir():
            if part is not None:
                raise InputError("a level or region is of one slide file, this is a folder: give the file")
            if frame is not None:
                raise InputError("frame= does not apply to a folder: read the volume and take one slice of it")
            return _named(place, _open_folder(place, None if series is None else str(series)))
        if series is not None:
            raise InputError("series= applies to a folder of DICOM files only: leave it out")
        return _named(place, _open_file(place, frame, part))
    except (InputError, OSError) as error:
        raise _as_input(place, error) from error


def write(
    masks: Masks | Sequence[Masks],
    path: str | Path,
    image: Image,
    *,
    format: str | None = None,
    identity: str | None = None,
) -> None:
    """Write masks at their image's own size and place; a file that exists is replaced.

    Args:
        masks: What was found, of one concept or of several.
        path: Name of the file.
        image: The image that was searched.
        format: A name in `FORMATS`; None takes it from the path: .nii, .nii.gz, .nrrd, .mha, .json (COCO), .geojson,
            .dcm (SEG), .png (label map, or overlay where the name ends in _overlay.png).
        identity: What the result depends on beside the image: DICOM identifiers made of it are the same each time. None
            gives new ones.

    Raises:
        InputError: An unknown form, masks that do not fit the image, or a place that cannot be written.
    """
    place = Path(path)
    form = _format(format if format is not None else _format_of_name(place))
    many = [masks] if isinstance(masks, Masks) else masks
    if form.has_uids:
        form.writer(many, image, place, identity)
    else:
        form.writer(many, image, place)


def write_format(
    name: str,
    masks: Masks | Sequence[Masks],
    image: Image,
    out_dir: Path,
    stem: str,
    identity: str | None = None,
) -> Path:
    """Write masks as `stem` with the form's own ending into a folder, made where there is none; returns the path.

    `identity` is that of `write`.

    Raises:
        InputError: As `write`.
    """
    path = out_dir / f"{stem}{_format(name).suffix}"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out_dir} cannot be made ({error.strerror}): give a folder that you may write to") from error
    write(masks, path, image, format=name, identity=identity)
    return path


def is_series(folder: Path) -> bool:
    """Whether a folder holds slices of a DICOM series, so that `read` of the folder is meant, not of each file."""
    from medsam3.io.dicom_series import holds_series  # noqa: PLC0415

    return holds_series(folder)


def info(path: str | Path, *, series: str | int | None = None) -> ImageFacts:
    """Technical facts of a file for people to read: what it holds, never whose it is.

    Raises:
        InputError: As `read`.
    """
    return facts(read(path, series=series))


def facts(image: Image) -> ImageFacts:
    """Names and values in the order to show them; what is not known is left out."""
    from medsam3.io.labels import orientation  # noqa: PLC0415

    frames, height, width = image.shape
    low, high, dtypes = [], [], set()
    for n in range(frames):
        pixels = image.pixels(n)
        low.append(pixels.min().item())
        high.append(pixels.max().item())
        dtypes.add(pixels.dtype)
    shown: ImageFacts = {
        "kind": image.kind,
        "frames": frames,
        "rows": height,
        "columns": width,
        "channels": image.channels,
        "dtype": str(np.result_type(*dtypes)),
        "value_range": [min(low), max(high)],
    }
    if image.affine is not None:
        shown["spacing_mm"] = [round(size, 6) for size in np.linalg.norm(image.affine[:3, :3], axis=0).tolist()]
        shown["orientation"] = ", ".join(orientation(image.affine))
        shown["origin_mm"] = [round(value, 4) for value in image.affine[:3, 3].tolist()]
    if image.fps is not None:
        shown["frames_per_second"] = round(image.fps, 3)
    stored = image.metadata.get("stored_window")
    if image.window is not None:
        shown["window"] = [image.window.low, image.window.high]
    elif stored is not None:
        shown["window"] = [float(value) for value in stored.split()]
    for name in _TOLD:
        if name in image.metadata:
            shown[name] = image.metadata[name]
    shown["files"] = len(image.source)
    return shown


def _open_folder(folder: Path, series: str | None) -> Image:
    from medsam3.io.dicom_series import holds_images, open_series  # noqa: PLC0415
    from medsam3.io.raster import frame_files, open_frame_folder  # noqa: PLC0415

    pictures = [path for path in frame_files(folder) if not is_dicom(path)]
    if series is None and pictures and not holds_images(folder):
        return open_frame_folder(folder)
    if pictures:
        _log.warning(
            "%s: the DICOM series is read, and the pictures beside it are no part of it (%d)",
            *(printable(str(folder)), len(pictures)),
        )
    return open_series(folder, series=series)


def _open_file(path: Path, frame: int | None, part: SlidePart | None) -> Image:
    path = header_beside(path)
    found = file_format(path)
    if found == "raster":
        return _open_raster(path, frame, part)
    if part is not None and found != "dicom":
        raise InputError(f"a level or region is of a whole slide, this file is {found}: leave it out")
    if found == "nifti":
        from medsam3.io.nifti import open_nifti  # noqa: PLC0415

        return open_nifti(path, frame=frame)
    if found == "dicom":
        from medsam3.io.dicom import open_dicom  # noqa: PLC0415

        return open_dicom(path, frame=frame, part=part)
    if found == "video":
        from medsam3.io.video import open_video  # noqa: PLC0415

        video = open_video(path)
        return video if frame is None else video.frame(frame)
    from medsam3.io.itk import open_itk  # noqa: PLC0415

    return open_itk(path, found, frame=frame)


def _open_raster(path: Path, frame: int | None, part: SlidePart | None) -> Image:
    from medsam3.io.raster import read_raster  # noqa: PLC0415
    from medsam3.io.slides import is_slide, open_slide  # noqa: PLC0415

    if frame is None and is_slide(path):
        return open_slide(path, part or SlidePart())
    if part is not None:
        raise InputError("a level or region is of a whole slide, this is one picture: leave it out")
    return read_raster(path, frame=frame)


@dataclass(frozen=True)
class _NamedRead:
    """Reads frames, with the path before what goes wrong."""

    path: Path
    frames: Frames

    def __call__(self, n: int) -> Pixels:
        try:
            pixels: Pixels = self.frames[n]
        except (InputError, OSError) as error:
            raise _as_input(self.path, error) from error
        return pixels


def _as_input(path: Path, error: InputError | OSError) -> InputError:
    """The one-line error that begins with the path; of a full disk or a file that went, what the system says."""
    if isinstance(error, InputError):
        return InputError(f"{path}: {error}")
    return InputError(f"{path}: cannot be read, nor unpacked ({error.strerror or error}): free space, or copy it again")


def _named(path: Path, image: Image) -> Image:
    """The image, whose later errors also begin with the path."""
    if not isinstance(image.frames, LazyFrames):
        return image
    return replace(image, frames=LazyFrames(image.frames.shape, _NamedRead(path, image.frames)))


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise InputError(f"format {name!r} is not known, allowed are {', '.join(FORMATS)}")
    return FORMATS[name]


def _format_of_name(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(FORMATS["overlay"].suffix):
        return "overlay"
    for ending, form in _BY_ENDING.items():
        if name.endswith(ending):
            return form
    raise InputError(
        f"{path} has an ending that no format has, allowed are {', '.join(_BY_ENDING)}; or name the format by format="
    )
