"""The one rule of how grey values are shown: a window for the whole stack, in the file's units, alike for all readers.

A container must not change the picture: CT and MR come as often in files that have no window of their own, so the
readers of DICOM leave theirs aside, and this rule decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import BoolArray, FloatArray
from medsam3.image import Image, Pixels, Window

RGB = NDArray[np.uint8]


def _window(centre: float, width: float) -> Window:
    return Window(centre - width / 2, centre + width / 2)


SOFT_TISSUE_HU = _window(40, 400)
WINDOWS: Mapping[str, Window] = MappingProxyType(
    {
        "soft tissue": SOFT_TISSUE_HU,
        "abdomen": _window(60, 400),
        "liver": _window(90, 150),
        "lung": _window(-600, 1500),
        "mediastinum": _window(50, 350),
        "bone": _window(400, 1800),
        "brain": _window(40, 80),
        "subdural": _window(75, 215),
        "stroke": _window(40, 40),
        "spine": _window(50, 250),
        "angiography": _window(300, 600),
    }
)
"""Windows in Hounsfield units as they are in common use in radiology."""

AIR_BELOW_HU = -500.0
LOWEST_HU = -1100.0
"""Below it lies only padding, about one value, and the noise of the odd voxel."""
_PADDING_NOISE_HU = 100.0
_LEAST_AIR_SHARE = 0.001
_LEAST_8_BIT_HIGH = 200.0
_MOST_NOISE_SHARE = 0.01
_LEAST_OUTLIER_SHARE = 0.01
_PERCENTILES = (0.5, 99.5)
_SAMPLED_SLICES = 24
_SAMPLED_PIXELS = 100_000


def window_named(text: str) -> Window:
    """Read a preset of `WINDOWS`, or `CENTRE,WIDTH` in stored units.

    Raises:
        InputError: Neither.
    """
    name = " ".join(text.lower().replace("-", " ").replace("_", " ").split())
    if name in WINDOWS:
        return WINDOWS[name]
    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"window is {text!r}, allowed are {', '.join(WINDOWS)}, or CENTRE,WIDTH in the file's units"
        ) from error
    if not (np.isfinite([centre, width]).all() and width > 0):
        raise InputError(f"window is {text!r}, its width must be above 0 and both numbers finite")
    return _window(centre, width)


def automatic_window(image: Image) -> Window | None:
    """Choose the window of a whole stack; None shows 8-bit values as they are.

    In this order: the image's own window holds; values of 8 bits, also in a wider type, stay as they are; CT, by the
    file's word or by its values where the file has none, is shown as soft tissue; the rest goes from the 0.5th to the
    99.5th percentile. Padding has no say.
    """
    if image.window is not None or image.pixels(0).dtype in (np.uint8, np.bool_):
        return image.window
    sample, modality = _sampled(image), image.metadata.get("modality")
    if image.channels == 1 and _is_8_bit(sample, is_single=image.shape[0] == 1):
        return Window(0.0, 255.0)
    if modality == "CT" or (modality is None and image.channels == 1 and is_hounsfield(sample)):
        return SOFT_TISSUE_HU
    if image.channels == 3 and sample.min() >= 0 and sample.max() <= 1:
        return Window(0.0, 1.0)
    return _robust(sample)


def is_hounsfield(sample: FloatArray) -> bool:
    """Tell CT by its values: air or padding far below water, and below air nothing but padding.

    Args:
        sample: (P,) values of the stack. A phase image of MR goes as low, but its values lie everywhere down there.
    """
    if np.mean(sample < AIR_BELOW_HU) < _LEAST_AIR_SHARE:
        return False
    below = sample[sample < LOWEST_HU]
    if not below.size:
        return True
    is_padding = np.abs(below - np.median(below)) <= _PADDING_NOISE_HU
    return bool(np.count_nonzero(~is_padding) / sample.size < _MOST_NOISE_SHARE)


def shown_grey(pixels: Pixels, window: Window | None, padding: tuple[float, float] | None = None) -> RGB:
    """Map values (H, W, C) to (H, W, 3) uint8: `low` to black, `high` to white, padding to black."""
    if pixels.dtype == np.bool_:
        grey = pixels.astype(np.uint8) * 255
    elif window is None and pixels.dtype == np.uint8:
        grey = pixels
    else:
        low, high = (0.0, 255.0) if window is None else (window.low, window.high)
        scaled = (pixels.astype(np.float64) - low) / (high - low)
        grey = (np.clip(scaled, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    if padding is not None:
        grey = np.where(_is_padding(pixels, padding), np.uint8(0), grey)
    return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3)))


def _is_padding(values: Pixels, padding: tuple[float, float]) -> BoolArray:
    return np.asarray((values >= padding[0]) & (values <= padding[1]))


def _is_8_bit(sample: FloatArray, *, is_single: bool) -> bool:
    """Values of 8 bits in a wider type: whole, from 0 to 255; of a single picture they need not reach the ends."""
    low, high = float(sample.min()), float(sample.max())
    fits = low >= 0 and _LEAST_8_BIT_HIGH <= high <= 255 if is_single else (low, high) == (0.0, 255.0)
    return fits and bool((sample == np.rint(sample)).all())


def _robust(sample: FloatArray) -> Window:
    inner = _without_outlier(_without_outlier(sample, sample.max()), sample.min())
    low, high = (float(value) for value in np.percentile(inner, _PERCENTILES))
    if low >= high:
        low, high = float(inner.min()), float(inner.max())
    return Window(low, high) if low < high else Window(low, low + 1.0)


def _without_outlier(sample: FloatArray, value: float) -> FloatArray:
    """Leave out one end value that many voxels share and that lies further off than all others lie apart: padding."""
    others = sample[sample != value]
    if others.size == 0 or 1 - others.size / sample.size < _LEAST_OUTLIER_SHARE:
        return sample
    spread = float(others.max() - others.min())
    gap = float(np.abs(others - value).min())
    return others if 0 < spread < gap else sample


def _sampled(image: Image) -> FloatArray:
    """Values (P,) of slices that are spread evenly over the stack, without padding unless there is nothing else."""
    frames = np.unique(np.linspace(0, image.shape[0] - 1, _SAMPLED_SLICES).round().astype(int))
    parts = []
    for n in frames.tolist():
        values = image.pixels(n).reshape(-1)
        parts.append(values[:: max(1, values.size // _SAMPLED_PIXELS)].astype(np.float64))
    sample: FloatArray = np.concatenate(parts)
    if image.padding is not None:
        imaged = sample[~_is_padding(sample, image.padding)]
        sample = imaged if imaged.size else sample
    return sample
