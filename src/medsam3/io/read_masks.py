"""Masks in, from every form that this package writes: label maps, DICOM SEG, RT structure sets, COCO JSON.

A label map is read with the legend that our writers leave in it; without one, each number is a concept of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.errors import InputError, require
from medsam3.geometry import Affine, spacing_mm
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io import read
from medsam3.io.files import file_format

SAME_PLACE_MM = 0.01
_SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"


def read_masks(path: Path, image: Image | None = None) -> tuple[list[Masks], Image]:
    """The masks of a file, and the image they are over.

    Args:
        path: NIfTI, NRRD, MetaImage or PNG label map, DICOM SEG, RT structure set, or COCO JSON of this package's form.
        image: The image that was searched, pixels not needed; None takes shape and place from a label map itself.

    Raises:
        InputError: In one line, beginning with the path: not masks, an image that is missing or of another place.
    """
    try:
        if path.suffix.lower() == ".json":
            return _from_coco(path, _wanted(image, "COCO JSON")), _wanted(image, "COCO JSON")
        found = file_format(path)
        if found == "dicom":
            over = _wanted(image, "a DICOM SEG or RT structure set")
            return _from_dicom(path, over), over
        return _from_label_map(path, found, image)
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _wanted(image: Image | None, what: str) -> Image:
    if image is None:
        raise InputError(f"{what} does not tell all of the image that it is over: give the image with --image")
    return image


def _from_label_map(path: Path, found: str, image: Image | None) -> tuple[list[Masks], Image]:
    stack = read(path)
    over = image or stack
    if stack.channels != 1:
        raise InputError("a label map has one number a voxel, this file has colours: give a label map")
    if stack.shape != over.shape:
        raise InputError(f"the label map is {stack.shape}, the image {over.shape} (N, H, W): give the image it is over")
    _check_place(stack, over)
    labels = np.stack([_whole(stack.pixels(n)[..., 0]) for n in range(stack.shape[0])])
    return _named(labels, _legend(path, found)), over


def _whole(plane: NDArray[Any]) -> NDArray[np.uint16]:
    if (plane != np.rint(plane)).any() or plane.min() < 0 or plane.max() > np.iinfo(np.uint16).max:
        raise InputError("the values are not whole numbers of 0 to 65,535: give a label map, not an image")
    return plane.astype(np.uint16)


def _check_place(stack: Image, image: Image) -> None:
    if stack.affine is None or image.affine is None:
        return
    corners = np.array([[0, 0, 0], [n - 1 for n in stack.shape]], dtype=np.float64)
    places: list[Affine] = [corners @ affine[:3, :3].T + affine[:3, 3] for affine in (stack.affine, image.affine)]
    least = SAME_PLACE_MM + 1e-4 * float(spacing_mm(image.affine).max())
    if np.abs(places[0] - places[1]).max() > least:
        raise InputError("the label map lies at another place than the image: give the image it was made from")


def _legend(path: Path, found: str) -> list[dict[str, Any]]:
    text: str | None = None
    if found == "nifti":
        from medsam3.io.nifti import nifti_legend  # noqa: PLC0415

        text = nifti_legend(path)
    elif found == "nrrd":
        from medsam3.io.nrrd import nrrd_legend  # noqa: PLC0415

        text = nrrd_legend(path)
    elif found == "metaimage":
        from medsam3.io.metaimage import metaimage_legend  # noqa: PLC0415

        text = metaimage_legend(path)
    elif path.suffix.lower() == ".png":
        with PIL.Image.open(path) as picture:
            text = picture.info.get("medsam3")
    try:
        entries = json.loads(text) if text else []
    except json.JSONDecodeError as error:
        raise InputError("the legend in the file is damaged: write the file again") from error
    return [entry for entry in entries if isinstance(entry, dict) and "value" in entry]


def _named(labels: NDArray[np.uint16], legend: Sequence[dict[str, Any]]) -> list[Masks]:
    """One `Masks` for each concept, in the order of the numbers."""
    known = {int(entry["value"]): (str(entry.get("concept", "")), float(entry.get("score", 1.0))) for entry in legend}
    objects: dict[str, list[ObjectMask]] = {name: [] for name, _ in known.values()}
    for value in np.unique(labels):
        if value:
            concept, score = known.get(int(value), (f"label {value}", 1.0))
            item = ObjectMask.from_dense(labels == value, score)
            assert item is not None, "the number is there"
            objects.setdefault(concept, []).append(item)
    if not objects:
        objects[""] = []
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    return [
        Masks(shape, tuple(sorted(items, key=lambda item: -item.score)), concept) for concept, items in objects.items()
    ]


def _from_dicom(path: Path, image: Image) -> list[Masks]:
    from medsam3.io.dicom import open_dataset, quiet_pydicom  # noqa: PLC0415

    with quiet_pydicom():
        class_uid = str(open_dataset(path, has_pixels=False).get("SOPClassUID"))
    if class_uid == _RTSTRUCT_CLASS:
        from medsam3.io.rtstruct import read_rtstruct  # noqa: PLC0415

        return read_rtstruct(path, image)
    if class_uid not in _SEG_CLASSES:
        raise InputError("the file is DICOM, but neither a segmentation nor an RT structure set: give one of these")
    from medsam3.io.dicom_seg import read_seg  # noqa: PLC0415

    return read_seg(path, image)


def _from_coco(path: Path, image: Image) -> list[Masks]:
    codec = require("pycocotools.mask", extra="coco")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        frames = {entry["id"]: int(entry.get("frame", n)) for n, entry in enumerate(content["images"])}
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        dense: dict[tuple[Any, Any], tuple[NDArray[np.bool_], float]] = {}
        for number, entry in enumerate(content["annotations"]):
            key = (entry["category_id"], entry.get("object_id", -number - 1))
            mask, _ = dense.setdefault(key, (np.zeros(image.shape, dtype=np.bool_), float(entry.get("score", 1.0))))
            plane = codec.decode(entry["segmentation"]).astype(np.bool_)
            mask[frames[entry["image_id"]]] |= plane
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"the file is not COCO JSON of RLE masks over this image ({error!r}): give one") from error
    found: list[Masks] = []
    for category, name in names.items():
        own = [(mask, score) for (key, _), (mask, score) in dense.items() if key == category]
        items = [ObjectMask.from_dense(mask, score) for mask, score in own]
        kept = sorted((item for item in items if item is not None), key=lambda item: -item.score)
        found.append(Masks(image.shape, tuple(kept), "" if name == "object" else name))
    return found or [Masks(image.shape)]
