"""The small model: prompts of each mode over one frame, with a random detector; and the card beside the weights."""

import hashlib
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from medsam3.data.sources import is_open
from medsam3.errors import InputError
from medsam3.models import detr, registry
from medsam3.models.mini import segmenter as segmenter_module
from medsam3.models.mini.card import MiniCard, MiniThresholds, read_card
from medsam3.models.mini.detector import ImageEncoderName, MiniDetector, MiniDetectorConfig
from medsam3.models.mini.encoder_files import EncoderFiles
from medsam3.models.mini.letterbox import Letterbox, letterbox, letterbox_labels
from medsam3.models.mini.lite_medsam import BoxMasks, LiteMedSam
from medsam3.models.mini.objects import agreeing, blend_where_agreed
from medsam3.models.mini.segmenter import (
    SHIPPED_WEIGHTS,
    ConceptMap,
    MiniFeatures,
    MiniOptions,
    MiniSegmenter,
    load_mini,
)
from medsam3.models.mini.text_encoder import TextEncoder, TextTokens
from medsam3.models.objects import split_objects
from medsam3.prompts import Box, Point, Prompt

TINY = MiniDetectorConfig(width=16, heads=2, feed_forward=16, encoder_layers=1, decoder_layers=2, queries=4)


class FakeLiteMedSam:
    """Stands for LiteMedSAM: a neck that the square alone decides, and every mask is its whole box."""

    def neck(self, square: NDArray[np.uint8]) -> Tensor:
        return torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(int(square.sum()) % 1000))

    def decode(self, neck: Tensor, boxes: Tensor) -> BoxMasks:
        logits = torch.full((len(boxes), 256, 256), -9.0)
        for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            logits[k, round(y0 + 0.5) : round(y1 + 0.5), round(x0 + 0.5) : round(x1 + 0.5)] = 9.0
        return BoxMasks(logits, torch.full((len(boxes),), 0.9))


class FixedTexts:
    """Stands for the text encoder."""

    def encode(self, phrases: Sequence[str]) -> TextTokens:
        rows = [torch.randn(2, 384, generator=torch.Generator().manual_seed(len(phrase))) for phrase in phrases]
        return TextTokens(torch.stack(rows), torch.ones(len(rows), 2, dtype=torch.bool))

    def knows_word(self, word: str) -> bool:
        return False


def segmenter(**thresholds: float) -> MiniSegmenter:
    torch.manual_seed(1)
    card = MiniCard((TINY,), replace(MiniThresholds(presence=0.0), **thresholds))
    return MiniSegmenter(
        cast(LiteMedSam, FakeLiteMedSam()),
        cast(TextEncoder, FixedTexts()),
        [MiniDetector(TINY)],
        card,
    )


def frame(height: int = 120, width: int = 200) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    return np.repeat(((rows + columns) % 256).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (64, 64), (1, 300)])
def test_answers_have_the_frame_s_own_size(height: int, width: int) -> None:
    model = segmenter()
    found = model.decode(model.encode(frame(height, width)), Prompt("polyp"))
    assert found.shape == (1, height, width)
    assert found.presence is not None
    assert 0 <= found.presence <= 1
    assert list(found.scores) == sorted(found.scores, reverse=True)


@pytest.fixture
def by_lite_medsam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes go to LiteMedSAM, whatever the random detector makes of them."""
    monkeypatch.setattr(segmenter_module, "LEAST_FIT", 2.0)


def test_a_box_that_the_detector_fills_needs_no_second_opinion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter_module, "LEAST_FIT", 0.0)
    model = segmenter()
    features = model.encode(frame())
    boxes = (Box(49.5, 19.5, 99.5, 79.5), Box(10, 10, 40, 40))
    with patch.object(model.lite_medsam, "decode", wraps=model.lite_medsam.decode) as second:
        found = model.decode(features, Prompt(boxes=boxes))
    assert second.call_count == 0
    for one in found.objects:
        assert any(one.box[0] >= box.x0 - 3 and one.box[2] <= box.x1 + 4 for box in boxes)  # a margin of 5 %


@pytest.mark.usefixtures("by_lite_medsam")
def test_a_box_prompt_gives_that_box_back_in_frame_pixels() -> None:
    # The stand-in fills the box. 120 x 200 is enlarged by 1.28, so edges are right to half a square pixel (.4 px).
    model = segmenter()
    found = model.decode(model.encode(frame()), Prompt(boxes=(Box(49.5, 19.5, 99.5, 79.5),)))
    assert found.presence is None
    assert found.objects[0].box == pytest.approx((49.5, 19.5, 99.5, 79.5), abs=1.0)


def test_two_boxes_are_two_objects() -> None:
    model = segmenter()
    boxes = (Box(10, 10, 40, 40), Box(100, 50, 150, 100))
    assert len(model.decode(model.encode(frame()), Prompt(boxes=boxes))) == 2


@pytest.mark.usefixtures("by_lite_medsam")
def test_the_same_boxes_with_another_phrase_are_decoded_once() -> None:
    model = segmenter()
    boxes = (Box(10, 10, 40, 40), Box(100, 50, 150, 100))
    with patch.object(model.lite_medsam, "decode", wraps=model.lite_medsam.decode) as decoded:
        features = model.encode(frame())
        alone = model.decode(features, Prompt(boxes=boxes))
        for phrase in ("polyp", "ulcer"):
            model.decode(features, Prompt(phrase, boxes=boxes))
        assert decoded.call_count == 1
        assert len(model.decode(features, Prompt(boxes=boxes[:1]))) == 1
        again = model.decode(features, Prompt(boxes=boxes))
    assert decoded.call_count == 3
    assert [found.box for found in again.objects] == [found.box for found in alone.objects]


def test_a_click_gives_one_object_under_it_and_spares_the_negative_click() -> None:
    model = segmenter()
    points = (Point(100, 60), Point(100, 75, is_positive=False))
    found = model.decode(model.encode(frame()), Prompt(points=points))
    assert len(found) == 1
    assert found.union()[0, 60, 100]
    assert not found.union()[0, 75, 100]


def test_one_box_takes_clicks_and_several_do_not() -> None:
    model = segmenter()
    features = model.encode(frame())
    boxes, clicks = (Box(10, 10, 40, 40), Box(50, 50, 60, 60)), (Point(20, 20),)
    assert len(model.decode(features, Prompt(boxes=boxes[:1], points=clicks))) <= 1
    with pytest.raises(InputError, match="box"):
        model.decode(features, Prompt(boxes=boxes, points=clicks))


def test_a_model_that_has_read_a_phrase_goes_to_another_process() -> None:
    model = segmenter()
    first = model.decode(model.encode(frame()), Prompt("polyp"))
    again = pickle.loads(pickle.dumps(model))
    assert again.decode(again.encode(frame()), Prompt("polyp")).presence == first.presence


def test_a_phrase_with_a_box_stays_in_the_box() -> None:
    model = segmenter(box_share=0.5)
    found = model.decode(model.encode(frame()), Prompt("polyp", boxes=(Box(50, 20, 100, 80),)))
    outside = found.union()[0].copy()
    outside[12:88, 42:108] = False
    assert not outside.any()
    assert found.is_present


def test_an_absent_concept_gives_no_object_unless_a_threshold_is_asked_for() -> None:
    model = segmenter(presence=1.1)
    features = model.encode(frame())
    assert len(model.decode(features, Prompt("polyp"))) == 0
    assert model.decode(features, Prompt("polyp")).is_present is False


class SquareMeans(MiniSegmenter):
    """Finds the bright block of a frame: logits of 5 where the square is bright, presence by how much of it is."""

    def features(self, square: NDArray[np.uint8], place: Letterbox, neck: Tensor | None = None) -> MiniFeatures:
        del neck
        return MiniFeatures(place, (), lambda: torch.from_numpy(square), lambda: ())

    def concept_map(self, features: MiniFeatures, text: str | None, exemplars: tuple[Box, ...] = ()) -> ConceptMap:
        bright = features.neck.float().mean(dim=-1) > 128
        return ConceptMap(0.5 + float(bright.float().mean()), lambda: torch.where(bright, 5.0, -5.0)[None, None])


def finder(**thresholds: float) -> MiniSegmenter:
    plain = segmenter(**thresholds)
    return SquareMeans(plain.lite_medsam, plain.texts, [], plain.card)


def small_block() -> NDArray[np.uint8]:
    """512 x 384 with a block of 41 x 31 pixels, whose odd edges a square of 256 cannot show."""
    rgb = np.zeros((384, 512, 3), np.uint8)
    rgb[101:132, 301:342] = 255
    return rgb


def test_a_closer_look_sharpens_what_is_small_and_stays_in_place() -> None:
    truth = small_block()[..., 0] > 0
    coarse, fine = (
        finder(closer_share=share).decode(finder().encode(small_block()), Prompt("block")).union()[0]
        for share in (0.0, 1.0)
    )
    assert (fine != truth).sum() < (coarse != truth).sum()
    assert (fine != truth).sum() <= 0.02 * truth.sum()


def test_a_closer_look_has_its_share_in_presence() -> None:
    model = finder(closer_presence=1.0)
    features = model.encode(small_block())
    look = model.closer_look(features, Prompt("block"), model.concept_map(features, "block"))
    assert look is not None
    assert model.decode(features, Prompt("block")).presence == pytest.approx(look.presence)
    assert finder().decode(features, Prompt("block")).presence == pytest.approx(0.5 + 41 * 31 / 512 / 512, abs=0.001)


def test_a_drawn_box_says_where_to_look_closer_and_examples_forbid_it() -> None:
    model = finder()
    features = model.encode(small_block())
    found = model.concept_map(features, "block")
    look = model.closer_look(features, Prompt("block", boxes=(Box(20, 30, 60, 70),)), found)
    assert look is not None
    assert (look.window.left, look.window.top) == (0, 0) and look.window.right < 200
    assert model.closer_look(features, Prompt("block", exemplars=(Box(20, 30, 60, 70),)), found) is None
    assert model.closer_look(features, Prompt(boxes=(Box(20, 30, 60, 70),)), found) is None


def test_exemplars_change_the_answer() -> None:
    model = segmenter()
    features = model.encode(frame())
    plain = model.concept_map(features, "polyp").logits
    taught = model.concept_map(features, "polyp", (Box(20, 20, 60, 60),)).logits
    refused = model.concept_map(features, "polyp", (Box(20, 20, 60, 60, is_positive=False),)).logits
    assert not torch.allclose(plain, taught)
    assert not torch.allclose(taught, refused)


def test_an_exemplar_without_a_phrase_claims_no_presence() -> None:
    model = segmenter(presence=1.0)  # a phrase alone never gets there
    found = model.decode(model.encode(frame()), Prompt(exemplars=(Box(20, 20, 60, 60),)))
    assert found.presence is None
    assert found.is_present is None
    assert len(found) > 0


def test_one_encode_serves_many_prompts_unchanged() -> None:
    model = segmenter()
    features = model.encode(frame())
    first = model.decode(features, Prompt("polyp")).union()
    model.decode(features, Prompt("optic disc"))
    assert (model.decode(features, Prompt("polyp")).union() == first).all()


def test_letterbox_points_and_boxes_come_back() -> None:
    place = Letterbox(300, 500)
    boxes = np.array([[0.0, 10.5, 499.5, 299.5]])
    assert place.boxes_from_square(place.boxes_to_square(boxes)) == pytest.approx(boxes)
    # The frame's right edge, x = 499.5, is the square's right edge.
    assert place.points_to_square(np.array([499.5, 299.5])) == pytest.approx([255.5, 153.5])


def test_the_square_is_min_max_scaled_and_padded_with_zero() -> None:
    square, place = letterbox(np.full((100, 200, 3), 100, np.uint8) + np.eye(100, 200, dtype=np.uint8)[..., None] * 50)
    assert (place.inner_height, place.inner_width) == (128, 256)
    assert square[:128].max() == 255
    assert not square[128:].any()


def test_labels_and_logits_pass_the_square_in_place() -> None:
    labels = np.zeros((300, 500), np.int32)
    labels[100:200, 50:250] = 1
    square = torch.from_numpy(letterbox_labels(labels)).float()[None] * 20 - 10
    back = Letterbox(300, 500).logits_to_frame(square)[0].numpy() > 0
    assert (back != (labels > 0)).mean() < 0.01


def test_clicks_choose_among_objects() -> None:
    probability = np.zeros((200, 300), np.float32)
    probability[10:40, 10:60] = 0.9
    probability[100:120, 200:230] = 0.7
    probability[150, 150] = 0.99
    parts = split_objects(probability, 0.5)
    assert [part.voxels for part in parts] == [1500, 600]
    assert [part.start for part in parts] == [(0, 10, 10), (0, 100, 200)]
    assert [part.score for part in parts] == pytest.approx([0.9, 0.7])
    assert agreeing(parts, (200, 300), (Point(20, 20),)) == parts[:1]
    assert agreeing(parts, (200, 300), (Point(20, 20, is_positive=False),)) == parts[1:]
    assert agreeing(parts, (200, 300), (Point(205, 110), Point(150, 80, is_positive=False))) == parts[1:]
    assert agreeing(parts, (200, 300), ()) == parts


def test_round_objects_that_touch_are_told_apart_and_long_ones_stay_whole() -> None:
    rows, columns = np.mgrid[:60, :120]
    two = ((rows - 30) ** 2 + (columns - 30) ** 2 <= 15**2) | ((rows - 30) ** 2 + (columns - 54) ** 2 <= 12**2)
    rod = (abs(rows - 30) <= 4) & (abs(columns - 95) <= 20)
    probability = np.where(two | rod, 0.9, 0.0).astype(np.float32)
    parts = split_objects(probability, 0.5, is_round=True)
    assert sorted(part.start[2] for part in parts) == [15, parts[1].start[2], 75]
    assert sum(part.voxels for part in parts) == (two | rod).sum()  # no pixel is lost
    large, small, _ = sorted(parts, key=lambda part: part.start[2])
    # The circles meet where columns - 30 is (24^2 + 15^2 - 12^2) / 48 = 13.7, at column 43.7.
    assert large.box[2] == pytest.approx(43.7, abs=1.5) and small.box[0] == pytest.approx(43.7, abs=1.5)
    assert len(split_objects(probability, 0.5)) == 2


def test_a_ring_leaves_the_click_in_its_hole_out() -> None:
    probability = np.zeros((60, 80), np.float32)
    probability[10:40, 20:60] = 0.8
    probability[20:30, 30:50] = 0.1
    [ring] = split_objects(probability, 0.5)
    assert ring.voxels == 30 * 40 - 10 * 20
    assert agreeing([ring], (60, 80), (Point(40, 25),)) == []
    assert agreeing([ring], (60, 80), (Point(25, 25),)) == [ring]


def test_a_second_opinion_is_mixed_in_only_where_it_sees_the_same() -> None:
    first = np.full((4, 6), -2.0, np.float32)
    first[1:3, 1:5] = 2.0  # 8 pixels
    second = np.full((4, 6), -4.0, np.float32)
    second[1:3, 1:4] = 6.0  # 6 of the 8: an overlap of .75
    mixed = blend_where_agreed(first, second, 0.25, 0.75)
    assert mixed[1, 1] == 0.75 * 2 + 0.25 * 6
    assert mixed[1, 4] == 0.75 * 2 - 0.25 * 4
    assert mixed[0, 0] == -0.75 * 2 - 0.25 * 4
    assert np.array_equal(blend_where_agreed(first, second, 0.25, 0.76), first)
    empty = np.full((4, 6), -1.0, np.float32)
    assert np.array_equal(blend_where_agreed(empty, empty, 0.5, 0.0), empty)


def written_card(folder: Path, **changes: object) -> Path:
    weights = folder / "mini.safetensors"
    save_file({name: value.half() for name, value in MiniDetector(TINY).state_dict().items()}, weights)
    content = {
        "detector": asdict(TINY),
        "thresholds": asdict(MiniThresholds(presence=0.4)),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (folder / "mini.json").write_text(json.dumps(content | changes))
    return weights


def test_a_card_gives_sizes_and_thresholds(tmp_path: Path) -> None:
    card = read_card(written_card(tmp_path))
    assert card.detectors == (TINY,)
    assert card.thresholds.presence == 0.4


def test_weights_that_are_not_the_card_s_are_refused(tmp_path: Path) -> None:
    weights = written_card(tmp_path, sha256="0" * 64)
    with pytest.raises(InputError, match="SHA-256"):
        read_card(weights)


def test_a_missing_or_broken_card_is_named(tmp_path: Path) -> None:
    weights = written_card(tmp_path, detector={"width": 16, "colour": 3})
    with pytest.raises(InputError, match=r"mini\.json"):
        read_card(weights)
    (tmp_path / "mini.json").unlink()
    with pytest.raises(InputError, match=r"mini\.json"):
        load_mini(weights, EncoderFiles(tmp_path, tmp_path, tmp_path))


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    weights = written_card(tmp_path, detector=asdict(replace(TINY, width=32)))
    with pytest.raises(InputError, match="model mini"):
        load_mini(weights, EncoderFiles(tmp_path, tmp_path, tmp_path))


@pytest.mark.usefixtures("by_lite_medsam")
def test_a_trunk_of_its_own_leaves_the_neck_until_a_box_asks_for_it() -> None:
    config = replace(TINY, image_encoder="lite0")
    asked: list[int] = []

    class Counted(FakeLiteMedSam):
        def neck(self, square: NDArray[np.uint8]) -> Tensor:
            asked.append(1)
            return super().neck(square)

    model = MiniSegmenter(
        cast(LiteMedSam, Counted()),
        cast(TextEncoder, FixedTexts()),
        [MiniDetector(config)],
        MiniCard((config,), MiniThresholds(presence=0.0)),
    )
    features = model.encode(frame())
    model.decode(features, Prompt(text="polyp"))
    assert asked == []
    for _ in range(2):
        model.decode(features, Prompt(boxes=(Box(20, 30, 80, 90),)))
    assert asked == [1]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_share_of_0_leaves_the_second_opinion_and_the_closer_look_uncomputed(share: float) -> None:
    model = finder(refine_share=share, closer_share=share)
    with (
        patch.object(model.lite_medsam, "decode", wraps=model.lite_medsam.decode) as refined,
        patch.object(model, "encode", wraps=model.encode) as encoded,
    ):
        features = model.encode(small_block())
        assert len(model.decode(features, Prompt("block"))) == 1
    assert refined.call_count == (1 if share else 0)
    assert encoded.call_count == (2 if share else 1)


@pytest.mark.parametrize("encoder", ["lite0", "lite-medsam"])
def test_all_that_a_phrase_computes_is_on_the_device_asked_for(
    encoder: ImageEncoderName, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors without values: one of them and one of the CPU in an operation are an error, as on a real accelerator.
    def pooled(features: Tensor, boxes: Sequence[Tensor], bins: int) -> Tensor:
        return features.new_zeros(len(boxes), features.shape[1], bins, bins)

    monkeypatch.setattr(detr, "roi_align", pooled)  # looks at its boxes' values, which there are none of
    monkeypatch.setattr(segmenter_module, "checked_device", torch.device)
    config = replace(TINY, image_encoder=encoder)
    model = MiniSegmenter(
        cast(LiteMedSam, FakeLiteMedSam()),
        cast(TextEncoder, FixedTexts()),
        [MiniDetector(config)],
        MiniCard((config,), MiniThresholds()),
        MiniOptions(device="meta"),
    )
    features = model.encode(frame())
    assert {level.device.type for level in features.levels[0].maps} == {"meta"}
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the answer's way to the CPU
        model.concept_map(features, "polyp", (Box(20, 20, 60, 60),))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(InputError, match="device 'cuda' is not here"):
        MiniSegmenter(
            cast(LiteMedSam, FakeLiteMedSam()),
            cast(TextEncoder, FixedTexts()),
            [],
            MiniCard((), MiniThresholds()),
            MiniOptions(device="cuda"),
        )


def test_two_detectors_answer_with_their_mean_logits(tmp_path: Path) -> None:
    torch.manual_seed(2)
    members = [MiniDetector(TINY), MiniDetector(replace(TINY, image_encoder="lite0"))]

    def model(*chosen: MiniDetector) -> MiniSegmenter:
        card = MiniCard(tuple(detector.config for detector in chosen), MiniThresholds(presence=0.0))
        return MiniSegmenter(
            cast(LiteMedSam, FakeLiteMedSam()),
            cast(TextEncoder, FixedTexts()),
            chosen,
            card,
        )

    singles = [model(member) for member in members]
    first, second = (single.concept_map(single.encode(frame()), "polyp") for single in singles)
    joined = model(*members)
    both = joined.concept_map(joined.encode(frame()), "polyp")
    torch.testing.assert_close(both.logits, (first.logits + second.logits) / 2)
    odds = [presence / (1 - presence) for presence in (first.presence, second.presence)]
    assert both.presence / (1 - both.presence) == pytest.approx((odds[0] * odds[1]) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("exemplars", [(), (Box(5, 8, 25, 28),)])
def test_flips_make_the_answer_to_a_mirrored_picture_the_mirrored_answer(exemplars: tuple[Box, ...]) -> None:
    # Of a square frame of 64 x 64, column x becomes 63 - x; so do the edges of an example, which change places.
    turned = tuple(replace(box, x0=63 - box.x1, x1=63 - box.x0) for box in exemplars)
    picture = np.random.default_rng(3).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    plain = segmenter()
    for model, is_mirrored in ((plain, False), (plain.with_flips(), True)):
        first = model.concept_map(model.encode(picture), "polyp", exemplars)
        second = model.concept_map(model.encode(mirrored), "polyp", turned)
        same = torch.allclose(first.logits, second.logits.flip(-1), atol=1e-4)
        assert same == is_mirrored
        assert not is_mirrored or first.presence == pytest.approx(second.presence, abs=1e-5)


def test_flips_leave_a_concept_with_a_side_as_it_is() -> None:
    plain = segmenter()
    for phrase, is_changed in (("Left-sided lung", False), ("lung", True)):
        models = (plain, plain.with_flips())
        first, second = (model.concept_map(model.encode(frame()), phrase) for model in models)
        assert torch.equal(first.logits, second.logits) != is_changed


@pytest.mark.weights
@pytest.mark.parametrize(("name", "is_frozen"), [("mini-frozen", True), ("mini-open", False)])
def test_other_shipped_weights_are_models_of_their_own(name: str, is_frozen: bool) -> None:
    model = registry.load(name)
    assert isinstance(model, MiniSegmenter)
    assert model.name == name
    assert [detector.config.is_frozen for detector in model.detectors] == [is_frozen]
    with pytest.raises(InputError, match=f"{name} has its own weights"):
        registry.load(name, weights="other.safetensors")


@pytest.mark.weights
def test_the_open_weights_saw_only_data_under_open_licences() -> None:
    seen = read_card(SHIPPED_WEIGHTS.with_name("mini-open.safetensors")).about
    assert seen["started_from"] is None
    assert all(is_open(dataset) for dataset in seen["data"]["images"])


def knowing_kinds(presences: dict[str, float], **thresholds: float) -> MiniSegmenter:
    """A model that was taught melanoma and skin lesion, with these presences and a square of 40 px for the lesion."""
    model = segmenter(**{"presence": 0.5, "presence_sure": 0.8, "kind_presence": 0.1, "kind_sure": 0.7, **thresholds})
    model.card = replace(model.card, about={"concepts": ["melanoma", "skin lesion", "polyp"]})
    lesion = torch.full((256, 256), -9.0)
    lesion[100:140, 60:100] = 9.0
    drawn = {name: (-lesion if name == "melanoma" else lesion)[None, None] for name in presences}
    maps = {name: ConceptMap(value, partial(drawn.__getitem__, name)) for name, value in presences.items()}

    def answer(features: MiniFeatures, text: str | None, exemplars: tuple[Box, ...] = ()) -> ConceptMap:
        return maps[text or ""]

    model.concept_map = answer  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("lesion", "kind", "verdict", "presence"),
    [
        (0.99, 0.9, "yes", 0.9),
        (0.99, 0.3, "not sure", 0.3),
        (0.6, 0.9, "not sure", 0.6),  # it may be no lesion at all
        (0.99, 0.05, "no", 0.05),
        (0.2, 0.9, "no", 0.2),
    ],
)
def test_a_kind_of_lesion_is_outlined_as_the_lesion_with_the_kind_s_probability(
    lesion: float, kind: float, verdict: str, presence: float
) -> None:
    model = knowing_kinds({"melanoma": kind, "skin lesion": lesion})
    features = model.encode(frame(256, 256))
    found = model.decode(features, Prompt("melanoma"))
    assert (found.verdict, found.presence, found.concept) == (verdict, presence, "melanoma")
    expected = np.zeros((256, 256), np.bool_)
    expected[100:140, 60:100] = verdict != "no"
    assert (found.union()[0] == expected).all()
    assert (model.probability_map(features, Prompt("melanoma")) > 0.5).sum() == 40 * 40


def test_a_concept_between_its_two_limits_is_given_with_not_sure() -> None:
    verdicts = []
    for presence in (0.49, 0.5, 0.79, 0.8):
        model = knowing_kinds({"polyp": presence})
        found = model.decode(model.encode(frame(256, 256)), Prompt("polyp"))
        assert bool(len(found)) == bool(found.is_present)
        verdicts.append(found.verdict)
    assert verdicts == ["no", "not sure", "not sure", "yes"]


def test_kinds_are_asked_like_any_concept_where_the_card_has_no_limits_for_them() -> None:
    model = knowing_kinds({"melanoma": 0.6, "skin lesion": 0.99})
    thresholds = replace(model.card.thresholds, kind_presence=None)
    model.card = replace(model.card, thresholds=thresholds)
    found = model.decode(model.encode(frame(256, 256)), Prompt("melanoma"))
    assert found.presence == 0.6 and found.union().sum() == 256 * 256 - 40 * 40  # its own map is outside the lesion
