"""TinyViT: shapes, the folding of batch norms, windows, names, and the published weights' known values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medsam3.errors import InputError
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.tinyvit import (
    BATCH_NORM_EPS,
    TinyViT,
    TinyViTBlock,
    convert_lite_medsam,
    fold_batch_norms,
    relative_offsets,
)


def picture() -> Tensor:
    """A bright ellipse with half axes 60 and 40 round (x 150, y 110) on waves: (1, 3, 256, 256)."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    waves = torch.stack([0.5 + 0.25 * torch.sin(x / 17), 0.4 + 0.2 * torch.cos(y / 23), (x + y) / 512])
    is_inside = ((x - 150) / 60) ** 2 + ((y - 110) / 40) ** 2 < 1
    return torch.where(is_inside, 0.9 - waves * 0.3, waves)[None]


def published_encoder() -> TinyViT:
    try:
        path = locate().lite_medsam
    except InputError as error:
        pytest.skip(str(error))
    encoder = TinyViT()
    encoder.load_state_dict(convert_lite_medsam(torch.load(path, map_location="cpu", weights_only=True)))
    return encoder.eval()


@torch.no_grad()
def test_a_picture_gives_maps_at_strides_2_4_and_4() -> None:
    features = TinyViT().eval()(picture())
    assert features.fine.shape == (1, 128, 128, 128)
    assert features.middle.shape == (1, 160, 64, 64)
    assert features.neck.shape == (1, 256, 64, 64)


@torch.no_grad()
def test_a_folded_batch_norm_equals_convolution_then_batch_norm() -> None:
    torch.manual_seed(3)
    convolution, norm = nn.Conv2d(3, 5, (3, 2), bias=False), nn.BatchNorm2d(5, eps=BATCH_NORM_EPS).eval()
    for value in (norm.weight, norm.bias, norm.running_mean):
        assert value is not None
        value.normal_()
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 2)
    state = {"a.c.weight": convolution.weight.detach(), **{f"a.bn.{name}": v for name, v in norm.state_dict().items()}}
    folded = fold_batch_norms(state)
    assert set(folded) == {"a.weight", "a.bias"}
    pixels = torch.randn(2, 3, 7, 4)
    together = nn.functional.conv2d(pixels, folded["a.weight"], folded["a.bias"])
    torch.testing.assert_close(together, norm(convolution(pixels)))


def test_a_folded_batch_norm_by_hand() -> None:
    # y = 3 (2 x - 1) / sqrt(4 + 1e-5) + 5: close to 3 x + 3.5
    state = {
        "a.c.weight": torch.full((1, 1, 1, 1), 2.0),
        "a.bn.weight": torch.tensor([3.0]),
        "a.bn.bias": torch.tensor([5.0]),
        "a.bn.running_mean": torch.tensor([1.0]),
        "a.bn.running_var": torch.tensor([4.0]),
        "a.bn.num_batches_tracked": torch.tensor(9),
    }
    folded = fold_batch_norms(state)
    assert folded["a.weight"].item() == pytest.approx(3.0, abs=1e-5)
    assert folded["a.bias"].item() == pytest.approx(3.5, abs=1e-5)


def test_tensors_without_a_batch_norm_are_left_alone() -> None:
    weight = torch.ones(2, 2)
    assert fold_batch_norms({"mlp.fc1.weight": weight}) == {"mlp.fc1.weight": weight}


def test_relative_offsets_of_a_window_of_two_by_hand() -> None:
    # Places 0..3 are (0,0) (0,1) (1,0) (1,1); the entry is |rows| * 2 + |columns|.
    assert relative_offsets(2).tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]


@torch.no_grad()
def test_attention_stays_in_its_window() -> None:
    # 14 x 7 places in windows of 7: two windows, one over the other. The convolution carries a change one place on.
    torch.manual_seed(0)
    block = TinyViTBlock(dim=8, heads=2, window=7)
    place = torch.randn(1, 14, 7, 8)
    changed = place.clone()
    changed[0, 2, 3, 0] += 5
    moved = (block(changed) - block(place)).abs().amax(dim=-1)[0]  # (14, 7)
    assert (moved[:7] > 1e-6).all()
    assert (moved[8:] == 0).all()


@torch.no_grad()
def test_a_map_that_no_window_divides_keeps_its_size() -> None:
    block = TinyViTBlock(dim=8, heads=2, window=7)
    assert block(torch.randn(2, 10, 9, 8)).shape == (2, 10, 9, 8)


def test_lite_medsam_names_find_their_place() -> None:
    names = {
        "image_encoder.layers.0.blocks.1.conv2.c.weight": "stem.1.conv2.weight",
        "image_encoder.layers.0.downsample.conv1.c.weight": "stem.2.conv1.weight",
        "image_encoder.layers.3.blocks.0.local_conv.c.weight": "stages.2.blocks.0.local_conv.weight",
        "image_encoder.patch_embed.seq.2.c.weight": "patch_embed.2.weight",
    }
    expected = TinyViT().state_dict()
    for theirs, ours in names.items():
        stem = theirs.removesuffix(".c.weight")
        channels = expected[ours].shape[0]
        norm = {part: torch.ones(channels) for part in ("weight", "bias", "running_mean", "running_var")}
        state = {theirs: torch.ones(expected[ours].shape), **{f"{stem}.bn.{part}": v for part, v in norm.items()}}
        assert set(convert_lite_medsam(state)) == {ours, ours.replace("weight", "bias")}
    kept = convert_lite_medsam({"image_encoder.neck.0.weight": torch.ones(1), "mask_decoder.x": torch.ones(1)})
    assert set(kept) == {"neck.0.weight"}


@pytest.mark.weights
@torch.no_grad()
def test_the_published_weights_give_the_original_code_s_neck() -> None:
    neck = published_encoder()(picture()).neck
    # From LiteMedSAM's own code on the same picture.
    got = neck[0, [0, 100, 255, 7], [0, 30, 63, 31], [0, 20, 63, 45]]
    torch.testing.assert_close(got, torch.tensor([-0.022522, -0.078836, 0.085058, -0.036719]), atol=1e-4, rtol=0)
    assert neck.abs().double().mean().item() == pytest.approx(0.0721088, abs=1e-5)


@pytest.mark.weights
@torch.no_grad()
def test_pictures_together_equal_one_by_one() -> None:
    encoder = published_encoder()
    part = picture()[..., 32:160, 96:224]  # 128 x 128: a quarter of the work, still several windows
    first, second = part, part.flip(-1)
    together = encoder(torch.cat([first, second])).neck
    alone = torch.cat([encoder(first).neck, encoder(second).neck])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
