"""Identifiers of DICOM files: read from a file, or made for a result, the same for the same of the same images.

So an archive takes a repeated result for the one that it holds, and can be asked for it before anything is computed.
Source: DICOM PS3.5 section 9 and PS3.3 C.12.1.1.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medsam3.errors import require
from medsam3.io.dicom_pixels import open_dataset, quiet_pydicom


def result_uid(what: str, instances: Iterable[str], identity: str | None) -> str:
    """Make the identifier of one part of a result.

    Args:
        what: Form and part, such as `seg instance`.
        instances: SOP Instance UIDs of the images, in any order.
        identity: What else changes the result: phrase, weights, settings. None gives a new identifier each time.
    """
    generate_uid = require("pydicom.uid", extra="dicom").generate_uid
    if identity is None:
        return str(generate_uid())
    return str(generate_uid(entropy_srcs=[what, "|", *sorted(instances), "|", identity]))


@dataclass(frozen=True)
class DicomHeading:
    """Tells of a DICOM file where it belongs, without the patient.

    Attributes:
        instance: SOP Instance UID.
        sop_class: SOP Class UID.
        transfer_syntax: Transfer Syntax UID.
        study: Study Instance UID.
        series: Series Instance UID.
        modality: Such as CT.
        body_part: Body Part Examined.
        description: Series Description.
    """

    instance: str
    sop_class: str
    transfer_syntax: str
    study: str
    series: str
    modality: str
    body_part: str
    description: str


_TAGS = {
    "instance": "SOPInstanceUID",
    "sop_class": "SOPClassUID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "description": "SeriesDescription",
}


def heading_of(path: Path) -> DicomHeading:
    """Read where a DICOM file belongs; what it does not tell is "".

    Raises:
        InputError: Not a DICOM file, or one that is damaged.
    """
    with quiet_pydicom():
        dataset = open_dataset(path, has_pixels=False, tags=list(_TAGS.values()))
        told = {name: str(dataset.get(tag) or "") for name, tag in _TAGS.items()}
        return DicomHeading(**told, transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID") or ""))
