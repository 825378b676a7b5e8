"""LiteMedSAM's prompt encoder and mask decoder: names, shapes, one = many, and the original code's known values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medsam3.errors import InputError
from medsam3.models.mini.box_decoder import BoxDecoder, Geometry, lite_medsam_name
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.tinyvit import TinyViT, convert_lite_medsam

BOXES = torch.tensor([[90.0, 70.0, 210.0, 150.0], [20.0, 30.0, 60.0, 55.5]])
POINTS = torch.tensor([[[150.0, 110.0], [20.0, 200.0]], [[40.0, 40.0], [200.0, 30.0]]])
LABELS = torch.tensor([[1, 0], [1, -1]])


@pytest.fixture(scope="module")
def decoder() -> BoxDecoder:
    """With random weights."""
    torch.manual_seed(5)
    return BoxDecoder()


@pytest.fixture(scope="module")
def published_state() -> dict[str, Tensor]:
    try:
        path = locate().lite_medsam
    except InputError as error:
        pytest.skip(str(error))
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def wave_neck() -> Tensor:
    """0.2 sin(0.37 channel + 0.11 row - 0.07 column): (1, 256, 64, 64)."""
    axes = [torch.arange(length, dtype=torch.float64) for length in (256, 64, 64)]
    channel, row, column = torch.meshgrid(*axes, indexing="ij")
    return (0.2 * torch.sin(0.37 * channel + 0.11 * row - 0.07 * column))[None].float()


def rough_masks() -> Tensor:
    """Logits of two discs: (2, 1, 256, 256)."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    large = 10 - ((x - 150) / 20) ** 2 - ((y - 110) / 20) ** 2
    small = 10 - ((x - 40) / 10) ** 2 - ((y - 40) / 10) ** 2
    return torch.stack([large, small]).clamp(-10, 10)[:, None]


def lite_medsam_state(decoder: BoxDecoder) -> dict[str, Tensor]:
    """The decoder's tensors under LiteMedSAM's names, beside one of the image encoder."""
    renamed = {lite_medsam_name(name): value.clone() for name, value in decoder.state_dict().items()}
    return {**renamed, "image_encoder.neck.0.weight": torch.zeros(1)}


GEOMETRIES = {
    "boxes": Geometry(boxes=BOXES),
    "points": Geometry(points=POINTS, point_labels=LABELS),
    "boxes and points": Geometry(boxes=BOXES, points=POINTS, point_labels=LABELS),
    "masks": Geometry(masks=rough_masks()),
    "all": Geometry(boxes=BOXES, points=POINTS, point_labels=LABELS, masks=rough_masks()),
}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            "prompt_encoder.shared_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        ("prompt_encoder.point_embed.2.weight", "prompt_encoder.point_embeddings.2.weight"),
        ("prompt_encoder.mask_embed.layer_norm2.bias", "prompt_encoder.mask_downscaling.4.bias"),
        ("prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
        ("mask_decoder.upscale_conv2.weight", "mask_decoder.output_upscaling.3.weight"),
        ("mask_decoder.iou_prediction_head.layers.0.bias", "mask_decoder.iou_prediction_head.layers.1.bias"),
        (
            "mask_decoder.output_hypernetworks_mlps.3.proj_out.weight",
            "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
        ),
        ("mask_decoder.transformer.layers.1.layer_norm4.weight", "mask_decoder.transformer.layers.1.norm4.weight"),
        ("mask_decoder.transformer.layer_norm_final_attn.bias", "mask_decoder.transformer.norm_final_attn.bias"),
        ("mask_decoder.transformer.layers.0.mlp.lin1.weight", "mask_decoder.transformer.layers.0.mlp.lin1.weight"),
    ],
)
def test_a_tensor_has_its_name_in_lite_medsam(decoder: BoxDecoder, ours: str, theirs: str) -> None:
    assert ours in decoder.state_dict()
    assert lite_medsam_name(ours) == theirs


def test_no_two_tensors_share_a_lite_medsam_name(decoder: BoxDecoder) -> None:
    # The published file has 120 of the mask decoder and 17 of the prompt encoder.
    names = {lite_medsam_name(name) for name in decoder.state_dict()}
    assert len(names) == len(decoder.state_dict()) == 137


def test_tensors_survive_the_way_through_lite_medsam_names(decoder: BoxDecoder) -> None:
    again = BoxDecoder.from_lite_medsam(lite_medsam_state(decoder))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not again.training
    before = decoder.decode(wave_neck(), Geometry(boxes=BOXES))
    after = again.decode(wave_neck(), Geometry(boxes=BOXES))
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.iou, before.iou)


@pytest.mark.parametrize(("multimask", "candidates"), [(False, 1), (True, 3)])
def test_masks_have_the_input_s_size(decoder: BoxDecoder, multimask: bool, candidates: int) -> None:
    found = decoder.decode(wave_neck(), Geometry(boxes=BOXES), multimask=multimask)
    assert found.logits.shape == (2, candidates, 256, 256)
    assert found.iou.shape == (2, candidates)


def test_no_object_gives_empty_masks(decoder: BoxDecoder) -> None:
    found = decoder.decode(wave_neck(), Geometry(boxes=torch.zeros(0, 4)), multimask=True)
    assert found.logits.shape == (0, 3, 256, 256)
    assert found.iou.shape == (0, 3)


@pytest.mark.parametrize("given", GEOMETRIES)
def test_many_objects_equal_one_by_one(decoder: BoxDecoder, given: str) -> None:
    geometry = GEOMETRIES[given]
    together = decoder.decode(wave_neck(), geometry)
    alone = [decoder.decode(wave_neck(), geometry[index : index + 1]) for index in range(2)]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.iou, torch.cat([one.iou for one in alone]), atol=1e-5, rtol=1e-4)


def test_more_objects_than_fit_at_once_keep_their_order(decoder: BoxDecoder) -> None:
    boxes = torch.tensor([[10.0 * k, 5.0 * k, 10.0 * k + 60, 5.0 * k + 40] for k in range(6)])
    together = decoder.decode(wave_neck(), Geometry(boxes=boxes))
    last = decoder.decode(wave_neck(), Geometry(boxes=boxes[5:]))
    assert together.logits.shape == (6, 1, 256, 256)
    torch.testing.assert_close(together.logits[5:], last.logits, atol=1e-5, rtol=1e-4)


def test_a_point_that_is_none_says_nothing(decoder: BoxDecoder) -> None:
    # The second object's second point is labelled -1, so its place is of no matter.
    elsewhere = POINTS.clone()
    elsewhere[1, 1] = 0
    first = decoder.decode(wave_neck(), Geometry(points=POINTS, point_labels=LABELS))
    second = decoder.decode(wave_neck(), Geometry(points=elsewhere, point_labels=LABELS))
    assert torch.equal(first.logits, second.logits)


def test_a_half_precision_neck_is_widened(decoder: BoxDecoder) -> None:
    found = decoder.decode(wave_neck().half(), Geometry(boxes=BOXES[:1]))
    whole = decoder.decode(wave_neck().half().float(), Geometry(boxes=BOXES[:1]))
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, whole.logits)


def test_positions_are_those_of_the_cells_centres(decoder: BoxDecoder) -> None:
    # Column 10, row 3 of the 64 x 64 cells has its centre at pixel (4 * 10 + 1.5, 4 * 3 + 1.5) of the 256 x 256.
    pixel = torch.tensor([[[[41.5, 13.5]]]])
    encoded = decoder.prompt_encoder.shared_embedding(pixel + 0.5, (256, 256))[0, 0, 0]
    torch.testing.assert_close(decoder.get_buffer("neck_positions")[0, :, 3, 10], encoded, atol=1e-4, rtol=0)


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no geometry"),
        ({"boxes": torch.zeros(2, 3)}, r"boxes: shape \(2, 3\), expected \(2, 4\)"),
        ({"points": POINTS}, "come together"),
        ({"boxes": BOXES, "point_labels": LABELS}, "come together"),
        ({"points": POINTS, "point_labels": LABELS[:, :1]}, r"point labels: shape \(2, 1\), expected \(2, 2\)"),
        ({"points": torch.zeros(2, 2), "point_labels": LABELS}, r"points: shape \(2, 2\), expected \(K, P, 2\)"),
        ({"boxes": BOXES[:1], "masks": rough_masks()}, r"of \[1, 2\] objects"),
        ({"masks": torch.zeros(1, 1, 64, 64)}, r"masks: shape \(1, 1, 64, 64\)"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Geometry(**given)


def test_the_necks_of_two_images_are_refused(decoder: BoxDecoder) -> None:
    with pytest.raises(InputError, match=r"neck: shape \(2, 256, 64, 64\)"):
        decoder.decode(wave_neck().repeat(2, 1, 1, 1), Geometry(boxes=BOXES))


# From LiteMedSAM's own code on `wave_neck()`; for both objects the last candidate's logits at (column, row) = (40, 40),
# (150, 110) and (0, 255), their mean, and the predicted IoU.
KNOWN = {
    "boxes": ([[-26.41423, 4.03236, -21.69605], [4.76335, -25.15821, -34.01305]], [-18.09332, -28.96862]),
    "points": ([[-24.42509, -9.38801, -25.74598], [-12.93008, -21.41658, -24.73219]], [-20.50159, -20.53004]),
    "masks": ([[-22.27137, -14.91273, -19.55306], [-22.58904, -23.08765, -19.78396]], [-18.2721, -22.19698]),
    "all": ([[-0.16588, 0.07041, -0.12099], [-0.00275, -0.15669, -0.24867]], [-0.07603, -0.17455]),
}
KNOWN_IOU = {
    "boxes": [0.80933, 0.7163],
    "points": [0.57731, 0.53348],
    "masks": [0.42358, 0.36688],
    "all": [0.20217, 0.15725],
}


@pytest.mark.weights
@pytest.mark.parametrize("given", KNOWN)
def test_the_published_weights_give_the_original_code_s_masks(published_state: dict[str, Tensor], given: str) -> None:
    decoder = BoxDecoder.from_lite_medsam(published_state)
    found = decoder.decode(wave_neck(), GEOMETRIES[given], multimask=given == "all")
    logits, mean = KNOWN[given]
    last = found.logits[:, -1]
    torch.testing.assert_close(last[:, [40, 110, 255], [40, 150, 0]], torch.tensor(logits), atol=2e-4, rtol=0)
    torch.testing.assert_close(last.mean(dim=(1, 2)), torch.tensor(mean), atol=2e-4, rtol=0)
    torch.testing.assert_close(found.iou[:, -1], torch.tensor(KNOWN_IOU[given]), atol=1e-4, rtol=0)


@pytest.mark.weights
@torch.no_grad()
def test_the_box_of_an_ellipse_gives_the_ellipse(published_state: dict[str, Tensor]) -> None:
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    ellipse = ((x - 150) / 60) ** 2 + ((y - 110) / 40) ** 2 < 1
    picture = torch.where(ellipse, 0.8, 0.3).expand(1, 3, -1, -1)
    encoder = TinyViT().eval()
    encoder.load_state_dict(convert_lite_medsam(published_state))
    decoder = BoxDecoder.from_lite_medsam(published_state)
    found = decoder.decode(encoder(picture).neck, Geometry(boxes=torch.tensor([[90.0, 70.0, 210.0, 150.0]])))
    mask = found.logits[0, 0] > 0
    dice = 2 * (mask & ellipse).sum() / (mask.sum() + ellipse.sum())
    assert dice > 0.97
