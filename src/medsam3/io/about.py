"""The facts that `medsam3 info` shows of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from medsam3.geometry import Affine
from medsam3.image import Image

_DIRECTIONS = (("left", "right"), ("posterior", "anterior"), ("superior", "inferior"))
_SHOWN = ("format", "modality", "sop_class", "transfer_syntax", "photometric", "bits_stored", "pixel_spacing_mm")


def facts(image: Image) -> dict[str, Any]:
    """Names and values in the order to show them; what is not known is left out."""
    frames, height, width = image.shape
    low, high, dtypes = [], [], set()
    for n in range(frames):
        pixels = image.pixels(n)
        low.append(pixels.min().item())
        high.append(pixels.max().item())
        dtypes.add(pixels.dtype)
    shown: dict[str, Any] = {
        "kind": image.kind,
        "frames": frames,
        "rows": height,
        "columns": width,
        "channels": image.channels,
        "dtype": str(np.result_type(*dtypes)),
        "value_range": [min(low), max(high)],
    }
    if image.affine is not None:
        shown["spacing_mm"] = [round(size, 6) for size in np.linalg.norm(image.affine[:3, :3], axis=0).tolist()]
        shown["orientation"] = ", ".join(orientation(image.affine))
        shown["origin_mm"] = [round(value, 4) for value in image.affine[:3, 3].tolist()]
    if image.fps is not None:
        shown["frames_per_second"] = round(image.fps, 3)
    stored = image.metadata.get("stored_window")
    if image.window is not None:
        shown["window"] = [image.window.low, image.window.high]
    elif stored is not None:
        shown["window"] = [float(value) for value in stored.split()]
    shown |= {name: image.metadata[name] for name in _SHOWN if name in image.metadata}
    shown["files"] = len(image.source)
    return shown


def orientation(affine: Affine) -> tuple[str, str, str]:
    """Where (n, row, col) lead, each as the nearest direction of the body: left, right, posterior, ..."""
    names: list[str] = []
    for step in affine[:3, :3].T:
        axis = int(np.abs(step).argmax())
        names.append(_DIRECTIONS[axis][0 if step[axis] > 0 else 1])
    return names[0], names[1], names[2]
