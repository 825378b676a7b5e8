"""Text that a scanner has burnt into the borders of a picture: found and blanked before anything is sent.

Names, dates and hospitals stand beside the sector of an ultrasound picture, or as white letters over its margins. No
text is read: beside the picture's large lit parts every small sharp thing is taken for text, over them only what stands
in a line like letters. It is a net with holes: text whose centre lies in the middle of a picture stays, and so do one
or two letters alone over tissue, and handwriting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage, sparse, spatial

from medsam3.errors import InputError
from medsam3.geometry import BoolArray

TextBox = tuple[float, float, float, float]
Gray = NDArray[np.float32]

BORDER = 0.25
"""The share of the picture's height and width, at either end, where text is looked for."""

LETTER = (0.012, 0.09)
"""The height of letters, as a share of the picture's shorter side."""

SMALLEST = 32
"""Pictures of fewer pixels on a side hold no text that could be read."""

FEWEST_LETTERS = 3
"""So many in a line are text, where they stand over the picture."""

LEVELS = (0.45, 0.6, 0.78)
"""Shares of the picture's brightest value: letters part from the tissue around them at one of these."""

FAINTEST = 100
"""Letters over the picture are brighter than this."""

WORD_GAP = 1.5
"""Between words of a line, in heights of the line."""

MOST_LETTERS = 3000
"""More things like letters than this are a texture."""

DARK = 18
"""Gray values up to this are the black around the picture, with what JPEG adds to it."""

LONGEST_WORD = 0.3
"""The share of the picture's width or height: what hangs together over more is no word."""

SHARP = 0.5
"""Mean steps between neighbouring pixels of a thing, over its brightness: drawn letters have 0.7 to 0.97, tissue in the
black up to 0.29 (measured on drawn text at six sizes after JPEG, and on HC18)."""


def hide_burnt_in_text(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[TextBox]]:
    """The picture with burnt-in text made black, and where that was.

    Args:
        rgb: (H, W, 3).

    Returns:
        A copy of the same shape, and boxes around what was made black, from top to bottom, outer edges included; none
        where no text was found.

    Raises:
        InputError: The picture is not (H, W, 3) uint8.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"picture of shape {rgb.shape} and type {rgb.dtype}, allowed is (H, W, 3) uint8")
    hidden = rgb.copy()
    text = _text(rgb)
    hidden[text] = 0
    labels, _ = ndimage.label(text, np.ones((3, 3)))
    extents = ndimage.find_objects(labels)
    return hidden, [(x.start - 0.5, y.start - 0.5, x.stop - 0.5, y.stop - 0.5) for y, x in extents]


def _text(rgb: NDArray[np.uint8]) -> BoolArray:
    """Find text (H, W), with a margin."""
    short = min(rgb.shape[:2])
    if short < SMALLEST:
        return np.zeros(rgb.shape[:2], dtype=bool)
    gray = rgb.max(axis=2).astype(np.float32)
    margin = max(2, round(0.008 * short))
    text: BoolArray = ndimage.maximum_filter(_beside(gray) | _over(gray), size=(2 * margin + 1, 4 * margin + 1))
    return text


def _beside(gray: Gray) -> BoolArray:
    """Small sharp things (H, W) in the black around the picture's large lit parts."""
    lit = gray > DARK
    large = _large(lit)
    reach = max(3, round(0.015 * min(gray.shape)))
    beyond = ~ndimage.maximum_filter(_hull(large), size=2 * reach + 1)
    labels, count = ndimage.label(lit, np.ones((3, 3)))
    if count == 0:
        return lit
    numbers = np.arange(1, count + 1)
    brightest = ndimage.maximum(gray, labels, numbers)
    steepness = ndimage.mean(ndimage.morphological_gradient(gray, (3, 3)), labels, numbers)
    is_text = (brightest > 3 * DARK) & (steepness > SHARP * brightest)
    is_text &= _things(labels).height <= 2 * LETTER[1] * min(gray.shape)
    is_text[np.unique(labels[large & lit]) - 1] = False  # what hangs together with the picture is the picture
    kept: BoolArray = np.concatenate([[False], is_text])[labels] & beyond & _border(gray.shape)
    return kept


def _large(lit: BoolArray) -> BoolArray:
    """The lit parts (H, W) that are no letters: wider and higher than strokes, or longer than words."""
    side = max(5, round(0.035 * min(lit.shape)))
    closed = ndimage.minimum_filter(ndimage.maximum_filter(lit, size=3), size=3)
    opened = ndimage.maximum_filter(ndimage.minimum_filter(closed, size=side), size=side)
    labels, count = ndimage.label(opened)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    is_large = sizes >= max(0.1 * sizes[1:].max(initial=0), 0.003 * lit.size)
    is_large[0] = False
    labels_of_lit, _ = ndimage.label(lit, np.ones((3, 3)))
    things = _things(labels_of_lit)
    is_long = (things.width > LONGEST_WORD * lit.shape[1]) | (things.height > LONGEST_WORD * lit.shape[0])
    large: BoolArray = is_large[labels] | np.concatenate([[False], is_long])[labels_of_lit]
    return large


def _hull(mask: BoolArray) -> BoolArray:
    """The convex hull of the true pixels (H, W)."""
    points = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    if len(points) < 3:
        return mask
    try:
        corners = points[spatial.ConvexHull(points).vertices]
    except spatial.QhullError:  # all on one line
        return mask
    drawn = Image.new("1", mask.shape[::-1])
    ImageDraw.Draw(drawn).polygon([(int(column), int(row)) for row, column in corners], fill=1, outline=1)
    return np.array(drawn, dtype=bool)


def _border(shape: tuple[int, ...]) -> BoolArray:
    """Mark the pixels (H, W) that are not in the middle of the picture."""
    is_border = np.ones(shape, dtype=bool)
    rows, columns = (slice(round(BORDER * size), round((1 - BORDER) * size)) for size in shape)
    is_border[rows, columns] = False
    return is_border


@dataclass(frozen=True)
class Things:
    """The extents of M connected things, (M,) each: rows `top` to `bottom`, columns `left` to `right`, ends out."""

    top: NDArray[np.int64]
    bottom: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]

    def __getitem__(self, which: BoolArray | NDArray[np.int64]) -> Things:
        return Things(self.top[which], self.bottom[which], self.left[which], self.right[which])

    @property
    def height(self) -> NDArray[np.int64]:
        """Heights in pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> NDArray[np.int64]:
        """Widths in pixels."""
        return self.right - self.left


def _things(labels: NDArray[np.int32]) -> Things:
    """Find the extents of the labels 1..M."""
    extents = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in ndimage.find_objects(labels)]
    return Things(*np.array(extents, dtype=np.int64).reshape(-1, 4).T)


def _over(gray: Gray) -> BoolArray:
    """Boxes (H, W) around lines of bright letters that stand over the picture, with their centres in the border."""
    lines = np.zeros(gray.shape, dtype=bool)
    border = _border(gray.shape)
    for level in LEVELS:
        things, is_letter = _bright_things(gray, level)
        if not FEWEST_LETTERS <= is_letter.sum() <= MOST_LETTERS:
            continue
        for line in _in_lines(things[is_letter]):
            if border[(line.top.min() + line.bottom.max()) // 2, (line.left.min() + line.right.max()) // 2]:
                top, bottom, left, right = _whole_line(line, things)
                lines[top:bottom, left:right] = True
    return lines


def _whole_line(line: Things, things: Things) -> tuple[int, int, int, int]:
    """From top to bottom and left to right of a line, with what stands in it but is no letter alone: stops, pairs."""
    top, bottom, left, right = line.top.min(), line.bottom.max(), line.left.min(), line.right.max()
    height = bottom - top
    is_level = (things.top >= top - 0.3 * height) & (things.bottom <= bottom + 0.3 * height)
    for _ in range(MOST_LETTERS):
        near = is_level & (things.right >= left - WORD_GAP * height) & (things.left <= right + WORD_GAP * height)
        wider = things.left[near].min(), things.right[near].max()
        if wider == (left, right):
            break
        left, right = wider
    return int(top), int(bottom), int(left), int(right)


def _bright_things(gray: Gray, level: float) -> tuple[Things, BoolArray]:
    """All thin things brighter than `level` of the picture's brightest, and which are of a letter's size and shape."""
    short = min(gray.shape)
    side = max(7, round(0.03 * short) | 1)
    ground = ndimage.grey_opening(gray, (side, side))
    bright = (gray > max(level * float(np.percentile(gray, 99.9)), FAINTEST)) & (gray - ground > 60)
    labels, count = ndimage.label(bright, np.ones((3, 3)))
    things = _things(labels)
    fill = np.bincount(labels.ravel(), minlength=count + 1)[1:] / np.maximum(things.height * things.width, 1)
    has_height = (things.height >= max(5, LETTER[0] * short)) & (things.height <= LETTER[1] * short)
    is_stem = things.width <= 0.4 * things.height
    return things, has_height & (((things.width <= 1.6 * things.height) & (fill > 0.15) & (fill < 0.9)) | is_stem)


def _in_lines(letters: Things) -> Iterator[Things]:
    """The letters that stand in lines: beside each other, on one ground line, of like height."""
    higher = np.maximum(letters.height[:, None], letters.height)
    lower = np.minimum(letters.height[:, None], letters.height)
    gap = letters.left - letters.right[:, None]
    is_next = (gap <= higher) & (gap > -0.3 * higher) & (higher <= 1.6 * lower)
    is_next &= np.abs(letters.bottom[:, None] - letters.bottom) <= np.maximum(2, 0.2 * higher)
    count, numbers = sparse.csgraph.connected_components(is_next, directed=False)
    for number in range(count):
        line = letters[numbers == number]
        if len(line.top) >= FEWEST_LETTERS and np.ptp(line.bottom) <= 0.5 * (line.bottom.max() - line.top.min()):
            yield line
