"""How an image is segmented, as one checked value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medsam3.errors import InputError
from medsam3.image import Window
from medsam3.segmentation.fusion import FusionRules
from medsam3.segmentation.presence import WEAK_SHARE
from medsam3.segmentation.sweep import TrackingRules
from medsam3.view.planes import PlaneChoice


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
            following loses it, it is what is found by that name. The small model only, which asks fast enough.
        tracking: When an object is the same, and when it is lost.
        fusion: How votes count.
        memory_bytes: Encoded frames that are kept in memory; older ones go to a temporary file of `disk_bytes`.
        disk_bytes: 0 keeps none on disk.
        journal: File by which a killed run is taken up again; None keeps nothing.
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
