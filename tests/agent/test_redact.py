"""Text is drawn onto a made-up sector; speckle and a bright arc stand for tissue."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medsam3.agent.redact import hide_burnt_in_text
from medsam3.errors import InputError

HEIGHT, WIDTH = 400, 560


def sector(*texts: tuple[str, tuple[int, int]], size: int = 16) -> NDArray[np.uint8]:
    """A speckled fan from the top, with a bright arc in it; `texts` are drawn at (x, y) as scanners do."""
    generator = np.random.default_rng(3)
    speckle = generator.rayleigh(45, (HEIGHT, WIDTH)).clip(25, 150).astype(np.uint8)
    fan = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(fan).pieslice((30, -250, 530, 380), 50, 130, fill=255)
    picture = Image.fromarray(np.where(np.array(fan) > 0, speckle, 0).astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    draw.arc((200, 120, 360, 280), 200, 340, fill=(230, 230, 230), width=6)
    for text, place in texts:
        draw.text(place, text, fill=(225, 225, 225), font=ImageFont.load_default(size))
    return np.array(picture)


@pytest.mark.parametrize("size", [11, 16, 26])
@pytest.mark.parametrize("place", [(6, 6), (400, 8), (6, 360)], ids=["top left", "top right", "bottom left"])
def test_text_beside_the_sector_is_blanked_and_nothing_else(size: int, place: tuple[int, int]) -> None:
    plain = sector()
    hidden, boxes = hide_burnt_in_text(sector(("DOE^J 1970", place), size=size))
    assert np.array_equal(hidden, plain)  # so every letter is gone and no tissue is
    assert boxes


def test_every_line_of_text_has_its_box() -> None:
    _, boxes = hide_burnt_in_text(sector(("Anna", (6, 10)), ("Bert", (500, 60))))
    first, last = boxes
    assert first[0] < 10 < first[2] < 60  # x
    assert first[1] < 15 < first[3] < 40  # y
    assert last[0] < 505 < last[2] <= WIDTH - 0.5


def test_a_line_of_letters_over_tissue_in_the_border_is_blanked() -> None:
    generator = np.random.default_rng(4)
    tissue = generator.rayleigh(40, (HEIGHT, WIDTH)).clip(20, 140).astype(np.uint8)[..., None].repeat(3, axis=2)
    picture = Image.fromarray(tissue)
    ImageDraw.Draw(picture).text((200, 355), "MAMA DIR 31.0", fill="white", font=ImageFont.load_default(24))
    hidden, boxes = hide_burnt_in_text(np.array(picture))
    drawn = (np.array(picture) != tissue).any(axis=2)
    assert not hidden[drawn].max() > 140  # no white letter is left
    assert len(boxes) in (1, 2)
    assert np.array_equal(hidden[:330], tissue[:330])


def test_the_middle_is_left_alone() -> None:
    plain = sector()
    shown = sector(("+ 12.4 mm", (250, 190)))
    hidden, boxes = hide_burnt_in_text(shown)
    assert boxes == []
    assert np.array_equal(hidden, shown)
    assert not np.array_equal(shown, plain)


def test_a_picture_without_text_comes_back_as_it_is() -> None:
    plain = sector()
    hidden, boxes = hide_burnt_in_text(plain)
    assert boxes == []
    assert np.array_equal(hidden, plain)
    assert hidden is not plain


def test_tissue_that_hangs_alone_in_the_black_is_kept() -> None:
    picture = Image.fromarray(sector())
    blurred = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(blurred).ellipse((20, 300, 50, 310), fill=200)
    glow = np.array(blurred.resize((WIDTH // 8, HEIGHT // 8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    shown = np.maximum(np.array(picture), glow[..., None])
    assert shown[300:312, 15:55].max() > 60
    hidden, _ = hide_burnt_in_text(shown)
    assert np.array_equal(hidden, shown)


@pytest.mark.parametrize("shape", [(1, 1, 3), (20, 300, 3), (64, 64, 3)])
def test_small_and_black_pictures_pass(shape: tuple[int, int, int]) -> None:
    hidden, boxes = hide_burnt_in_text(np.zeros(shape, dtype=np.uint8))
    assert (hidden.shape, boxes) == (shape, [])


@pytest.mark.parametrize("picture", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))])
def test_other_pictures_are_refused(picture: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=r"allowed is \(H, W, 3\) uint8"):
        hide_burnt_in_text(picture)
