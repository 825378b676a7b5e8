"""The detector's parts in plain torch: the numbers of transformers' classes with the same random weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.models.sam3.modeling_sam3 as stock  # by its full name: the lazy package may give a dummy
from torch import Tensor, nn
from transformers.models.sam3 import configuration_sam3 as configuration

from medsam3.models import detr
from medsam3.models.roi_align import roi_align

SIZES = detr.PartSizes(
    width=32,
    heads=4,
    feed_forward=48,
    layers=2,
    queries=7,
    upsampling_stages=2,
)
HEIGHT, WIDTH, BATCH = 5, 8, 2
SAME = 1e-5


def stock_config() -> Any:
    shared = {"hidden_size": 32, "num_attention_heads": 4}
    sizes = {**shared, "intermediate_size": 48}
    config = configuration.Sam3Config(
        geometry_encoder_config={**sizes, "num_layers": 2},
        detr_encoder_config={**sizes, "num_layers": 2},
        detr_decoder_config={**sizes, "num_layers": 3, "num_queries": 7},
        mask_decoder_config={**shared, "num_upsampling_stages": 2},
    )
    for part in ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder"):
        getattr(config, f"{part}_config")._attn_implementation = "sdpa"
    return config


def twins(own: nn.Module, other: nn.Module) -> tuple[Any, Any]:
    """Two modules with the same random weights; a name or shape that only one of them has is an error."""
    source = torch.Generator().manual_seed(3)
    state = {name: torch.randn(value.shape, generator=source) * 0.2 for name, value in own.state_dict().items()}
    own.load_state_dict(state)
    other.load_state_dict(state)
    return own.eval(), other.eval()


def decoders() -> tuple[Any, Any]:
    own = detr.DetrDecoder(replace(SIZES, layers=3))
    return twins(own, stock.Sam3DetrDecoder(stock_config().detr_decoder_config))


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGE, POSITION = some(BATCH, 32, HEIGHT, WIDTH), some(BATCH, 32, HEIGHT, WIDTH, seed=1)
FLAT, FLAT_POSITION = (level.flatten(2).transpose(1, 2) for level in (IMAGE, POSITION))
PROMPT = some(BATCH, 4, 32, seed=2)
MASK = torch.tensor([[True, True, False, True], [True, True, True, True]])


def difference(first: Tensor, second: Tensor) -> float:
    assert first.shape == second.shape
    return float((first - second).detach().abs().max())


def test_position_codes_are_those_of_transformers() -> None:
    expected = stock.Sam3SinePositionEmbedding(16, normalize=True)(IMAGE.shape, IMAGE.device, torch.float32)[:1]
    assert difference(detr.sine_positions(32, (HEIGHT, WIDTH), IMAGE.device), expected) < SAME


def test_the_geometry_encoder_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = SimpleNamespace(ops=SimpleNamespace(roi_align=roi_align))  # which the real one equals: see its test
    monkeypatch.setattr(stock, "torchvision", torchvision, raising=False)
    own, other = twins(detr.GeometryEncoder(SIZES), stock.Sam3GeometryEncoder(stock_config().geometry_encoder_config))
    boxes = torch.rand(BATCH, 3, 4, generator=torch.Generator().manual_seed(4))
    positive = torch.tensor([[True, False, True], [True, False, False]])
    used = torch.tensor([[True, True, True], [True, False, False]])
    tokens, mask = own(IMAGE, POSITION, boxes, positive, used)
    expected = other(boxes, used, positive.long(), (IMAGE,), (POSITION,))
    assert torch.equal(mask, expected.attention_mask)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert difference(tokens[mask], expected.last_hidden_state[mask]) < SAME


def test_the_fusion_encoder_agrees() -> None:
    own, other = twins(detr.DetrEncoder(SIZES), stock.Sam3DetrEncoder(stock_config().detr_encoder_config))
    expected = other([IMAGE], PROMPT, [POSITION], MASK).last_hidden_state
    assert difference(own(FLAT, FLAT_POSITION, PROMPT, MASK), expected) < SAME


def test_the_decoder_and_the_scores_agree() -> None:
    own, other = twins(
        detr.DetrDecoder(replace(SIZES, layers=3)), stock.Sam3DetrDecoder(stock_config().detr_decoder_config)
    )
    found = own(FLAT, FLAT_POSITION, PROMPT, MASK, (HEIGHT, WIDTH))
    expected = other(FLAT, PROMPT, FLAT_POSITION, MASK, torch.tensor([[HEIGHT, WIDTH]]))
    assert difference(found.queries, expected.intermediate_hidden_states) < SAME
    assert difference(found.references, expected.reference_boxes) < SAME
    assert difference(found.presence, expected.presence_logits) < SAME
    scores, stock_scores = twins(detr.Scoring(SIZES), stock.Sam3DotProductScoring(stock_config()))
    answer = scores(found.queries, PROMPT, MASK)
    assert difference(answer, stock_scores(found.queries, PROMPT, MASK).squeeze(-1)) < SAME


def test_the_gradients_of_references_reach_the_layer_before_and_no_further() -> None:
    own, other = twins(
        detr.DetrDecoder(replace(SIZES, layers=3)), stock.Sam3DetrDecoder(stock_config().detr_decoder_config)
    )
    own(FLAT, FLAT_POSITION, PROMPT, MASK, (HEIGHT, WIDTH)).references.sum().backward()
    other(FLAT, PROMPT, FLAT_POSITION, MASK, torch.tensor([[HEIGHT, WIDTH]])).reference_boxes.sum().backward()
    for name, value in own.named_parameters():
        expected = other.get_parameter(name).grad
        assert (value.grad is None) == (expected is None), name
        if expected is not None:
            assert difference(value.grad, expected) < 1e-4, name


def test_the_mask_head_agrees_with_and_without_queries() -> None:
    own, other = twins(detr.MaskDecoder(SIZES), stock.Sam3MaskDecoder(stock_config().mask_decoder_config))
    maps = [some(BATCH, 32, 4 * HEIGHT, 4 * WIDTH, seed=5), some(BATCH, 32, 2 * HEIGHT, 2 * WIDTH, seed=6), IMAGE]
    queries, fused = some(BATCH, 7, 32, seed=7), some(BATCH, HEIGHT * WIDTH, 32, seed=8)
    instances, semantic = own(queries, maps, fused, PROMPT, MASK)
    expected = other(queries, maps, fused, PROMPT, MASK)
    assert difference(instances, expected.pred_masks) < SAME
    assert difference(semantic, expected.semantic_seg) < SAME
    none, alone = own(queries[:, :0], maps, fused, PROMPT, MASK)
    assert none.shape == (BATCH, 0, 4 * HEIGHT, 4 * WIDTH)
    assert torch.equal(alone, semantic)
