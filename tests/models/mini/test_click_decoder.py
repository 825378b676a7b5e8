"""The interactive decoder's maps of what was drawn, and its answers' shapes."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from medsam3.models.mini.click_decoder import (
    ClickDecoder,
    ClickDecoderConfig,
    ClickImage,
    Drawn,
    alike_maps,
    click_maps,
    far_maps,
    reach_map,
    sampled_in,
)

TINY = ClickDecoderConfig(level_width=16, detail=8, middle=8, coarse=16, deep=16, deep_blocks=1, key=8)
WHOLE = torch.tensor([[0.0, 0.0, 1.0]])


def levels(batch: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return tuple(torch.randn(batch, 16, side, side) for side in (128, 64, 32))


def seen(decoder: ClickDecoder, batch: int) -> ClickImage:
    return decoder.image(decoder.frame(levels(batch)), WHOLE.repeat(batch, 1), torch.rand(batch, 3, 256, 256))


def drawn(*clicks: list[tuple[float, float, int]], boxes: torch.Tensor | None = None) -> Drawn:
    most = max(1, *map(len, clicks)) if len(clicks) > 1 else max(1, len(clicks[0]))
    padded = torch.full((len(clicks), most, 3), -1.0)
    for k, own in enumerate(clicks):
        for p, click in enumerate(own):
            padded[k, p] = torch.tensor(click)
    none = torch.full((len(clicks), 4), torch.nan)
    return Drawn(
        padded, none if boxes is None else boxes, torch.zeros(len(clicks), 128, 128), torch.zeros(len(clicks), 4)
    )


def test_a_click_is_a_cone_on_its_own_cell_and_kind() -> None:
    maps = click_maps(drawn([(41.5, 21.5, 1)]).clicks, 4)  # centre of the cell of column 10, row 5
    assert maps.shape == (1, 2, 64, 64)
    assert maps[0, 0, 5, 10] == 1
    assert maps[0, 0, 5, 12] == pytest.approx(1 / 3)  # two cells off, of three
    assert maps[0, 0, 5, 13] == 0
    assert not maps[0, 1].any()
    negative = click_maps(drawn([(41.5, 21.5, 0)]).clicks, 4)
    assert not negative[0, 0].any() and negative[0, 1, 5, 10] == 1


def test_no_click_and_padding_draw_nothing() -> None:
    said = drawn([], [(10.0, 10.0, 1), (200.0, 10.0, 0)])
    assert not click_maps(said.clicks, 8)[0].any()
    assert not far_maps(said)[0].any()
    assert not reach_map(said.last).any()
    keys = torch.nn.functional.normalize(torch.randn(2, 8, 32, 32), dim=1)
    assert not alike_maps(keys, said)[0].any()


def test_the_reach_of_a_click_is_a_cone_as_wide_as_it_lies_deep_in_the_error() -> None:
    (cone,) = reach_map(torch.tensor([[41.5, 21.5, -1.0, 16.0]]))[0]  # four cells deep, off the object
    assert cone[5, 10] == -1
    assert cone[5, 12] == pytest.approx(-0.5)
    assert cone[5, 14] == 0


def test_a_window_shows_its_quarter_of_the_maps() -> None:
    ramp = torch.arange(8.0).repeat(8, 1)[None, None]  # the column of each of 8 x 8 cells
    half = sampled_in(ramp, torch.tensor([[0.5, 0.0, 0.5]]))[0, 0]  # columns 4 to 7, cells half as wide
    assert torch.allclose(half[3, 1:-1], torch.tensor([4.25, 4.75, 5.25, 5.75, 6.25, 6.75]))
    assert torch.allclose(sampled_in(ramp, WHOLE), ramp, atol=1e-5)


def test_what_is_clicked_on_is_most_alike_to_itself() -> None:
    keys = torch.nn.functional.normalize(torch.randn(1, 8, 32, 32), dim=1)
    on, off, *_ = alike_maps(keys, drawn([(43.5, 19.5, 1)]))[0]  # cell of column 5, row 2
    assert on[2, 5] == pytest.approx(2, abs=1e-4)
    assert on.argmax() == 2 * 32 + 5
    assert not off.any()


def test_the_box_is_what_is_alike_until_there_is_a_mask() -> None:
    keys = torch.nn.functional.normalize(torch.randn(1, 8, 32, 32), dim=1)
    said = drawn([], boxes=torch.tensor([[-0.5, -0.5, 63.5, 63.5]]))  # 8 x 8 cells
    inside = torch.einsum("c,chw->hw", keys[0, :, :8, :8].mean(dim=(1, 2)), keys[0])
    assert torch.allclose(alike_maps(keys, said)[0, 2], inside, atol=1e-5)


def test_objects_are_answered_alike_together_and_alone() -> None:
    torch.manual_seed(0)
    decoder = ClickDecoder(TINY).eval()
    both = drawn([(30.0, 40.0, 1)], [(100.0, 90.0, 1), (10.0, 10.0, 0)])
    with torch.no_grad():
        image = seen(decoder, 2)
        together, fits = decoder(image, both)
        for k in (0, 1):
            own = Drawn(*(getattr(both, field.name)[[k]] for field in fields(both)))
            alone, fit = decoder(image.select(torch.tensor([k])), own)
            assert torch.allclose(together[[k]], alone, atol=1e-4)
            assert torch.allclose(fits[[k]], fit, atol=1e-4)
    assert together.shape == (2, 128, 128)


def test_a_mask_so_far_is_kept_before_anything_was_learnt_against_it() -> None:
    torch.manual_seed(0)
    decoder = ClickDecoder(TINY).eval()
    torch.nn.init.zeros_(decoder.last.weight)
    torch.nn.init.zeros_(decoder.last.bias)  # type: ignore[arg-type]
    said = drawn([])
    said.masks[:, 20:60, 30:70] = 2
    said.masks.sub_(1)
    with torch.no_grad():
        logits, _ = decoder(seen(decoder, 1), said)
    assert torch.equal(logits > 0, said.masks > 0)
