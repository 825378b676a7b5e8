"""The tools of the agent: what can be asked for, and a session in which calls are run.

A tool knows nothing of who calls it. What a caller does wrong is a `ToolError`, which becomes an observation; all other
errors are ours and leave the session as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medsam3.agent import arguments as checked
from medsam3.agent.bench import Bench
from medsam3.agent.chat import ShownPicture, ToolCall, ToolSpec
from medsam3.agent.measuring import fullest_frame, measures_text
from medsam3.agent.pictures import picture
from medsam3.agent.values import Mark, Observation, Step, ToolError, Verdict
from medsam3.errors import InputError
from medsam3.image import ObjectMask

Arguments = dict[str, Any]
Handler = Callable[["Session", Arguments], Observation]
MOST_LISTED = 12
MOST_MARKS = 600
_REPEATABLE = ("next_slice", "previous_slice")


@dataclass(frozen=True)
class Tool:
    """A tool and how it is run; `is_round` where it asks the segmenter."""

    spec: ToolSpec
    handler: Handler
    is_round: bool = False


class Session:
    """The state of a run: the image at hand, the slice that is looked at, and all marks."""

    def __init__(self, bench: Bench, *, has_pictures: bool = True) -> None:
        self.bench = bench
        self.has_pictures = has_pictures
        self.frame = bench.shape[0] // 2 if bench.image.kind == "volume" else 0
        self.marks: dict[int, Mark] = {}
        self._calls: set[tuple[str, str]] = set()
        self._presence: dict[str, bool] = {}

    def run(self, call: ToolCall, tools: Mapping[str, Tool]) -> Observation:
        """Run one call; a caller's mistake becomes an observation that says what is allowed."""
        try:
            tool = tools.get(call.name)
            if tool is None:
                raise ToolError(f"there is no tool {call.name[:60]!r}, allowed are {', '.join(tools)}")
            values = checked.parse(call.arguments, tool.spec.parameters)
            self._refuse_repeats(call.name, values)
            seen = tool.handler(self, values)
        except (ToolError, InputError) as error:  # a phrase or box that the segmenter refuses is the caller's mistake
            return Observation(f"mistake: {error}", is_mistake=True)
        self._note(call.name, values, seen)
        return seen

    def replay(self, step: Step, tools: Mapping[str, Tool]) -> None:
        """Take over what a recorded step changed, without asking the segmenter."""
        if step.seen.is_mistake or step.call.name not in tools:
            return
        self._note(step.call.name, checked.parse(step.call.arguments, tools[step.call.name].spec.parameters), step.seen)

    def mark(self, number: int) -> Mark:
        """The mark under a number.

        Raises:
            ToolError: There is none.
        """
        if number not in self.marks:
            known = _listed(sorted(self.marks)) or "none yet"
            raise ToolError(f"there is no mask {number}, known are {known}")
        return self.marks[number]

    def new_marks(self, masks: Sequence[ObjectMask], origin: str, **about: Any) -> tuple[Mark, ...]:
        """Marks for masks, under numbers that were never given; they count once the step is noted."""
        first = len(self.marks) + 1
        if len(self.marks) + len(masks) > MOST_MARKS:
            raise ToolError(f"there would be more than {MOST_MARKS} masks: accept some, or look at a smaller region")
        facts = {"phrase": "", "presence": None, "is_present": None, **about}
        return tuple(Mark(number, mask, origin=origin, **facts) for number, mask in enumerate(masks, start=first))

    def shown(self, caption: str, marks: Sequence[Mark] = (), **how: Any) -> tuple[ShownPicture, ...]:
        """A picture of the current frame, or of frame `n`; none for a policy that looks at none."""
        if not self.has_pictures:
            return ()
        n = how.pop("n", self.frame)
        here = [mark for mark in marks if _is_in(mark.mask, n)]
        return (picture(self.bench.rgb(n, how.pop("grey", None)), caption, n, marks=here, **how),)

    def _refuse_repeats(self, name: str, values: Arguments) -> None:
        key = (name, f"{self.frame} {sorted(values.items())}")
        if key in self._calls and name not in _REPEATABLE:
            raise ToolError(
                f"{name} was called with these very arguments before: its result is above, do something else"
            )

    def _note(self, name: str, values: Arguments, seen: Observation) -> None:
        self._calls.add((name, f"{self.frame} {sorted(values.items())}"))
        self.marks.update({mark.number: mark for mark in seen.marks})
        self.frame = int(seen.facts.get("frame", self.frame))


def describe(marks: Sequence[Mark], shape: tuple[int, int, int]) -> str:
    """Marks in words: number, score, box, area; the first dozen of them."""
    lines = [
        f"mask {mark.number}: score {mark.mask.score:.2f}, box {[round(edge + 0.5) for edge in mark.mask.box]}, "
        f"{100 * mark.mask.voxels / (shape[1] * shape[2]):.2f} % of the frame"
        for mark in marks[:MOST_LISTED]
    ]
    if len(marks) > MOST_LISTED:
        lines.append(f"and masks {marks[MOST_LISTED].number} to {marks[-1].number}, all smaller in score")
    return "\n".join(lines)


def numbers_of(marks: Sequence[Mark]) -> list[int]:
    """Their numbers."""
    return [mark.number for mark in marks]


def measure(session: Session, values: Arguments) -> Observation:
    """Area, diameter, position and brightness of a mask."""
    mark = session.mark(values["mask"])
    rgb = session.bench.rgb(fullest_frame(mark))
    text, facts = measures_text(mark, rgb, session.bench.view.spacing_mm)
    return Observation(text, facts=facts)


def accept(session: Session, values: Arguments) -> Observation:
    """End the run with masks."""
    marks = [session.mark(number) for number in dict.fromkeys(values["masks"])]
    reason = values["reason"].strip()
    if not reason:
        raise ToolError("reason is empty: say why these masks answer the instruction")
    verdict = Verdict("found", tuple(numbers_of(marks)), reason)
    return Observation("accepted", session.shown("accepted", marks), verdict=verdict)


def report_absent(_session: Session, values: Arguments) -> Observation:
    """End the run with the answer that nothing of the kind is there."""
    reason = values["reason"].strip()
    if not reason:
        raise ToolError("reason is empty: say what was looked for and what speaks against it")
    return Observation("reported as absent", verdict=Verdict("absent", (), reason))


def turn_to(session: Session, step: int) -> Observation:
    """Go to a neighbouring slice."""
    count = session.bench.shape[0]
    wanted = session.frame + step
    if not 0 <= wanted < count:
        raise ToolError(f"there is no slice {wanted}, allowed are 0 to {count - 1}")
    before = session.frame
    session.frame = wanted
    seen = Observation(f"slice {wanted} of 0 to {count - 1}", session.shown(f"slice {wanted}"), facts={"frame": wanted})
    session.frame = before  # it counts once the step is noted
    return seen


def moved(mask: ObjectMask, n: int) -> ObjectMask:
    """A mask over (1, H, W) as one of frame n."""
    return replace(mask, start=(n, *mask.start[1:]))


def _is_in(mask: ObjectMask, n: int) -> bool:
    return 0 <= n - mask.start[0] < len(mask.crop)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:30])) + (" ..." if len(numbers) > 30 else "")
