"""One person at one image: phrases, clicks, boxes and scribbles, taken back and done again, until the masks are right.

What is asked is a list of plain actions, so a session can be written down and replayed. A frame is encoded once. The
model's way of answering clicks is behind `models.refiner`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medsam3.errors import InputError, check_frame
from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.models.refiner import Hints, refine
from medsam3.models.segmenter import RGB, Segmenter
from medsam3.prompts import Box, Point, Prompt, check_phrase
from medsam3.segmentation.drawn import (
    ANYWHERE,
    FrameHints,
    SessionObject,
    State,
    Stroke,
    check_brush,
    check_inside,
    check_strokes,
    pixels_of,
    with_found,
)
from medsam3.segmentation.fusion import Trail
from medsam3.segmentation.kept_features import KeptFeatures
from medsam3.segmentation.options import Options
from medsam3.segmentation.packed import PackedMask
from medsam3.segmentation.run import Report, Work, segment
from medsam3.segmentation.stack import end_at, spread
from medsam3.store import JsonObject
from medsam3.view.view import View, view_of

FORMAT = 1


class Session:
    """Corrects masks of one image step by step; every step gives the masks as they then stand."""

    def __init__(
        self,
        image: Any,
        model: Segmenter,
        *,
        frame: int | None = None,
        options: Options | None = None,
        features: KeptFeatures | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            image: What `medsam3.segment` takes.
            model: A model, as `medsam3.load` gives.
            frame: The slice or frame that all steps are on; None takes the first frame of a video or picture, and in a
                volume asks a phrase of all slices and wants a frame with every click.
            options: Settings of phrases and of following.
            features: Those that other sessions of the same model keep too; None keeps this one's own.

        Raises:
            InputError: No such frame, or a cut across the file's own slices.
        """
        from medsam3.io.in_memory import as_image  # noqa: PLC0415  readers are heavy

        self.image, self.model, self.frame = as_image(image), model, frame
        if frame is not None:
            check_frame(frame, self.image.shape[0])
        self.options = options or Options()
        if self.options.plane == "vote":
            raise InputError("a vote of three planes cannot be corrected on a slice: leave the plane out")
        self._view: View = view_of(
            self.image,
            self.options.plane,
            window=self.options.window,
            has_neighbours=self.options.has_neighbours,
            keeps_slices=True,
        )
        self._features = KeptFeatures() if features is None else features
        self._state = State()
        self._past: list[tuple[JsonObject, State]] = []
        self._undone: list[tuple[JsonObject, State]] = []

    @property
    def masks(self) -> Masks:
        """All objects over the image's frames, best score first; the concept is theirs if they share one."""
        names = self._concepts
        about = self._about(names[0]) if len(names) == 1 else Masks(self._view.shape)
        return self._over_image(self._state.objects, about)

    @property
    def masks_by_concept(self) -> list[Masks]:
        """The masks of each concept, one `Masks` each; one without objects for a phrase of which nothing was found."""
        return [
            self._over_image([one for one in self._state.objects if one.concept == name], self._about(name))
            for name in self._concepts
        ]

    @property
    def _concepts(self) -> list[str]:
        """All phrases that were asked or drawn for, each once, in their order."""
        asked = [said.concept for said in self._state.answers]
        return list(dict.fromkeys([*asked, *(one.concept for one in self._state.objects)]))

    @property
    def objects(self) -> tuple[SessionObject, ...]:
        """The objects side by side, in the order in which they were found or drawn."""
        return self._state.objects

    @property
    def current(self) -> int | None:
        """Number of the object that the next click is about; None begins a new one."""
        return self._state.current

    @property
    def touched(self) -> tuple[int, ...]:
        """Frames of the file that the last step changed."""
        return self._state.touched

    def object_masks(self, number: int) -> Masks:
        """Give one object alone, over the image's frames."""
        one = self._state.object(number)
        return self._over_image([one], self._about(one.concept))

    def segment(self, phrase: str, *, frame: int | None = None, progress: Report | None = None) -> Masks:
        """Find the objects of a phrase, beside those that are there; the best one becomes the current one.

        Raises:
            InputError: As `medsam3.segment`.
        """
        step = {"do": "segment", "phrase": check_phrase(phrase), "frame": self._frame_or_all(frame)}
        return self._step(step, progress)

    def click(
        self, x: float, y: float, *, positive: bool = True, frame: int | None = None, object: int | None = None
    ) -> Masks:
        """Say that a pixel is on the object, or off it; afterwards it is so.

        Args:
            x: Column, in pixels of the file.
            y: Row.
            positive: On the object. A positive click without a current object begins one.
            frame: The frame; None takes that of the session.
            object: Number of the object; None takes the current one, and for a negative click outside of it the one
                that holds the pixel.

        Raises:
            InputError: Outside the image, against an earlier click on the same pixel, too many clicks, a negative click
                without an object, an accepted object.
        """
        return self.scribble([(x, y)], positive=positive, frame=frame, object=object)

    def scribble(
        self,
        points: Sequence[Sequence[float]],
        *,
        positive: bool = True,
        frame: int | None = None,
        object: int | None = None,
    ) -> Masks:
        """Say of all pixels along a line that they are on the object, or off it; arguments and errors as `click`."""
        step = {"do": "draw", "stroke": _listed(points), "positive": positive}
        return self._step(step | {"frame": self._the_frame(frame), "object": object})

    def box(
        self, x0: float, y0: float, x1: float, y1: float, *, frame: int | None = None, object: int | None = None
    ) -> Masks:
        """Draw a box around the object: what is in it takes the place of its mask there, and the clicks still hold.

        Args:
            x0: Left edge, in pixels of the file.
            y0: Upper edge.
            x1: Right edge.
            y1: Lower edge.
            frame: The frame; None takes that of the session.
            object: Number of the object; None begins a new one.

        Raises:
            InputError: Inverted or outside the image, nothing found in it, an accepted object.
        """
        edges = Box(float(x0), float(y0), float(x1), float(y1)).xyxy
        return self._step({"do": "box", "box": list(edges), "frame": self._the_frame(frame), "object": object})

    def exemplar(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        *,
        positive: bool = True,
        phrase: str | None = None,
        frame: int | None = None,
    ) -> Masks:
        """Show an example of what is meant, or of what is not: all objects like it are searched anew on the frame.

        What is found takes the place of what the phrase had found there, except what was accepted or drawn on.
        Examples of one phrase on one frame count together.

        Args:
            x0: Left edge of the box around the example, in pixels of the file.
            y0: Upper edge.
            x1: Right edge.
            y1: Lower edge.
            positive: An example; False for a look-alike that is not meant.
            phrase: The concept; None searches by the examples alone.
            frame: The frame; None takes that of the session.

        Raises:
            InputError: Inverted or outside the image, a look-alike alone without a phrase.
        """
        edges = Box(float(x0), float(y0), float(x1), float(y1)).xyxy
        step = {"do": "exemplar", "box": list(edges), "positive": positive}
        named = None if phrase is None else check_phrase(phrase)
        return self._step(step | {"phrase": named, "frame": self._the_frame(frame)})

    def paint(
        self,
        points: Sequence[Sequence[float]],
        *,
        radius: float = 3.0,
        adding: bool = True,
        frame: int | None = None,
        object: int | None = None,
    ) -> Masks:
        """Brush pixels onto the object, or off it, exactly; no model is asked, and later answers do not change them.

        Args:
            points: (x, y) along the stroke, in pixels of the file. The pixels under the line change, and those whose
                centre is at most the radius away from it.
            radius: In pixels of the file.
            adding: Onto the object, begun if there is no current one; False erases.
            frame: The frame; None takes that of the session.
            object: As of `click`.

        Raises:
            InputError: No points, outside the image, a radius that is not allowed, nothing to erase from, an accepted
                object.
        """
        stroke = _listed(points)
        step = {"do": "paint", "stroke": stroke, "radius": float(radius), "adding": adding}
        return self._step(step | {"frame": self._the_frame(frame), "object": object})

    def select(self, object: int | None) -> Masks:
        """Make an object the current one; None lets the next positive click begin a new one."""
        return self._step({"do": "select", "object": object})

    def remove(self, object: int | None = None) -> Masks:
        """Take an object out, the current one if none is named."""
        return self._step({"do": "remove", "object": object})

    def accept(self, object: int | None = None) -> Masks:
        """Say that an object is right, the current one if none is named; the next positive click begins a new one."""
        return self._step({"do": "accept", "object": object})

    def propagate(self, object: int | None = None, *, progress: Report | None = None) -> Masks:
        """Follow an object both ways from the frames that were corrected since the last time.

        The way ends where it comes to what was there before, at a frame that was corrected by hand, or where the object
        is lost; `touched` then holds the frames that changed, and no other frame is asked. Where a frame was cleared,
        the object ends: what was followed beyond goes.

        Raises:
            InputError: No object, or nothing to follow from.
        """
        return self._step({"do": "propagate", "object": object}, progress)

    def reset(self) -> Masks:
        """Begin again with nothing; what was drawn before has no say any more."""
        return self._step({"do": "reset"})

    def undo(self) -> Masks:
        """Take the last step back.

        Raises:
            InputError: There is none.
        """
        if not self._past:
            raise InputError("there is nothing to undo")
        action, before = self._past.pop()
        self._undone.append((action, self._state))
        self._state = before
        return self.masks

    def redo(self) -> Masks:
        """Do the step again that was taken back last.

        Raises:
            InputError: Nothing was taken back since the last step.
        """
        if not self._undone:
            raise InputError("there is nothing to redo")
        action, after = self._undone.pop()
        self._past.append((action, self._state))
        self._state = after
        return self.masks

    def to_json(self) -> str:
        """Write down the steps, the model's name and the hash of the image; `from_json` takes them up again."""
        about = {"format": FORMAT, "image": self.image.content_hash(), "model": self.model.name, "frame": self.frame}
        return json.dumps(about | {"steps": [action for action, _ in self._past]})

    @classmethod
    def from_json(cls, text: str, image: Any, model: Segmenter, *, options: Options | None = None) -> Session:
        """Replay what `to_json` wrote.

        Raises:
            InputError: It is not of that form, of another image or of another model.
        """
        try:
            record = json.loads(text)
            steps, frame = record["steps"], record["frame"]
            written = record["format"], record["image"], record["model"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"the session is not in the form that Session.to_json writes ({error!r})") from error
        if written[0] != FORMAT:
            raise InputError(f"the session is in format {written[0]}, allowed is {FORMAT}: update medsam3")
        session = cls(image, model, frame=frame, options=options)
        if written[1] != session.image.content_hash():
            raise InputError("the session is of another image: give the image that it was made with")
        if written[2] != model.name:
            raise InputError(f"the session was made with model {written[2]}, this is {model.name}: load that one")
        for step in steps:
            try:
                session._step(step)
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"the session holds a step that is not known ({error!r})") from error
        return session

    def _step(self, action: JsonObject, progress: Report | None = None) -> Masks:
        """Do one step; one that fails changes nothing."""
        handlers: Mapping[str, Callable[[JsonObject], State]] = {
            "segment": lambda a: self._found(a, progress),
            "draw": self._drawn,
            "box": self._boxed,
            "exemplar": self._exemplified,
            "paint": self._painted,
            "select": lambda a: replace(self._state, current=self._numbered(a["object"]), touched=()),
            "remove": lambda a: self._state.removed(a["object"]),
            "accept": lambda a: self._state.accepted(a["object"]),
            "propagate": lambda a: self._propagated(a, progress or (lambda done, count: None)),
            "reset": lambda a: State(),
        }
        after = handlers[action["do"]](action)
        self._past.append((action, self._state))
        self._undone.clear()
        self._state = after
        return self.masks

    def _numbered(self, number: int | None) -> int | None:
        return None if number is None else self._state.object(number).number

    def _found(self, action: JsonObject, progress: Report | None) -> State:
        frame = action["frame"]
        settings = replace(
            self.options, frames=self.options.frames if frame is None else (frame,), encode=self._encoded
        )
        state = replace(self._state, touched=())
        first = state.next_number
        answers = segment(self.image, action["phrase"], self.model, settings, progress=progress)
        for found in answers:  # several if it joins concepts
            about = replace(found, objects=(), shape=self._view.shape)
            state, start = replace(state, answers=(*state.answers, about)), state.next_number
            for k, item in enumerate(self._view.masks_forth(found).objects):
                trail = Trail.of_object(item, self._view.size)
                unspread = frozenset(trail.masks) if frame is not None else frozenset()
                state = state.with_object(SessionObject(start + k, found.concept, trail=trail, unspread=unspread))
        return replace(state, current=first if state.next_number > first else self._state.current)

    def _drawn(self, action: JsonObject) -> State:
        stroke = _stroke(action, bool(action["positive"]))
        for point in stroke.points:
            check_inside(point, self.image.shape[1:])
        n = self._view.number(check_frame(action["frame"], self.image.shape[0]))
        one = self._state.meant(action["object"], n, stroke, self._view)
        hints = one.hints.get(n, FrameHints())
        check_strokes(hints, stroke.points)
        return self._corrected(one, n, replace(hints, strokes=(*hints.strokes, stroke)), is_box_new=False)

    def _painted(self, action: JsonObject) -> State:
        stroke = replace(_stroke(action, bool(action["adding"])), radius=float(action["radius"]))
        check_brush(stroke, self.image.shape[1:])
        n = self._view.number(check_frame(action["frame"], self.image.shape[0]))
        one = self._state.meant(action["object"], n, stroke, self._view)
        hints = one.hints.get(n, FrameHints()).painted(stroke, self._view)
        so_far = one.trail.masks.get(n)
        mask = np.zeros(self._view.size, dtype=np.bool_) if so_far is None else so_far.dense()
        score = one.trail.scores.get(n, one.trail.score if one.trail.scores else 1.0)
        return self._changed(one, n, hints, mask, score)

    def _exemplified(self, action: JsonObject) -> State:
        frame, phrase = check_frame(action["frame"], self.image.shape[0]), action["phrase"]
        box = replace(Box(*action["box"]), is_positive=bool(action["positive"]))
        examples = (*self._state.exemplars.get((phrase or "", frame), ()), box)
        if phrase is None and not any(one.is_positive for one in examples):
            raise InputError("a look-alike alone says not what is meant: name a phrase, or show an example first")
        settings = replace(self.options, frames=(frame,), at=frame, encode=self._encoded)
        answers = segment(self.image, Prompt(phrase, exemplars=examples), self.model, settings)
        state = replace(self._state, exemplars={**self._state.exemplars, (phrase or "", frame): examples})
        for found in answers:
            about = replace(found, objects=(), shape=self._view.shape)
            state = replace(state, answers=(*state.answers, about))
            state = with_found(state, self._view.masks_forth(found), self._view.number(frame))
        return replace(state, touched=(frame,))

    def _boxed(self, action: JsonObject) -> State:
        box = Box(*action["box"])
        Prompt(boxes=(box,)).check_inside(*self.image.shape[1:])
        n = self._view.number(check_frame(action["frame"], self.image.shape[0]))
        number = action["object"]
        one = SessionObject(self._state.next_number, "") if number is None else self._state.open_object(number)
        hints = replace(one.hints.get(n, FrameHints()), box=box)
        return self._corrected(one, n, hints, is_box_new=True)

    def _corrected(self, one: SessionObject, n: int, hints: FrameHints, *, is_box_new: bool) -> State:
        """Ask the model with all that was drawn on a frame, and hold the answer to the clicks."""
        so_far = one.trail.masks.get(n)
        shown = self._view.prompt(Prompt(boxes=(hints.box or ANYWHERE,), points=hints.clicks))
        asked = Hints(
            None if so_far is None or so_far.is_empty else so_far.dense(),
            shown.points,
            None if hints.box is None else shown.boxes[0],
            one.concept or None,
            is_box_new,
        )
        found = refine(self.model, self._encoded(self._view.rgb(n)), asked)
        mask = found.union()[0]
        if is_box_new and not mask.any():
            raise InputError("nothing was found in the box: draw it close around the object")
        score = max(found.scores, default=one.trail.scores.get(n, one.trail.score))
        return self._changed(one, n, hints, mask, score)

    def _changed(self, one: SessionObject, n: int, hints: FrameHints, mask: BoolArray, score: float) -> State:
        """Give an object a mask on a frame, held to what was drawn there."""
        for stroke in hints.strokes:
            pixels = pixels_of(stroke, self._view)
            mask = mask | pixels if stroke.is_positive else mask & ~pixels
        trail = Trail({**one.trail.masks, n: PackedMask.of(mask)}, {**one.trail.scores, n: score})
        changed = replace(one, trail=trail, hints={**one.hints, n: hints}, unspread=one.unspread | {n})
        return replace(self._state.with_object(changed), touched=(self._view.number(n),))

    def _propagated(self, action: JsonObject, report: Report) -> State:
        one = self._state.open_object(action["object"])
        cleared = sorted(n for n in one.unspread if one.trail.masks[n].is_empty)
        sources = sorted(one.unspread - set(cleared))
        if not one.unspread:
            raise InputError("nothing was drawn or corrected since the object was followed last: there is nothing new")
        trail = Trail(dict(one.trail.masks), dict(one.trail.scores))
        settings = replace(self.options, encode=self._encoded)
        work = Work(self._view, range(self._view.count), None, self.model, settings, report)
        pinned = {*one.hints, *sources}
        changed = spread(work, trail, sources, pinned) if sources else set[int]()
        for at in cleared:
            changed |= {at, *end_at(trail, at, pinned)}
        touched = tuple(sorted(self._view.number(n) for n in changed))
        return replace(self._state.with_object(replace(one, trail=trail, unspread=frozenset())), touched=touched)

    def _encoded(self, rgb: RGB) -> Any:
        return self._features.get(self.model, rgb)

    def _over_image(self, objects: Sequence[SessionObject], about: Masks) -> Masks:
        items = [item for one in objects if (item := one.trail.to_object()) is not None]
        shown = replace(about, objects=tuple(sorted(items, key=lambda item: -item.score)), image=None)
        return replace(self._view.masks_back(shown), image=self.image)

    def _about(self, concept: str) -> Masks:
        """Give what was said of a concept, without its objects."""
        said = [one for one in self._state.answers if one.concept == concept]
        return said[-1] if said else Masks(self._view.shape, concept=concept)

    def _frame_or_all(self, frame: int | None) -> int | None:
        chosen = self.frame if frame is None else frame
        return None if chosen is None else check_frame(chosen, self.image.shape[0])

    def _the_frame(self, frame: int | None) -> int:
        chosen = self._frame_or_all(frame)
        if chosen is not None:
            return chosen
        if self.image.kind == "volume" and self.image.shape[0] > 1:
            raise InputError(f"clicks and boxes are on one slice: say which, 0 to {self.image.shape[0] - 1} (frame=)")
        return 0


def _listed(points: Sequence[Sequence[float]]) -> list[list[float]]:
    stroke = [[float(x), float(y)] for x, y in points]
    if not stroke:
        raise InputError("the stroke is empty: give at least one point (x, y)")
    return stroke


def _stroke(action: JsonObject, positive: bool) -> Stroke:
    return Stroke(tuple(Point(x, y, is_positive=positive) for x, y in action["stroke"]))
