"""Images that are in memory already, as other libraries hold them, made an `Image`; and masks handed back to these.

Objects of PIL, torch, pydicom, nibabel and SimpleITK are known by the module of their class, so that none of these
libraries is imported for anybody who does not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medsam3.errors import InputError, require
from medsam3.geometry import affine_from_directions, check_affine, lps_from_nifti
from medsam3.image import Image, Kind, Masks, Pixels
from medsam3.store import scratch_folder

_KNOWN = "an Image, a path, a NumPy array, a PIL picture, a torch tensor, or an image of pydicom, nibabel or SimpleITK"


def as_image(
    value: Any,
    *,
    spacing_mm: Sequence[float] | None = None,
    affine: ArrayLike | None = None,
    kind: Kind | None = None,
) -> Image:
    """Make an `Image` of what another library holds, or of the file under a path.

    An array is (H, W) grey, (H, W, 3) colour, (N, H, W) a grey stack or (N, H, W, 1 or 3). A tensor may be (1, H, W) or
    (3, H, W) as well, which is one picture with its channels first, unless a place makes it a volume.

    Args:
        value: A path, a NumPy array, a PIL picture, a torch tensor, a pydicom Dataset with pixels, an image of nibabel
            or SimpleITK, or an `Image`, which comes back as it is.
        spacing_mm: Of an array or tensor, along (n, row, col), or (row, col) of a picture.
        affine: In its place, index (n, row, col) to LPS mm, (4, 4); `geometry.lps_from_nifti` turns nibabel's over.
        kind: Of an array of several frames: `volume` or `video`; None takes a volume.

    Raises:
        InputError: Nothing of the kind, a shape that is not clear, a place for what brings its own.
    """
    read = _READERS.get(_library_of(value))
    if read is not None:
        if spacing_mm is not None or affine is not None or kind is not None:
            raise InputError("spacing_mm, affine and kind are for arrays: this image brings its own, leave them out")
        return read(value)
    pixels, is_tensor = _values(value)
    has_place = spacing_mm is not None or affine is not None
    stack = _as_stack(pixels, is_channels_first=is_tensor and not has_place and kind is None)
    return _placed(stack, kind or ("picture" if len(stack) == 1 else "volume"), spacing_mm, affine)


def _placed(stack: Pixels, kind: Kind, spacing_mm: Sequence[float] | None, affine: ArrayLike | None) -> Image:
    if spacing_mm is not None and affine is not None:
        raise InputError("spacing_mm and affine were both given: give one, an affine holds the spacing")
    if affine is not None:
        return Image(stack, kind, check_affine(affine))
    if spacing_mm is None:
        return Image(stack, kind)
    sizes = [float(size) for size in spacing_mm]
    if len(sizes) not in (2, 3) or not all(np.isfinite(size) and size > 0 for size in sizes):
        raise InputError(f"spacing_mm is {tuple(spacing_mm)}, allowed are (n, row, col) or (row, col), above 0, in mm")
    if len(sizes) == 2:
        if len(stack) > 1:
            raise InputError(f"spacing_mm is {tuple(spacing_mm)} of a stack of {len(stack)}: give (n, row, col) in mm")
        return Image(stack, kind, metadata={"pixel_spacing_mm": f"{sizes[0]} {sizes[1]}"})
    along_n, row, column = sizes
    return Image(stack, kind, affine_from_directions([0, 0, 0], [0, 0, along_n], [0, row, 0], [column, 0, 0]))


def _values(value: Any) -> tuple[Pixels, bool]:
    """The numbers of an array or tensor, and whether it is a tensor."""
    if isinstance(value, np.ndarray):
        return value, False
    if _library_of(value) == "torch":
        tensor = value.detach().cpu()
        return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor), True
    raise InputError(f"the image is a {type(value).__name__}, allowed are {_KNOWN}")


def _is_stack(pixels: Pixels) -> bool:
    return pixels.ndim == 3 and pixels.shape[-1] not in (1, 3)


def _as_stack(pixels: Pixels, *, is_channels_first: bool) -> Pixels:
    """(N, H, W, C) of an array of two to four axes."""
    if is_channels_first and pixels.ndim == 3 and pixels.shape[0] in (1, 3) and _is_stack(pixels):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        return pixels[None, ..., None]
    if pixels.ndim == 3 and pixels.shape[-1] == 4:
        raise InputError(f"the array is {pixels.shape}, with a fourth channel: leave alpha out by array[..., :3]")
    if pixels.ndim == 3:
        return pixels[..., None] if _is_stack(pixels) else pixels[None]
    if pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        return pixels
    raise InputError(
        f"the array is {pixels.shape}, allowed are (H, W), (H, W, 3), (N, H, W) and (N, H, W, 1 or 3): choose one image"
    )


def _library_of(value: Any) -> str:
    """The library of the class, or of the one that it inherits from."""
    if isinstance(value, (Image, str, Path)):
        return "medsam3"
    names = [base.__module__.split(".")[0] for base in type(value).__mro__]
    return next((name for name in names if name in _READERS or name == "torch"), "")


def _from_ours(value: Image | str | Path) -> Image:
    from medsam3.io import read  # noqa: PLC0415  the package imports its modules late, and this one it

    return value if isinstance(value, Image) else read(value)


def _from_pil(picture: Any) -> Image:
    from medsam3.io.raster import image_of_picture  # noqa: PLC0415

    return image_of_picture(picture)


def _from_pydicom(dataset: Any) -> Image:
    """Through a file, so that a Dataset is shown as its file would be."""
    from medsam3.io import read  # noqa: PLC0415

    if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
        raise InputError("the Dataset holds no pixels: give one of an image")
    pydicom = require("pydicom", extra="all")
    with scratch_folder() as folder:
        path = folder / "dataset.dcm"
        try:
            pydicom.dcmwrite(path, dataset, enforce_file_format=True)
        except (ValueError, AttributeError, TypeError, NotImplementedError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"the Dataset is not one of a whole file ({reason}): read it by pydicom.dcmread"
            ) from error
        return replace(read(path).load(), source=())


def _from_nibabel(file: Any) -> Image:
    from medsam3.io.nifti import affine_of, spatial_shape  # noqa: PLC0415

    shape = spatial_shape(file.shape, None)
    stored = np.asanyarray(file.dataobj)
    if stored.dtype.names:
        stored = np.stack([stored[name] for name in ("R", "G", "B")], axis=-1)
    stored = stored.reshape(*shape, -1)  # (W, H, N, C)
    if stored.dtype.kind == "f":
        stored = stored.astype(np.float32)  # as the reader of files gives them
    has_header = hasattr(file, "header") and "sform_code" in getattr(file.header, "keys", tuple)()
    affine = affine_of(file.header) if has_header else lps_from_nifti(file.affine)
    kind: Kind = "picture" if shape[2] == 1 else "volume"
    return Image(np.ascontiguousarray(stored.transpose(2, 1, 0, 3)), kind, affine)


def _from_sitk(file: Any) -> Image:
    from medsam3.io.itk import affine_of  # noqa: PLC0415

    dimensions, channels = file.GetDimension(), file.GetNumberOfComponentsPerPixel()
    if dimensions not in (2, 3) or channels not in (1, 3):
        raise InputError(
            f"the SimpleITK image has {dimensions} axes and {channels} channels, allowed are 2 or 3, 1 or 3"
        )
    stored = require("SimpleITK", extra="all").GetArrayFromImage(file)
    stack = stored.reshape(*(stored.shape[:dimensions] if dimensions == 3 else (1, *stored.shape[:2])), channels)
    if dimensions == 2:
        return _placed(stack, "picture", file.GetSpacing()[::-1], None)
    affine = affine_of(file.GetOrigin(), file.GetSpacing(), file.GetDirection())
    return Image(stack, "picture" if len(stack) == 1 else "volume", affine)


_READERS: Mapping[str, Callable[[Any], Image]] = MappingProxyType(
    {
        "medsam3": _from_ours,
        "PIL": _from_pil,
        "pydicom": _from_pydicom,
        "nibabel": _from_nibabel,
        "SimpleITK": _from_sitk,
    }
)


def to_nibabel(masks: Masks) -> Any:
    """A label map (W, H, N) as `write` puts it into NIfTI: object k is k + 1, in the image's place."""
    from medsam3.io.nifti import label_file  # noqa: PLC0415

    return label_file([masks], _place_of(masks))


def to_sitk(masks: Masks) -> Any:
    """A label map as a SimpleITK image: object k is k + 1, with the image's origin, spacing and directions."""
    from medsam3.io.itk import label_image  # noqa: PLC0415

    return label_image([masks], _place_of(masks))[0]


def _place_of(masks: Masks) -> Image:
    return Image.without_pixels(masks.shape) if masks.image is None else masks.image
