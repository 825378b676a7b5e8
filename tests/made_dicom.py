"""DICOM files made for tests: an oblique, anisotropic series, single pictures, enhanced multi-frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, CR, US_CINE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.3.1"
SECONDARY_CAPTURE, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2.1"

# A turn of 30 degrees about the patient's long axis, then one that tips the picture by atan(3/4).
ROW_DIRECTION = np.array([np.sqrt(0.75), 0.5, 0.0])
COLUMN_DIRECTION = np.array([-0.5 * 0.8, np.sqrt(0.75) * 0.8, 0.6])
NORMAL = np.cross(ROW_DIRECTION, COLUMN_DIRECTION)
ORIGIN_MM = np.array([-12.5, 30.25, 101.0])
SPACING_MM = (2.5, 0.75, 0.5)  # along (n, row, col)


def ramp(frames: int = 4, height: int = 5, width: int = 6) -> NDArray[np.int16]:
    """Every voxel has its own value: 100 n + 10 row + col."""
    n, row, col = np.indices((frames, height, width))
    values: NDArray[np.int16] = (100 * n + 10 * row + col).astype(np.int16)
    return values


def world(n: float, row: float, col: float) -> NDArray[np.float64]:
    """LPS position of an index, from the standard's formula, without the code under test."""
    steps = (n * SPACING_MM[0] * NORMAL, row * SPACING_MM[1] * COLUMN_DIRECTION, col * SPACING_MM[2] * ROW_DIRECTION)
    position: NDArray[np.float64] = ORIGIN_MM + sum(steps)
    return position


def dataset(pixels: NDArray[Any], *, sop_class: str = CT, **attributes: Any) -> FileDataset:
    """A complete data set of grey (H, W), (N, H, W) or, with SamplesPerPixel=3, colour pixels."""
    made = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(), generate_uid()
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Made^Up", "secret-id", "19700101", "O"
    made.StudyDate = made.StudyTime = made.StudyID = made.AccessionNumber = made.ReferringPhysicianName = ""
    made.Modality, made.SeriesNumber, made.InstanceNumber = "CT", 3, 1
    samples = int(attributes.get("SamplesPerPixel", 1))
    made.Rows, made.Columns = pixels.shape[-3:-1] if samples == 3 else pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = samples, "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim - (samples == 3) == 3:
        made.NumberOfFrames = pixels.shape[0]
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def save(made: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def placed(pixels: NDArray[Any], n: float, **attributes: Any) -> FileDataset:
    """Slice `n` of the oblique stack; `n` may be a fraction."""
    made = dataset(pixels, **attributes)
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = "1.2.3.4", ""
    made.ImagePositionPatient = [f"{value:.10g}" for value in world(n, 0, 0)]
    made.ImageOrientationPatient = [f"{value:.10g}" for value in (*ROW_DIRECTION, *COLUMN_DIRECTION)]
    made.PixelSpacing, made.SliceThickness = [SPACING_MM[1], SPACING_MM[2]], SPACING_MM[0]
    return made


def series(folder: Path, places: list[float] | None = None, *, number: int = 3) -> Path:
    """A series whose file names run against its positions; voxel values are those of `ramp`."""
    places = [0.0, 1.0, 2.0, 3.0] if places is None else places
    uid, study = generate_uid(), "1.2.3.5"
    for k, n in enumerate(places):
        made = placed(ramp(len(places))[k], n, SeriesInstanceUID=uid, StudyInstanceUID=study, SeriesNumber=number)
        made.InstanceNumber = len(places) - k
        save(made, folder / f"s{number}_{len(places) - k:03d}.dcm")
    return folder


def enhanced(pixels: NDArray[Any], places: list[float]) -> FileDataset:
    """An enhanced multi-frame whose frame k is slice `places[k]` of the oblique stack."""
    made = dataset(pixels, sop_class=ENHANCED_CT)
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = "1.2.3.4", ""
    measures, orientation, values, voi = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING_MM[1], SPACING_MM[2]], 1.0
    orientation.ImageOrientationPatient = [f"{value:.10g}" for value in (*ROW_DIRECTION, *COLUMN_DIRECTION)]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, -1000, "HU"
    voi.WindowCenter, voi.WindowWidth = 40, 400
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.PixelValueTransformationSequence, shared.FrameVOILUTSequence = Sequence([values]), Sequence([voi])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for n in places:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [f"{value:.10g}" for value in world(n, 0, 0)]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return made


def shipped_files() -> Path:
    """The folder of test files inside the installed pydicom; nothing is fetched."""
    return Path(pydicom.__file__).parent / "data" / "test_files"


def write_oblique_series(folder: Path, values: NDArray[np.int16], modality: str) -> None:
    """Write (N, H, W) as slices of the oblique stack, with a window that only DICOM carries."""
    uid, study = generate_uid(), "1.2.3.6"
    for n, plane in enumerate(values):
        made = placed(plane, n, SeriesInstanceUID=uid, StudyInstanceUID=study, Modality=modality)
        made.WindowCenter, made.WindowWidth, made.InstanceNumber = 700, 1500, n + 1
        save(made, folder / f"{len(values) - n:03d}.dcm")
