from pathlib import Path

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions
from medsam3.image import Image, Masks, ObjectMask, Window

OBLIQUE = affine_from_directions([1, 2, 3], [0, 0.5, 4], [-0.48, 0.36, 0], [0.3, 0.4, 0])
STACK = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5, 1)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 5)), r"shape \(4, 5\)"),
        (np.zeros((1, 4, 5, 2)), "1 or 3"),
        (np.zeros((1, 0, 5, 1)), "nothing empty"),
        (np.zeros((1, 4, 5, 1), dtype=complex), "complex128"),
        (np.full((1, 4, 5, 1), np.inf), "NaN or infinity"),
        (np.array([["a"]]).reshape(1, 1, 1, 1), "<U1"),
        (np.zeros((2, 4, 5, 1)), "a picture has one frame, this one has 2"),
    ],
)
def test_bad_pixels_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Image(pixels)


def test_bad_affines_and_windows_are_refused() -> None:
    with pytest.raises(InputError, match="singular"):
        Image(STACK, kind="volume", affine=np.zeros((4, 4)) + np.diag([0, 0, 0, 1]))
    for low, high in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="the lower one first"):
            Window(low, high)


def test_shape_and_spacing_follow_the_axes_n_row_col() -> None:
    image = Image(STACK, kind="volume", affine=OBLIQUE)
    assert image.shape == (3, 4, 5)
    assert image.spacing_mm == pytest.approx((16.25**0.5, 0.6, 0.5))
    assert Image(STACK, kind="volume").spacing_mm is None


def test_sizes_are_those_of_what_is_sheared_too() -> None:
    image = Image(STACK, kind="volume", affine=OBLIQUE)  # slices shifted by .5 mm each: 4 x .6 x .5 mm a voxel
    assert image.volume_ml(1000) == pytest.approx(1.2)
    assert image.volume_ml(0) == 0
    assert image.frame(0).area_mm2(10) == pytest.approx(10 * 0.6 * 0.5)
    assert image.frame(0).volume_ml(10) is None
    assert (Image(STACK, "volume").volume_ml(9), Image(STACK, "volume").area_mm2(9)) == (None, None)


def test_a_frame_is_a_picture_in_its_own_place() -> None:
    files = tuple(Path(f"{n}.dcm") for n in range(3))
    image = Image(STACK, "volume", OBLIQUE, window=Window(0, 9), source=files, metadata={"modality": "CT"})
    frame = image.frame(2)
    assert frame.kind == "picture" and np.array_equal(frame.array()[0], STACK[2])
    assert frame.affine is not None
    np.testing.assert_allclose(frame.affine[:3, 3], [1, 3, 11])  # the origin plus twice (0, .5, 4)
    assert (frame.source, frame.window, frame.metadata["modality"]) == ((Path("2.dcm"),), Window(0, 9), "CT")
    assert Image(STACK, "volume", source=files[:1]).frame(2).source == files[:1]
    for n in (-1, 3):
        with pytest.raises(InputError, match=f"frame {n} was asked for, allowed is 0 to 2"):
            image.frame(n)


def test_metadata_cannot_be_changed_from_outside() -> None:
    about = {"modality": "CT"}
    image = Image(STACK, "volume", metadata=about)
    about["modality"] = "MR"
    assert image.metadata["modality"] == "CT"
    with pytest.raises(TypeError):
        image.metadata["modality"] = "US"  # type: ignore[index]


def two_objects() -> np.ndarray:
    dense = np.zeros((3, 3, 4, 5), dtype=bool)  # the last one stays empty
    dense[0, 1, 2, 3] = dense[0, 2, 3, 1] = True
    dense[1, 1, 2, 3:5] = True
    return dense


def test_masks_keep_objects_best_first_and_leave_out_empty_ones() -> None:
    masks = Masks.from_dense(two_objects(), [0.2, 0.7, 0.9], concept="polyp", presence=0.5)
    assert len(masks) == 2 and masks.scores == (0.7, 0.2) and masks.concept == "polyp"
    assert np.array_equal(masks.dense(0), two_objects()[1])
    assert np.array_equal(masks.dense(1), two_objects()[0])
    assert np.array_equal(masks.union(), two_objects().any(axis=0))
    labels = masks.label_map()
    assert labels.dtype == np.uint16 and labels[1, 2].tolist() == [0, 0, 0, 1, 1] and labels[2, 3, 1] == 2


def test_an_object_is_kept_as_its_crop() -> None:
    item = ObjectMask.from_dense(two_objects()[0], 0.2)
    assert item is not None
    assert (item.start, item.crop.shape, item.voxels) == ((1, 2, 1), (2, 2, 3), 2)
    assert item.box == (0.5, 1.5, 3.5, 3.5)  # columns 1 to 3, rows 2 to 3, outer edges
    assert ObjectMask.from_dense(two_objects()[2], 0.9) is None
    with pytest.raises(InputError, match="mask is uint8"):
        ObjectMask.from_dense(np.zeros((1, 2, 2), dtype=np.uint8), 0.5)


def test_no_objects_give_empty_maps() -> None:
    masks = Masks((2, 4, 5), concept="polyp", presence=0.01, is_present=False)
    assert len(masks) == 0 and masks.scores == () and not masks.union().any() and not masks.label_map().any()


def test_objects_outside_the_image_are_refused() -> None:
    with pytest.raises(InputError, match="outside the image's"):
        Masks((1, 4, 5), (ObjectMask((0, 3, 4), np.ones((1, 1, 2), dtype=bool), 0.5),))
    with pytest.raises(InputError, match="outside the image's"):
        Masks((1, 4, 5), (ObjectMask((0, -1, 0), np.ones((1, 1, 1), dtype=bool), 0.5),))


def test_many_masks_equal_one_by_one() -> None:
    dense = np.random.default_rng(0).random((5, 2, 7, 9)) > 0.7
    scores = [0.5, 0.4, 0.3, 0.2, 0.1]
    many = Masks.from_dense(dense, scores)
    for k in range(5):
        one = Masks.from_dense(dense[k : k + 1], scores[k : k + 1])
        assert np.array_equal(many.dense(k), one.dense(0)) and np.array_equal(many.dense(k), dense[k])
