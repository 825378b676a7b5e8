"""Augmented views of a square image and its label map: one seeded random warp and one change of tones.

A view is made once, before the frozen encoder, because its features are cached. View 0 is always the plain image.
Mirrored views belong to the loop, which flips cached features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
from numpy.typing import NDArray

from medsam3.models.mini.letterbox import SIDE

RGB = NDArray[np.uint8]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class View:
    """What one view does to the square.

    Attributes:
        inverse: (2, 3), the square's pixel (x, y, 1) of the view to that of the plain image, 256 pixels a side.
        brightness, contrast, saturation: Factors, 1 for no change.
        gamma: Exponent on values in 0..1.
        blur_px: Standard deviation of a Gaussian blur.
    """

    inverse: tuple[tuple[float, float, float], tuple[float, float, float]]
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    gamma: float = 1.0
    blur_px: float = 0.0


PLAIN = View(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))


def view_of(image_name: str, number: int, *, seed: int = 0) -> View:
    """View `number` of an image; 0 is the plain one. The same name, number and seed always give the same view."""
    return PLAIN if number == 0 else random_view(view_generator(image_name, number, seed=seed))


def random_view(rng: np.random.Generator) -> View:
    """A view drawn at random."""
    angle = np.deg2rad(rng.uniform(-20, 20))
    zoom = np.exp(rng.uniform(np.log(0.8), np.log(1.35)))
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag([1 / (zoom * stretch), stretch / zoom]) @ rotation
    centre = np.full(2, (SIDE - 1) / 2)
    offset = centre - matrix @ (centre + rng.uniform(-0.08, 0.08, size=2) * SIDE)
    rows = [(float(m[0]), float(m[1]), float(t)) for m, t in zip(matrix, offset, strict=True)]
    return View(
        inverse=(rows[0], rows[1]),
        brightness=float(rng.uniform(0.75, 1.25)),
        contrast=float(rng.uniform(0.75, 1.25)),
        saturation=float(rng.uniform(0.7, 1.3)),
        gamma=float(rng.uniform(0.8, 1.25)),
        blur_px=float(max(0.0, rng.uniform(-1.5, 1.0))),
    )


def view_generator(image_name: str, number: int, *, seed: int) -> np.random.Generator:
    """Random numbers that belong to one view of one image."""
    digest = hashlib.sha256(f"{seed}/{number}/{image_name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def warp_pixels(square: RGB, view: View) -> RGB:
    """The view of a square image (S, S, 3) uint8; what comes from outside it is black."""
    if view == PLAIN:
        return square
    side = square.shape[0]
    image = PIL.Image.fromarray(square).transform(
        (side, side), PIL.Image.Transform.AFFINE, _pil_coefficients(view, side), PIL.Image.Resampling.BICUBIC
    )
    image = PIL.ImageEnhance.Brightness(image).enhance(view.brightness)
    image = PIL.ImageEnhance.Contrast(image).enhance(view.contrast)
    image = PIL.ImageEnhance.Color(image).enhance(view.saturation)
    if view.blur_px > 0:
        image = image.filter(PIL.ImageFilter.GaussianBlur(view.blur_px * side / SIDE))
    values = np.arange(256, dtype=np.float32) / 255
    table = np.rint(values**view.gamma * 255).astype(np.uint8)
    shown: RGB = table[np.asarray(image)]
    return shown


def warp_labels(labels: Labels, view: View) -> Labels:
    """The same view of a map of integers (S, S) by nearest neighbour; 0 from outside."""
    if view == PLAIN:
        return labels
    side = labels.shape[0]
    image = PIL.Image.fromarray(labels).transform(
        (side, side), PIL.Image.Transform.AFFINE, _pil_coefficients(view, side), PIL.Image.Resampling.NEAREST
    )
    return np.asarray(image, dtype=np.int32)


def _pil_coefficients(view: View, side: int) -> tuple[float, ...]:
    """PIL measures from pixel corners: its pixel centres lie at .5. A view is said for a square of 256 pixels."""
    shifted = []
    for a, b, c in view.inverse:
        shifted.append((a, b, (c + 0.5 - 0.5 * a - 0.5 * b) * side / SIDE))
    return (*shifted[0], *shifted[1])
