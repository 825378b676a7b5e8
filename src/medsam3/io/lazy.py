"""`open_stack`: any volume, video or picture as a `Stack` whose frames are read when they are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medsam3.errors import InputError
from medsam3.image import Pixels
from medsam3.io.files import file_format
from medsam3.io.stack import Stack, stack_of


def open_stack(path: str | Path, *, frame: int | None = None, series: str | int | None = None) -> Stack:
    """Open a stack; what the file holds decides, not its name.

    Args:
        path: NIfTI, NRRD, MetaImage, DICOM or video file, a picture, a folder with a DICOM series or with frames.
        frame: Time point of a 4-D NIfTI, or one frame of another file, from 0.
        series: Which series of a folder with several: its number, or the last 8 or more characters of its UID.

    Raises:
        InputError: In one line, beginning with the path.
    """
    place = Path(path)
    try:
        if place.is_dir():
            if frame is not None:
                raise InputError("frame= does not apply to a folder: open it and take one frame")
            return _open_folder(place, None if series is None else str(series))
        if series is not None:
            raise InputError("series= applies to a folder of DICOM files only: leave it out")
        return _named(place, _open_file(place, frame))
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _open_folder(folder: Path, series: str | None) -> Stack:
    from medsam3.io.dicom_series import open_series  # noqa: PLC0415
    from medsam3.io.frame_folder import frame_files, open_frame_folder  # noqa: PLC0415

    if series is None and frame_files(folder):
        return open_frame_folder(folder)
    return open_series(folder, series=series)


def _open_file(path: Path, frame: int | None) -> Stack:
    found = file_format(path)
    if found == "nifti":
        from medsam3.io.nifti import open_nifti  # noqa: PLC0415

        return open_nifti(path, frame=frame)
    stack = open_whole(path, found)
    return stack if frame is None else stack_of(stack.frame(frame))


def open_whole(path: Path, found: str) -> Stack:
    """A file of any format that has one stack; each reader is loaded when it is needed."""
    if found == "dicom":
        from medsam3.io.dicom import open_dicom  # noqa: PLC0415

        return open_dicom(path)
    if found == "nrrd":
        from medsam3.io.nrrd import open_nrrd  # noqa: PLC0415

        return open_nrrd(path)
    if found == "metaimage":
        from medsam3.io.metaimage import open_metaimage  # noqa: PLC0415

        return open_metaimage(path)
    if found == "video":
        from medsam3.io.video import open_video  # noqa: PLC0415

        return open_video(path)
    from medsam3.io.raster import read_raster  # noqa: PLC0415

    return stack_of(read_raster(path))


def _named(path: Path, stack: Stack) -> Stack:
    """The stack, whose later errors also begin with the path."""

    def read_frame(n: int) -> Pixels:
        try:
            return stack.read_frame(n)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    return replace(stack, read_frame=read_frame)
