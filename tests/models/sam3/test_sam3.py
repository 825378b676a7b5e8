"""The segmenter: modes, caches, sizes, number formats and errors, on a small random network."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.models.detector import checked_device
from medsam3.models.sam3.clip_phrases import VISUAL_TOKENS, PhraseTokenizer
from medsam3.models.sam3.network import at_image_size, blank_network, fill_network
from medsam3.models.sam3.segmenter import Sam3Options, Sam3Segmenter, load_sam3
from medsam3.models.segmenter import RGB
from medsam3.prompts import Box, Point, Prompt
from sam3_small import random_tensors, small_architecture, small_network

OPEN = Sam3Options(threshold=0.0, suppression="off")


class WordTokenizer:
    """Stands for CLIP's: one token a word, numbered by its length."""

    def no_padding(self) -> None: ...

    def no_truncation(self) -> None: ...

    def encode(self, phrase: str) -> WordTokenizer:
        self.ids = [49406, *(100 + len(word) for word in phrase.split()), 49407]
        return self


def segmenter(options: Sam3Options = OPEN, *, with_tracker: bool = True) -> Sam3Segmenter:
    architecture = small_architecture()
    network = small_network(architecture if with_tracker else architecture.without_tracker())
    return Sam3Segmenter(network, PhraseTokenizer(WordTokenizer()), options)


def frame(height: int = 60, width: int = 90, seed: int = 3) -> RGB:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(first: Masks, second: Masks) -> None:
    assert first.scores == pytest.approx(second.scores, abs=1e-4)
    assert [found.start for found in first.objects] == [found.start for found in second.objects]


def test_a_phrase_gives_masks_at_the_frames_size_best_first() -> None:
    model = segmenter()
    masks = model.decode(model.encode(frame()), Prompt(text="polyp"))
    assert masks.shape == (1, 60, 90)
    assert masks.concept == "polyp"
    assert 0 < len(masks) <= 12
    assert list(masks.scores) == sorted(masks.scores, reverse=True)


def test_scores_are_multiplied_by_presence() -> None:
    model = segmenter()
    masks = model.decode(model.encode(frame()), Prompt(text="polyp"))
    assert masks.presence is not None
    assert masks.is_present == (masks.presence >= 0.5)
    assert max(masks.scores) <= masks.presence


def test_absent_by_presence_means_no_object_however_well_queries_score() -> None:
    model = segmenter(Sam3Options(threshold=0.01, suppression="off"))
    with torch.no_grad():
        model.network.detector_model.detr_decoder.presence_head.layer3.weight.zero_()
        model.network.detector_model.detr_decoder.presence_head.layer3.bias.fill_(-10)
    masks = model.decode(model.encode(frame()), Prompt(text="polyp"))
    assert len(masks) == 0
    assert masks.is_present is False
    assert masks.presence == pytest.approx(1 / (1 + np.exp(10)))


def test_the_threshold_is_that_of_the_call_before_that_of_the_options() -> None:
    model = segmenter()
    features = model.encode(frame())
    every = model.decode(features, Prompt(text="polyp"))
    middle = every.scores[len(every) // 2]
    fewer = model.decode(features, Prompt(text="polyp"), threshold=middle)
    assert fewer.scores == tuple(score for score in every.scores if score >= middle)
    assert len(model.decode(features, Prompt(text="polyp"), threshold=1.0)) == 0


def test_suppression_leaves_no_two_masks_that_overlap_more_than_allowed() -> None:
    model = segmenter(Sam3Options(threshold=0.0, suppression="masks", suppression_iou=0.3))
    masks = model.decode(model.encode(frame(112, 112)), Prompt(text="polyp"))
    assert 0 < len(masks) < len(segmenter().decode(model.encode(frame(112, 112)), Prompt(text="polyp")))
    dense = np.zeros((len(masks), 1, 112, 112), dtype=bool)
    for target, found in zip(dense, masks.objects, strict=True):
        found.paste(target)
    for first in range(len(dense)):
        for second in range(first):
            overlap = (dense[first] & dense[second]).sum() / (dense[first] | dense[second]).sum()
            assert overlap < 0.35  # compared at the network's mask size, a quarter of the frame's


def test_many_prompts_are_one_by_one() -> None:
    model = segmenter()
    features = model.encode(frame())
    prompts = [
        Prompt(text="polyp"),
        Prompt(text="optic disc cup"),
        Prompt(boxes=(Box(10, 12, 50, 40),)),
        Prompt(text="polyp", exemplars=(Box(5, 5, 30, 30), Box(40, 20, 80, 50, is_positive=False))),
    ]
    for masks, prompt in zip(model.decode_many(features, prompts), prompts, strict=True):
        assert_same(masks, model.decode(features, prompt))


def test_a_batch_of_prompts_in_one_pass_is_one_by_one() -> None:
    model = segmenter()
    features = model.encode(frame())
    prompts = [
        Prompt(text="polyp"),
        Prompt(text="optic disc cup"),
        Prompt(exemplars=(Box(5, 5, 30, 30), Box(40, 20, 80, 50, is_positive=False))),
    ]
    with torch.inference_mode():
        together = model._detect(features, prompts)
        for item, prompt in enumerate(prompts):
            alone = model._detect(features, [prompt])
            assert torch.allclose(together.logits[:, item], alone.logits[:, 0], atol=1e-4)


def test_the_next_prompt_of_a_frame_is_answered_as_if_it_were_the_first() -> None:
    model, fresh = segmenter(), segmenter(Sam3Options(threshold=0.0, suppression="off", image_cache_bytes=0))
    features = model.encode(frame())
    prompts = [
        Prompt(text="polyp"),
        Prompt(text="optic disc cup"),
        Prompt(exemplars=(Box(5, 5, 30, 30),)),
        Prompt(text="two words"),
    ]
    for prompt in prompts:
        found, alone = model.decode(features, prompt), fresh.decode(fresh.encode(frame()), prompt)
        assert_same(found, alone)
        for number in range(len(alone)):
            assert (found.dense(number) == alone.dense(number)).mean() > 0.999
    kept = features.levels.detector.kept
    assert kept is not None and {"attended", "geometry"} < set(kept)


def test_many_frames_of_any_size_are_one_by_one() -> None:
    model = segmenter(Sam3Options(threshold=0.0, image_cache_bytes=0))
    frames = [frame(60, 90, 1), frame(112, 112, 2), frame(31, 200, 3)]
    for together, rgb in zip(model.encode_many(frames), frames, strict=True):
        alone = model.encode(rgb)
        assert together.shape == rgb.shape[:2]
        for first, second in zip(together.levels.detector.maps, alone.levels.detector.maps, strict=True):
            assert torch.allclose(first, second, atol=1e-4)


def test_a_batch_of_frames_in_one_pass_is_one_by_one() -> None:
    model = segmenter(Sam3Options(threshold=0.0, image_cache_bytes=0))
    frames = [frame(60, 90, 1), frame(112, 112, 2), frame(31, 200, 3)]
    for together, rgb in zip(model._encode_batch(frames), frames, strict=True):
        alone = model.encode(rgb)
        assert together.nbytes == alone.nbytes
        for first, second in zip(together.levels.detector.maps, alone.levels.detector.maps, strict=True):
            assert torch.allclose(first, second, atol=1e-4)


def test_boxes_alone_give_one_mask_each_from_the_tracker() -> None:
    model = segmenter()
    boxes = (Box(10, 12, 50, 40), Box(40, 5, 80, 30), Box(0, 0, 20, 50))
    masks = model.decode(model.encode(frame()), Prompt(boxes=boxes))
    assert len(masks) == 3
    assert masks.presence is None
    assert masks.concept == ""


def test_a_click_gives_one_mask_and_a_phrase_beside_it_the_name_and_presence() -> None:
    model = segmenter()
    features = model.encode(frame())
    alone = model.decode(features, Prompt(points=(Point(30, 20), Point(5, 5, is_positive=False))))
    named = model.decode(features, Prompt(text="polyp", points=(Point(30, 20), Point(5, 5, is_positive=False))))
    assert len(alone) == len(named) == 1
    assert_same(alone, named)
    assert named.presence == model.decode(features, Prompt(text="polyp")).presence


def test_a_phrase_with_boxes_gives_at_most_one_object_a_box_that_touches_it() -> None:
    model = segmenter()
    boxes = (Box(10, 12, 50, 40), Box(40, 5, 80, 30))
    masks = model.decode(model.encode(frame()), Prompt(text="polyp", boxes=boxes))
    assert 0 < len(masks) <= 2


def test_without_a_tracker_a_box_is_answered_by_the_detector_and_a_point_refused() -> None:
    model = segmenter(with_tracker=False)
    features = model.encode(frame())
    assert len(model.decode(features, Prompt(boxes=(Box(10, 12, 50, 40),)))) <= 1
    with pytest.raises(InputError, match="hold no tracker"):
        model.decode(features, Prompt(points=(Point(30, 20),)))


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(points=(Point(1, 1),), exemplars=(Box(5, 5, 30, 30),)),
        Prompt(points=(Point(1, 1),), boxes=(Box(5, 5, 30, 30), Box(5, 5, 40, 30))),
    ],
)
def test_points_with_exemplars_or_two_boxes_are_refused(prompt: Prompt) -> None:
    model = segmenter()
    with pytest.raises(InputError, match="at most one box"):
        model.decode(model.encode(frame()), prompt)


def test_boxes_need_no_vocabulary_and_a_phrase_says_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = Sam3Segmenter(small_network(), None, OPEN)
    features = model.encode(frame())
    assert len(model.decode(features, Prompt(exemplars=(Box(10, 12, 50, 40),)))) > 0
    with pytest.raises(InputError, match=r"bpe_simple_vocab_16e6\.txt\.gz"):
        model.decode(features, Prompt(text="polyp"))


def test_a_frame_encoded_again_comes_from_the_cache_and_another_does_not() -> None:
    model = segmenter()
    first = model.encode(frame())
    assert model.encode(frame().copy()) is first
    assert model.encode(frame(seed=4)) is not first
    assert segmenter(Sam3Options(image_cache_bytes=0)).encode(frame()).nbytes == first.nbytes


def test_a_phrase_is_encoded_once() -> None:
    model = segmenter()
    features = model.encode(frame())
    first = model._encode_phrase("polyp")
    model.decode(features, Prompt(text="polyp"))
    assert model._encode_phrase("polyp") is first
    assert model._encode_phrase("optic disc") is not first


def test_the_visual_tokens_stand_where_no_phrase_is_given() -> None:
    assert VISUAL_TOKENS == (49406, 7195, 49407)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_float32_and_keeps_rotary_positions(precision: str) -> None:
    architecture = small_architecture()
    dtype = getattr(torch, precision)
    network = fill_network(
        blank_network(architecture), random_tensors(architecture), dtype=dtype, device=torch.device("cpu")
    )
    layer = network.detector_model.vision_encoder.backbone.layers[1]
    exact = small_network(architecture)
    assert network.dtype == dtype
    assert torch.equal(layer.position_ids, exact.detector_model.vision_encoder.backbone.layers[1].position_ids)
    assert layer.rotary_emb.inv_freq.dtype == torch.float32
    half = Sam3Segmenter(network, PhraseTokenizer(WordTokenizer()), OPEN)
    full = Sam3Segmenter(exact, PhraseTokenizer(WordTokenizer()), OPEN)
    presences = [model.decode(model.encode(frame()), Prompt(text="polyp")).presence for model in (half, full)]
    assert presences[0] == pytest.approx(presences[1], abs=0.03)
    assert len(half.decode(half.encode(frame()), Prompt(boxes=(Box(10, 12, 50, 40),)))) == 1
    assert len(half.decode(half.encode(frame()), Prompt(text="a", exemplars=(Box(10, 12, 50, 40),)))) > 0


@pytest.mark.parametrize("size", [56, 84, 168])  # 84 fills one and a half windows, as 504 px do at full size
def test_other_image_sizes_give_masks_of_the_frames_size(size: int) -> None:
    architecture = at_image_size(small_architecture(), size)
    network = fill_network(
        blank_network(architecture), random_tensors(architecture), dtype=torch.float32, device=torch.device("cpu")
    )
    model = Sam3Segmenter(network, PhraseTokenizer(WordTokenizer()), OPEN)
    features = model.encode(frame())
    assert features.levels.detector.maps[-1].shape[-1] == size // 14
    assert model.decode(features, Prompt(text="polyp")).shape == (1, 60, 90)
    assert len(model.decode(features, Prompt(boxes=(Box(10, 12, 50, 40),)))) == 1


def test_an_image_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(
        InputError,
        match="image size is 100, allowed are multiples of 14 from 56 to 336; those of 56 waste nothing: 56, 112, 168",
    ):
        at_image_size(small_architecture(), 100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int8"}, "allowed are float32, bfloat16, float16"),
        ({"suppression": "soft"}, "allowed are masks, boxes, off"),
        ({"threshold": 1.5}, "threshold is 1.5, allowed is 0 to 1"),
        ({"image_cache_bytes": -1}, "image_cache_bytes is -1"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sam3Options(**wrong)  # type: ignore[arg-type]


def test_a_folder_is_loaded_and_a_device_that_is_not_here_refused(tmp_path: Path) -> None:
    architecture = small_architecture()
    save_file(random_tensors(architecture), tmp_path / "model.safetensors")
    import json  # noqa: PLC0415

    (tmp_path / "config.json").write_text(json.dumps(architecture.to_json(), default=str))
    model = load_sam3(tmp_path, options=OPEN)
    assert (model.name, model.has_tracker, model.network.image_size) == ("sam3", True, 112)
    prompt = Prompt(boxes=(Box(10, 12, 50, 40),))
    assert_same(model.decode(model.encode(frame()), prompt), segmenter().decode(segmenter().encode(frame()), prompt))
    with pytest.raises(InputError, match="device 'tpu' is not here"):
        load_sam3(tmp_path, options=Sam3Options(device="tpu"))


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps", "meta"])
def test_a_device_that_cannot_be_used_is_one_line(device: str) -> None:
    if (device == "cuda" and torch.cuda.is_available()) or (device == "mps" and torch.backends.mps.is_available()):
        assert checked_device(device).type == device
        return
    with pytest.raises(InputError, match=f"device .*{device}.* allowed are cpu, cuda and mps"):
        checked_device(device)


def test_a_phrase_of_more_than_32_tokens_is_cut_before_its_end_mark_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = PhraseTokenizer(WordTokenizer())
    assert len(tokenizer(" ".join(["polyp"] * 30))) == 32
    with caplog.at_level(logging.WARNING):
        ids = tokenizer(" ".join(["polyp"] * 31))
    assert ids == (49406, *[105] * 30, 49407)
    assert "33 tokens" in caplog.text
