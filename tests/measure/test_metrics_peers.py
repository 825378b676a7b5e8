"""Our metrics beside independent ones, MeshMetrics for boundaries and panoptica for objects, where installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.measure.objects import match_objects
from medsam3.measure.outline import boundary_distances


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
    meshmetrics: Any = pytest.importorskip("meshmetrics", reason="needs pymeshmetrics and vtk")
    reference, predicted, spacing = CASES[name]
    ours = boundary_distances(reference, predicted, spacing)
    peer = meshmetrics.DistanceMetrics()
    peer.set_input(reference, predicted, spacing=tuple(float(step) for step in spacing))
    step = max(spacing)
    assert ours.hausdorff(95) == pytest.approx(peer.hd(95), abs=step / 2)
    assert ours.assd() == pytest.approx(peer.assd(), abs=step / 4)
    assert ours.nsd(2 * step) == pytest.approx(peer.nsd(2 * step), abs=0.05)


def test_objects_agree_with_panoptica() -> None:
    panoptica: Any = pytest.importorskip("panoptica", reason="needs panoptica")
    reference, predicted = np.zeros((60, 80), dtype=np.uint8), np.zeros((60, 80), dtype=np.uint8)
    reference[5:15, 5:25], reference[30:50, 10:20], reference[10:20, 50:70] = 1, 2, 3
    predicted[5:15, 7:27], predicted[30:48, 10:20], predicted[40:50, 60:70] = 1, 2, 3  # the third is elsewhere
    found = Masks.from_dense(np.array([[predicted == n] for n in (1, 2, 3)]), [1.0] * 3)
    ours = match_objects(reference[None], found.objects)
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5),
    )
    theirs = evaluator.evaluate(predicted, reference)["ungrouped"]
    assert ours.true_positives(0.5) == theirs.tp == 2
    assert ours.panoptic_quality() == pytest.approx(theirs.pq)
    assert ours.f1() == pytest.approx(theirs.rq)


def test_faces_are_judged_by_their_centres_alone() -> None:
    reference = np.zeros((20, 19, 18), dtype=np.bool_)
    reference[4:16, 4:16, 3:15] = True
    moved = np.roll(reference, 1, axis=0)  # 24 x 12 x 12 mm, moved by one slice of 2 mm
    ours = boundary_distances(reference, moved, (2.0, 1.0, 1.0))
    # exact: (144 - 10 x 10) of the covered end and 4 x 12 x 23 of the sides, of 2 x 144 + 4 x 12 x 24 mm2
    exact = (44 + 1104) / 1440
    assert ours.nsd(1.0) == pytest.approx(0.8306, abs=1e-4)  # the last face of a side is judged by its centre
    assert exact == pytest.approx(0.7972, abs=1e-4)
    assert ours.hausdorff(95) == 2
