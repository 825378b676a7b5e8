"""Prompts: a phrase, boxes, points, exemplars, and the paper's names for their combinations.

A prompt knows nothing of a model, and of the image only its size when it is checked against it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from medsam3.errors import InputError

Mode = Literal["T", "I", "T+I"]
MAX_PHRASE_CHARACTERS = 300


@dataclass(frozen=True)
class Box:
    """xyxy in float pixels, pixel centres at integers. `is_positive` matters for an exemplar only."""

    x0: float
    y0: float
    x1: float
    y1: float
    is_positive: bool = True

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.xyxy):
            raise InputError(f"box {self.xyxy} holds NaN or infinity, give four finite pixel positions x0,y0,x1,y1")
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            raise InputError(f"box {self.xyxy} is inverted or empty, give x0,y0,x1,y1 with x0 < x1 and y0 < y1")

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1


@dataclass(frozen=True)
class Point:
    """(x, y) in float pixels; positive: on the object, negative: on background."""

    x: float
    y: float
    is_positive: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise InputError(f"point {self.x},{self.y} is not finite, give two pixel positions x,y")


@dataclass(frozen=True)
class Prompt:
    """One question to a segmenter.

    Attributes:
        text: The concept, a noun phrase such as "polyp"; None where only geometry is given.
        boxes: Objects to segment, one mask each; with a text, where to look for the concept.
        points: Clicks on one object, and off it.
        exemplars: Boxes around examples (positive) and look-alikes (negative); all objects like them are wanted.

    Raises:
        InputError: Nothing is asked, the phrase is empty or too long, no positive point among points.
    """

    text: str | None = None
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    exemplars: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if self.text is not None:
            object.__setattr__(self, "text", check_phrase(self.text))
        if self.text is None and not self.is_drawn:
            raise InputError("the prompt is empty: give a phrase, a box, a point or an exemplar")
        if self.points and not self.boxes and not any(point.is_positive for point in self.points):
            raise InputError("all points are negative: give at least one point on the object, or a box")

    @property
    def mode(self) -> Mode:
        """T (text), I (geometry) or T+I, as in the paper (arXiv 2511.19046, Section 4)."""
        if self.text is None:
            return "I"
        return "T+I" if self.is_drawn else "T"

    @property
    def is_drawn(self) -> bool:
        """Something of it is drawn on one frame."""
        return bool(self.boxes or self.points or self.exemplars)

    def undrawn(self) -> Prompt | None:
        """Give what is asked on frames that nothing is drawn on; None if nothing is.

        A phrase with a box or a point means the one object that is drawn, which is then followed; a phrase with
        examples is asked everywhere.
        """
        if self.text is None or self.boxes or self.points:
            return None
        return replace(self, exemplars=())

    def check_inside(self, height: int, width: int) -> None:
        """Refuse geometry that does not touch the image.

        Raises:
            InputError: A box wholly or a point outside the image.
        """
        for box in (*self.boxes, *self.exemplars):
            if box.x1 <= -0.5 or box.y1 <= -0.5 or box.x0 >= width - 0.5 or box.y0 >= height - 0.5:
                raise InputError(f"box {box.xyxy} is outside the image of {width} x {height} pixels (x, y)")
        for point in self.points:
            if not (-0.5 <= point.x <= width - 0.5 and -0.5 <= point.y <= height - 0.5):
                raise InputError(f"point {point.x},{point.y} is outside the image of {width} x {height} pixels (x, y)")

    def to_json(self) -> str:
        """The prompt as one JSON object; `prompt_from_json` reads it back."""
        return json.dumps(asdict(self))


def check_phrase(text: str) -> str:
    """The phrase with its white space made single.

    Raises:
        InputError: Empty, too long, or with control characters.
    """
    phrase = " ".join(text.split())
    if not phrase:
        raise InputError("the phrase is empty: give a concept such as 'polyp' or 'optic disc'")
    if len(phrase) > MAX_PHRASE_CHARACTERS:
        raise InputError(
            f"the phrase has {len(phrase)} characters, allowed are {MAX_PHRASE_CHARACTERS}: "
            "name the concept in a few words"
        )
    if not phrase.isprintable():
        raise InputError("the phrase holds characters that cannot be printed: give plain text")
    return phrase


def prompt_from_json(text: str) -> Prompt:
    """Read what `Prompt.to_json` wrote.

    Raises:
        InputError: Not JSON, or not of that form.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        geometry: dict[str, Sequence[dict[str, Any]]] = {
            name: fields.pop(name, ()) for name in ("boxes", "points", "exemplars")
        }
        return Prompt(
            boxes=tuple(Box(**box) for box in geometry["boxes"]),
            points=tuple(Point(**point) for point in geometry["points"]),
            exemplars=tuple(Box(**box) for box in geometry["exemplars"]),
            **fields,
        )
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise InputError(f"the prompt is not in the form that Prompt.to_json writes ({error})") from error
