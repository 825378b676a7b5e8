import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from made_dicom import (
    COLUMN_DIRECTION,
    CR,
    ROW_DIRECTION,
    SECONDARY_CAPTURE,
    US_CINE,
    dataset,
    enhanced,
    placed,
    ramp,
    save,
    world,
)
from medsam3.errors import InputError
from medsam3.geometry import world_from_index
from medsam3.image import Image, Window
from medsam3.io import files, read
from medsam3.view.view import view_of

GREY = np.array([[0, 10, 4095], [100, 200, 300]], dtype=np.uint16)


def grey(tmp_path: Path, **attributes: Any) -> Image:
    return read(save(dataset(GREY, **attributes), tmp_path / "grey.dcm"))


def test_rescale_gives_whole_hounsfield_units(tmp_path: Path) -> None:
    image = grey(tmp_path, RescaleSlope=1, RescaleIntercept=-1024)
    assert image.array().dtype == np.int16
    assert image.array()[0, :, :, 0].tolist() == [[-1024, -1014, 3071], [-924, -824, -724]]


@pytest.mark.parametrize("index", [None, 1])
def test_samples_above_unused_bits_are_brought_down(index: int | None, tmp_path: Path) -> None:
    values = np.array([[[0, 10, 4095]], [[7, 200, 300]]], dtype=np.uint16)  # 12 bits, stored in the upper 12 of 16
    path = save(dataset(values << 4, BitsStored=12, HighBit=15), tmp_path / "a.dcm")
    expected = values if index is None else values[index : index + 1]
    np.testing.assert_array_equal(read(path, frame=index).array()[..., 0], expected)


def test_a_fraction_as_slope_gives_real_numbers(tmp_path: Path) -> None:
    image = grey(tmp_path, RescaleSlope=0.5, RescaleIntercept=1)
    assert image.array().dtype == np.float32
    assert image.array()[0, 1, :, 0].tolist() == [51.0, 101.0, 151.0]
    assert grey(tmp_path, RescaleSlope=0.25).array()[0, 0, 1, 0] == 2.5


def test_modality_lut_replaces_values(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.LUTData = [7, 8, 9, 500]
    table["LUTData"].VR = "US"
    pixels = np.array([[0, 1], [2, 900]], dtype=np.uint16)
    path = save(dataset(pixels, ModalityLUTSequence=Sequence([table])), tmp_path / "lut.dcm")
    assert read(path).array()[0, :, :, 0].tolist() == [[7, 8], [9, 500]]  # beyond the table: its last entry


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"WindowCenter": 40, "WindowWidth": 400}, Window(-160.0, 239.0)),  # c - .5 -+ (w - 1) / 2
        ({"WindowCenter": [40, 300], "WindowWidth": [400, 1500]}, Window(-160.0, 239.0)),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, Window(-160.0, 240.0)),
        ({"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}, Window(-160.0, 240.0)),
        ({"WindowCenter": 40, "WindowWidth": 0}, None),
        ({"WindowCenter": 40, "WindowWidth": -5}, None),
        ({"WindowCenter": 40}, None),
        ({}, None),
    ],
)
def test_the_first_window_is_kept(tmp_path: Path, attributes: dict[str, Any], expected: Window | None) -> None:
    assert grey(tmp_path, Modality="DX", **attributes).window == expected


def test_the_window_of_ct_and_mr_is_told_but_not_used_as_other_containers_have_none(tmp_path: Path) -> None:
    for modality in ("CT", "MR"):
        image = grey(tmp_path, WindowCenter=40, WindowWidth=400, Modality=modality)
        assert image.window is None and image.metadata["stored_window"] == "-160 239"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PixelPaddingValue": 10}, (10.0, 10.0)),
        ({"PixelPaddingValue": 10, "PixelPaddingRangeLimit": 30}, (10.0, 30.0)),
        ({"PixelPaddingValue": 10, "RescaleSlope": 2, "RescaleIntercept": -1000}, (-980.0, -980.0)),
        # Of 12 bits turned over, 4095 - 10.
        (
            {"PixelPaddingValue": 10, "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11},
            (4085.0, 4085.0),
        ),
        ({}, None),
    ],
)
def test_padding_is_told_in_the_units_of_the_pixels(
    tmp_path: Path, attributes: dict[str, Any], expected: tuple[float, float] | None
) -> None:
    assert grey(tmp_path, **attributes).padding == expected


def test_signed_padding_is_also_given_as_the_unsigned_number_of_its_bits(tmp_path: Path) -> None:
    made = dataset(np.array([[-2000, 5]], dtype=np.int16))
    made.add_new("PixelPaddingValue", "US", 63_536)  # 65,536 - 2,000
    assert read(save(made, tmp_path / "a.dcm")).padding == (-2000.0, -2000.0)


def test_a_voi_lut_is_kept_as_the_window_in_which_it_rises(tmp_path: Path) -> None:
    table = Dataset()
    # 100 entries from input 50 on: flat at 0 up to entry 20, rising by 100 an entry to 1000 at entry 30, then flat
    table.LUTDescriptor = [100, 50, 16]
    table.LUTData = [int(np.clip((entry - 20) * 100, 0, 1000)) for entry in range(100)]
    table["LUTData"].VR = "US"
    # 1 % of 1000 is reached first at entry 21, 99 % at entry 30
    assert grey(tmp_path, Modality="DX", VOILUTSequence=Sequence([table])).window == Window(71.0, 80.0)


def test_monochrome1_is_turned_over_with_its_window(tmp_path: Path) -> None:
    about: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    about["Modality"] = "DX"
    plain = grey(tmp_path, **about)
    assert plain.array().dtype == np.uint16
    assert plain.array()[0, :, :, 0].tolist() == [[4095, 4085, 0], [3995, 3895, 3795]]  # 4095 - v
    scaled = grey(tmp_path, **about, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=300.5, WindowWidth=201)
    # units run from -100 to 8090, so that u becomes 7990 - u: 0 -> -100 -> 8090
    assert scaled.array()[0, 0, :, 0].tolist() == [8090, 8070, -100]
    assert scaled.window == Window(7990.0 - 400.0, 7990.0 - 200.0)


def test_monochrome1_and_2_of_the_same_scene_look_alike(tmp_path: Path) -> None:
    window: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "WindowWidth": 301, "Modality": "DX"}
    upright = grey(tmp_path, WindowCenter=150.5, **window)
    inverse = dataset(4095 - GREY, PhotometricInterpretation="MONOCHROME1", WindowCenter=4095 - 149.5, **window)
    assert np.array_equal(view_of(upright).rgb(0), view_of(read(save(inverse, tmp_path / "inverse.dcm"))).rgb(0))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_presentation_lut_that_inverts_is_heeded_once(photometric: str, tmp_path: Path) -> None:
    """DCMTK's dcmj2pnm shows both dark where values are high."""
    about = {"PhotometricInterpretation": photometric, "PresentationLUTShape": "INVERSE", "Modality": "DX"}
    image = grey(tmp_path, **about, BitsStored=12, HighBit=11)
    assert image.array()[0, :, :, 0].tolist() == [[4095, 4085, 0], [3995, 3895, 3795]]  # 4095 - v


def test_signed_monochrome1_stays_in_its_range(tmp_path: Path) -> None:
    pixels = np.array([[-128, 127], [0, 5]], dtype=np.int8)
    image = read(save(dataset(pixels, PhotometricInterpretation="MONOCHROME1"), tmp_path / "a.dcm"))
    assert image.array()[0, :, :, 0].tolist() == [[127, -128], [-1, -6]]  # -1 - v


def test_palette_colours_are_looked_up(tmp_path: Path) -> None:
    pixels = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    made = dataset(pixels, sop_class=SECONDARY_CAPTURE, PhotometricInterpretation="PALETTE COLOR")
    tables = {"Red": [0, 0x8000, 0xFF00], "Green": [0x1000, 0, 0xFF00], "Blue": [0, 0xC800, 0]}
    for name, entries in tables.items():
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [3, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", np.array(entries, dtype="<u2").tobytes())
    image = read(save(made, tmp_path / "palette.dcm"))
    assert image.array()[0].tolist() == [[[0, 16, 0], [128, 0, 200]], [[255, 255, 0], [255, 255, 0]]]


def test_colour_by_plane_and_of_16_bits_becomes_8_bit_rgb(tmp_path: Path) -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    by_plane = dataset(rgb, SamplesPerPixel=3)
    by_plane.PlanarConfiguration, by_plane.PixelData = 1, rgb.transpose(2, 0, 1).tobytes()
    assert np.array_equal(read(save(by_plane, tmp_path / "a.dcm")).array()[0], rgb)
    deep = dataset(rgb.astype(np.uint16) * 256 + 7, SamplesPerPixel=3)
    assert np.array_equal(read(save(deep, tmp_path / "b.dcm")).array()[0], rgb)


def test_full_range_ybr_becomes_rgb(tmp_path: Path) -> None:
    ybr = np.array([[[76, 85, 255], [150, 44, 21]]], dtype=np.uint8)  # red and green by the standard's equations
    made = dataset(ybr, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL")
    image = read(save(made, tmp_path / "ybr.dcm"))
    np.testing.assert_allclose(image.array()[0, 0].astype(int), [[254, 0, 0], [0, 255, 1]], atol=1)


def test_single_bit_pixels_are_black_and_white(tmp_path: Path) -> None:
    made = dataset(np.zeros((2, 8), dtype=np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    made.PixelData = bytes([0b00000001, 0b10000000])  # first pixel of row 0, last pixel of row 1
    pixels = read(save(made, tmp_path / "bits.dcm")).array()
    assert pixels.dtype == np.uint8 and pixels[0, 0, 0, 0] == pixels[0, 1, 7, 0] == 255 and pixels.sum() == 510


def test_a_slice_has_its_place_and_thickness(tmp_path: Path) -> None:
    image = read(save(placed(ramp()[0], 2), tmp_path / "ct.dcm"))
    assert image.kind == "picture" and image.affine is not None
    np.testing.assert_allclose(world_from_index(image.affine, (1, 4, 5)), world(3, 4, 5), atol=1e-6)


def test_pixel_size_without_position_is_metadata(tmp_path: Path) -> None:
    made = dataset(ramp()[0], sop_class=CR, ImagerPixelSpacing=[0.2, 0.1])
    image = read(save(made, tmp_path / "cr.dcm"))
    assert image.affine is None and image.metadata["pixel_spacing_mm"] == "0.2 0.1"
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.01, 0.02  # cm a pixel
    made = dataset(ramp()[0], SequenceOfUltrasoundRegions=Sequence([region]))
    assert read(save(made, tmp_path / "us.dcm")).metadata["pixel_spacing_mm"] == "0.2 0.1"


def test_a_cine_is_a_video_with_its_rate(tmp_path: Path) -> None:
    frames = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    cine = read(save(dataset(frames, sop_class=US_CINE, Modality="US", FrameTime=40), tmp_path / "a.dcm"))
    assert (cine.kind, cine.fps) == ("video", 25.0) and np.array_equal(cine.array()[..., 0], frames)
    times = dataset(frames, sop_class=US_CINE, Modality="US", FrameTimeVector=[0, 90, 100, 110])
    assert read(save(times, tmp_path / "b.dcm")).fps == 10.0
    assert read(save(dataset(frames, Modality="XA", CineRate=15), tmp_path / "c.dcm")).fps == 15.0
    untimed = read(save(dataset(frames, Modality="US"), tmp_path / "d.dcm"))
    assert (untimed.kind, untimed.fps) == ("video", None)
    assert read(save(dataset(frames, Modality="OT"), tmp_path / "e.dcm")).kind == "volume"
    chosen = read(tmp_path / "a.dcm", frame=3)
    assert chosen.kind == "picture" and np.array_equal(chosen.array()[0, ..., 0], frames[3])
    with pytest.raises(InputError, match="frame 4 was asked for, allowed is 0 to 3"):
        read(tmp_path / "a.dcm", frame=4)


def test_an_enhanced_multi_frame_is_a_volume_in_order_of_position(tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    path = save(enhanced(ramp()[order], [float(n) for n in order]), tmp_path / "ct.dcm")
    image = read(path)
    assert image.kind == "volume" and image.metadata["stored_window"] == "-160 239"
    assert np.array_equal(image.array()[..., 0], ramp() * 2 - 1000)  # the shared rescale
    assert image.affine is not None
    np.testing.assert_allclose(world_from_index(image.affine, (3, 4, 5)), world(3, 4, 5), atol=1e-6)
    one = read(path, frame=2)  # the file's third frame is slice 3
    assert one.affine is not None and np.array_equal(one.array()[0], image.array()[3])
    np.testing.assert_allclose(world_from_index(one.affine, (0, 4, 5)), world(3, 4, 5), atol=1e-6)


def test_frames_each_have_their_own_rescale(tmp_path: Path) -> None:
    made = enhanced(ramp(2), [0.0, 1.0])
    del made.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for slope, frame in zip((1, 3), made.PerFrameFunctionalGroupsSequence, strict=True):
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, 5, "US"
        frame.PixelValueTransformationSequence = Sequence([item])
    pixels = read(save(made, tmp_path / "pet.dcm")).array()[..., 0]
    assert np.array_equal(pixels, ramp(2) * np.array([1, 3])[:, None, None] + 5)


def test_time_points_in_one_file_need_a_choice(tmp_path: Path) -> None:
    path = save(enhanced(ramp(), [0.0, 1.0, 0.0, 1.0]), tmp_path / "dynamic.dcm")
    with pytest.raises(InputError, match=r"lie at the same place .* choose one frame with frame=, from 0 to 3"):
        read(path)
    assert read(path, frame=1).shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two perpendicular unit vectors"),
        ({"PixelSpacing": [0, 1]}, "singular"),
        ({"ImagePositionPatient": [0, 0]}, "wrong number of values"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels, allowed are 134,217,728"),
        ({"NumberOfFrames": 2_000_000_000}, "voxels, allowed are 1,073,741,824"),
        ({"Rows": 0}, "none may be below 1"),
        ({"Rows": 50}, "cannot be decoded"),
    ],
)
def test_broken_headers_are_refused_in_one_line(tmp_path: Path, attributes: dict[str, Any], message: str) -> None:
    made = placed(ramp()[0], 0)
    for name, value in attributes.items():
        setattr(made, name, value)
    with pytest.raises(InputError, match=message) as caught:
        read(save(made, tmp_path / "broken.dcm"))
    assert "\n" not in str(caught.value)


def test_files_without_pixels_are_refused_by_their_kind(tmp_path: Path) -> None:
    made = dataset(ramp()[0], sop_class="1.2.840.10008.5.1.4.1.1.481.3")
    del made.PixelData
    with pytest.raises(InputError, match=r"without pixels \(RT Structure Set Storage\)"):
        read(save(made, tmp_path / "a.dcm"))
    with pytest.raises(InputError, match="a DICOM segmentation, masks and not an image"):
        read(save(dataset(ramp()[0], sop_class="1.2.840.10008.5.1.4.1.1.66.4"), tmp_path / "b.dcm"))


def test_no_patient_data_reach_metadata_warnings_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    made = placed(ramp()[0], 0)
    path = save(made, tmp_path / "ct.dcm")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"19700101", b"197O-1-1"))  # an illegal date, which pydicom would quote
    image = read(path)
    said = str(dict(image.metadata)) + caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert not any(secret in said for secret in ("Made", "secret-id", "197O"))


def test_a_slope_of_zero_stands_for_none(tmp_path: Path) -> None:
    assert grey(tmp_path, RescaleSlope=0, RescaleIntercept=-1024).array().max() == 4095 - 1024


@pytest.mark.parametrize("distance", [2.5, -2.5])
def test_a_reconstruction_of_nuclear_medicine_lies_where_its_detector_says(distance: float, tmp_path: Path) -> None:
    made = dataset(ramp().astype(np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.20", Modality="NM")
    first = Dataset()
    first.ImagePositionPatient = [f"{value:.10g}" for value in world(0, 0, 0)]
    first.ImageOrientationPatient = [f"{value:.10g}" for value in (*ROW_DIRECTION, *COLUMN_DIRECTION)]
    made.DetectorInformationSequence = Sequence([first])
    made.SliceVector, made.PixelSpacing, made.SpacingBetweenSlices = [1, 2, 3, 4], [0.75, 0.5], distance
    image = read(save(made, tmp_path / "nm.dcm"))
    assert image.affine is not None and image.kind == "volume"
    # A negative distance leads against the normal: slice 3 then lies where slice -3 would.
    expected = world(3 if distance > 0 else -3, 4, 5)
    np.testing.assert_allclose(world_from_index(image.affine, (3, 4, 5)), expected, atol=1e-6)
    one = read(tmp_path / "nm.dcm", frame=3)
    assert one.affine is not None
    np.testing.assert_allclose(world_from_index(one.affine, (0, 4, 5)), expected, atol=1e-6)


def test_a_gated_reconstruction_is_no_stack_and_each_frame_lies_in_its_slice(tmp_path: Path) -> None:
    made = dataset(ramp().astype(np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.20", Modality="NM")
    first = Dataset()
    first.ImagePositionPatient = [f"{value:.10g}" for value in world(0, 0, 0)]
    first.ImageOrientationPatient = [f"{value:.10g}" for value in (*ROW_DIRECTION, *COLUMN_DIRECTION)]
    made.DetectorInformationSequence = Sequence([first])
    made.SliceVector, made.TimeSlotVector = [1, 2, 1, 2], [1, 1, 2, 2]
    made.PixelSpacing, made.SpacingBetweenSlices = [0.75, 0.5], 2.5
    path = save(made, tmp_path / "gated.dcm")
    with pytest.raises(
        InputError, match=r"4 frames show 2 slices several times .* choose one frame with frame=, from 0"
    ):
        read(path)
    one = read(path, frame=3)  # the second slice of the second slot
    assert one.affine is not None and one.array()[0, 0, 0, 0] == 300
    np.testing.assert_allclose(world_from_index(one.affine, (0, 4, 5)), world(1, 4, 5), atol=1e-6)


def test_a_pixel_size_in_the_shared_measures_alone_is_read(tmp_path: Path) -> None:
    made = dataset(GREY, sop_class="1.2.840.10008.5.1.4.1.1.77.1.5.4", Modality="OPT")
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.004, 0.012]
    shared.PixelMeasuresSequence = Sequence([measures])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    assert read(save(made, tmp_path / "opt.dcm")).pixel_size_mm == (0.004, 0.012)


def slide(pixels: np.ndarray[Any, Any], **attributes: Any) -> Any:
    """A whole slide of 5 x 7 pixels in tiles of 2 x 3, from its rows' first to its last."""
    made = dataset(pixels, sop_class="1.2.840.10008.5.1.4.1.1.77.1.6", SamplesPerPixel=3, Modality="SM")
    made.TotalPixelMatrixRows, made.TotalPixelMatrixColumns = 5, 7
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def tiled(whole: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Tiles (9, 2, 3, 3) of (5, 7, 3); those at the edges are filled up with zeros."""
    padded = np.pad(whole, ((0, 1), (0, 2), (0, 0)))
    return np.stack([padded[row : row + 2, column : column + 3] for row in (0, 2, 4) for column in (0, 3, 6)])


def test_the_tiles_of_a_slide_are_one_picture(tmp_path: Path) -> None:
    whole = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    image = read(save(slide(tiled(whole), DimensionOrganizationType="TILED_FULL"), tmp_path / "full.dcm"))
    assert (image.kind, image.shape, image.metadata["tiles"]) == ("picture", (1, 5, 7), "9")
    np.testing.assert_array_equal(image.array()[0], whole)
    # The same in another order, each tile with its place.
    order = np.random.default_rng(3).permutation(9)
    frames = []
    for k in order.tolist():
        place, frame = Dataset(), Dataset()
        place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = (
            2 * (k // 3) + 1,
            3 * (k % 3) + 1,
        )
        frame.PlanePositionSlideSequence = Sequence([place])
        frames.append(frame)
    sparse = slide(tiled(whole)[order], PerFrameFunctionalGroupsSequence=Sequence(frames))
    np.testing.assert_array_equal(read(save(sparse, tmp_path / "sparse.dcm")).array()[0], whole)


def test_slides_that_are_too_large_or_of_several_planes_are_refused(tmp_path: Path) -> None:
    tiles = tiled(np.zeros((5, 7, 3), dtype=np.uint8))
    huge = save(slide(tiles, TotalPixelMatrixRows=50_000, TotalPixelMatrixColumns=60_000), tmp_path / "huge.dcm")
    with pytest.raises(
        InputError, match=r"60000 x 50000 pixels, allowed are .*; of a slide, give a smaller level's file"
    ):
        read(huge)
    with pytest.raises(InputError, match="18 tiles for 9 places"):
        read(save(slide(np.concatenate([tiles, tiles])), tmp_path / "planes.dcm"))
    assert read(tmp_path / "planes.dcm", frame=4).shape == (1, 2, 3)


def test_a_deflated_file_is_counted_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dataset(np.zeros((100, 100), dtype=np.uint16))
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    path = save(made, tmp_path / "deflated.dcm")
    assert read(path).shape == (1, 100, 100)
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 15_000)
    with pytest.raises(InputError, match=r"unpacks to 20,\d{3} bytes, allowed are 15,000"):
        read(path)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"), ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile")],
)
def test_a_form_that_nothing_here_decodes_is_not_called_damaged(tmp_path: Path, syntax: str, name: str) -> None:
    made = dataset(GREY)
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([bytes(20)])
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    with pytest.raises(InputError, match=f"{name}.* not read here: convert them"):
        read(save(made, tmp_path / "a.dcm"))
