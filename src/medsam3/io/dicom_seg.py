"""Masks out as a DICOM segmentation, through highdicom, that refers to the DICOM images it was made from.

One segment for each object, all with the code of their concept. As the standard wants it, the file carries the patient
and study that its source carries; nothing of them goes anywhere else. Source: DICOM PS3.3 A.51 and C.8.20.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import medsam3
from medsam3.concepts import CATEGORY_CODES, Code, code_for, find
from medsam3.errors import InputError, require
from medsam3.geometry import Affine, index_from_world
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.dicom import frame_places
from medsam3.io.dicom_geometry import Plane, axes_of, macro, planes_of_frames
from medsam3.io.dicom_pixels import DICOM_ERRORS, decode, frame_count, open_dataset, quiet_pydicom
from medsam3.io.dicom_uids import result_uid
from medsam3.io.labels import check_masks
from medsam3.store import replacing

LOCAL_SCHEME = "99MEDSAM3"
"""Coding scheme of phrases that the concept table gives no standard code."""
SERIES_NUMBER = 900
_ALGORITHM_FAMILY = Code("123110", "Artificial Intelligence", "DCM")  # DICOM PS3.16, CID 7162
_REFERRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_OFF_GRID = 0.1  # voxels
_MAX_MEANING = 64  # characters of a long string (LO) in DICOM


def write_seg(masks: Sequence[Masks], image: Image, path: Path, identity: str | None = None) -> None:
    """Write one BINARY segmentation whose frames lie where the source's frames lie; overlaps are kept.

    A concept of which nothing was found becomes one empty segment named so, if no other concept has an object.
    `identity` is that of `result_uid`.

    Raises:
        InputError: highdicom is missing, the image is not from DICOM or not from whole files, the source lacks what
            a segmentation must refer to, masks of another shape, or the file cannot be written.
    """
    check_masks(masks, image.shape)
    highdicom = require("highdicom", extra="dicom")
    with quiet_pydicom():
        sources, order = _sources(image)
        try:
            document = _segmentation(highdicom, masks, sources, order, identity)
            with replacing(path, ".dcm") as temporary:
                document.save_as(temporary, enforce_file_format=True)
        except InputError:
            raise
        except DICOM_ERRORS as error:
            # The library's own message may quote the header, so it is only chained.
            raise InputError(
                "a DICOM SEG cannot refer to this source, its header breaks the standard: use the format nifti or coco"
            ) from error


def code_of(concept: str) -> Code:
    """The concept's standard code, or a code of this package's own scheme, the same for the same phrase."""
    known = code_for(concept) if concept else None
    if known is not None:
        return known
    name = concept or "object"
    digest = hashlib.sha256(name.casefold().encode()).hexdigest()[:12].upper()
    return Code(value=f"P-{digest}", meaning=name[:_MAX_MEANING], scheme=LOCAL_SCHEME)


def _sources(image: Image) -> tuple[list[Any], NDArray[np.intp]]:
    """Headers of the source files, and for each of their frames the image's frame that it is."""
    if image.metadata.get("format") != "DICOM" or not image.source:
        raise InputError("a DICOM SEG needs an image that was read from DICOM: use the format nifti, coco or png")
    sources = [_with_header_of_patient(open_dataset(path, has_pixels=False)) for path in image.source]
    missing = [name for name in _REFERRED if not sources[0].get(name)]
    if missing:
        raise InputError(
            f"a DICOM SEG refers to its source's {missing[0]}, which it lacks: use the format nifti or coco"
        )
    frames = image.shape[0]
    if frames > 1 and not sources[0].get("FrameOfReferenceUID"):
        raise InputError("a DICOM SEG of several frames needs a source with a frame of reference: use nifti or coco")
    if len(sources) > 1:
        return sources, np.arange(frames)
    held = frame_count(sources[0])
    if held != frames:
        raise InputError(
            f"the image holds {frames} of the DICOM file's {held} frames, a SEG needs them all: segment the whole file"
        )
    placed = frame_places(sources[0], held)
    return sources, np.arange(frames) if placed is None else np.argsort(placed.order)


def _with_header_of_patient(dataset: Any) -> Any:
    """Type 2 attributes may be empty but must be there, which de-identified files do not always keep to."""
    for name in TYPE_2:
        if name not in dataset:
            setattr(dataset, name, "")
    return dataset


def _segmentation(
    highdicom: Any, masks: Sequence[Masks], sources: list[Any], order: NDArray[np.intp], identity: str | None
) -> Any:
    instances = [str(source.SOPInstanceUID) for source in sources]

    def uid(part: str) -> Any:
        return highdicom.UID(result_uid(f"seg {part}", instances, identity))

    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=_segment_pixels(masks)[order],
        segmentation_type="BINARY",
        segment_descriptions=_descriptions(highdicom, masks, uid),
        series_instance_uid=uid("series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid("instance"),
        instance_number=1,
        manufacturer="medsam3",
        manufacturer_model_name="medsam3",
        software_versions=medsam3.__version__,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_description="masks by medsam3",
        specific_character_set="ISO_IR 192",
        series_description="medsam3 segmentation",
    )


def _segment_pixels(masks: Sequence[Masks]) -> NDArray[Any]:
    """(N, H, W) numbered segments where no two overlap, which is far smaller, else (N, H, W, K) of 0 and 1."""
    objects = [item for found in masks for item in found.objects]
    shape = masks[0].shape
    labels = np.zeros(shape, dtype=np.uint16)
    for number, item in enumerate(objects, start=1):
        if labels[item.block][item.crop].any():
            return _stacked(masks)
        labels[item.block][item.crop] = number
    return labels


def _stacked(masks: Sequence[Masks]) -> NDArray[np.uint8]:
    dense = [found.dense(k) for found in masks for k in range(len(found))]
    return np.stack(dense, axis=-1).astype(np.uint8)


def _descriptions(highdicom: Any, masks: Sequence[Masks], uid: Callable[[str], Any]) -> list[Any]:
    named = [
        (found.concept, f"{found.concept or 'object'} {k + 1}", f"score {item.score:.4f}")
        for found in masks
        for k, item in enumerate(found.objects)
    ]
    if not named:
        named = [(masks[0].concept, f"{masks[0].concept or 'object'}", "not found")]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="medsam3", version=medsam3.__version__, family=_coded(highdicom, _ALGORITHM_FAMILY)
    )
    descriptions: list[Any] = []
    for number, (concept, label, note) in enumerate(named, start=1):
        description = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label[-_MAX_MEANING:],
            segmented_property_category=_coded(highdicom, category_of(concept)),
            segmented_property_type=_coded(highdicom, code_of(concept)),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_id=label[-_MAX_MEANING:],
            tracking_uid=uid(f"object {number}"),
        )
        description.SegmentDescription = note
        descriptions.append(description)
    return descriptions


def category_of(concept: str) -> Code:
    """Choose the category code of a concept; one that is not listed is an altered structure."""
    known = find(concept) if concept else None
    return CATEGORY_CODES[known.category if known is not None else "morphologically altered structure"]


def _coded(highdicom: Any, code: Code) -> Any:
    return highdicom.sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def read_seg(path: Path, image: Image) -> list[Masks]:
    """The segments of a segmentation over the image that it refers to, one `Masks` for each label or type.

    Each frame is laid where it says that it lies, or on the file that it says it was made from. A fraction of one half
    or more counts.

    Raises:
        InputError: The file is damaged, tells no place of its frames, or lies elsewhere than the image.
    """
    if image.affine is None:
        raise InputError("a DICOM SEG is read over an image with a position: give the series it was made from")
    with quiet_pydicom():
        dataset = open_dataset(path)
        try:
            names = _names(dataset)
            dense = {number: np.zeros(image.shape, dtype=np.bool_) for number in names}
            dataset.PhotometricInterpretation = "MONOCHROME2"  # a palette only colours the numbers
            frames = decode(dataset, path)[..., 0]
            if int(dataset.get("BitsAllocated", 8)) == 1:
                frames = frames > 0
            is_labels = str(dataset.get("SegmentationType")) == "LABELMAP"
            least = 1 if str(dataset.get("SegmentationType")) != "FRACTIONAL" else _half(dataset)
            for k, place in enumerate(_frame_places(dataset, image)):
                numbers = np.unique(frames[k]).tolist() if is_labels else [_segment_of(dataset, k)]
                for number in (number for number in numbers if number in dense):
                    plane = frames[k] == number if is_labels else frames[k] >= least
                    _lay(dense[number], plane, place, image.affine)
        except InputError:
            raise
        except DICOM_ERRORS as error:
            raise InputError(
                "the DICOM SEG is damaged or cut short, or not in the standard's form: replace it"
            ) from error
    objects: dict[str, list[ObjectMask]] = {}
    for number, name in names.items():
        item = ObjectMask.from_dense(dense[number], 1.0)
        objects.setdefault(name, []).extend([item] if item else [])
    return [Masks(image.shape, tuple(items), concept) for concept, items in objects.items()]


def _names(dataset: Any) -> dict[int, str]:
    """Each segment's name: the label that its maker gave, or the type's meaning for those that this package wrote."""
    names: dict[int, str] = {}
    for item in dataset.SegmentSequence:
        types = item.get("SegmentedPropertyTypeCodeSequence") or [{}]
        meaning, label = str(types[0].get("CodeMeaning") or ""), str(item.get("SegmentLabel") or "").strip()
        is_own = str(dataset.get("ManufacturerModelName")) == "medsam3"
        number = int(item.SegmentNumber)
        if number == 0:  # of a label map, what no segment covers
            continue
        names[number] = (meaning if is_own else label or meaning) or meaning or label or f"segment {number}"
    return names


def _half(dataset: Any) -> float:
    return float(dataset.get("MaximumFractionalValue") or 255) / 2


def _segment_of(dataset: Any, frame: int) -> int:
    item = macro(dataset, frame, "SegmentIdentificationSequence")
    if item is not None:
        return int(item.ReferencedSegmentNumber)
    if len(dataset.SegmentSequence) == 1:
        return int(dataset.SegmentSequence[0].SegmentNumber)
    raise InputError("the DICOM SEG does not tell which segment its frames belong to: write it again")


def _frame_places(dataset: Any, image: Image) -> list[Plane | int]:
    """For each frame its place, or the slice of the image that it was made from."""
    planes = planes_of_frames(dataset)
    if planes is not None:
        return list(planes)
    tags = ["SOPInstanceUID"]
    uids = {
        str(open_dataset(path, has_pixels=False, tags=tags).get("SOPInstanceUID")): n
        for n, path in enumerate(image.source)
    }
    found: list[Plane | int] = []
    for k in range(frame_count(dataset)):
        derived = macro(dataset, k, "DerivationImageSequence")
        sources = [] if derived is None else derived.get("SourceImageSequence") or []
        slices = [
            uids[str(one.ReferencedSOPInstanceUID)] for one in sources if str(one.ReferencedSOPInstanceUID) in uids
        ]
        if len(slices) != 1 or len(image.source) != image.shape[0]:
            raise InputError(
                "the DICOM SEG tells no position of its frames, and refers to no slices of this image: give the series "
                "it was made from, or have it written with positions"
            )
        found.append(slices[0])
    return found


def _lay(dense: NDArray[np.bool_], plane: NDArray[np.bool_], place: Plane | int, affine: Affine) -> None:
    """Set the voxels of the image on which the pixels (H, W) of one frame lie.

    Raises:
        InputError: They lie between the image's voxels or outside.
    """
    pixels = np.argwhere(plane)
    if len(pixels) == 0:
        return
    if isinstance(place, int):
        if plane.shape != dense.shape[1:]:
            raise InputError("the DICOM SEG's frames differ in size from the image and tell no place: resample it")
        dense[place] |= plane
        return
    row_direction, column_direction, _ = axes_of(place.orientation)
    steps = np.stack([column_direction * place.spacing[0], row_direction * place.spacing[1]])
    index = index_from_world(affine, place.position + pixels @ steps)
    whole = np.rint(index).astype(np.int64)
    if np.abs(index - whole).max() > _OFF_GRID or whole.min() < 0 or (whole >= np.array(dense.shape)).any():
        raise InputError("the DICOM SEG lies at another place than the image: give the series it was made from")
    dense[tuple(whole.T)] = True
