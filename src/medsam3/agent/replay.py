"""A transcript run again without its policy: its calls go through the tools once more, and must give the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam3.agent.bench import Bench
from medsam3.agent.toolbox import TOOLS
from medsam3.agent.tools import Session
from medsam3.agent.transcript import read_transcript
from medsam3.agent.values import Mark, Step
from medsam3.image import Image
from medsam3.models.segmenter import Segmenter


@dataclass(frozen=True)
class Difference:
    """A step that gave something else than was recorded."""

    step: int
    call: str
    what: str


def replay(folder: Path, image: Image, segmenter: Segmenter) -> list[Difference]:
    """Run every recorded call again; an empty list says that the transcript holds.

    Args:
        folder: Of the transcript.
        image: The image that it was made on.
        segmenter: The model that it was made with.

    Raises:
        InputError: No transcript, or one that is damaged.
    """
    saved = read_transcript(folder)
    session = Session(Bench(image, segmenter), has_pictures=False)
    found: list[Difference] = []
    for step in saved.steps:
        if step.call.name not in TOOLS or step.seen.is_mistake or step.call.name == "look":
            continue
        seen = session.run(step.call, TOOLS)
        what = _difference(step, seen.text, seen.marks)
        if what is not None:
            found.append(Difference(step.number, f"{step.call.name} {step.call.arguments}", what))
        session.marks.update({mark.number: mark for mark in step.seen.marks})  # one difference does not breed others
    return found


def _difference(step: Step, text: str, marks: tuple[Mark, ...]) -> str | None:
    if len(marks) != len(step.seen.marks):
        return f"{len(marks)} masks, recorded are {len(step.seen.marks)}"
    for now, then in zip(marks, step.seen.marks, strict=True):
        if now.mask.start != then.mask.start or not np.array_equal(now.mask.crop, then.mask.crop):
            return f"mask {then.number} has another shape"
    return None if text == step.seen.text else f"it said {json.dumps(text)}"
