"""How a DICOM file asks to be shown, as one linear window in rescaled units. Source: DICOM PS3.3 C.11.2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from medsam3.image import Window
from medsam3.io.dicom_geometry import macro

_LUT_ENDS = (0.01, 0.99)


def stored_window(dataset: Any) -> Window | None:
    """The first window of a data set, or of an enhanced multi-frame's first frame; None where there is none of use.

    A VOI LUT, where no window stands beside it, is given as the window between the inputs at which it has risen by
    1 % and by 99 %: its course between them is not kept.
    """
    source = macro(dataset, 0, "FrameVOILUTSequence") or dataset
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    if centre is not None and width is not None:
        return _linear(centre, width, str(source.get("VOILUTFunction") or "LINEAR"))
    tables = source.get("VOILUTSequence")
    return _of_table(tables[0]) if tables else None


def stored_padding(dataset: Any) -> tuple[float, float] | None:
    """Lowest and highest stored value that stand for nothing imaged; None where the file names none.

    Source: DICOM PS3.3 C.7.5.1.1.2. Files give the value of a signed image also as the unsigned one of the same bits.
    """
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    bits, is_signed = int(dataset.get("BitsAllocated", 16)), int(dataset.get("PixelRepresentation", 0)) == 1
    values = [float(value) for value in (first, first if last is None else last)]
    if is_signed:
        values = [value - 2.0**bits if value >= 2.0 ** (bits - 1) else value for value in values]
    elif min(values) < 0:
        values = [value + 2.0**bits if value < 0 else value for value in values]
    return min(values), max(values)


def _first(value: Any) -> float | None:
    values = [value] if isinstance(value, int | float | str) else list(value or [])
    if not values or values[0] in (None, ""):
        return None
    number = float(values[0])
    return number if math.isfinite(number) else None


def _linear(centre: float, width: float, function: str) -> Window | None:
    if width <= 0:
        return None
    if function == "LINEAR":
        if width < 1:
            return None
        half = max(width - 1.0, 1e-3) / 2.0  # a width of 1 is a threshold
        return Window(centre - 0.5 - half, centre - 0.5 + half)
    return Window(centre - width / 2.0, centre + width / 2.0)


def _of_table(table: Any) -> Window | None:
    descriptor, data = table.get("LUTDescriptor"), table.get("LUTData")
    if not descriptor or not data:
        return None
    if isinstance(data, bytes):
        data = np.frombuffer(data, dtype="<u2")
    values = np.asarray(data, dtype=np.float64)
    span = values.max() - values.min()
    if span <= 0 or values[-1] < values[0]:
        return None
    risen = (values - values.min()) / span
    low, high = (int(np.argmax(risen >= end)) for end in _LUT_ENDS)
    first = int(descriptor[1])
    return Window(first + low, first + high) if low < high else None
