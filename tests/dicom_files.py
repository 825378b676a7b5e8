"""A small CT series on disk, made with pydicom alone, so that tests of readers do not lean on our writers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_ct_series(folder: Path, values_hu: NDArray[np.int16]) -> None:
    """Write (N, H, W) as `0.dcm`, `1.dcm` ...: axial, 2 mm apart, pixels 0.5 mm (rows) by 0.25 mm (columns)."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    for n, slice_hu in enumerate(values_hu):
        dataset: Any = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.FrameOfReferenceUID = study
        dataset.PatientName, dataset.PatientID = "Secret^Name", "secret-id"
        dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 1, n + 1
        dataset.ImagePositionPatient = [10.0, 20.0, 30.0 + 2.0 * n]
        dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.25], 2.0
        dataset.Rows, dataset.Columns = slice_hu.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
        dataset.PixelData = slice_hu.astype("<i2").tobytes()
        pydicom.dcmwrite(folder / f"{n}.dcm", dataset, enforce_file_format=True)
