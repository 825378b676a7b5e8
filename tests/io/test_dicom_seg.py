from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.pixels import pack_bits

from made_dicom import (
    COLUMN_DIRECTION,
    CR,
    NORMAL,
    ORIGIN_MM,
    dataset,
    enhanced,
    placed,
    ramp,
    save,
    series,
    shipped_files,
    world,
)
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io import read, write
from medsam3.io.dicom_seg import code_of, read_seg

VOXELS = {(1, 2, 3), (1, 2, 4), (2, 4, 0), (3, 0, 5)}  # (n, row, col) of the first object


def masks_of(*objects: set[tuple[int, int, int]], shape: tuple[int, int, int], concept: str = "liver") -> Masks:
    dense = np.zeros((len(objects), *shape), dtype=bool)
    for k, voxels in enumerate(objects):
        for voxel in voxels:
            dense[k][voxel] = True
    return Masks.from_dense(dense, [0.9 - 0.1 * k for k in range(len(objects))], concept=concept)


def voxel_positions(path: Path, segment: int) -> list[list[float]]:
    """LPS positions of a segment's voxels, from the file's own header and the standard's formula, by pydicom only."""
    made = pydicom.dcmread(path)
    shared = made.SharedFunctionalGroupsSequence[0]
    row_direction = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient[:3], dtype=float)
    column_direction = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient[3:], dtype=float)
    row_mm, column_mm = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for frame, pixels in zip(made.PerFrameFunctionalGroupsSequence, np.atleast_3d(made.pixel_array.T).T, strict=True):
        group = frame if "SegmentIdentificationSequence" in frame else shared  # shared where there is one segment
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
            continue
        corner = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        for row, col in np.argwhere(pixels):
            found.append(corner + row * row_mm * column_direction + col * column_mm * row_direction)
    return sorted(np.round(found, 3).tolist())


def expected_positions(voxels: set[tuple[int, int, int]]) -> list[list[float]]:
    return sorted(np.round([world(*voxel) for voxel in voxels], 3).tolist())


def test_every_voxel_of_an_oblique_series_comes_back_at_its_place(tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    second = {(0, 0, 0), (1, 2, 3)}  # overlaps the first object
    write(masks_of(VOXELS, second, shape=image.shape), tmp_path / "seg.dcm", image)
    for segment, voxels in ((1, VOXELS), (2, second)):
        np.testing.assert_allclose(
            voxel_positions(tmp_path / "seg.dcm", segment), expected_positions(voxels), atol=1e-3
        )


def test_highdicom_reads_the_array_back_slice_by_slice(tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    masks = masks_of(VOXELS, {(0, 0, 0)}, shape=image.shape)
    write(masks, tmp_path / "seg.dcm", image)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in image.source]
    back = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)  # (N, H, W, K)
    for k in range(2):
        assert np.array_equal(back[..., k].astype(bool), masks.dense(k))


def test_simpleitk_sees_the_same_places(tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    full = {(n, row, 2) for n in range(4) for row in range(5)}  # in every slice, so that none is left out
    write(masks_of(full, shape=image.shape), tmp_path / "seg.dcm", image)
    other = SimpleITK.ReadImage(str(tmp_path / "seg.dcm"))
    seen = [
        other.TransformIndexToPhysicalPoint((int(col), int(row), int(n)))
        for n, row, col in np.argwhere(SimpleITK.GetArrayFromImage(other))
    ]
    np.testing.assert_allclose(sorted(np.round(seen, 3).tolist()), expected_positions(full), atol=1e-3)


def test_an_enhanced_multi_frame_out_of_order_is_matched_frame_by_frame(tmp_path: Path) -> None:
    places = [2.0, 0.0, 3.0, 1.0]
    path = save(enhanced(ramp()[[2, 0, 3, 1]], places), tmp_path / "ct.dcm")
    image = read(path)
    write(masks_of(VOXELS, shape=image.shape), tmp_path / "seg.dcm", image)
    np.testing.assert_allclose(voxel_positions(tmp_path / "seg.dcm", 1), expected_positions(VOXELS), atol=1e-3)


def test_one_slice_of_a_series_refers_to_its_own_file(tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct")).frame(2)
    write(masks_of({(0, 4, 1)}, shape=image.shape), tmp_path / "seg.dcm", image)
    np.testing.assert_allclose(voxel_positions(tmp_path / "seg.dcm", 1), expected_positions({(2, 4, 1)}), atol=1e-3)


def test_a_radiograph_without_position_keeps_its_pixels(tmp_path: Path) -> None:
    save(dataset(ramp()[0], sop_class=CR, Modality="CR"), tmp_path / "cr.dcm")
    image = read(tmp_path / "cr.dcm")
    masks = masks_of({(0, 1, 2), (0, 4, 5)}, shape=image.shape)
    write(masks, tmp_path / "seg.dcm", image)
    assert np.array_equal(pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.astype(bool), masks.dense(0)[0])


def test_segments_carry_their_concepts_code_and_score(tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    shape = image.shape
    found = [masks_of(VOXELS, {(0, 0, 0)}, shape=shape), masks_of({(0, 1, 1)}, shape=shape, concept="blue thing")]
    write(found, tmp_path / "seg.dcm", image)
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    codes = [item.SegmentedPropertyTypeCodeSequence[0] for item in made.SegmentSequence]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in codes[:2]] == [("10200004", "SCT")] * 2
    assert codes[2].CodingSchemeDesignator == "99MEDSAM3" and codes[2].CodeMeaning == "blue thing"
    assert [item.SegmentAlgorithmType for item in made.SegmentSequence] == ["AUTOMATIC"] * 3
    assert [item.SegmentLabel for item in made.SegmentSequence] == ["liver 1", "liver 2", "blue thing 1"]
    assert made.SegmentSequence[1].SegmentDescription == "score 0.8000"
    assert (made.Manufacturer, made.SegmentationType, made.PatientID) == ("medsam3", "BINARY", "secret-id")


def test_nothing_found_is_one_empty_segment(tmp_path: Path) -> None:
    image = read(save(placed(ramp()[0], 0), tmp_path / "ct.dcm"))
    write(Masks(image.shape, concept="liver"), tmp_path / "seg.dcm", image)
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    assert made.SegmentSequence[0].SegmentDescription == "not found"
    assert not made.pixel_array.any()


def test_letters_beyond_ascii_survive_in_names_and_phrases(tmp_path: Path) -> None:
    made = placed(ramp()[0], 0)
    made.SpecificCharacterSet, made.PatientName = "ISO_IR 100", "Müller^Änne"
    image = read(save(made, tmp_path / "ct.dcm"))
    write(masks_of({(0, 0, 0)}, shape=image.shape, concept="Läsion 病変"), tmp_path / "seg.dcm", image)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(seg.PatientName) == "Müller^Änne"
    assert seg.SegmentSequence[0].SegmentLabel == "Läsion 病変 1"


def test_long_phrases_and_no_phrase_have_codes_of_legal_length() -> None:
    code = code_of("x" * 300)
    assert len(code.meaning) == 64 and len(code.value) <= 16
    assert code.value == code_of("X" * 300).value != code_of("y").value
    assert code_of("").meaning == "object"


def test_sources_that_cannot_be_referred_to_are_refused(tmp_path: Path) -> None:
    masks = Masks((1, 5, 6))
    with pytest.raises(InputError, match="needs an image that was read from DICOM"):
        write(masks, tmp_path / "seg.dcm", Image(ramp()[:1, ..., None]))
    lacking = dataset(ramp()[0])
    del lacking.StudyInstanceUID
    with pytest.raises(InputError, match="source's StudyInstanceUID, which it lacks"):
        write(masks, tmp_path / "seg.dcm", read(save(lacking, tmp_path / "a.dcm")))
    cine = read(shipped_files() / "examples_ybr_color.dcm")
    with pytest.raises(InputError, match="several frames needs a source with a frame of reference"):
        write(Masks(cine.shape), tmp_path / "seg.dcm", cine)
    one = read(save(enhanced(ramp(), [0, 1, 2, 3]), tmp_path / "e.dcm"), frame=1)
    with pytest.raises(InputError, match="holds 1 of the DICOM file's 4 frames"):
        write(Masks(one.shape), tmp_path / "seg.dcm", one)
    assert not (tmp_path / "seg.dcm").exists()


def of_another_maker(path: Path, change: Callable[[Any], None]) -> Path:
    """A segmentation that this package wrote, as if another had, with a change."""
    made = pydicom.dcmread(path)
    made.Manufacturer = made.ManufacturerModelName = "other"
    made.SegmentSequence[0].SegmentLabel = "tumour left"
    change(made)
    made.save_as(path)
    return path


def without_dimensions(made: Any) -> None:
    del made.DimensionIndexSequence
    for frame in made.PerFrameFunctionalGroupsSequence:
        del frame.FrameContentSequence


def with_another_thickness(made: Any) -> None:
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 0.3


def without_positions(made: Any) -> None:
    for frame in made.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def with_a_segment_each_frame(made: Any) -> None:
    held = made.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
    del made.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
    for frame in made.PerFrameFunctionalGroupsSequence:
        frame.SegmentIdentificationSequence = held


def without_a_segment_of_frames(made: Any) -> None:
    del made.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence


def numbered_five(made: Any) -> None:
    made.SegmentSequence[0].SegmentNumber = 5
    made.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 5


def in_rows_from_right_to_left(made: Any) -> None:
    """Turn the frames over, and their direction with them."""
    made.PixelData = pack_bits(np.ascontiguousarray(made.pixel_array[:, :, ::-1]))
    orientation = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    directions = np.array(orientation.ImageOrientationPatient, dtype=float)
    orientation.ImageOrientationPatient = [f"{value:.10g}" for value in (*-directions[:3], *directions[3:])]
    for frame in made.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        last = np.array(place.ImagePositionPatient, dtype=float) + directions[:3] * 0.5 * (made.Columns - 1)
        place.ImagePositionPatient = [f"{value:.10g}" for value in last]


_CHANGES = (without_dimensions, with_another_thickness, without_positions, with_a_segment_each_frame)
_MORE_CHANGES = (without_a_segment_of_frames, numbered_five, in_rows_from_right_to_left)


@pytest.mark.parametrize("change", [*_CHANGES, *_MORE_CHANGES])
def test_each_frame_of_other_makers_lies_where_it_says(change: Callable[[Any], None], tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    dense = np.zeros((1, *image.shape), dtype=np.bool_)
    dense[0, 1:3, 2:4, 1:5] = True
    write(Masks.from_dense(dense, [0.9], concept="liver"), tmp_path / "seg.dcm", image)
    (found,) = read_seg(of_another_maker(tmp_path / "seg.dcm", change), image)
    assert found.concept == "tumour left"
    np.testing.assert_array_equal(found.union(), dense[0])


def test_a_segmentation_over_a_tilted_gantry_is_read_back(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    for path in folder.iterdir():  # each slice lies 0.6 mm further down its own columns
        made = pydicom.dcmread(path)
        n = round(float((np.array(made.ImagePositionPatient, dtype=float) - ORIGIN_MM) @ NORMAL) / 2.5)
        shifted = np.array(made.ImagePositionPatient, dtype=float) + 0.6 * n * COLUMN_DIRECTION
        made.ImagePositionPatient = [f"{value:.10g}" for value in shifted]
        made.save_as(path)
    image = read(folder)
    dense = np.zeros((1, *image.shape), dtype=np.bool_)
    dense[0, 0:3, 2:4, 1:5] = True
    write(Masks.from_dense(dense, [0.9], concept="liver"), tmp_path / "seg.dcm", image)
    (found,) = read_seg(tmp_path / "seg.dcm", image)
    np.testing.assert_array_equal(found.union(), dense[0])


def test_the_background_of_a_label_map_is_no_segment(tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    numbers = np.zeros(image.shape, dtype=np.uint8)
    numbers[1:3, 1:3, 1:4], numbers[0, 3:5, 4:6] = 1, 2
    code = highdicom.sr.CodedConcept("10200004", "SCT", "Liver")
    described = [
        highdicom.seg.SegmentDescription(n, name, code, code, "MANUAL") for n, name in ((1, "liver"), (2, "cyst"))
    ]
    made = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(path) for path in image.source],
        pixel_array=numbers,
        segmentation_type="LABELMAP",
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=9,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="other",
        manufacturer_model_name="other",
        software_versions="1",
        device_serial_number="1",
    )
    assert 0 in [int(item.SegmentNumber) for item in made.SegmentSequence]
    made.save_as(tmp_path / "seg.dcm")
    found = {one.concept: one.union() for one in read_seg(tmp_path / "seg.dcm", image)}
    assert set(found) == {"liver", "cyst"}
    np.testing.assert_array_equal(found["liver"] + 2 * found["cyst"], numbers)
