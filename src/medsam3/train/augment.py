"""Augmented views of a square image and its label map: a random warp, a change of tones, made-up stains of microscopy.

View 0 is always the plain image.

Source: absorbances of haematoxylin, eosin and DAB by Ruifrok and Johnston, Anal Quant Cytol Histol 23(4), 2001.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.models.mini.letterbox import SIDE

RGB = NDArray[np.uint8]
Labels = NDArray[np.int32]
Density = NDArray[np.float64]

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
DAB = np.array([0.27, 0.57, 0.78])


@dataclass(frozen=True)
class Warp:
    """The change that one view makes to the square.

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


PLAIN = Warp(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))


def view_of(image_name: str, number: int, *, seed: int = 0) -> Warp:
    """View `number` of an image; 0 is the plain one. The same name, number and seed always give the same view."""
    return PLAIN if number == 0 else random_view(view_generator(image_name, number, seed=seed))


def random_view(rng: np.random.Generator) -> Warp:
    """A view drawn at random."""
    angle = np.deg2rad(rng.uniform(-20, 20))
    zoom = np.exp(rng.uniform(np.log(0.8), np.log(1.35)))
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag([1 / (zoom * stretch), stretch / zoom]) @ rotation
    centre = np.full(2, (SIDE - 1) / 2)
    offset = centre - matrix @ (centre + rng.uniform(-0.08, 0.08, size=2) * SIDE)
    rows = [(float(m[0]), float(m[1]), float(t)) for m, t in zip(matrix, offset, strict=True)]
    return Warp(
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


def warp_pixels(square: RGB, view: Warp) -> RGB:
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


def warp_labels(labels: Labels, view: Warp) -> Labels:
    """Change a map of integers (S, S) as the pixels, by nearest neighbour; 0 from outside."""
    if view == PLAIN:
        return labels
    side = labels.shape[0]
    image = PIL.Image.fromarray(labels).transform(
        (side, side), PIL.Image.Transform.AFFINE, _pil_coefficients(view, side), PIL.Image.Resampling.NEAREST
    )
    return np.asarray(image, dtype=np.int32)


def _pil_coefficients(view: Warp, side: int) -> tuple[float, ...]:
    """PIL measures from pixel corners: its pixel centres lie at .5. A view is said for a square of 256 pixels."""
    shifted = []
    for a, b, c in view.inverse:
        shifted.append((a, b, (c + 0.5 - 0.5 * a - 0.5 * b) * side / SIDE))
    return (*shifted[0], *shifted[1])


def restain(picture: RGB, nuclei: NDArray[np.bool_], rng: np.random.Generator) -> RGB:
    """Show the picture (H, W, 3) under random stains; the brown one mostly leaves out the `nuclei` (H, W).

    Sets of nuclei hold few stains, so that a model learns "dark means nucleus"; in immunohistochemistry the dark brown
    is everything but the nuclei. A nuclear density is read from the picture, counterstains are laid over the rest as
    smooth random fields, and all of them absorb light as stains do.

    Haematoxylin follows the picture's own structure. Eosin is weak; DAB, where it is drawn at all, is strong in smooth
    patches and mostly outside the nuclei. Rows and columns that are all black, a letterbox's bars, stay black.
    """
    density = nuclear_density(picture, nuclei)
    tissue = 0.3 + 0.7 * _smooth(rng, density.shape, rng.uniform(8, 40))
    cytoplasm = 1 - rng.uniform(0.5, 0.95) * ndimage.gaussian_filter(nuclei.astype(np.float64), rng.uniform(0.5, 1.2))
    texture = 1 + rng.uniform(0.1, 0.5) * (2 * _smooth(rng, density.shape, rng.uniform(0.7, 2.0)) - 1)
    regions = _smooth(rng, density.shape, rng.uniform(12, 50)) - rng.uniform(0.2, 0.7)
    patches = np.clip(rng.uniform(3, 8) * regions, 0, 1)
    brown = rng.uniform(0.4, 2.2) * (rng.random() < 0.7)
    absorbance = (
        rng.uniform(0.5, 1.5) * density[..., None] * _tinted(HAEMATOXYLIN, rng)
        + rng.uniform(0.0, 0.3) * (tissue * cytoplasm)[..., None] * _tinted(EOSIN, rng)
        + brown * (patches * cytoplasm * texture)[..., None] * _tinted(DAB, rng)
    )
    light = rng.uniform(225, 250, size=3) * np.exp(-absorbance)
    light[_letterbox_bars(picture.max(axis=2) == 0)] = 0
    stained: RGB = np.rint(np.clip(light, 0, 255)).astype(np.uint8)
    return stained


def nuclear_density(picture: RGB, nuclei: NDArray[np.bool_]) -> Density:
    """How much nuclear stain a pixel holds, (H, W) in 0..1: bright in fluorescence, dark in bright field.

    Which of the two it is follows from whether the nuclei are brighter than the rest.
    """
    grey = picture.astype(np.float64).mean(axis=2)
    inside, outside = grey[nuclei], grey[~nuclei]
    if inside.size and outside.size and inside.mean() < outside.mean():
        grey = 255 - grey
    low, high = np.percentile(grey, (20, 99.5))
    density: Density = np.clip((grey - low) / max(high - low, 1.0), 0, 1)
    return density


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma_px: float) -> Density:
    """A random field in 0..1 without structure finer than `sigma_px`."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), sigma_px, mode="reflect")
    low, high = field.min(), field.max()
    result: Density = (field - low) / max(high - low, 1e-12)
    return result


def _tinted(absorbance: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A stain's absorbance (3,), of length 1, as another laboratory's batch would have it."""
    varied = np.clip(absorbance + rng.normal(0, 0.06, size=3), 0.01, None)
    result: NDArray[np.float64] = varied / np.linalg.norm(varied)
    return result


def _letterbox_bars(black: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows and columns of (H, W) that are black all along."""
    bars: NDArray[np.bool_] = np.logical_or(black.all(axis=1, keepdims=True), black.all(axis=0, keepdims=True))
    return bars
