"""Made-up stains for microscopy: a picture with known nuclei, shown as if it had been stained in another way.

Sets of nuclei hold few stains, so that a model learns "dark means nucleus"; in immunohistochemistry the dark brown is
everything but the nuclei. Here a nuclear density is read from the picture (fluorescence or bright field), counterstains
are laid over the rest as smooth random fields, and all of them absorb light as stains do.

Source: absorbances of haematoxylin, eosin and DAB by Ruifrok and Johnston, Anal Quant Cytol Histol 23(4), 2001.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

RGB = NDArray[np.uint8]
Density = NDArray[np.float64]

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
DAB = np.array([0.27, 0.57, 0.78])


def restain(picture: RGB, nuclei: NDArray[np.bool_], rng: np.random.Generator) -> RGB:
    """The picture (H, W, 3) under random stains; the brown one mostly leaves out the `nuclei` (H, W).

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
