"""The shared detector forward: one = many, padding carries no meaning, and agreement with transformers' own call."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers.models.sam3.modeling_sam3 as stock  # by its full name: the lazy package may give a dummy

from medsam3.models.detector import (
    Detection,
    ExemplarBoxes,
    PromptTokens,
    VisionLevels,
    decode_masks,
    detect,
    select_items,
)
from medsam3.models.roi_align import roi_align
from medsam3.models.sam3.network import fill_constants
from sam3_small import small_network

NETWORK = small_network()
PARTS = NETWORK.detector_model


def levels(batch: int = 1) -> VisionLevels:
    source = torch.Generator().manual_seed(5)
    pixels = torch.rand(batch, 3, 112, 112, generator=source) * 2 - 1
    with torch.inference_mode():
        return NETWORK.encode_images(pixels).detector


def text(batch: int = 1, length: int = 4) -> PromptTokens:
    source = torch.Generator().manual_seed(6)
    features = torch.randn(batch, length, 128, generator=source)
    return PromptTokens(features, torch.ones(batch, length, dtype=torch.bool))


def boxes(*rows: tuple[float, float, float, float], is_used: bool = True) -> ExemplarBoxes:
    count = len(rows)
    used = torch.full((1, count), is_used)
    return ExemplarBoxes(torch.tensor([rows]), torch.ones(1, count, dtype=torch.bool), used)


def run(levels: VisionLevels, text: PromptTokens, exemplars: ExemplarBoxes) -> Detection:
    with torch.inference_mode():
        return detect(PARTS, levels, text, exemplars)


def assert_same(first: Detection, second: Detection) -> None:
    for name in ("logits", "boxes_cxcywh", "presence", "queries"):
        assert torch.allclose(getattr(first, name), getattr(second, name), atol=2e-5), name


def test_outputs_have_the_decoder_layer_first() -> None:
    found = run(levels(), text(), ExemplarBoxes.none(1, torch.device("cpu")))
    assert found.logits.shape == (2, 1, 12)
    assert found.boxes_cxcywh.shape == (2, 1, 12, 4)
    assert found.presence.shape == (2, 1, 1)
    assert found.fused.shape == (1, 64, 128)  # 8 x 8 positions
    assert decode_masks(PARTS, levels(), found).instances.shape == (1, 12, 32, 32)


def test_a_batch_of_images_and_prompts_is_one_by_one() -> None:
    many, phrases = levels(3), text(3)
    none = ExemplarBoxes.none(3, torch.device("cpu"))
    together = run(many, phrases, none)
    for item in range(3):
        one = many.select(torch.tensor([item]))
        phrase = PromptTokens(phrases.features[item : item + 1], phrases.mask[item : item + 1])
        alone = run(one, phrase, ExemplarBoxes.none(1, torch.device("cpu")))
        assert_same(select_items(together, torch.tensor([item])), alone)


def test_text_padding_carries_no_meaning() -> None:
    phrase = text(1, 4)
    padded = PromptTokens(
        torch.cat([phrase.features, torch.full((1, 3, 128), 9.0)], dim=1),
        torch.tensor([[True] * 4 + [False] * 3]),
    )
    none = ExemplarBoxes.none(1, torch.device("cpu"))
    assert_same(run(levels(), phrase, none), run(levels(), padded, none))


def test_a_padding_box_is_no_box() -> None:
    unused = boxes((0.2, 0.3, 0.1, 0.2), (0.6, 0.6, 0.3, 0.3), is_used=False)
    none = ExemplarBoxes.none(1, torch.device("cpu"))
    assert_same(run(levels(), text(), unused), run(levels(), text(), none))


def test_a_box_changes_the_answer_and_its_label_too() -> None:
    positive = boxes((0.4, 0.5, 0.3, 0.2))
    negative = replace(positive, is_positive=~positive.is_positive)
    none = run(levels(), text(), ExemplarBoxes.none(1, torch.device("cpu")))
    with_box = run(levels(), text(), positive)
    assert (with_box.logits - none.logits).abs().max() > 1e-2
    assert (with_box.logits - run(levels(), text(), negative).logits).abs().max() > 1e-2


def stock_model() -> stock.Sam3Model:
    """transformers' own model with the network's weights."""
    with torch.device("meta"):
        model = stock.Sam3Model(PARTS.config).eval()
    model.load_state_dict(PARTS.state_dict(), assign=True)
    fill_constants(model, torch.device("cpu"))
    return model


def test_with_a_box_it_agrees_with_transformers_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = SimpleNamespace(ops=SimpleNamespace(roi_align=roi_align))
    monkeypatch.setattr(stock, "torchvision", torchvision, raising=False)
    source = torch.Generator().manual_seed(5)
    pixels = torch.rand(1, 3, 112, 112, generator=source) * 2 - 1
    ids = torch.tensor([[49406, 6833, 335, 49407]])
    exemplars = boxes((0.4, 0.5, 0.3, 0.2))
    with torch.inference_mode():
        expected = stock_model()(
            pixel_values=pixels,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_boxes=exemplars.cxcywh,
            input_boxes_labels=torch.ones(1, 1, dtype=torch.long),
        )
        phrase = NETWORK.encode_phrases(ids, torch.ones_like(ids))
    found = run(levels(), phrase, exemplars)
    with torch.inference_mode():
        masks = decode_masks(PARTS, levels(), found)
    assert torch.allclose(found.logits[-1], expected.pred_logits, atol=2e-5)
    assert torch.allclose(found.presence[-1], expected.presence_logits, atol=2e-5)
    assert torch.allclose(masks.instances, expected.pred_masks, atol=2e-4)


def test_masks_of_some_queries_are_those_of_all() -> None:
    found = run(levels(), text(), ExemplarBoxes.none(1, torch.device("cpu")))
    with torch.inference_mode():
        every = decode_masks(PARTS, levels(), found)
        some = decode_masks(PARTS, levels(), replace(found, queries=found.queries[:, :, [7, 2]]))
    assert torch.allclose(some.instances, every.instances[:, [7, 2]], atol=1e-5)
