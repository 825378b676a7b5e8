"""Does a user's command give what the results page says? Fails when a figure is off by more than 0.01.

    python benchmarks/one_way.py volumes --data DATA
    python benchmarks/one_way.py slices --data DATA --limit 4

`volumes` runs README's command, `medsam3 segment FILES --text PHRASE`, on the test volumes of every volume set in DATA
and holds the mean Dice of each concept against that of `medsam3 eval` on the same volumes, in docs/results/volumes.csv.
`slices` takes the CT and MR pictures of DATA (split val, so that test is left alone), writes each as NIfTI in the order
of voxels that its picture has and in the order that other tools prefer, as NRRD and as DICOM, all with the place of a
slice that looks so, and holds the Dice of the same command on each against that on the picture.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medsam3.cli.main import main as medsam3
from medsam3.cli.outputs import slug
from medsam3.data.index import IndexRow, concept_mask, load_label_map, read_index
from medsam3.io import read
from medsam3.io.labels import label_stack, label_values
from medsam3.measure.outline import dice

TOLERANCE = 0.01
RESULTS = Path(__file__).parents[1] / "docs/results/volumes.csv"
PIXEL_MM = 0.8
Mask = NDArray[np.bool_]
AXIAL, CORONAL, SAGITTAL = "axial", "coronal", "sagittal"
PLANES = {
    "lits_liver": AXIAL,
    "curvas_ct": AXIAL,
    "kits19": AXIAL,
    "bhsd_hemorrhage": AXIAL,
    "lung_ct": AXIAL,
    "acdc_cardiac": AXIAL,
    "uwm_gi_mri": AXIAL,
    "prostate158": AXIAL,
    "pancreas_mri": AXIAL,
    "ukrin_kidney_mri": CORONAL,
    "spider_spine": SAGITTAL,
    "left_atrium_mri": SAGITTAL,
}
"""How a slice that looks like the set's pictures lies in the body."""
DIRECTIONS = {  # of a row's and a column's next pixel, in LPS
    AXIAL: ((1, 0, 0), (0, 1, 0)),
    CORONAL: ((1, 0, 0), (0, 0, -1)),
    SAGITTAL: ((0, 1, 0), (0, 0, -1)),
}


def segmented(files: Path, phrases: Sequence[str], out: Path) -> None:
    """README's command over a folder."""
    asked = [part for phrase in phrases for part in ("--text", phrase)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = medsam3(["segment", str(files), *asked, "--out", str(out), "--format", "nifti"])
    if code:
        raise SystemExit(f"medsam3 segment {files} ended with {code}")


def found(out: Path, stem: str, phrase: str) -> Mask:
    """The mask (N, H, W) in the order of the file's voxels."""
    voxels = np.asarray(nibabel.load(out / f"{stem}_{slug(phrase)}_mask.nii.gz").dataobj)
    return voxels.reshape(*voxels.shape, *(1,) * (3 - voxels.ndim)).transpose(2, 1, 0) > 0


def volumes(
    rows: Sequence[IndexRow], folder_of: Path, said: dict[tuple[str, str], float], limit: int | None
) -> list[dict[str, Any]]:
    figures: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for dataset, own in groupby([row for row in rows if row.is_volume and row.split == "test"], lambda r: r.dataset):
        listed = list(own)
        images = sorted({row.image for row in listed})[:limit]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "in").mkdir()
            for image in images:
                (Path(folder) / "in" / image.name).symlink_to(image)
            segmented(Path(folder) / "in", sorted({row.concept for row in listed}), Path(folder) / "out")
            for row in listed:
                if row.image in images and row.is_present:
                    labels = label_stack(row.mask, read(row.image))
                    whole = np.stack([label_values(labels, n) for n in range(labels.shape[0])])
                    stem = row.image.name.split(".nii")[0]
                    mask = found(Path(folder) / "out", stem, row.concept)
                    key = (row.image.relative_to(folder_of).as_posix(), row.concept)
                    score = dice(np.isin(whole, row.label_values), mask)
                    figures[dataset, row.concept].append((score, said.get(key, float("nan"))))
    return [
        {
            "set": key[0],
            "concept": key[1],
            "n": len(own),
            "Dice": mean([a for a, _ in own]),
            "said": mean([b for _, b in own]),
        }
        for key, own in figures.items()
    ]


def slices(rows: Sequence[IndexRow], limit: int | None) -> list[dict[str, Any]]:
    table = []
    for dataset, group in groupby([r for r in rows if r.dataset in PLANES and r.split == "val"], lambda r: r.dataset):
        own = list(group)
        images = sorted({row.image for row in own})[:limit]
        phrases = sorted({row.concept for row in own if row.image in images and row.is_present})
        scores: dict[str, list[float]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as folder:
            for name, (write, back) in WRITERS.items():
                place = Path(folder) / name
                place.mkdir()
                for image in images:
                    write(read(image).pixels(0), PLANES[dataset], place / image.stem)
                segmented(place, phrases, Path(folder) / f"{name}-out")
                for row in own:
                    if row.image in images and row.is_present:
                        truth = concept_mask(load_label_map(row.mask), row.label_values)
                        mask = back(found(Path(folder) / f"{name}-out", row.image.stem, row.concept)[0])
                        scores[name].append(dice(truth, mask))
        said = mean(scores["picture"])
        table += [
            {"set": dataset, "container": name, "n": len(own), "Dice": mean(own), "said": said}
            for name, own in scores.items()
        ]
    return table


def as_picture(pixels: NDArray[Any], plane: str, path: Path) -> None:
    del plane
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels[..., 0]), f"{path}.png")


def itk_slice(pixels: NDArray[Any], plane: str) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(pixels[None, ..., 0])
    along_row, along_column = (np.array(step, dtype=float) for step in DIRECTIONS[plane])
    axes = np.stack([along_row, along_column, np.cross(along_row, along_column)], axis=1)
    image.SetDirection(axes.reshape(-1).tolist())
    image.SetSpacing((PIXEL_MM, PIXEL_MM, 3.0))
    image.SetOrigin((-100.0, -80.0, 40.0))
    return image


def as_itk(ending: str) -> Callable[[NDArray[Any], str, Path], None]:
    return lambda pixels, plane, path: SimpleITK.WriteImage(itk_slice(pixels, plane), f"{path}{ending}")


def as_flipped_nifti(pixels: NDArray[Any], plane: str, path: Path) -> None:
    """Both in-plane axes run the other way, the place of each voxel is kept: what RAS order makes of an axial slice."""
    image = itk_slice(pixels, plane)
    SimpleITK.WriteImage(SimpleITK.Flip(image, (True, True, False)), f"{path}.nii.gz")


def as_wide_nifti(pixels: NDArray[Any], plane: str, path: Path) -> None:
    SimpleITK.WriteImage(itk_slice(pixels.astype(np.int16), plane), f"{path}.nii.gz")


def as_dicom(pixels: NDArray[Any], plane: str, path: Path) -> None:
    made = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = CTImageStorage if plane == AXIAL else MRImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    made.Modality, made.SeriesNumber, made.InstanceNumber = "CT" if plane == AXIAL else "MR", 1, 1
    made.ImagePositionPatient = [-100.0, -80.0, 40.0]
    made.ImageOrientationPatient = [float(value) for step in DIRECTIONS[plane] for value in step]
    made.PixelSpacing, made.SliceThickness = [PIXEL_MM, PIXEL_MM], 3.0
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OB"
    pydicom.dcmwrite(f"{path}.dcm", made, enforce_file_format=True)


def same(mask: Mask) -> Mask:
    return mask


WRITERS: dict[str, tuple[Callable[[NDArray[Any], str, Path], None], Callable[[Mask], Mask]]] = {
    "picture": (as_picture, same),
    "NIfTI": (as_itk(".nii.gz"), same),
    "NIfTI, voxels the other way": (as_flipped_nifti, lambda mask: mask[::-1, ::-1]),
    "NIfTI, 16 bits": (as_wide_nifti, same),
    "NRRD": (as_itk(".nrrd"), same),
    "DICOM": (as_dicom, same),
}


def mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def reported() -> dict[tuple[str, str], float]:
    """Dice of a phrase alone by image and concept, as the results have it."""
    with RESULTS.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {(row["image"], row["concept"]): float(row["dice"]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("volumes", "slices"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only the first so many images of a set")
    args = parser.parse_args()
    rows = sorted(read_index(args.data), key=lambda row: (row.dataset, row.image.as_posix()))
    table = volumes(rows, args.data, reported(), args.limit) if args.what == "volumes" else slices(rows, args.limit)
    print(json.dumps(table, indent=1))
    off = [row for row in table if not abs(row["Dice"] - row["said"]) <= TOLERANCE]
    if off:
        sys.exit(f"{len(off)} of {len(table)} figures are not what was said")


if __name__ == "__main__":
    main()
