"""Masks out as a DICOM RT structure set, through pydicom, that refers to the slices it was made from; and in again.

One structure for each object, its outlines along pixel edges, holes as keyholes. As the standard wants it, the file
carries the patient and study that its source carries. Source: DICOM PS3.3 A.19, C.8.8.5, C.8.8.6 and C.8.8.8.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

import medsam3
from medsam3.concepts import Code
from medsam3.errors import InputError, require
from medsam3.geometry import Affine, BoolArray, FloatArray, index_from_world, world_from_index
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.contours import filled, outlines
from medsam3.io.dicom_pixels import DICOM_ERRORS, open_dataset, quiet_pydicom
from medsam3.io.dicom_seg import TYPE_2, category_of, code_of
from medsam3.io.dicom_uids import result_uid
from medsam3.io.labels import check_masks
from medsam3.store import replacing
from medsam3.view.draw import COLOURS

_log = logging.getLogger(__name__)

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
SERIES_NUMBER = 901
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_REFERRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
_MAX_LABEL = 64
_MOST_DEPTH = 1.0  # slices that one contour may span, as an oblique one does
_SAME_DEPTH = 1e-3


def write_rtstruct(masks: Sequence[Masks], image: Image, path: Path, identity: str | None = None) -> None:
    """Write one structure set; overlapping objects are kept. `identity` is that of `result_uid`.

    Raises:
        InputError: The image is not a DICOM series of single slices with a position, or the file cannot be written.
    """
    check_masks(masks, image.shape)
    with quiet_pydicom():
        sources = _sources(image)
        assert image.affine is not None, "checked with the sources"
        try:
            document = _document(sources, identity)
            _add_structures(document, masks, sources, image.affine)
            with replacing(path, ".dcm") as temporary:
                document.save_as(temporary, enforce_file_format=True)
        except InputError:
            raise
        except DICOM_ERRORS as error:
            raise InputError(
                "an RT structure set cannot refer to this source, its header breaks the standard: use nifti or coco"
            ) from error


def read_rtstruct(path: Path, image: Image) -> list[Masks]:
    """The structures of a file as masks over an image that has a position; one `Masks` for each name.

    Pixels whose centres lie inside a contour belong to the structure, on the slice nearest to it. What lies outside the
    image, across its slices or in another frame of reference is left out, counted and logged.

    Raises:
        InputError: Not a structure set, an image without position, or contours of which none lies on the image.
    """
    if image.affine is None:
        raise InputError("an RT structure set needs an image with a position: give the series it was drawn on")
    with quiet_pydicom():
        dataset = open_dataset(path)
        if str(dataset.get("SOPClassUID")) != RTSTRUCT_CLASS:
            raise InputError("the file is not an RT structure set")
        rois = {int(roi.ROINumber): roi for roi in dataset.get("StructureSetROISequence") or []}
        known = _references(image)
        objects: dict[str, list[ObjectMask]] = {}
        left_out: Counter[str] = Counter()
        for item in dataset.get("ROIContourSequence") or []:
            number = int(item.get("ReferencedROINumber") or 0)
            roi = rois.get(number, {})
            name = _text(roi.get("ROIName")) or f"structure {number}"
            try:
                dense, reasons = _rasterised(item, image.affine, image.shape, _is_foreign(roi, item, known))
            except DICOM_ERRORS:
                dense, reasons = np.zeros(image.shape, dtype=np.bool_), Counter({"with damaged points": 1})
            if reasons:
                _log.warning("%r: contours left out: %s", name, _counted(reasons))
            left_out += reasons
            one = ObjectMask.from_dense(dense, 1.0)
            objects.setdefault(name, []).extend([one] if one else [])
    if left_out and not any(objects.values()):
        raise InputError(
            f"no contour of the structure set lies on the image ({_counted(left_out)}): give the series it was drawn on"
        )
    return [Masks(image.shape, tuple(items), name) for name, items in objects.items()]


def _text(value: Any) -> str:
    """A name as its maker wrote it: the library splits it at backslashes, which stand between values."""
    return (
        "\\".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value or "")
    )


def _references(image: Image) -> tuple[str, set[str]]:
    """The frame of reference of an image from DICOM, and its files' identifiers; empty if it is from elsewhere."""
    if image.metadata.get("format") != "DICOM":
        return "", set()
    tags = ["FrameOfReferenceUID", "SOPInstanceUID"]
    headers = [open_dataset(path, has_pixels=False, tags=tags) for path in image.source]
    return str(headers[0].get("FrameOfReferenceUID") or ""), {str(one.get("SOPInstanceUID")) for one in headers}


def _is_foreign(roi: Any, item: Any, known: tuple[str, set[str]]) -> bool:
    """Whether a structure is drawn in another frame of reference, and on none of the image's own files."""
    frame, own = str(roi.get("ReferencedFrameOfReferenceUID") or ""), known[0]
    if not frame or not own or frame == own:
        return False
    drawn_on = {
        str(reference.get("ReferencedSOPInstanceUID"))
        for contour in item.get("ContourSequence") or []
        for reference in contour.get("ContourImageSequence") or []
    }
    return not drawn_on & known[1]


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _sources(image: Image) -> list[Any]:
    if image.metadata.get("format") != "DICOM" or len(image.source) != image.shape[0] or image.affine is None:
        raise InputError(
            "an RT structure set needs a DICOM series of single slices with positions: use seg, nifti or coco"
        )
    sources = [open_dataset(path, has_pixels=False) for path in image.source]
    missing = [name for name in _REFERRED if not sources[0].get(name)]
    if missing:
        raise InputError(f"an RT structure set refers to its source's {missing[0]}, which it lacks: use nifti or coco")
    return sources


def _document(sources: Sequence[Any], identity: str | None) -> Any:
    """The data set without structures."""
    instances = [str(source.SOPInstanceUID) for source in sources]
    first, now = sources[0], datetime.now()
    pydicom = require("pydicom", extra="dicom")
    uid = require("pydicom.uid", extra="dicom")
    document = pydicom.Dataset()
    document.file_meta = pydicom.dataset.FileMetaDataset()
    document.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    document.file_meta.MediaStorageSOPClassUID = document.SOPClassUID = RTSTRUCT_CLASS
    document.SOPInstanceUID = result_uid("rtstruct instance", instances, identity)
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    document.SpecificCharacterSet = "ISO_IR 192"
    for name in TYPE_2:
        setattr(document, name, first.get(name, ""))
    document.StudyInstanceUID = first.StudyInstanceUID
    document.SeriesInstanceUID = result_uid("rtstruct series", instances, identity)
    document.Modality, document.SeriesNumber, document.InstanceNumber = "RTSTRUCT", SERIES_NUMBER, 1
    document.OperatorsName, document.SeriesDescription = "", "medsam3 structures"
    document.FrameOfReferenceUID, document.PositionReferenceIndicator = first.FrameOfReferenceUID, ""
    document.Manufacturer = document.ManufacturerModelName = "medsam3"
    document.SoftwareVersions, document.DeviceSerialNumber = medsam3.__version__, "none"
    document.StructureSetLabel, document.StructureSetName = "medsam3", "masks by medsam3"
    document.StructureSetDate, document.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    document.ReferencedFrameOfReferenceSequence = [_frame_of_reference(pydicom, sources)]
    document.ApprovalStatus = "UNAPPROVED"
    return document


def _frame_of_reference(pydicom: Any, sources: Sequence[Any]) -> Any:
    frame, study, series = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(pydicom, source) for source in sources]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, sources[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _add_structures(document: Any, masks: Sequence[Masks], sources: Sequence[Any], affine: Affine) -> None:
    pydicom = require("pydicom", extra="dicom")
    structures, contours, observations = [], [], []
    objects = [(found.concept, k, item) for found in masks for k, item in enumerate(found.objects)]
    if not objects:
        raise InputError("nothing was found, and an RT structure set cannot say so: use the format nifti, seg or coco")
    for number, (concept, k, item) in enumerate(objects, start=1):
        label = f"{concept or 'object'} {k + 1}"[-_MAX_LABEL:]
        structure, contour, observation = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        structure.ROINumber, structure.ROIName, structure.ROIGenerationAlgorithm = number, label, "AUTOMATIC"
        structure.ReferencedFrameOfReferenceUID = document.FrameOfReferenceUID
        structure.ROIDescription = f"{concept or 'object'}, score {item.score:.4f}"[:_MAX_LABEL]
        contour.ReferencedROINumber, contour.ROIDisplayColor = number, list(COLOURS[(number - 1) % len(COLOURS)])
        contour.ContourSequence = _contours(pydicom, item, sources, affine)
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.ROIObservationLabel = label[:16]
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        observation.RTROIIdentificationCodeSequence = [_code(pydicom, code_of(concept))]
        observation.SegmentedPropertyCategoryCodeSequence = [_code(pydicom, category_of(concept))]
        structures.append(structure)
        contours.append(contour)
        observations.append(observation)
    document.StructureSetROISequence, document.ROIContourSequence = structures, contours
    document.RTROIObservationsSequence = observations


def _contours(pydicom: Any, item: ObjectMask, sources: Sequence[Any], affine: Affine) -> list[Any]:
    made: list[Any] = []
    n0, row, column = item.start
    for offset, crop in enumerate(item.crop):
        for outline in outlines(crop):
            points = world_from_index(affine, _indices(outline + np.array([column, row]), n0 + offset))
            contour = pydicom.Dataset()
            contour.ContourNumber = len(made) + 1
            contour.ContourImageSequence = [_reference(pydicom, sources[n0 + offset])]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [_decimal(value) for value in points.reshape(-1)]
            made.append(contour)
    return made


def _indices(points: FloatArray, n: int) -> FloatArray:
    return np.stack([np.full(len(points), float(n)), points[:, 1], points[:, 0]], axis=-1)


def _rasterised(
    item: Any, affine: Affine, shape: tuple[int, int, int], is_foreign: bool
) -> tuple[BoolArray, Counter[str]]:
    """A structure's mask, and how many of its contours were left out for which reason."""
    planes: dict[int, dict[float, list[FloatArray]]] = {}
    left_out: Counter[str] = Counter()
    for contour in item.get("ContourSequence") or []:
        points = np.array([float(value) for value in contour.get("ContourData") or []])
        is_area = str(contour.get("ContourGeometricType") or "CLOSED").startswith("CLOSED")
        if is_foreign or not is_area:
            left_out["in another frame of reference" if is_foreign else "that are points or open lines"] += 1
            continue
        if points.size < 9 or points.size % 3 or not np.isfinite(points).all():
            left_out["of fewer than three points, or damaged"] += 1
            continue
        index = index_from_world(affine, points.reshape(-1, 3))
        depth = float(np.median(index[:, 0]))
        n = math.floor(depth + 0.5 + _SAME_DEPTH)
        if np.ptp(index[:, 0]) > _MOST_DEPTH:
            left_out["across the slices"] += 1
        elif not 0 <= n < shape[0] or (index[:, 2].max() < -0.5) or (index[:, 2].min() > shape[2] - 0.5):
            left_out["outside the image"] += 1
        else:
            planes.setdefault(n, {}).setdefault(round(depth, 2), []).append(index[:, [2, 1]])
    dense = np.zeros(shape, dtype=np.bool_)
    for n, depths in planes.items():
        nearest = min(depths, key=lambda depth: abs(depth - n))  # contours may lie closer than slices
        dense[n] = filled(depths[nearest], *shape[1:])
    return dense, left_out


def _reference(pydicom: Any, source: Any) -> Any:
    reference = pydicom.Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return reference


def _code(pydicom: Any, code: Code) -> Any:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def _decimal(value: float) -> str:
    """A decimal string (DS) of at most 16 characters; a millionth of a millimetre is far below any scanner."""
    return f"{value:.6f}".rstrip("0").rstrip(".") if abs(value) < 1e8 else f"{value:.9e}"
