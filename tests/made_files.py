"""One small file of each kind that clients send."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from made_dicom import write_oblique_series
from made_server import png


def volume() -> np.ndarray[Any, Any]:
    """(x, y, z) 14 x 11 x 6 voxels with two bright blocks."""
    voxels = np.zeros((14, 11, 6), dtype=np.uint8)
    voxels[2:6, 3:8, 1:4] = 200
    voxels[9:12, 1:3, 2:6] = 250
    return voxels


def files(folder: Path) -> dict[str, Path]:
    """A PNG, an oblique NIfTI, a DICOM folder, a MetaImage with its data beside it, and a folder of frames."""
    (folder / "block.png").write_bytes(png())
    affine = np.array([[0.8, 0.1, 0, -12], [-0.1, 1.3, 0.2, 7], [0, -0.2, 3, 31], [0, 0, 0, 1]])
    (folder / "scan.nii.gz").write_bytes(gzip.compress(nib.Nifti1Image(volume(), affine).to_bytes()))
    values = np.full((4, 9, 12), -1000, dtype=np.int16)
    values[1:3, 2:6, 3:9] = 600
    write_oblique_series(folder / "study", values, "CT")
    header = "ObjectType = Image\nNDims = 3\nDimSize = 14 11 6\nElementSpacing = 1 2 3\nElementType = MET_UCHAR\n"
    (folder / "brain.mhd").write_text(f"{header}ElementDataFile = brain.raw\n")
    (folder / "brain.raw").write_bytes(volume().transpose(2, 1, 0).tobytes())
    (folder / "clip").mkdir()
    for n in range(3):
        (folder / "clip" / f"f{n + 8}.png").write_bytes(png(40, 60))
    paths = {name: folder / name for name in ("block.png", "scan.nii.gz", "study", "brain.mhd", "clip")}
    return paths
