"""EfficientNet-Lite: shapes, frozen stages, the published names, and the published weights' own answer."""

import pytest
import torch

from medsam3.models.mini.efficientnet import EfficientNet, NormedConv, convert_efficientnet
from medsam3.models.mini.encoder_files import locate_trunk


def test_five_maps_at_strides_2_to_32() -> None:
    maps = EfficientNet("lite0")(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in maps] == [
        (2, 16, 32, 48),
        (2, 24, 16, 24),
        (2, 40, 8, 12),
        (2, 112, 4, 6),
        (2, 320, 2, 3),
    ]


def test_a_scale_and_shift_are_those_of_a_batch_norm_with_fixed_statistics() -> None:
    layer = NormedConv(1, 1, 1)
    state = {
        "_conv_stem.weight": torch.full((1, 1, 1, 1), 3.0),
        "_bn0.weight": torch.tensor([2.0]),
        "_bn0.bias": torch.tensor([5.0]),
        "_bn0.running_mean": torch.tensor([1.0]),
        "_bn0.running_var": torch.tensor([4.0 - 1e-3]),
    }
    converted = convert_efficientnet(state)
    layer.load_state_dict({name.removeprefix("stem."): value for name, value in converted.items()})
    # (3 * 7 - 1) / sqrt(4) * 2 + 5 = 25
    assert layer(torch.full((1, 1, 2, 2), 7.0)).flatten().tolist() == pytest.approx([25.0] * 4)


def test_a_convolution_of_stride_two_pads_more_at_the_right_and_bottom() -> None:
    layer = NormedConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(layer.conv.weight)
    picture = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Windows start at rows and columns 0 and 2; the last ones hold one row or column of zeros.
    expected = [[45.0, 39.0], [66.0, 50.0]]
    assert layer(picture)[0, 0].tolist() == expected


def test_frozen_stages_get_no_gradient() -> None:
    trunk = EfficientNet("lite0")
    trunk.freeze_below(stride=4)
    torch.stack([level.sum() for level in trunk(torch.rand(1, 3, 64, 64))]).sum().backward()  # type: ignore[no-untyped-call]
    has_gradient = {name: parameter.grad is not None for name, parameter in trunk.named_parameters()}
    assert not has_gradient["stem.conv.weight"]
    assert not has_gradient["blocks.2.project.scale"]
    assert has_gradient["blocks.3.project.scale"]


@pytest.mark.weights
def test_the_published_weights_give_the_published_code_s_features() -> None:
    trunk = EfficientNet("lite0")
    trunk.load_state_dict(convert_efficientnet(torch.load(locate_trunk(), weights_only=True)))
    rows, columns = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    picture = torch.stack([rows / 223, columns / 223, (rows + columns) % 32 / 31])[None]
    with torch.no_grad():
        last = trunk(picture)[-1]
    assert last[0, [0, 100, 319], [0, 3, 6], [0, 5, 2]].tolist() == pytest.approx(KNOWN, abs=1e-3)


KNOWN = [1.87145, 4.09565, -0.8155]
"""Of the published package's model: its last block at (channel, row, column) (0, 0, 0), (100, 3, 5), (319, 6, 2)."""
