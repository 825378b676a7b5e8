"""Our boundary metrics beside those of MeshMetrics, an independent implementation; skipped where that is absent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medsam3.eval.metrics import boundary_distances
from medsam3.geometry import BoolArray

meshmetrics: Any = pytest.importorskip("meshmetrics", reason="needs pymeshmetrics and vtk")


def blob(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> BoolArray:
    grids = np.meshgrid(*(np.arange(length) for length in shape), indexing="ij")
    inside: BoolArray = np.sum([((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True)], axis=0) <= 1
    return inside


CASES = {
    "picture": (blob((90, 120), (44, 60), (30, 40)), blob((90, 120), (47, 63), (26, 43)), (1.0, 1.0)),
    "unequal spacing": (blob((90, 120), (44, 60), (15, 50)), blob((90, 120), (46, 64), (17, 46)), (2.0, 0.5)),
    "volume": (blob((16, 40, 50), (8, 20, 25), (6, 15, 20)), blob((16, 40, 50), (8, 21, 27), (5, 16, 18)), (3, 1, 1.2)),
}


@pytest.mark.parametrize("name", CASES)
def test_distances_agree_within_half_a_step(name: str) -> None:
    reference, predicted, spacing = CASES[name]
    ours = boundary_distances(reference, predicted, spacing)
    peer = meshmetrics.DistanceMetrics()
    peer.set_input(reference, predicted, spacing=tuple(float(step) for step in spacing))
    step = max(spacing)
    assert ours.hausdorff(95) == pytest.approx(peer.hd(95), abs=step / 2)
    assert ours.assd() == pytest.approx(peer.assd(), abs=step / 4)
    assert ours.nsd(2 * step) == pytest.approx(peer.nsd(2 * step), abs=0.05)
