"""The protocol of every tracker: the mask of an object on one frame from its masks on frames before (or after)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from medsam3.geometry import BoolArray, box_of_mask
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Prompt


class Past(NamedTuple):
    """The object on another frame: the frame's number, and the mask (H, W) there, which is not empty."""

    n: int
    mask: BoolArray


KeptOf = Callable[[int], Any]
"""What `Tracker.keep` gave for a frame."""


class Tracker(Protocol):
    """Follows one object from frame to frame. It keeps no state: all that it remembers is handed to it."""

    def keep(self, features: Any) -> Any:
        """The part of a frame's features that following needs, small enough to keep of many frames."""
        ...

    def kept_bytes(self, kept: Any) -> int:
        """Bytes that it takes in memory."""
        ...

    def follow(self, n: int, past: Sequence[Past], kept_of: KeptOf) -> BoolArray:
        """The object's mask (H, W) on frame n, empty where it is lost.

        Args:
            n: The frame.
            past: Frames that were followed through, the nearest first, at least one.
            kept_of: Gives what was kept of a frame, n among them.
        """
        ...


class BoxPromptTracker:
    """For any segmenter that takes a box: the box around the nearest mask is its prompt on the next frame."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def keep(self, features: Any) -> Any:
        """All of the features."""
        return features

    def kept_bytes(self, kept: Any) -> int:
        """The features' `nbytes` where they tell it, else 1, so that the cache counts frames."""
        return int(getattr(kept, "nbytes", 1))

    def follow(self, n: int, past: Sequence[Past], kept_of: KeptOf) -> BoolArray:
        """See `Tracker.follow`."""
        box = box_of_mask(past[0].mask)
        assert box is not None, "a past mask is not empty"
        found = self.segmenter.decode(kept_of(n), Prompt(boxes=(Box(*box),)))
        mask: BoolArray = found.union()[0]
        return mask


@runtime_checkable
class Follows(Protocol):
    """A segmenter that brings a tracker of its own."""

    def tracker(self) -> Tracker | None:
        """Give the tracker; None if the weights hold none."""
        ...


def tracker_of(segmenter: Segmenter) -> Tracker:
    """Choose the tracker that goes with a model; one by the box around the last mask if it has none of its own."""
    own = segmenter.tracker() if isinstance(segmenter, Follows) else None
    return BoxPromptTracker(segmenter) if own is None else own


@runtime_checkable
class FollowsSlices(Protocol):
    """A segmenter that follows through the slices of a volume otherwise than through the frames of a video."""

    def slice_tracker(self) -> Tracker | None:
        """Give the tracker; None if it is that of videos."""
        ...


def slice_tracker_of(segmenter: Segmenter) -> Tracker:
    """Choose what a correction is followed through a volume by."""
    own = segmenter.slice_tracker() if isinstance(segmenter, FollowsSlices) else None
    return tracker_of(segmenter) if own is None else own
