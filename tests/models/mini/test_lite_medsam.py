"""LiteMedSAM's prompt encoder and mask decoder: names, shapes, one = many, transformers' and the original's values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import SamConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from medsam3.errors import InputError
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.lite_medsam import BoxDecoder, LiteMedSam

BOXES = torch.tensor([[90.0, 70.0, 210.0, 150.0], [20.0, 30.0, 60.0, 55.5]])


@pytest.fixture(scope="module")
def decoder() -> BoxDecoder:
    """With random weights."""
    torch.manual_seed(5)
    return BoxDecoder()


@pytest.fixture(scope="module")
def published() -> LiteMedSam:
    try:
        return LiteMedSam(locate().lite_medsam)
    except InputError as error:
        pytest.skip(str(error))


def wave_neck() -> Tensor:
    """0.2 sin(0.37 channel + 0.11 row - 0.07 column): (1, 256, 64, 64)."""
    axes = [torch.arange(length, dtype=torch.float64) for length in (256, 64, 64)]
    channel, row, column = torch.meshgrid(*axes, indexing="ij")
    return (0.2 * torch.sin(0.37 * channel + 0.11 * row - 0.07 * column))[None].float()


def lite_medsam_state(decoder: BoxDecoder) -> dict[str, Tensor]:
    """The decoder's tensors beside some that no box needs."""
    others = ("image_encoder.neck.0.weight", "prompt_encoder.mask_downscaling.0.weight")
    own = {name: value.clone() for name, value in decoder.state_dict().items()}
    return {**own, **{name: torch.zeros(1) for name in others}}


def test_tensors_carry_lite_medsam_s_names(decoder: BoxDecoder) -> None:
    # The published file has 120 of the mask decoder, of which 18 are of the other three masks, and 17 of the prompt
    # encoder, of which 13 are of points and masks.
    names = set(decoder.state_dict())
    assert len(names) == 120 - 18 + 17 - 13
    assert {
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "mask_decoder.output_upscaling.3.weight",
        "mask_decoder.output_hypernetworks_mlps.0.layers.2.weight",
        "mask_decoder.transformer.layers.1.norm4.weight",
        "mask_decoder.transformer.layers.0.mlp.lin1.weight",
    } <= names


def stock_name(name: str) -> str:
    """The name of a tensor in transformers' SAM."""
    for own, other in (
        ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        ("point_embeddings.", "point_embed."),
        ("output_upscaling.0.", "upscale_conv1."),
        ("output_upscaling.1.", "upscale_layer_norm."),
        ("output_upscaling.3.", "upscale_conv2."),
        ("norm_final_attn.", "layer_norm_final_attn."),
        (".norm", ".layer_norm"),
    ):
        name = name.replace(own, other)
    if "_mlps." in name or "iou_prediction_head" in name:
        name = name.replace("layers.0.", "proj_in.").replace("layers.1.", "layers.0.").replace("layers.2.", "proj_out.")
    return name


@torch.no_grad()
def test_masks_are_those_of_transformers_with_the_same_random_weights(decoder: BoxDecoder) -> None:
    config = SamConfig(
        vision_config={"num_pos_feats": 128, "hidden_size": 2},
        prompt_encoder_config={"image_size": 256, "patch_size": 4},
        mask_decoder_config={"layer_norm_eps": 1e-5},  # SAM's transformer was trained with this
    )
    config.mask_decoder_config._attn_implementation = "sdpa"
    prompts, masks = SamPromptEncoder(config), SamMaskDecoder(config.mask_decoder_config)
    given = {stock_name(name): value for name, value in decoder.state_dict().items()}
    for part, start in ((prompts, "prompt_encoder."), (masks, "mask_decoder.")):
        own = {name.removeprefix(start): value for name, value in given.items() if name.startswith(start)}
        assert part.load_state_dict(own, strict=False).unexpected_keys == []
    centres = (torch.arange(64) + 0.5) / 64
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
    sparse, dense = prompts(None, None, BOXES[:, None], None)
    logits, iou = masks(
        wave_neck().expand(2, -1, -1, -1),
        prompts.shared_embedding(grid).permute(2, 0, 1)[None],
        sparse,
        dense,
        multimask_output=False,
    )
    found = decoder.decode(wave_neck(), BOXES)
    assert (found.logits - logits[:, 0, 0]).abs().max() < 1e-5
    assert (found.iou - iou[:, 0, 0]).abs().max() < 1e-5


def test_tensors_survive_the_way_through_the_file(decoder: BoxDecoder, tmp_path: Path) -> None:
    torch.save(lite_medsam_state(decoder), tmp_path / "lite_medsam.pth")
    again = LiteMedSam(tmp_path / "lite_medsam.pth")
    assert not any(parameter.requires_grad for parameter in again.decoder.parameters())
    before, after = decoder.decode(wave_neck(), BOXES), again.decode(wave_neck(), BOXES)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.iou, before.iou)


def test_the_file_is_not_read_before_it_is_needed(tmp_path: Path) -> None:
    model = LiteMedSam(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError):
        model.neck(np.zeros((256, 256, 3), np.uint8))


def test_masks_have_the_input_s_size(decoder: BoxDecoder) -> None:
    found = decoder.decode(wave_neck(), BOXES)
    assert found.logits.shape == (2, 256, 256)
    assert found.iou.shape == (2,)


def test_no_object_gives_empty_masks(decoder: BoxDecoder) -> None:
    found = decoder.decode(wave_neck(), torch.zeros(0, 4))
    assert found.logits.shape == (0, 256, 256)
    assert found.iou.shape == (0,)


def test_more_objects_than_fit_at_once_equal_one_by_one(decoder: BoxDecoder) -> None:
    boxes = torch.tensor([[10.0 * k, 5.0 * k, 10.0 * k + 60, 5.0 * k + 40] for k in range(6)])
    together = decoder.decode(wave_neck(), boxes)
    alone = [decoder.decode(wave_neck(), box[None]) for box in boxes]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.iou, torch.cat([one.iou for one in alone]), atol=1e-5, rtol=1e-4)


def test_a_half_precision_neck_is_widened(decoder: BoxDecoder) -> None:
    found = decoder.decode(wave_neck().half(), BOXES[:1])
    whole = decoder.decode(wave_neck().half().float(), BOXES[:1])
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, whole.logits)


def test_a_missing_tensor_is_refused(decoder: BoxDecoder) -> None:
    state = lite_medsam_state(decoder)
    del state["mask_decoder.iou_token.weight"]
    with pytest.raises(InputError, match=r"lack 1 and have 0 unknown .*lacks mask_decoder\.iou_token\.weight"):
        BoxDecoder.from_lite_medsam(state)


def test_an_unknown_tensor_is_refused(decoder: BoxDecoder) -> None:
    state = {**lite_medsam_state(decoder), "mask_decoder.extra": torch.zeros(1)}
    with pytest.raises(InputError, match=r"lack 0 and have 1 unknown .*has mask_decoder\.extra"):
        BoxDecoder.from_lite_medsam(state)


def test_a_tensor_of_another_shape_is_refused(decoder: BoxDecoder) -> None:
    state = {**lite_medsam_state(decoder), "mask_decoder.mask_tokens.weight": torch.zeros(3, 256)}
    with pytest.raises(InputError, match=r"mask_tokens\.weight .*\(3, 256\), expected \(4, 256\)"):
        BoxDecoder.from_lite_medsam(state)


def test_boxes_and_necks_that_do_not_fit_are_refused(decoder: BoxDecoder) -> None:
    with pytest.raises(InputError, match=r"boxes: shape \(2, 3\), expected \(2, 4\)"):
        decoder.decode(wave_neck(), torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"neck: shape \(2, 256, 64, 64\)"):
        decoder.decode(wave_neck().repeat(2, 1, 1, 1), BOXES)


@pytest.mark.weights
def test_the_published_weights_give_the_original_code_s_masks(published: LiteMedSam) -> None:
    # From LiteMedSAM's own code on `wave_neck()`; for both objects the logits at (column, row) = (40, 40), (150, 110)
    # and (0, 255), their mean, and the predicted IoU.
    found = published.decode(wave_neck(), BOXES)
    logits = torch.tensor([[-26.41423, 4.03236, -21.69605], [4.76335, -25.15821, -34.01305]])
    torch.testing.assert_close(found.logits[:, [40, 110, 255], [40, 150, 0]], logits, atol=2e-4, rtol=0)
    mean = torch.tensor([-18.09332, -28.96862])
    torch.testing.assert_close(found.logits.mean(dim=(1, 2)), mean, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.iou, torch.tensor([0.80933, 0.7163]), atol=1e-4, rtol=0)


@pytest.mark.weights
@torch.no_grad()
def test_the_box_of_an_ellipse_gives_the_ellipse(published: LiteMedSam) -> None:
    y, x = np.mgrid[:256, :256]
    ellipse = ((x - 150) / 60) ** 2 + ((y - 110) / 40) ** 2 < 1
    picture = np.repeat(np.where(ellipse, 204, 77).astype(np.uint8)[..., None], 3, axis=2)
    found = published.decode(published.neck(picture), torch.tensor([[90.0, 70.0, 210.0, 150.0]]))
    mask = found.logits[0].numpy() > 0
    dice = 2 * (mask & ellipse).sum() / (mask.sum() + ellipse.sum())
    assert dice > 0.97
