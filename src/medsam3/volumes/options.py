"""How a stack is segmented, as one checked value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medsam3.errors import InputError
from medsam3.image import Window
from medsam3.volumes.fusion import FusionRules
from medsam3.volumes.planes import PlaneChoice
from medsam3.volumes.presence import WEAK_SHARE
from medsam3.volumes.sweep import TrackingRules


@dataclass(frozen=True)
class StackOptions:
    """Settings of `segment_stack`.

    Attributes:
        is_propagated: Follow objects both ways and let agreement decide; otherwise each slice stands for itself, and
            only presence looks at the neighbours.
        key_every: A phrase is asked on every k-th slice; with propagation only.
        at: The slice or frame of the prompts' boxes, points and exemplars, from 0.
        plane: How the volume is cut.
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

    is_propagated: bool = True
    key_every: int = 1
    at: int | None = None
    plane: PlaneChoice = "auto"
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
        if self.key_every > 1 and not self.is_propagated:
            raise InputError("key frames need propagation, which fills the slices between them: turn it on")
        for name in ("threshold", "weak_score"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}, allowed is 0 to 1")
        if self.memory_bytes < 0 or self.disk_bytes < 0:
            raise InputError("bytes to keep are below 0, allowed is 0 (keep nothing) and above")
