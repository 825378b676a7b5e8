"""How an image is segmented, as one checked value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medsam3.errors import InputError
from medsam3.image import Window
from medsam3.models.segmenter import RGB
from medsam3.segmentation.presence import WEAK_SHARE
from medsam3.view.planes import PlaneChoice


@dataclass(frozen=True)
class TrackingRules:
    """When an object is the same, and when it is lost.

    Attributes:
        match_iou: Least overlap of a followed mask with one that was found, for both to be one object.
        stop_iou: Least overlap of a followed mask with that on the frame before; below it the object is lost.
        largest_growth: A followed mask this many times larger or smaller than the one before is lost as well.
        patience: Frames that an object is followed for without being found; None follows it to the end.
        memory: Frames that a tracker is given: the nearest ones, and as the last the one that the track began on.
        sure_after: A track that was found on fewer frames ends where others were found and it was not.
        same_iou: A track that was not found and overlaps by this much with one that goes on is the same object twice,
            and ends.
        inside_share: What was found is also the object of a sure track where neither overlaps enough with the other,
            but one lies inside the other by this share. The larger of the two has run over, and is not believed.
        may_return: A lost object is looked for again on the next frames, as long as patience lasts: an object of a
            video leaves the picture and comes back, one of a volume ends.
        clear_iou: Where just one surely found object overlaps by this much with the object before, it is that object,
            and nothing is followed there, which takes most of the time; None follows everywhere.
        takes_up: An object that was not found where it was followed to is the clearest one that was found elsewhere.
    """

    match_iou: float = 0.3
    stop_iou: float = 0.1
    largest_growth: float = 3.0
    patience: int | None = 3
    memory: int = 4
    sure_after: int = 2
    same_iou: float = 0.5
    inside_share: float = 0.7
    may_return: bool = False
    takes_up: bool = False
    clear_iou: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.match_iou <= 1 and 0 <= self.stop_iou <= 1):
            raise InputError(f"match and stop IoU are {self.match_iou} and {self.stop_iou}, allowed is 0 to 1")
        if not (0 < self.same_iou <= 1 and 0 < self.inside_share <= 1):
            raise InputError(
                f"same IoU and inside share are {self.same_iou} and {self.inside_share}, allowed is above 0 to 1"
            )
        if self.largest_growth <= 1 or self.memory < 2 or (self.patience is not None and self.patience < 0):
            raise InputError(
                f"growth, memory and patience are {self.largest_growth}, {self.memory} and {self.patience}, "
                "allowed are above 1, 2 and above, and 0 and above"
            )


@dataclass(frozen=True)
class FusionRules:
    """How votes count.

    Attributes:
        agree_iou: Least overlap of a followed mask with what was found, or with the one from the other side.
        followed_weight: A followed mask's vote, where the vote of what was found is 1; above 0.5 two followed masks
            together outvote what was found. One alone moves the outline towards its own by this weight.
        volume_weight: The same in a volume, where what a slice shows is trusted more than its neighbours.
        least_found: An object that was found on fewer frames than this comes and goes: it does not count where another
            one, found on at least so many, was found more clearly. 1 keeps all.
        may_fill_beside: Two followed masks fill a gap also on frames on which another object was found.
        least_share: Of a volume's object, parts that do not touch and are smaller than this share of its largest part
            are dropped; 0 keeps all.
    """

    agree_iou: float = 0.3
    followed_weight: float = 0.8
    volume_weight: float = 0.4
    least_found: int = 2
    may_fill_beside: bool = False
    least_share: float = 0.02

    def __post_init__(self) -> None:
        for name in ("agree_iou", "followed_weight", "volume_weight", "least_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, allowed is 0 to 1")
        if self.least_found < 1:
            raise InputError(f"least_found is {self.least_found}, allowed is 1 and above")


@dataclass(frozen=True)
class Options:
    """Settings of `segment`; most are of volumes and videos alone.

    Attributes:
        is_followed: Follow objects both ways and let agreement decide, or let each slice stand for itself, with only
            presence looking at the neighbours. None takes what is best: a phrase in a volume is asked slice by slice,
            which following does not better (docs/volumes.md); videos, and what is drawn, are followed.
        key_every: A phrase is asked on every k-th slice, and followed in between.
        at: The file's slice or frame of the prompts' boxes, points and exemplars, from 0; None takes the first frame of
            a video, the only one of a picture, and every slice if each stands for itself.
        frames: The file's frames or slices that are segmented; None takes all.
        plane: How a volume is cut; `vote` cuts it in all three and lets two decide.
        window: How it is shown; None is automatic.
        has_neighbours: The slices before and after are the colours beside the slice's own.
        threshold: Least score in 0..1 of an object that is kept; None takes the weights' own.
        weak_score: Least score of an object on a slice that only the neighbours' presence makes count.
        weak_share: See `presence.held`.
        is_recognised: An object that is drawn on a video's frame is named, by asking all concepts there, and where
            following loses it, it is what is found by that name. Only by a model that has a list of what it was taught,
            as the small one, which asks fast.
        tracking: When an object is the same, and when it is lost.
        fusion: How votes count.
        memory_bytes: Encoded frames that are kept in memory; older ones go to a temporary file of `disk_bytes`.
        disk_bytes: 0 keeps none on disk.
        journal: File by which a killed run is taken up again; None keeps nothing.
        encode: Gives the features of a frame in place of the model; a session hands over those that it keeps.
        work: What tells this work from any other beside the prompts and these settings: image and weights.
    """

    is_followed: bool | None = None
    key_every: int = 1
    at: int | None = None
    frames: tuple[int, ...] | None = None
    plane: PlaneChoice | Literal["vote"] = "auto"
    window: Window | None = None
    has_neighbours: bool = False
    threshold: float | None = None
    weak_score: float = 0.1
    weak_share: float = WEAK_SHARE
    is_recognised: bool = True
    tracking: TrackingRules = field(default_factory=TrackingRules)
    fusion: FusionRules = field(default_factory=FusionRules)
    memory_bytes: int = 256 << 20
    disk_bytes: int = 4 << 30
    journal: Path | None = None
    encode: Callable[[RGB], Any] | None = field(default=None, compare=False, repr=False)
    work: str = ""

    def __post_init__(self) -> None:
        if self.key_every < 1:
            raise InputError(f"key frames are every {self.key_every} slices, allowed is 1 and above")
        if self.key_every > 1 and self.is_followed is False:
            raise InputError("key frames need objects to be followed, which fills the slices between: leave one out")
        for name in ("threshold", "weak_score"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}, allowed is 0 to 1")
        if self.memory_bytes < 0 or self.disk_bytes < 0:
            raise InputError("bytes to keep are below 0, allowed is 0 (keep nothing) and above")
