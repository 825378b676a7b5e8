"""The tools of the agent: what can be asked of the segmenter, looked at, measured, combined and decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from medsam3.agent.frames import Place, averaged, fullest_frame, measures_text, objects_of, pasted, plane_of
from medsam3.agent.session import (
    Boxes,
    Clicks,
    Edges,
    MaskNumber,
    MaskNumbers,
    PictureNumber,
    Tool,
    ToolArguments,
    ToolSession,
    as_list,
)
from medsam3.agent.values import Mark, Observation, ToolError, Verdict
from medsam3.geometry import BoolArray
from medsam3.image import Masks, ObjectMask
from medsam3.measure.outline import iou
from medsam3.models.phrase_reader import Reading
from medsam3.models.refiner import Hints
from medsam3.models.refiner import refine as refined
from medsam3.models.segmenter import reading_alone
from medsam3.prompts import Box, Prompt, check_phrase
from medsam3.store import JsonObject
from medsam3.view.crops import Crop, closer_window, quarters
from medsam3.view.grey import WINDOWS, window_named

MIX_LEVEL = 0.5
"""When several answers are averaged, a pixel belongs to the concept above this mean probability."""
CLOSER_SHARE = 0.5
"""Weight of what is seen enlarged, when the frame as a whole was asked too."""
MOST_PHRASES = 8

Phrase = Annotated[str, Field(description="a short noun phrase, one concept")]
Reason = Annotated[str, Field(description="in one or two sentences, from what was seen")]
OnePhrase = Phrase | SkipJsonSchema[None]
OneRegion = Edges | SkipJsonSchema[None]


class SegmentArguments(ToolArguments):
    """The arguments of `segment`."""

    phrase: Phrase
    also: Annotated[list[str], BeforeValidator(as_list), Field(max_length=MOST_PHRASES - 1)] = Field(default=[])
    region: OneRegion = None
    picture: PictureNumber = None
    tiles: bool = False


class BoxArguments(ToolArguments):
    """The arguments of `segment_box`."""

    boxes: Boxes
    picture: PictureNumber = None
    phrase: OnePhrase = None


class RefineArguments(ToolArguments):
    """The arguments of `refine`."""

    mask: MaskNumber
    points: Clicks | SkipJsonSchema[None] = None
    box: OneRegion = None
    picture: PictureNumber = None


class MaskArguments(ToolArguments):
    """The number of one mask."""

    mask: MaskNumber


class PairArguments(ToolArguments):
    """The numbers of two masks."""

    a: MaskNumber
    b: MaskNumber


class MasksArguments(ToolArguments):
    """The numbers of some masks."""

    masks: MaskNumbers


class SubtractArguments(ToolArguments):
    """The numbers of a mask and of what is taken from it."""

    mask: MaskNumber
    without: MaskNumber


class LookArguments(ToolArguments):
    """The arguments of `look`."""

    region: OneRegion = None
    picture: PictureNumber = None
    window: Annotated[Literal[tuple(WINDOWS)] | SkipJsonSchema[None], Field()] = None  # type: ignore[valid-type]


class AcceptArguments(ToolArguments):
    """The arguments of `accept`."""

    masks: MaskNumbers
    reason: Reason


class AbsentArguments(ToolArguments):
    """The arguments of `report_absent`."""

    reason: Reason


def segment(session: ToolSession, given: SegmentArguments) -> Observation:
    """Find the masks of a phrase; several phrasings and closer views are averaged into one answer."""
    queried, place = session.queried, session.place(given.picture)
    phrases = [check_phrase(text) for text in dict.fromkeys([given.phrase, *given.also])]
    readings = [reading_alone(queried.segmenter, phrase) for phrase in phrases]
    windows = _windows(session, given, place)
    if queried.shape[0] > 1 and len(phrases) == 1 and not windows:
        return _segment_whole(session, phrases[0], _read_as(readings[0]))
    n = place.frame
    answers = [queried.ask(n, phrase) for phrase in phrases]
    presence = float(np.mean([answer.presence for answer in answers]))
    if len(phrases) == 1 and not windows:
        found = tuple(_moved(part, n) for part in answers[0].masks.objects)
    else:
        closer = [averaged([queried.ask(n, phrase, window) for phrase in phrases]) for window in windows]
        soft = pasted(averaged(answers), windows, closer, CLOSER_SHARE)
        found = objects_of(soft, MIX_LEVEL, presence, phrases[0], n)
    is_present = answers[0].is_present
    marks = session.new_marks(found, "segment", phrase=phrases[0], presence=presence, is_present=is_present)
    said = _said(answers[0].masks) + ": the masks are what it would be, if it were there" * (not is_present)
    text = f"{phrases[0]!r}{_read_as(readings[0])}: presence {presence:.2f}, the model says {said}; {len(marks)} masks"
    facts = {
        "presence": presence,
        "is_present": is_present,
        "votes": [answer.is_present for answer in answers],
        "frame": n,
        "regions_px": [_pixels(window) for window in windows],
    }
    return _found(session, text, marks, facts, phrases[0])


def _said(found: Masks) -> str:
    """Tell the model's verdict."""
    if found.verdict == "not sure":
        return "not sure, it may be present"
    return "present" if found.says_present else "absent"


def _read_as(reading: Reading) -> str:
    """Say what the model takes a phrase for, to be told after it."""
    if reading.told is not None:
        return f" (read as {reading.told})"
    return " (not taught to the model, a guess)" if reading.is_taught is False else ""


def _segment_whole(session: ToolSession, phrase: str, read_as: str) -> Observation:
    """Find the masks of a phrase through all slices or frames, as `medsam3.segment` does."""
    found = session.queried.ask_whole(phrase)
    presence, is_present = found.stated_presence, found.says_present
    marks = session.new_marks(found.objects, "segment", phrase=phrase, presence=presence, is_present=is_present)
    frame = fullest_frame(marks[0]) if marks else session.frame
    where = f" in slices {marks[0].mask.start[0]} and on; shown is slice {frame}" if marks else ""
    said = _said(found)
    text = (
        f"{phrase!r}{read_as} in all slices: presence {presence:.2f}, the model says {said}; {len(marks)} masks{where}"
    )
    facts = {"presence": presence, "is_present": is_present, "votes": [is_present], "frame": frame}
    return _found(session, text, marks, facts, phrase)


def segment_box(session: ToolSession, given: BoxArguments) -> Observation:
    """Find one mask for each box, with a phrase if it is given."""
    place = session.place(given.picture)
    boxes = tuple(session.box(edges, place) for edges in given.boxes)
    phrase = None if given.phrase is None else check_phrase(given.phrase)
    return _prompted(session, Prompt(text=phrase, boxes=boxes), "segment_box", place.frame)


def refine(session: ToolSession, given: RefineArguments) -> Observation:
    """Correct a mask by points on and off it, or draw it anew by a box."""
    mark, place = session.mark(given.mask), session.place(given.picture)
    if (given.points is None) == (given.box is None):
        raise ToolError("give either points or a box to refine a mask, not both and not none")
    if given.box is not None:
        prompt = Prompt(text=mark.phrase or None, boxes=(session.box(given.box, place),))
        return _prompted(session, prompt, "refine", place.frame)
    n, queried = place.frame, session.queried
    points = tuple(place.point(x, y, is_positive=bool(kind)) for x, y, kind in given.points or ())
    asked = Prompt(boxes=(Box(*mark.mask.box),), points=points)
    asked.check_inside(*queried.shape[1:])
    so_far = mark.mask.plane(n, queried.shape[1:])
    hints = Hints(so_far if so_far.any() else None, points, text=mark.phrase or None)
    found = refined(queried.segmenter, queried.features(n), hints)
    return _marked(session, replace(found, presence=mark.presence, is_present=mark.is_present), "refine", n, asked)


def examine(session: ToolSession, given: MaskArguments) -> Observation:
    """Show a mask drawn, its place raw, and both enlarged."""
    mark = session.mark(given.mask)
    n, window = fullest_frame(mark), closer_window(mark.mask.box, session.queried.shape[1:])
    pictures = session.shown(f"mask {mark.number} drawn", [mark], n=n)
    for caption, drawn in (("the same place without it", []), ("enlarged", [mark])):
        pictures += session.shown(f"mask {mark.number}: {caption}", drawn, window=window, n=n)
    return Observation(session.describe([mark]), pictures, facts={"frame": n})


def compare(session: ToolSession, given: PairArguments) -> Observation:
    """Say how two masks lie to each other."""
    first, second = session.mark(given.a), session.mark(given.b)
    a, b = _planes(session, [first, second])
    facts = {
        "iou": round(iou(a, b), 3),
        "share_of_a_in_b": round(float((a & b).sum() / a.sum()), 3),
        "share_of_b_in_a": round(float((a & b).sum() / b.sum()), 3),
        "area_ratio_a_to_b": round(float(a.sum() / b.sum()), 3),
    }
    text = f"masks {first.number} and {second.number}: " + ", ".join(f"{name} {value}" for name, value in facts.items())
    pictures = session.shown(f"masks {first.number} and {second.number}", [first, second], n=fullest_frame(first))
    return Observation(text, pictures, facts=facts)


def merge(session: ToolSession, given: MasksArguments) -> Observation:
    """Make one mask of several."""
    marks = [session.mark(number) for number in dict.fromkeys(given.masks)]
    return _combined(session, np.any(_planes(session, marks), axis=0), marks, "merge")


def subtract(session: ToolSession, given: SubtractArguments) -> Observation:
    """Take one mask from another."""
    marks = [session.mark(given.mask), session.mark(given.without)]
    a, b = _planes(session, marks)
    return _combined(session, a & ~b, marks, "subtract")


def measure(session: ToolSession, given: MaskArguments) -> Observation:
    """Measure area, diameter, position and brightness of a mask."""
    mark = session.mark(given.mask)
    rgb = session.queried.rgb(fullest_frame(mark))
    text, facts = measures_text(mark, rgb, session.queried.view.spacing_mm)
    return Observation(text, facts=dict(facts))


def look(session: ToolSession, given: LookArguments) -> Observation:
    """Show a region enlarged, or the frame in another grey window."""
    place = session.place(given.picture)
    if given.window is not None and session.queried.view.window is None:
        raise ToolError("this image has 8 bits and no Hounsfield units: leave the window out")
    if not session.has_pictures:
        raise ToolError("no picture is shown in this run: use measure and compare")
    grey = None if given.window is None else window_named(given.window)
    window = None if given.region is None else session.crop(given.region, place)
    caption = "the frame" if window is None else "a region"
    caption += "" if given.window is None else f" in the {given.window} window"
    facts: JsonObject = {"frame": place.frame, "regions_px": [] if window is None else [_pixels(window)]}
    return Observation(caption, session.shown(caption, window=window, grey=grey, n=place.frame), facts=facts)


def next_slice(session: ToolSession, given: ToolArguments) -> Observation:
    """Go to the next slice."""
    return _turned(session, session.frame + 1)


def previous_slice(session: ToolSession, given: ToolArguments) -> Observation:
    """Go to the slice before."""
    return _turned(session, session.frame - 1)


def accept(session: ToolSession, given: AcceptArguments) -> Observation:
    """End the run with masks."""
    marks = [session.mark(number) for number in dict.fromkeys(given.masks)]
    if not given.reason.strip():
        raise ToolError("reason is empty: say why these masks answer the instruction")
    verdict = Verdict("found", tuple(mark.number for mark in marks), given.reason.strip())
    return Observation("accepted", session.shown("accepted", marks, n=fullest_frame(marks[0])), verdict=verdict)


def report_absent(session: ToolSession, given: AbsentArguments) -> Observation:
    """End the run with the answer that nothing of the kind is there."""
    if not given.reason.strip():
        raise ToolError("reason is empty: say what was looked for and what speaks against it")
    return Observation("reported as absent", verdict=Verdict("absent", (), given.reason.strip()))


def _turned(session: ToolSession, wanted: int) -> Observation:
    count = session.queried.shape[0]
    if not 0 <= wanted < count:
        raise ToolError(f"there is no slice {wanted}, allowed are 0 to {count - 1}")
    pictures = session.shown(f"slice {wanted}", n=wanted)
    return Observation(f"slice {wanted} of 0 to {count - 1}", pictures, facts={"frame": wanted})


def _found(
    session: ToolSession, text: str, marks: tuple[Mark, ...], facts: Mapping[str, object], what: str = ""
) -> Observation:
    numbers = [mark.number for mark in marks]
    span = "none" if not numbers else f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    caption = f"{what}: masks {span}" if what else f"masks {span}"
    lines = "\n".join(filter(None, [text, session.describe(marks)]))
    return Observation(lines, session.shown(caption, marks, n=facts["frame"]), marks, {**facts, "marks": numbers})


def _prompted(session: ToolSession, prompt: Prompt, origin: str, n: int) -> Observation:
    prompt.check_inside(*session.queried.shape[1:])
    return _marked(session, session.queried.decode(n, prompt), origin, n, prompt)


def _marked(session: ToolSession, found: Masks, origin: str, n: int, prompt: Prompt) -> Observation:
    about = {"phrase": found.concept, "presence": found.presence, "is_present": found.is_present}
    marks = session.new_marks([_moved(part, n) for part in found.objects], origin, **about)
    boxes = [[round(edge, 2) for edge in box.xyxy] for box in prompt.boxes]
    points = [[round(point.x, 2), round(point.y, 2), int(point.is_positive)] for point in prompt.points]
    facts = {"presence": found.presence, "frame": n, "boxes_px": boxes, "points_px": points}
    return _found(session, "" if marks else "nothing was found there", marks, facts)


def _combined(session: ToolSession, plane: BoolArray, marks: Sequence[Mark], origin: str) -> Observation:
    mask = ObjectMask.from_dense(plane[None], min(mark.mask.score for mark in marks))
    if mask is None:
        raise ToolError("nothing would be left of the mask")
    first, n = marks[0], fullest_frame(marks[0])
    about: JsonObject = {"phrase": first.phrase, "presence": first.presence, "is_present": first.is_present}
    made = session.new_marks([_moved(mask, n)], origin, **about)
    text = f"{origin} of {', '.join(str(mark.number) for mark in marks)}:"
    return _found(session, text, made, {"frame": n})


def _planes(session: ToolSession, marks: Sequence[Mark]) -> list[BoolArray]:
    """Masks of one slice as (H, W)."""
    if len({mark.mask.start[0] for mark in marks}) > 1:
        raise ToolError("the masks lie in different slices")
    return [plane_of(mark, session.queried.shape[1:]) for mark in marks]


def _windows(session: ToolSession, given: SegmentArguments, place: Place) -> list[Crop]:
    if given.tiles and given.region is not None:
        raise ToolError("give a region or tiles, not both")
    if given.tiles:
        return list(quarters(session.queried.shape[1:]))
    return [] if given.region is None else [session.crop(given.region, place)]


def _pixels(crop: Crop) -> list[int]:
    return [crop.left, crop.top, crop.right, crop.bottom]


def _moved(mask: ObjectMask, n: int) -> ObjectMask:
    """A mask over (1, H, W) as one of frame n."""
    return replace(mask, start=(n, *mask.start[1:]))


_ALL = (
    Tool(
        "segment",
        "Find all objects of a concept in the frame. `also`: other phrasings, averaged in. `region`: look closer "
        "there. `tiles`: look closer everywhere, for many small objects.",
        SegmentArguments,
        segment,
        is_round=True,
    ),
    Tool(
        "segment_box",
        "One mask for each box; with a phrase, what of that concept is in it.",
        BoxArguments,
        segment_box,
        is_round=True,
    ),
    Tool(
        "refine",
        "A mask anew from points [x, y, 1 on it or 0 off it], or from a corrected box.",
        RefineArguments,
        refine,
        is_round=True,
    ),
    Tool("examine", "See a mask drawn, its place without it, and enlarged.", MaskArguments, examine),
    Tool("compare", "How two masks overlap.", PairArguments, compare),
    Tool("merge", "One mask of several.", MasksArguments, merge),
    Tool("subtract", "A mask without another.", SubtractArguments, subtract),
    Tool("measure", "Size, place and brightness of a mask.", MaskArguments, measure),
    Tool("look", "See a region enlarged, or the frame in a grey window (of CT).", LookArguments, look),
    Tool("next_slice", "Go to the next slice.", ToolArguments, next_slice),
    Tool("previous_slice", "Go to the slice before.", ToolArguments, previous_slice),
    Tool("accept", "End with these masks.", AcceptArguments, accept),
    Tool(
        "report_absent",
        "End with the answer that nothing of the kind is in the image.",
        AbsentArguments,
        report_absent,
    ),
)
TOOLS: Mapping[str, Tool] = MappingProxyType({tool.name: tool for tool in _ALL})


def result_masks(marks: Mapping[int, Mark], numbers: Sequence[int], shape: tuple[int, int, int]) -> Masks:
    """Join the accepted marks to masks over the image; the concept is that of the first."""
    chosen = [marks[number] for number in numbers]
    objects = tuple(sorted((mark.mask for mark in chosen), key=lambda mask: -mask.score))
    presences = [mark.presence for mark in chosen if mark.presence is not None]
    return Masks(shape, objects, chosen[0].phrase if chosen else "", max(presences, default=None), bool(chosen))
