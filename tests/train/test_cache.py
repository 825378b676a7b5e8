"""Cached views: made once, taken up where they were left, named by all that they depend on."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.data.samples import Instances, Sample, Target
from medsam3.models.mini.letterbox import SIDE, letterbox
from medsam3.train.augment import view_of, warp_pixels
from medsam3.train.cache import NECK_SHAPE, load_or_make_view, view_folder


def sample(folder: Path, name: str, concept: str) -> Sample:
    path = folder / name
    rng = np.random.default_rng(len(name))
    PIL.Image.fromarray(rng.integers(0, 90, size=(60, 80, 3)).astype(np.uint8)).save(path)

    def load() -> Instances:
        labels = np.zeros((60, 80), np.int32)
        labels[10:30, 20:50] = 1
        return labels

    return Sample(name, path, "one", name, "train", (Target(concept, True, load),))


class MeanEncoder:
    """Fills the features with the picture's mean, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, square: NDArray[np.uint8]) -> NDArray[np.float16]:
        self.calls += 1
        return np.full(NECK_SHAPE, square.mean(), np.float16)


def test_a_view_is_made_once_and_read_afterwards(tmp_path: Path) -> None:
    samples, encode = [sample(tmp_path, "a.png", "polyp"), sample(tmp_path, "bb.png", "polyp")], MeanEncoder()
    made = load_or_make_view(tmp_path / "view", samples, 0, encode, seed=0)
    read = load_or_make_view(tmp_path / "view", samples, 0, encode, seed=0)
    assert encode.calls == 2
    assert read.rows == {"a.png": 0, "bb.png": 1}
    square, _ = letterbox(samples[1].load_rgb())
    assert np.array_equal(read.pixels[1], square)
    assert read.neck[1, 0, 0, 0] == np.float16(square.mean())
    assert np.array_equal(made.neck, read.neck)


def test_a_view_that_was_broken_off_goes_on_where_it_was(tmp_path: Path) -> None:
    samples, encode = [sample(tmp_path, "a.png", "polyp"), sample(tmp_path, "bb.png", "polyp")], MeanEncoder()
    load_or_make_view(tmp_path / "view", samples, 0, encode, seed=0)
    (tmp_path / "view" / "done.json").write_text(json.dumps(1))
    load_or_make_view(tmp_path / "view", samples, 0, encode, seed=0)
    assert encode.calls == 3


def test_microscopy_is_restained_from_view_2_on_and_other_pictures_never_are(tmp_path: Path) -> None:
    for concept, number, is_restained in (("cell nucleus", 1, False), ("cell nucleus", 2, True), ("polyp", 2, False)):
        one = sample(tmp_path, "a.png", concept)
        folder = tmp_path / f"{concept}{number}"
        view = load_or_make_view(folder, [one], number, MeanEncoder(), seed=0)
        square, _ = letterbox(one.load_rgb())
        warped = warp_pixels(square, view_of("a.png", number, seed=0))
        assert np.array_equal(view.pixels[0], warped) != is_restained
        assert view.pixels.shape == (1, SIDE, SIDE, 3)


def test_a_views_folder_is_named_by_encoder_number_seed_and_images(tmp_path: Path) -> None:
    one, two = sample(tmp_path, "a.png", "polyp"), sample(tmp_path, "bb.png", "polyp")
    first = view_folder(tmp_path, [one], 1, seed=0, encoder="e")
    others = {
        view_folder(tmp_path, [one, two], 1, seed=0, encoder="e"),
        view_folder(tmp_path, [one], 2, seed=0, encoder="e"),
        view_folder(tmp_path, [one], 1, seed=1, encoder="e"),
        view_folder(tmp_path, [one], 1, seed=0, encoder="f"),
    }
    assert len(others) == 4
    assert first not in others
    plain = [view_folder(tmp_path, [one], 0, seed=seed, encoder="e") for seed in (0, 1)]
    assert plain[0] == plain[1]  # the plain view has nothing random
