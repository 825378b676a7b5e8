"""GeoJSON: what a file holds by hand, what scikit-image makes of it, and what comes back."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from skimage.draw import polygon2mask

from medsam3.errors import InputError
from medsam3.image import Image, Kind, Masks
from medsam3.io import write
from medsam3.io.read_masks import read_masks

RING = np.zeros((1, 6, 8), dtype=np.bool_)  # a frame of 4 x 5 pixels with a hole of 2 x 1, and a pixel apart
RING[0, 1:5, 1:6] = True
RING[0, 2:4, 3] = False
RING[0, 0, 7] = True


def picture(frames: int = 1, **about: str) -> Image:
    kind: Kind = "picture" if frames == 1 else "volume"
    return Image(np.zeros((frames, 6, 8, 1), dtype=np.uint8), kind, metadata=about)


def written(path: Path, image: Image, mask: np.ndarray = RING, concept: str = "gland") -> dict:  # type: ignore[type-arg]
    write(Masks.from_dense(mask[None], [0.75], concept=concept), path, image)
    content: dict = json.loads(path.read_text())  # type: ignore[type-arg]
    return content


def test_polygons_run_along_pixel_edges_with_their_holes(tmp_path: Path) -> None:
    content = written(tmp_path / "a.geojson", picture())
    (feature,) = content["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    parts = sorted(feature["geometry"]["coordinates"], key=len)
    assert sorted(map(tuple, parts[0][0][:-1])) == [(7, 0), (7, 1), (8, 0), (8, 1)]  # the pixel apart
    outer, hole = parts[1]
    assert sorted(map(tuple, outer[:-1])) == [(1, 1), (1, 5), (6, 1), (6, 5)]
    assert sorted(map(tuple, hole[:-1])) == [(3, 2), (3, 4), (4, 2), (4, 4)]
    assert outer[0] == outer[-1] and hole[0] == hole[-1]
    assert feature["properties"]["classification"]["name"] == "gland"
    assert feature["properties"]["measurements"] == {"score": 0.75}


def test_outlines_turn_as_the_standard_says(tmp_path: Path) -> None:
    (feature,) = written(tmp_path / "a.geojson", picture())["features"]
    for outer, *holes in feature["geometry"]["coordinates"]:
        areas = [sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(r)) for r in (outer, *holes)]
        assert areas[0] > 0 and all(area < 0 for area in areas[1:])  # RFC 7946 3.1.6: counterclockwise, holes clockwise


def test_scikit_image_draws_the_mask_again(tmp_path: Path) -> None:
    (feature,) = written(tmp_path / "a.geojson", picture())["features"]
    drawn = np.zeros((6, 8), dtype=np.bool_)
    for part in feature["geometry"]["coordinates"]:
        for ring in part:
            drawn ^= polygon2mask((6, 8), np.array(ring)[:, ::-1] - 0.5)
    assert np.array_equal(drawn, RING[0])


@pytest.mark.parametrize("frames", [1, 3])
def test_masks_come_back_as_they_were(tmp_path: Path, frames: int) -> None:
    mask = np.zeros((frames, 6, 8), dtype=np.bool_)
    mask[frames // 2] = RING[0]
    written(tmp_path / "a.geojson", picture(frames), mask)
    (found,), _ = read_masks(tmp_path / "a.geojson", picture(frames))
    assert found.concept == "gland" and found.objects[0].score == 0.75
    assert np.array_equal(found.union(), mask)


def test_a_part_of_a_slide_is_placed_in_the_slide(tmp_path: Path) -> None:
    part = picture(slide_place="1000 2000 4")  # a pixel here is 4 x 4 there
    (feature,) = written(tmp_path / "a.geojson", part, RING & False | (np.indices(RING.shape).sum(axis=0) == 0))[
        "features"
    ]
    corners = sorted(map(tuple, feature["geometry"]["coordinates"][0][:-1]))
    assert corners == [(1000, 2000), (1000, 2004), (1004, 2000), (1004, 2004)]
    (found,), _ = read_masks(tmp_path / "a.geojson", part)
    assert found.union()[0, 0, 0] and found.union().sum() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"features": 3}', "list of features"),
        ('{"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}', "no polygon on the image"),
        ('{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, null]]]}}]}', "damaged polygon"),
        ('{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 1e999]]]}}]}', "damaged polygon"),
        ('{"features": [{"geometry": {"type": "Polygon", "coordinates": 7}}]}', "damaged polygon"),
    ],
)
def test_what_is_no_geojson_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(InputError, match=message):
        read_masks(tmp_path / "a.geojson", picture())
