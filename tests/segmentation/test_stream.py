"""Frames out as they come."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from box_segmenter import BoxSegmenter, NamingSegmenter
from made_stacks import blocks, jumping
from medsam3.errors import InputError
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.stream import segment_stream

BRIGHT = Prompt(text="bright")


def frames(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (np.repeat(one[..., None], 3, axis=-1) for one in pixels)


def test_a_frame_is_out_before_the_next_one_is_asked_for() -> None:
    taken: list[int] = []

    def counted() -> Iterator[NDArray[np.uint8]]:
        for n, frame in enumerate(frames(blocks(5, first=0))):
            taken.append(n)
            yield frame

    stream = segment_stream(counted(), [BRIGHT], BoxSegmenter())
    assert next(stream).n == 0 and taken == [0]
    assert next(stream).n == 1 and taken == [0, 1]


def test_identities_stay_and_gaps_are_filled_from_the_past() -> None:
    pixels = blocks(9, hidden=(4,), first=1)
    for frame in segment_stream(frames(pixels), [BRIGHT], BoxSegmenter()):
        expected = pixels[frame.n, 1:] > 128
        np.testing.assert_array_equal(frame.masks[0].union()[0, 1:], expected)
        assert frame.identities[0] == ((0, 1) if expected.any() else ())


def test_a_box_on_the_first_frame_is_followed() -> None:
    pixels = blocks(8, first=0)
    out = list(segment_stream(frames(pixels), [Prompt(boxes=(Box(3.5, 3.5, 11.5, 9.5),))], BoxSegmenter()))
    assert [frame.masks[0].union().sum() for frame in out] == [48] * 6 + [0] * 2


def test_a_box_is_found_again_by_its_name_where_following_loses_it() -> None:
    box = Prompt(boxes=(Box(3.5, 3.5, 11.5, 9.5),))
    lost = list(segment_stream(frames(jumping()), [box], BoxSegmenter()))
    assert [int(frame.masks[0].union().sum()) for frame in lost] == [48] * 3 + [0] * 3
    for frame in segment_stream(frames(jumping()), [box], NamingSegmenter()):
        np.testing.assert_array_equal(frame.masks[0].union()[0], jumping()[frame.n] > 128)
        assert frame.identities == ((0,),)
        assert frame.masks[0].presence is None


def test_an_object_that_is_not_found_any_more_goes_after_the_patience() -> None:
    pixels = blocks(9, hidden=(3, 4, 5, 6, 7, 8), first=0, last=8)
    held = [bool(frame.identities[0]) for frame in segment_stream(frames(pixels), [BRIGHT], BoxSegmenter())]
    assert held == [True] * 6 + [False] * 3


def test_frames_of_another_size_and_no_prompt_are_refused() -> None:
    with pytest.raises(InputError, match="frame 1 is"):
        list(segment_stream([np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], [BRIGHT], BoxSegmenter()))
    with pytest.raises(InputError, match="no prompt"):
        list(segment_stream([], [], BoxSegmenter()))
