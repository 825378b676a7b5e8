"""A session in which calls of tools are run: their arguments checked, masks and pictures numbered, nothing done twice.

A caller's mistake is a `ToolError`, which becomes an observation; all other errors are ours and leave the session as it
was. Arguments are read as meant if they can mean one thing only: "1" or 1.0 for 1, null for what is left out, JSON
encoded twice, one value for a list of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema, SkipJsonSchema

from medsam3.agent.chat import ShownPicture, ToolCall, ToolSpec
from medsam3.agent.frames import FULL, Place, QueriedImage, relative_box, relative_crop, show_frame, whole_frame
from medsam3.agent.values import Mark, Observation, ToolError, ToolStep
from medsam3.errors import InputError, value_error
from medsam3.image import ObjectMask
from medsam3.prompts import Box
from medsam3.view.crops import Crop

OPENING = "the image as it is"
"""Caption of the first picture."""
LONGEST_TEXT = 20_000
LEAST_WINDOW_PX = 16
MOST_LISTED = 12
MOST_MARKS = 600
_REPEATABLE = ("next_slice", "previous_slice")


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    return value


def as_list(value: Any) -> Any:
    """A list that was encoded as text, or one value for a list of one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    return [value] if isinstance(value, (int, float, str)) else value


def as_lists(value: Any) -> Any:
    """A list of lists, or one list of numbers for a list of one."""
    value = as_list(value)
    is_one = isinstance(value, list) and bool(value) and all(isinstance(one, (int, float)) for one in value)
    return [value] if is_one else value


Coordinate = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=FULL, allow_inf_nan=False)]
MaskNumber = Annotated[int, BeforeValidator(_no_bool), Field(description="number of a mask")]
MaskNumbers = Annotated[list[MaskNumber], BeforeValidator(as_list), Field(min_length=1, max_length=MOST_MARKS)]
Edges = Annotated[
    list[Coordinate],
    BeforeValidator(as_list),
    Field(min_length=4, max_length=4, description=f"x0, y0, x1, y1, each 0 to {FULL} along the picture's side"),
]
Boxes = Annotated[list[Edges], BeforeValidator(as_lists), Field(min_length=1, max_length=20)]
Clicks = Annotated[
    list[Annotated[list[Coordinate], BeforeValidator(as_list), Field(min_length=3, max_length=3)]],
    BeforeValidator(as_lists),
    Field(min_length=1, max_length=20, description=f"[x, y, 1 on it or 0 off it], x and y each 0 to {FULL}"),
]
PictureNumber = Annotated[
    int | SkipJsonSchema[None],
    BeforeValidator(_no_bool),
    Field(description="number of the picture that the coordinates are in; left out: the whole frame"),
]


class ToolArguments(BaseModel):
    """The arguments of a call; null stands for what is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {name: one for name, one in values.items() if one is not None} if isinstance(values, dict) else values


class _PlainSchema(GenerateJsonSchema):
    """A schema without titles and defaults, which some providers refuse."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])


@dataclass(frozen=True)
class Tool:
    """A tool, the arguments that it takes, and how it is run; `is_round` if it asks the segmenter."""

    name: str
    description: str
    takes: type[ToolArguments]
    handler: Callable[[Any, Any], Observation]
    is_round: bool = False

    @property
    def spec(self) -> ToolSpec:
        """The tool as a model is told of it."""
        schema = self.takes.model_json_schema(schema_generator=_PlainSchema)
        properties = {"type": "object", "properties": schema.get("properties", {})}
        required = {"required": schema.get("required", []), "additionalProperties": False}
        return ToolSpec(self.name, self.description, {**properties, **required})

    def parse(self, text: str) -> ToolArguments:
        """Read the arguments from the text that a model wrote.

        Raises:
            ToolError: Not JSON, no object, or a value that is not allowed.
        """
        if len(text) > LONGEST_TEXT:
            raise ToolError(f"the arguments have {len(text)} characters, allowed are {LONGEST_TEXT}")
        values: Any = text or "{}"
        for _ in range(3):  # some models encode them twice
            if not isinstance(values, str):
                break
            try:
                values = json.loads(values)
            except (ValueError, RecursionError) as error:
                raise ToolError(f"the arguments are not JSON ({error}): write one whole JSON object") from error
        try:
            return self.takes.model_validate({} if values is None else values)
        except ValidationError as error:
            raise ToolError(self._complaint(error)) from error

    def _complaint(self, error: ValidationError) -> str:
        known = ", ".join(self.takes.model_fields) or "none"
        said = []
        for one in error.errors(include_url=False)[:3]:
            name = "".join(f"[{part}]" if isinstance(part, int) else part for part in one["loc"]) or "arguments"
            if one["type"] in ("missing", "extra_forbidden"):
                what = "is missing" if one["type"] == "missing" else "is not known"
                said.append(f"{name[:60]} {what}; known are {known}")
            else:
                said.append(value_error(one))
        return "; ".join(said)


class ToolSession:
    """The state of a run: the image, the slice that is looked at, and all masks and pictures by their numbers."""

    def __init__(self, queried: QueriedImage, *, has_pictures: bool = True) -> None:
        self.queried = queried
        self.has_pictures = has_pictures
        self.frame = queried.shape[0] // 2 if queried.image.kind == "volume" else 0
        self.marks: dict[int, Mark] = {}
        self.pictures: dict[int, ShownPicture] = {}
        self._calls: set[tuple[str, str]] = set()

    def run(self, call: ToolCall, tools: Mapping[str, Tool]) -> Observation:
        """Run one call; a caller's mistake becomes an observation that says what is allowed."""
        try:
            tool = tools.get(call.name)
            if tool is None:
                raise ToolError(f"there is no tool {call.name[:60]!r}, allowed are {', '.join(tools)}")
            given = tool.parse(call.arguments)
            if self._key(tool, given) in self._calls and tool.name not in _REPEATABLE:
                raise ToolError(
                    f"{tool.name} was called with these very arguments before: its result is above, do something else"
                )
            seen = tool.handler(self, given)
        except (ToolError, InputError) as error:  # a phrase or box that the segmenter refuses is the caller's mistake
            return Observation(f"mistake: {error}", is_mistake=True)
        seen = replace(seen, pictures=self.numbered(seen.pictures))
        self._note(tool, given, seen)
        return seen

    def replay(self, step: ToolStep, tools: Mapping[str, Tool]) -> None:
        """Take over what a recorded step changed, without asking the segmenter."""
        if not step.seen.is_mistake and step.call.name in tools:
            tool = tools[step.call.name]
            self._note(tool, tool.parse(step.call.arguments), step.seen)

    def numbered(self, pictures: Sequence[ShownPicture]) -> tuple[ShownPicture, ...]:
        """Number pictures, and say number and size in their captions."""
        return tuple(
            replace(
                one, number=number, caption=f"picture {number}, {one.size[0]} x {one.size[1]} pixels: {one.caption}"
            )
            for number, one in enumerate(pictures, start=len(self.pictures) + 1)
        )

    def keep(self, pictures: Sequence[ShownPicture]) -> None:
        """Remember numbered pictures, so that coordinates can be given in them."""
        self.pictures.update({one.number: one for one in pictures})

    def mark(self, number: int) -> Mark:
        """Give the mark under a number.

        Raises:
            ToolError: There is none.
        """
        if number not in self.marks:
            known = sorted(self.marks)
            listed = ", ".join(map(str, known[:30])) + (" ..." if len(known) > 30 else "")
            raise ToolError(f"there is no mask {number}, known are {listed or 'none yet'}")
        return self.marks[number]

    def new_marks(self, masks: Sequence[ObjectMask], origin: str, **about: Any) -> tuple[Mark, ...]:
        """Make marks of masks, under numbers that were never given; they count once the step is noted."""
        first = len(self.marks) + 1
        if len(self.marks) + len(masks) > MOST_MARKS:
            raise ToolError(f"there would be more than {MOST_MARKS} masks: accept some, or look at a smaller region")
        facts = {"phrase": "", "presence": None, "is_present": None, **about}
        return tuple(Mark(number, mask, origin=origin, **facts) for number, mask in enumerate(masks, start=first))

    def shown(self, caption: str, marks: Sequence[Mark] = (), **how: Any) -> tuple[ShownPicture, ...]:
        """Show the current frame, or frame `n`; nothing for a policy that looks at no pictures."""
        if not self.has_pictures:
            return ()
        n = how.pop("n", self.frame)
        here = [mark for mark in marks if 0 <= n - mark.mask.start[0] < len(mark.mask.crop)]
        window = how.get("window")
        if window is not None:
            where = relative_crop(window, self.queried.shape[1:], digits=1)
            caption += f"; the whole frame's part {', '.join(f'{edge:g}' for edge in where)}, enlarged"
        return (show_frame(self.queried.rgb(n, how.pop("grey", None)), caption, n, marks=here, **how),)

    def place(self, picture: int | None) -> Place:
        """Find where coordinates lie: in the picture of a number, or in the whole current frame.

        Raises:
            ToolError: No such picture was shown.
        """
        if picture is None:
            return whole_frame(self.frame, self.queried.shape[1:])
        if picture not in self.pictures:
            known = f"1 to {len(self.pictures)}" if self.pictures else "none: leave it out"
            raise ToolError(f"there is no picture {picture}, shown were {known}")
        shown = self.pictures[picture]
        if shown.part is None:
            return whole_frame(shown.frame, self.queried.shape[1:])
        left, top, right, bottom = shown.part
        return Place(shown.frame, Crop(top, bottom, left, right))

    def box(self, edges: Sequence[float], place: Place) -> Box:
        """Read a box in a place.

        Raises:
            ToolError: It is inverted or empty.
        """
        if edges[0] >= edges[2] or edges[1] >= edges[3]:
            raise ToolError(f"box {edges} is inverted or empty: give x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        return place.box(edges)

    def crop(self, edges: Sequence[float], place: Place) -> Crop:
        """Read a region in a place.

        Raises:
            ToolError: It is too small to be looked at.
        """
        crop, shape = place.crop(edges), self.queried.shape[1:]
        rows, columns = crop.shape
        if columns < min(LEAST_WINDOW_PX, shape[1]) or rows < min(LEAST_WINDOW_PX, shape[0]):
            raise ToolError(
                f"region {edges} is smaller than {LEAST_WINDOW_PX} pixels of the frame's {shape[1]} x {shape[0]}: "
                f"give a larger one, x0, y0, x1, y1 each 0 to {FULL}"
            )
        return crop

    def describe(self, marks: Sequence[Mark]) -> str:
        """Say number, score, box and area of the first dozen of marks."""
        _, rows, columns = self.queried.shape
        lines = [
            f"mask {mark.number}: score {mark.mask.score:.2f}, box {relative_box(mark.mask.box, (rows, columns))}, "
            f"{100 * mark.mask.voxels / (rows * columns):.2f} % of the frame"
            for mark in marks[:MOST_LISTED]
        ]
        if len(marks) > MOST_LISTED:
            lines.append(f"and masks {marks[MOST_LISTED].number} to {marks[-1].number}, all smaller in score")
        return "\n".join(lines)

    def _key(self, tool: Tool, given: ToolArguments) -> tuple[str, str]:
        return tool.name, f"{self.frame} {given.model_dump_json()}"

    def _note(self, tool: Tool, given: ToolArguments, seen: Observation) -> None:
        self._calls.add(self._key(tool, given))
        self.marks.update({mark.number: mark for mark in seen.marks})
        self.keep(seen.pictures)
        self.frame = int(seen.facts.get("frame", self.frame))
