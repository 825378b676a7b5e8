"""Masks in, from every form that this package writes: label maps, DICOM SEG, RT structure sets, COCO JSON, GeoJSON.

A label map is read with the legend that our writers leave in it; without one, each number is a concept of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io import read
from medsam3.io.files import FileFormat, file_format
from medsam3.io.labels import Legend, on_grid

_SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def read_masks(path: Path, image: Image | None = None, *, is_resampled: bool = False) -> tuple[list[Masks], Image]:
    """The masks of a file, and the image they are over.

    Args:
        path: NIfTI, NRRD, MetaImage or PNG label map, DICOM SEG, RT structure set, COCO JSON or GeoJSON.
        image: The image that was searched, pixels not needed; None takes shape and place from a label map itself.
        is_resampled: Take the nearest labels of a label map on another grid, in place of refusing it.

    Raises:
        InputError: In one line, beginning with the path: not masks, an image that is missing or of another place.
    """
    try:
        if path.suffix.lower() == ".geojson":
            from medsam3.io.geojson import read_geojson  # noqa: PLC0415

            over = _wanted(image, "GeoJSON")
            return read_geojson(path, over), over
        if path.suffix.lower() == ".json":
            from medsam3.io.coco import read_coco  # noqa: PLC0415

            over = _wanted(image, "COCO JSON")
            return read_coco(path, over), over
        found = file_format(path)
        if found == "dicom":
            over = _wanted(image, "a DICOM SEG or RT structure set")
            return _from_dicom(path, over), over
        return _from_label_map(path, found, image, is_resampled=is_resampled)
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _wanted(image: Image | None, what: str) -> Image:
    if image is None:
        raise InputError(f"{what} does not tell all of the image that it is over: give the image with --image")
    return image


def _from_label_map(
    path: Path, found: FileFormat, image: Image | None, *, is_resampled: bool
) -> tuple[list[Masks], Image]:
    if found == "raster":
        from medsam3.io.raster import read_label_picture  # noqa: PLC0415

        stack = read_label_picture(path)
    else:
        stack = read(path)
    over = image or stack
    if "layers" in stack.metadata:
        return _from_layers(path, stack, over, is_resampled=is_resampled), over
    placed = on_grid(stack, over, is_resampled=is_resampled)
    labels = np.stack([_whole(placed.pixels(n)[..., 0]) for n in range(placed.shape[0])])
    return _named(labels, _legend(path, found)), over


def _from_layers(path: Path, stack: Image, image: Image, *, is_resampled: bool) -> list[Masks]:
    """The segments of a file in which they may overlap, one `Masks` for each name."""
    from medsam3.io.itk import label_layers  # noqa: PLC0415

    objects: dict[str, list[ObjectMask]] = {}
    for name, mask in label_layers(path):
        layer = replace(stack, frames=mask[..., None].astype(np.uint8))
        placed = on_grid(layer, image, is_resampled=is_resampled).array()[..., 0] > 0
        item = ObjectMask.from_dense(placed, 1.0)
        objects.setdefault(name, []).extend([] if item is None else [item])
    return [Masks(image.shape, tuple(items), name) for name, items in objects.items()] or [Masks(image.shape)]


def _whole(plane: NDArray[Any]) -> NDArray[np.uint16]:
    if (plane != np.rint(plane)).any() or plane.min() < 0 or plane.max() > np.iinfo(np.uint16).max:
        raise InputError("the values are not whole numbers of 0 to 65,535: give a label map, not an image")
    return plane.astype(np.uint16)


def _legend(path: Path, found: FileFormat) -> Legend:
    try:
        if found == "nifti":
            from medsam3.io.nifti import nifti_legend  # noqa: PLC0415

            entries = nifti_legend(path)
        elif found in ("nrrd", "metaimage"):
            from medsam3.io.itk import itk_legend  # noqa: PLC0415

            entries = itk_legend(path, found)
        else:
            from medsam3.io.raster import raster_legend  # noqa: PLC0415

            entries = raster_legend(path)
        return [
            {
                "value": int(entry["value"]),
                "concept": str(entry.get("concept", "")),
                "score": min(1.0, max(0.0, float(entry.get("score", 1.0)))),
            }
            for entry in entries
            if isinstance(entry, dict) and "value" in entry
        ]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError("the legend in the file is damaged: write the file again") from error


def _named(labels: NDArray[np.uint16], legend: Legend) -> list[Masks]:
    """One `Masks` for each concept, in the order of the numbers."""
    known = {entry["value"]: (entry["concept"], entry["score"]) for entry in legend}
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
    from medsam3.io.dicom_pixels import open_dataset, quiet_pydicom  # noqa: PLC0415
    from medsam3.io.rtstruct import RTSTRUCT_CLASS, read_rtstruct  # noqa: PLC0415

    with quiet_pydicom():
        class_uid = str(open_dataset(path, has_pixels=False).get("SOPClassUID"))
    if class_uid == RTSTRUCT_CLASS:
        return read_rtstruct(path, image)
    if class_uid not in _SEG_CLASSES:
        raise InputError("the file is DICOM, but neither a segmentation nor an RT structure set: give one of these")
    from medsam3.io.dicom_seg import read_seg  # noqa: PLC0415

    return read_seg(path, image)
