"""Every DICOM file that the installed pydicom ships, and what reading it must give.

Shape, type, sum of all values and one value were compared once, voxel by voxel, with SimpleITK 2.5 (GDCM), which
decodes them by itself; where it cannot or gives other units, the reason stands beside the row. `test_simpleitk_agrees`
repeats the comparison. Nothing is fetched: files that pydicom would download are not here.
"""

import numpy as np
import pytest
import SimpleITK

from made_dicom import shipped_files
from medsam3.errors import InputError
from medsam3.geometry import world_from_index
from medsam3.io import read

ROOT = shipped_files()

# name, kind, shape (N, H, W, C), type, sum of all values, value at [-1, H // 3, W // 2]
IMAGES: list[tuple[str, str, tuple[int, int, int, int], str, float, list[float]]] = [
    ("693_J2KI.dcm", "picture", (1, 512, 512, 1), "int16", -270617240, [37]),
    ("CT_small.dcm", "picture", (1, 128, 128, 1), "int16", -1950906, [343]),
    ("ExplVR_BigEnd.dcm", "picture", (1, 60, 80, 3), "uint8", 2470716, [255, 255, 0]),
    ("GDCMJ2K_TextGBR.dcm", "picture", (1, 400, 400, 3), "uint8", 59729223, [128, 128, 128]),
    ("J2K_pixelrep_mismatch.dcm", "picture", (1, 512, 512, 1), "int16", -172605258, [90]),
    ("JPEG-lossy.dcm", "picture", (1, 1024, 256, 1), "uint16", 3767007, [31]),
    ("JPEG2000.dcm", "picture", (1, 1024, 256, 1), "int16", 3527976, [24]),
    ("JPEGLSNearLossless_08.dcm", "picture", (1, 45, 10, 1), "uint8", 25000, [30]),
    ("JPEGLSNearLossless_16.dcm", "picture", (1, 50, 10, 1), "uint16", 6007250, [4095]),
    ("JPGExtended.dcm", "picture", (1, 1024, 256, 1), "uint16", 3767007, [31]),
    ("MR_small.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("MR_small_RLE.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("MR_small_bigendian.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("MR_small_expb.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("MR_small_implicit.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("MR_small_jp2klossless.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("MR_small_jpeg_ls_lossless.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("MR_small_padded.dcm", "picture", (1, 64, 64, 1), "int16", 2125338, [243]),
    ("SC_jpeg_no_color_transform.dcm", "picture", (1, 256, 256, 3), "uint8", 47966767, [244, 244, 244]),
    ("SC_jpeg_no_color_transform_2.dcm", "picture", (1, 256, 256, 3), "uint8", 48294002, [242, 245, 243]),
    ("SC_rgb_dcmtk_+eb+cr.dcm", "picture", (1, 100, 100, 3), "uint8", 3832200, [128, 255, 128]),
    ("SC_rgb_dcmtk_+eb+cy+n1.dcm", "picture", (1, 100, 100, 3), "uint8", 3826350, [130, 255, 129]),
    ("SC_rgb_dcmtk_+eb+cy+n2.dcm", "picture", (1, 100, 100, 3), "uint8", 3832000, [129, 255, 129]),
    ("SC_rgb_dcmtk_+eb+cy+np.dcm", "picture", (1, 100, 100, 3), "uint8", 3826350, [130, 255, 129]),
    ("SC_rgb_dcmtk_+eb+cy+s2.dcm", "picture", (1, 100, 100, 3), "uint8", 3832000, [129, 255, 129]),
    ("SC_rgb_dcmtk_+eb+cy+s4.dcm", "picture", (1, 100, 100, 3), "uint8", 3832000, [129, 255, 129]),
    ("SC_rgb_gdcm_KY.dcm", "picture", (1, 100, 100, 3), "uint8", 3831000, [128, 255, 128]),
    ("SC_rgb_jls_lossy_line.dcm", "picture", (1, 100, 100, 3), "uint8", 3840000, [130, 255, 130]),
    ("SC_rgb_jls_lossy_sample.dcm", "picture", (1, 100, 100, 3), "uint8", 3840000, [130, 255, 130]),
    ("SC_rgb_jpeg.dcm", "picture", (1, 256, 256, 3), "uint8", 47966767, [244, 244, 244]),
    ("SC_rgb_jpeg_app14_dcmd.dcm", "picture", (1, 256, 256, 3), "uint8", 48294002, [242, 245, 243]),
    ("SC_rgb_jpeg_dcmd.dcm", "picture", (1, 256, 256, 3), "uint8", 47966767, [244, 244, 244]),
    ("SC_rgb_jpeg_dcmtk.dcm", "picture", (1, 100, 100, 3), "uint8", 3832000, [129, 255, 129]),
    ("SC_rgb_jpeg_gdcm.dcm", "picture", (1, 100, 100, 3), "uint8", 3831000, [128, 255, 128]),
    ("SC_rgb_jpeg_lossy_gdcm.dcm", "picture", (1, 100, 100, 3), "uint8", 3825850, [129, 255, 129]),
    ("SC_rgb_rle.dcm", "picture", (1, 100, 100, 3), "uint8", 3831000, [128, 255, 128]),
    ("SC_rgb_rle_16bit.dcm", "picture", (1, 100, 100, 3), "uint8", 3831000, [128, 255, 128]),
    ("SC_rgb_rle_16bit_2frame.dcm", "volume", (2, 100, 100, 3), "uint8", 7650000, [127, 0, 127]),
    ("SC_rgb_rle_2frame.dcm", "volume", (2, 100, 100, 3), "uint8", 7650000, [127, 0, 127]),
    ("SC_rgb_rle_32bit.dcm", "picture", (1, 100, 100, 3), "uint8", 3831000, [128, 255, 128]),
    ("SC_rgb_rle_32bit_2frame.dcm", "volume", (2, 100, 100, 3), "uint8", 7650000, [127, 0, 127]),
    ("SC_rgb_small_odd.dcm", "picture", (1, 3, 3, 3), "uint8", 3477, [63, 87, 176]),
    ("SC_rgb_small_odd_big_endian.dcm", "picture", (1, 3, 3, 3), "uint8", 3477, [63, 87, 176]),
    ("SC_rgb_small_odd_jpeg.dcm", "picture", (1, 3, 3, 3), "uint8", 3465, [62, 87, 179]),
    ("SC_ybr_full_422_uncompressed.dcm", "picture", (1, 100, 100, 3), "uint8", 3832000, [129, 255, 129]),
    ("examples_jpeg2k.dcm", "picture", (1, 480, 640, 3), "uint8", 31821736, [115, 115, 115]),
    ("examples_overlay.dcm", "picture", (1, 300, 484, 1), "uint16", 27833052, [446]),
    ("examples_palette.dcm", "picture", (1, 350, 800, 3), "uint8", 17214150, [113, 113, 113]),
    ("examples_rgb_color.dcm", "picture", (1, 240, 320, 3), "uint8", 7895026, [104, 104, 104]),
    ("examples_ybr_color.dcm", "video", (30, 240, 320, 3), "uint8", 72512675, [41, 41, 41]),
    ("image_dfl.dcm", "picture", (1, 512, 512, 1), "uint8", 33322688, [164]),
    ("rtdose.dcm", "volume", (15, 10, 10, 1), "float32", 1519.91, [1.0829999446868896]),
    ("rtdose_1frame.dcm", "picture", (1, 10, 10, 1), "float32", 101.3779998, [1.0789999961853027]),
    ("rtdose_expb.dcm", "volume", (15, 10, 10, 1), "float32", 1519.91, [1.0829999446868896]),
    ("rtdose_expb_1frame.dcm", "picture", (1, 10, 10, 1), "float32", 101.3779998, [1.0789999961853027]),
    ("rtdose_rle.dcm", "volume", (15, 10, 10, 1), "float32", 1519.91, [1.0829999446868896]),
    ("rtdose_rle_1frame.dcm", "picture", (1, 10, 10, 1), "float32", 101.3779998, [1.0789999961853027]),
]
OTHER_UNITS = ("SC_rgb_rle_16", "SC_rgb_rle_32", "rtdose")  # SimpleITK keeps 16 and 32 bits, and gives no dose in Gy

NO_IMAGES = [
    ("ExplVR_BigEndNoMeta.dcm", r"the file is DICOM without pixels \(RT Ion Plan Storage"),
    ("ExplVR_LitEndNoMeta.dcm", r"the file is DICOM without pixels \(RT Ion Plan Storage"),
    ("JPEG2000-embedded-sequence-delimiter.dcm", r"the DICOM pixels \(JPEG 2000 Image Compression\) cannot be decoded"),
    ("MR_truncated.dcm", r"the DICOM pixels \(Explicit VR Little Endian\) cannot be decoded"),
    ("README.txt", r"the format is not known"),
    ("UN_sequence.dcm", r"the file is DICOM without pixels \(CT Image Storage"),
    ("badVR.dcm", r"the DICOM pixels \(Explicit VR Little Endian\) cannot be decoded"),
    ("crayons.icc", r"the format is not known"),
    ("dicomdirtests/DICOMDIR", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/DICOMDIR-bigEnd", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/DICOMDIR-empty.dcm", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/DICOMDIR-implicit", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/DICOMDIR-nooffset", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/DICOMDIR-nopatient", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/DICOMDIR-reordered", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/README.txt", r"the format is not known"),
    ("dicomdirtests/TINY_ALPHA/DICOMDIR", r"the file is a DICOMDIR, a table of contents"),
    ("dicomdirtests/TINY_ALPHA/README", r"the file is not a DICOM file, nor of another known format"),
    ("empty_charset_LEI.dcm", r"the file is DICOM without pixels \(of unknown kind"),
    ("liver_1frame.dcm", r"the file is a DICOM segmentation, masks and not an image"),
    ("liver_expb_1frame.dcm", r"the file is a DICOM segmentation, masks and not an image"),
    ("meta_missing_tsyntax.dcm", r"the file is DICOM without pixels \(of unknown kind"),
    ("nested_priv_SQ.dcm", r"the file is DICOM without pixels \(of unknown kind"),
    ("no_meta.dcm", r"the file is not a DICOM file, nor of another known format"),
    ("no_meta_group_length.dcm", r"the file is DICOM without pixels \(RT Image Storage"),
    ("priv_SQ.dcm", r"the file is DICOM without pixels \(MR Image Storage"),
    ("reportsi.dcm", r"the file is DICOM without pixels \(Basic Text SR Storage"),
    ("reportsi_with_empty_number_tags.dcm", r"the file is DICOM without pixels \(Basic Text SR Storage"),
    ("rtplan.dcm", r"the file is DICOM without pixels \(RT Plan Storage"),
    ("rtplan.dump", r"the format is not known"),
    ("rtplan_truncated.dcm", r"the file is DICOM without pixels \(RT Plan Storage"),
    ("rtstruct.dcm", r"the file is DICOM without pixels \(RT Structure Set Storage"),
    ("rtstruct.dump", r"the format is not known"),
    ("test-SR.dcm", r"the file is DICOM without pixels \(Comprehensive SR Storage"),
    ("test1.json", r"the format is not known"),
    ("test_PN.json", r"the format is not known"),
    ("waveform_ecg.dcm", r"the file is DICOM without pixels \(12-lead ECG Waveform Storage"),
    ("zipMR.gz", r"the file is packed and holds no NIfTI"),
]
DEEP = ("dicomdirtests/77654033/", "dicomdirtests/98892001/", "dicomdirtests/98892003/")
PIXELLESS = "dicomdirtests/TINY_ALPHA/PT"


@pytest.mark.parametrize(("name", "kind", "shape", "dtype", "total", "value"), IMAGES, ids=[row[0] for row in IMAGES])
def test_each_image_is_read(
    name: str, kind: str, shape: tuple[int, ...], dtype: str, total: float, value: list[float]
) -> None:
    image = read(ROOT / name)
    assert (image.kind, image.array().shape, str(image.array().dtype)) == (kind, shape, dtype)
    # Lossy decoders of other builds may round differently: half a grey level on average, six at one pixel.
    assert image.array().sum(dtype=np.float64) == pytest.approx(total, rel=1e-6, abs=0.5 * image.array().size)
    np.testing.assert_allclose(image.array()[-1, shape[1] // 3, shape[2] // 2], value, rtol=1e-5, atol=6)


@pytest.mark.parametrize(("name", "message"), NO_IMAGES, ids=[row[0] for row in NO_IMAGES])
def test_each_other_file_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(ROOT / name)
    assert "\n" not in str(caught.value)


def test_the_table_names_every_file_that_is_shipped() -> None:
    known = {row[0] for row in IMAGES} | {row[0] for row in NO_IMAGES}
    shipped = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
    assert {name for name in shipped if not name.startswith((*DEEP, PIXELLESS))} == known


def test_single_slices_of_the_dicomdir_sets_are_pictures() -> None:
    paths = [path for folder in DEEP for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert len(paths) == 3 + 4 + 2 + 5 + 3 + 7 + 7  # CR1-3, CT2, CT2N, CT5N, MR1, MR2, MR700
    for path in paths:
        image = read(path)
        assert (image.kind, image.shape) == ("picture", (1, 16, 16))


def test_series_folders_of_the_dicomdir_sets_are_volumes_or_say_why_not() -> None:
    assert read(ROOT / "dicomdirtests/98892001/CT5N").shape == (5, 16, 16)
    with pytest.raises(InputError, match=r"4 series: .*series="):
        read(ROOT / "dicomdirtests/77654033")


@pytest.mark.parametrize("name", [row[0] for row in IMAGES if not row[0].startswith(OTHER_UNITS)])
def test_simpleitk_agrees(name: str) -> None:
    image = read(ROOT / name)
    other = SimpleITK.ReadImage(str(ROOT / name))
    voxels = SimpleITK.GetArrayFromImage(other).reshape(image.array().shape)
    np.testing.assert_allclose(image.array(), voxels, rtol=0, atol=1e-3)
    if image.affine is not None:
        n, row, col = (size - 1 for size in image.shape)
        expected = other.TransformIndexToPhysicalPoint((col, row, n))
        np.testing.assert_allclose(world_from_index(image.affine, (n, row, col)), expected, atol=1e-3)
