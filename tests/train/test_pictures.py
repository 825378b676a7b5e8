"""Live views: picture and labels move together, each draw differs, and what may not be mirrored is not."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medsam3.data.samples import Instances, Sample, Target
from medsam3.models.mini.letterbox import SIDE
from medsam3.train.pictures import LiveViews


def sample(folder: Path, concept: str) -> Sample:
    """A bright block, left and above the centre, that is the concept."""
    pixels = np.full((SIDE, SIDE, 3), 20, np.uint8)
    pixels[40:100, 50:120] = 230
    pixels[0, 0], pixels[0, 1] = 0, 255  # so that min-max scaling changes nothing
    PIL.Image.fromarray(pixels).save(folder / "a.png")

    def load() -> Instances:
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[40:100, 50:120] = 7
        return labels

    return Sample("a.png", folder / "a.png", "one", "a", "train", (Target(concept, True, load),))


@pytest.mark.parametrize("concept", ["polyp", "left ventricle", "optic disc"])
def test_labels_lie_where_the_picture_shows_them(tmp_path: Path, concept: str) -> None:
    item, views, rng = sample(tmp_path, concept), LiveViews(), np.random.default_rng(0)
    for _ in range(10):
        shown = views.draw(item, rng)
        inside = shown.labels(item.targets[0]) == 7
        bright = shown.square.mean(axis=2)
        assert inside.sum() > 1000
        assert bright[inside].mean() > bright[~inside].mean() + 60


def test_each_draw_is_another_view(tmp_path: Path) -> None:
    item, views, rng = sample(tmp_path, "polyp"), LiveViews(), np.random.default_rng(0)
    first, second = views.draw(item, rng).square, views.draw(item, rng).square
    assert not np.array_equal(first, second)


def centres(folder: Path, concept: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    item, views, rng = sample(folder, concept), LiveViews(), np.random.default_rng(0)
    drawn = [views.draw(item, rng).labels(item.targets[0]) for _ in range(60)]
    return np.array([np.argwhere(labels == 7).mean(axis=0) for labels in drawn])


def test_only_pictures_without_up_and_down_are_turned_and_only_those_without_sides_mirrored(tmp_path: Path) -> None:
    # The block's centre is row 70, column 85; a warp moves it by less than the way to the middle, 127.5.
    rows, columns = centres(tmp_path, "polyp").T
    assert (rows > 140).any() and (columns > 140).any()
    rows, columns = centres(tmp_path, "optic disc").T
    assert (rows < 128).all() and (columns > 140).any()
    rows, columns = centres(tmp_path, "left ventricle").T
    assert (rows < 128).all() and (columns < 128).all()


def test_a_closer_view_enlarges_an_object_and_its_labels(tmp_path: Path) -> None:
    item, rng = sample(tmp_path, "polyp"), np.random.default_rng(0)
    shares = []
    for _ in range(60):
        shown = LiveViews(closer=1.0).draw(item, rng)
        inside = shown.labels(item.targets[0]) == 7
        if inside.sum() > 1000:
            bright = shown.square.mean(axis=2)
            assert bright[inside].mean() > bright[~inside].mean() + 60
        shares.append(inside.mean())
    whole = 60 * 70 / SIDE**2
    assert np.median(shares) > 2 * whole
    assert min(shares) < whole  # now and then the window is elsewhere
