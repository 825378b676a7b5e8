"""The tools that ask the segmenter, look, and combine masks; and the table of all tools with their schemas."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from medsam3.agent.bench import averaged, box_from, objects_of, pasted
from medsam3.agent.chat import ToolSpec
from medsam3.agent.measuring import fullest_frame, overlap, plane_of
from medsam3.agent.tools import (
    Arguments,
    Session,
    Tool,
    accept,
    describe,
    measure,
    moved,
    numbers_of,
    report_absent,
    turn_to,
)
from medsam3.agent.values import Observation, ToolError
from medsam3.geometry import BoolArray
from medsam3.image import Masks, ObjectMask
from medsam3.models.phrase_reader import Reading
from medsam3.models.segmenter import reading_alone
from medsam3.prompts import Point, Prompt, check_phrase
from medsam3.view.crops import Crop, closer_window, quarters
from medsam3.view.grey import WINDOWS, window_named

MIX_LEVEL = 0.5
"""Where several answers are averaged, a pixel belongs to the concept above this mean probability."""
CLOSER_SHARE = 0.5
"""Weight of what is seen enlarged, where the frame as a whole was asked too."""
LEAST_WINDOW_PX = 16
MOST_PHRASES = 8


def segment(session: Session, values: Arguments) -> Observation:
    """Masks of a phrase; several phrasings and closer views are averaged into one answer."""
    n, bench = session.frame, session.bench
    phrases = [check_phrase(text) for text in dict.fromkeys([values["phrase"], *values.get("also", [])])]
    reading = reading_alone(bench.segmenter, phrases[0])
    windows = _windows(session, values)
    if bench.shape[0] > 1 and len(phrases) == 1 and not windows:
        return _segment_whole(session, phrases[0], _read_as(reading))
    answers = [bench.ask(n, phrase) for phrase in phrases]
    presence = float(np.mean([answer.presence for answer in answers]))
    if len(phrases) == 1 and not windows:
        found = tuple(moved(part, n) for part in answers[0].masks.objects)
    else:
        closer = [averaged([bench.ask(n, phrase, window) for phrase in phrases]) for window in windows]
        found = objects_of(pasted(averaged(answers), windows, closer, CLOSER_SHARE), MIX_LEVEL, presence, n)
    is_present = answers[0].is_present
    about = {"phrase": phrases[0], "presence": presence, "is_present": is_present}
    marks = session.new_marks(found, "segment", **about)
    votes = [answer.is_present for answer in answers]
    said = "present" if is_present else "absent: the masks are what it would be, if it were there"
    text = f"{phrases[0]!r}{_read_as(reading)}: presence {presence:.2f}, the model says {said}; {len(marks)} masks"
    facts = {"presence": presence, "is_present": is_present, "votes": votes, "marks": numbers_of(marks)}
    return Observation(
        "\n".join(filter(None, [text, describe(marks, bench.shape)])),
        session.shown(f"{phrases[0]}: masks {_span(numbers_of(marks))}", marks),
        marks,
        facts,
    )


def _read_as(reading: Reading) -> str:
    """What the model takes a phrase for, to be told after it."""
    if reading.told is not None:
        return f" (read as {reading.told})"
    return " (not taught to the model, a guess)" if reading.is_taught is False else ""


def _segment_whole(session: Session, phrase: str, read_as: str) -> Observation:
    """Masks of a phrase through all slices or frames, as `medsam3.segment` finds them."""
    found = session.bench.ask_whole(phrase)
    presence, is_present = found.stated_presence, found.says_present
    marks = session.new_marks(found.objects, "segment", phrase=phrase, presence=presence, is_present=is_present)
    frame = fullest_frame(marks[0]) if marks else session.frame
    where = f" in slices {marks[0].mask.start[0]} and on; shown is slice {frame}" if marks else ""
    said = "present" if is_present else "absent"
    text = (
        f"{phrase!r}{read_as} in all slices: presence {presence:.2f}, the model says {said}; {len(marks)} masks{where}"
    )
    facts = {
        "presence": presence,
        "is_present": is_present,
        "votes": [is_present],
        "marks": numbers_of(marks),
        "frame": frame,
    }
    return Observation(
        "\n".join(filter(None, [text, describe(marks, session.bench.shape)])),
        session.shown(f"{phrase}: masks {_span(numbers_of(marks))}", marks, n=frame),
        marks,
        facts,
    )


def segment_box(session: Session, values: Arguments) -> Observation:
    """One mask for each box, with a phrase where it is given."""
    boxes = tuple(box_from(edges) for edges in values["boxes"])
    phrase = values.get("phrase")
    prompt = Prompt(text=None if phrase is None else check_phrase(phrase), boxes=boxes)
    return _prompted(session, prompt, "segment_box")


def refine(session: Session, values: Arguments) -> Observation:
    """A mask anew, from points on and off it, or from a box."""
    mark = session.mark(values["mask"])
    points = tuple(Point(float(x), float(y), bool(kind)) for x, y, kind in values.get("points", []))
    if bool(points) == ("box" in values):
        raise ToolError("give either points or a box to refine a mask, not both and not none")
    if points:
        if not any(point.is_positive for point in points):
            plane = plane_of(mark, session.bench.shape[1:])
            rows, columns = np.nonzero(plane)
            inside = len(rows) // 2  # off-clicks alone: the object itself says where it is
            points = (Point(float(columns[inside]), float(rows[inside])), *points)
        return _prompted(session, Prompt(points=points), "refine")
    return _prompted(session, Prompt(text=mark.phrase or None, boxes=(box_from(values["box"]),)), "refine")


def examine(session: Session, values: Arguments) -> Observation:
    """A mask raw, drawn, and enlarged."""
    mark = session.mark(values["mask"])
    window = closer_window(mark.mask.box, session.bench.shape[1:])
    pictures = session.shown(f"mask {mark.number} drawn", [mark])
    for caption, drawn in (("the same place without it", []), ("enlarged", [mark])):
        pictures += session.shown(f"mask {mark.number}: {caption}", drawn, window=window)
    return Observation(describe([mark], session.bench.shape), pictures)


def compare(session: Session, values: Arguments) -> Observation:
    """How two masks lie to each other."""
    first, second = session.mark(values["a"]), session.mark(values["b"])
    if first.mask.start[0] != second.mask.start[0]:
        raise ToolError("the two masks lie in different slices")
    a, b = (plane_of(mark, session.bench.shape[1:]) for mark in (first, second))
    facts = {
        "iou": round(overlap(a, b), 3),
        "share_of_a_in_b": round(float((a & b).sum() / a.sum()), 3),
        "share_of_b_in_a": round(float((a & b).sum() / b.sum()), 3),
        "area_ratio_a_to_b": round(float(a.sum() / b.sum()), 3),
    }
    text = f"masks {first.number} and {second.number}: " + ", ".join(f"{name} {value}" for name, value in facts.items())
    return Observation(text, session.shown(f"masks {first.number} and {second.number}", [first, second]), facts=facts)


def merge(session: Session, values: Arguments) -> Observation:
    """One mask of several."""
    marks = [session.mark(number) for number in dict.fromkeys(values["masks"])]
    if len({mark.mask.start[0] for mark in marks}) > 1:
        raise ToolError("the masks lie in different slices")
    planes = [plane_of(mark, session.bench.shape[1:]) for mark in marks]
    return _combined(session, np.any(planes, axis=0), numbers_of(marks), "merge")


def subtract(session: Session, values: Arguments) -> Observation:
    """One mask without another."""
    first, second = session.mark(values["mask"]), session.mark(values["without"])
    if first.mask.start[0] != second.mask.start[0]:
        raise ToolError("the two masks lie in different slices")
    a, b = (plane_of(mark, session.bench.shape[1:]) for mark in (first, second))
    return _combined(session, a & ~b, [first.number, second.number], "subtract")


def look(session: Session, values: Arguments) -> Observation:
    """A region enlarged, or the frame in another grey window."""
    shape = session.bench.shape[1:]
    window = _window(values["region"], shape) if "region" in values else None
    preset = values.get("window")
    if preset is not None and session.bench.view.window is None:
        raise ToolError("this image has 8 bits and no Hounsfield units: leave the window out")
    if not session.has_pictures:
        raise ToolError("no picture is shown in this run: use measure and compare")
    grey = None if preset is None else window_named(preset)
    caption = "the frame" if window is None else f"region {values['region']}"
    if preset is not None:
        caption += f" in the {preset} window"
    return Observation(caption, session.shown(caption, window=window, grey=grey))


def _prompted(session: Session, prompt: Prompt, origin: str) -> Observation:
    n, shape = session.frame, session.bench.shape
    prompt.check_inside(*shape[1:])
    found = session.bench.decode(n, prompt)
    masks = [moved(part, n) for part in found.objects]
    about = {"phrase": found.concept, "presence": found.presence, "is_present": found.is_present}
    marks = session.new_marks(masks, origin, **about)
    facts = {"presence": found.presence, "marks": numbers_of(marks)}
    text = describe(marks, shape) or "nothing was found there"
    return Observation(text, session.shown(f"masks {_span(numbers_of(marks))}", marks), marks, facts)


def _combined(session: Session, plane: BoolArray, sources: list[int], origin: str) -> Observation:
    score = min(session.mark(number).mask.score for number in sources)
    mask = ObjectMask.from_dense(plane[None], score)
    if mask is None:
        raise ToolError("nothing would be left of the mask")
    first = session.mark(sources[0])
    about: dict[str, Any] = {"phrase": first.phrase, "presence": first.presence, "is_present": first.is_present}
    marks = session.new_marks([moved(mask, first.mask.start[0])], origin, **about)
    text = f"{origin} of {', '.join(map(str, sources))}:\n{describe(marks, session.bench.shape)}"
    return Observation(text, session.shown(f"mask {marks[0].number}", marks), marks, {"marks": numbers_of(marks)})


def _windows(session: Session, values: Arguments) -> list[Crop]:
    shape = session.bench.shape[1:]
    if values.get("tiles") and "region" in values:
        raise ToolError("give a region or tiles, not both")
    if values.get("tiles"):
        return list(quarters(shape))
    return [_window(values["region"], shape)] if "region" in values else []


def _window(edges: list[float], shape: tuple[int, int]) -> Crop:
    x0, y0, x1, y1 = edges
    left, right = (int(np.clip(round(value), 0, shape[1])) for value in (x0, x1))
    top, bottom = (int(np.clip(round(value), 0, shape[0])) for value in (y0, y1))
    if right - left < min(LEAST_WINDOW_PX, shape[1]) or bottom - top < min(LEAST_WINDOW_PX, shape[0]):
        raise ToolError(
            f"region {edges} is smaller than {LEAST_WINDOW_PX} pixels inside the frame of {shape[1]} x {shape[0]}: "
            "give x0, y0, x1, y1"
        )
    return Crop(top, bottom, left, right)


def _span(numbers: list[int]) -> str:
    return "none" if not numbers else f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_NUMBER = {"type": "number"}
_MASK = {"type": "integer", "description": "number of a mask"}
_MASKS = {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 600}
_BOX = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4, "description": "x0, y0, x1, y1 in pixels"}
_PHRASE = {"type": "string", "description": "a short noun phrase, one concept"}
_REASON = {"type": "string", "description": "in one or two sentences, from what was seen"}


def _tool(name: str, handler: Any, description: str, parameters: dict[str, Any], *, is_round: bool = False) -> Tool:
    return Tool(ToolSpec(name, description, parameters), handler, is_round)


def _asking_tools() -> tuple[Tool, ...]:
    return (
        _tool(
            "segment",
            segment,
            "Find all objects of a concept in the frame. `also`: other phrasings, averaged in. `region`: look closer "
            "there. `tiles`: look closer everywhere, for many small objects.",
            _object(
                ("phrase",),
                phrase=_PHRASE,
                also={"type": "array", "items": {"type": "string"}, "maxItems": MOST_PHRASES - 1},
                region=_BOX,
                tiles={"type": "boolean"},
            ),
            is_round=True,
        ),
        _tool(
            "segment_box",
            segment_box,
            "One mask for each box; with a phrase, what of that concept is in it.",
            _object(("boxes",), boxes={"type": "array", "items": _BOX, "minItems": 1, "maxItems": 20}, phrase=_PHRASE),
            is_round=True,
        ),
        _tool(
            "refine",
            refine,
            "A mask anew from points [x, y, 1 on it or 0 off it], or from a corrected box.",
            _object(
                ("mask",),
                mask=_MASK,
                points={
                    "type": "array",
                    "items": {"type": "array", "items": _NUMBER, "minItems": 3, "maxItems": 3},
                    "minItems": 1,
                    "maxItems": 20,
                },
                box=_BOX,
            ),
            is_round=True,
        ),
        _tool(
            "examine", examine, "See a mask drawn, its place without it, and enlarged.", _object(("mask",), mask=_MASK)
        ),
    )


def _looking_tools() -> tuple[Tool, ...]:
    return (
        _tool("compare", compare, "How two masks overlap.", _object(("a", "b"), a=_MASK, b=_MASK)),
        _tool("merge", merge, "One mask of several.", _object(("masks",), masks=_MASKS)),
        _tool("subtract", subtract, "A mask without another.", _object(("mask", "without"), mask=_MASK, without=_MASK)),
        _tool("measure", measure, "Size, place and brightness of a mask.", _object(("mask",), mask=_MASK)),
        _tool(
            "look",
            look,
            "See a region enlarged, or the frame in a grey window (of CT).",
            _object(region=_BOX, window={"type": "string", "enum": list(WINDOWS)}),
        ),
        _tool("next_slice", lambda session, values: turn_to(session, 1), "Go to the next slice.", _object()),
        _tool("previous_slice", lambda session, values: turn_to(session, -1), "Go to the slice before.", _object()),
        _tool("accept", accept, "End with these masks.", _object(("masks", "reason"), masks=_MASKS, reason=_REASON)),
        _tool(
            "report_absent",
            report_absent,
            "End with the answer that nothing of the kind is in the image.",
            _object(("reason",), reason=_REASON),
        ),
    )


TOOLS: Mapping[str, Tool] = MappingProxyType({tool.spec.name: tool for tool in (*_asking_tools(), *_looking_tools())})


def result_masks(session_marks: Mapping[int, Any], numbers: tuple[int, ...], shape: tuple[int, int, int]) -> Masks:
    """The accepted marks as masks over the image; the concept is that of the first."""
    marks = [session_marks[number] for number in numbers]
    objects = tuple(sorted((mark.mask for mark in marks), key=lambda mask: -mask.score))
    presences = [mark.presence for mark in marks if mark.presence is not None]
    return Masks(shape, objects, marks[0].phrase if marks else "", max(presences, default=None), bool(marks))
