"""A session on a server, with the methods and answers of `medsam3.Session`."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from medsam3.client.connection import Connection
from medsam3.client.wire import JobTold, SessionTold
from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.packed_masks import from_about, unpacked
from medsam3.segmentation.run import Report
from medsam3.store import JsonObject

Follow = Callable[[Image, JobTold, Report | None], SessionTold]
_LONG = ("segment", "propagate")


@dataclass(frozen=True)
class RemoteObject:
    """One object of a session; see `medsam3.segmentation.drawn.SessionObject`."""

    number: int
    concept: str
    score: float
    is_accepted: bool


@dataclass(frozen=True)
class _Found:
    """All that a session has found, as the server tells it."""

    joint: Masks
    concepts: tuple[Masks, ...]
    objects: tuple[RemoteObject, ...]
    masks: dict[int, tuple[ObjectMask, ...]]


class RemoteSession:
    """Corrects masks of one image step by step on a server; each method is that of `medsam3.Session`."""

    def __init__(
        self,
        connection: Connection,
        image: Image,
        image_id: str,
        about: SessionTold,
        follow: Follow,
        *,
        is_own: bool,
    ) -> None:
        """Take up a session that was begun: `Client.session` does so."""
        self.image, self._about = image, about
        self._connection, self._follow, self._is_own = connection, follow, is_own
        self._image_path = f"/v1/images/{image_id}"
        self._path = f"{self._image_path}/sessions/{about['id']}"
        self._found: _Found | None = None

    def close(self) -> None:
        """End it; the image goes too if it was sent for this session alone."""
        self._connection.remove(self._image_path if self._is_own else self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def masks(self) -> Masks:
        """All objects over the image's frames, best score first."""
        found = self._now()
        return self._placed(found.joint, found.masks)

    @property
    def masks_by_concept(self) -> list[Masks]:
        """The same, one `Masks` for each concept."""
        found = self._now()
        return [
            self._placed(one, {k.number: found.masks[k.number] for k in found.objects if k.concept == one.concept})
            for one in found.concepts
        ]

    @property
    def objects(self) -> tuple[RemoteObject, ...]:
        """The objects side by side."""
        return self._now().objects

    @property
    def current(self) -> int | None:
        """Number of the object that the next click is about."""
        return self._about["found"]["current"]

    @property
    def touched(self) -> tuple[int, ...]:
        """Frames of the file that the last step changed."""
        return tuple(self._about["found"]["touched"])

    def object_masks(self, number: int) -> Masks:
        """Give one object alone, over the image's frames."""
        found = self._now()
        one = next((one for one in found.objects if one.number == number), None)
        if one is None:
            raise InputError(f"there is no object {number}, known are {', '.join(map(str, found.masks)) or 'none yet'}")
        said = next((masks for masks in found.concepts if masks.concept == one.concept), found.joint)
        return self._placed(said, {number: found.masks[number]})

    def segment(self, phrase: str, *, frame: int | None = None, progress: Report | None = None) -> Masks:
        """Find the objects of a phrase, beside those that are there."""
        return self._step({"do": "segment", "phrase": phrase, "frame": frame}, progress)

    def click(
        self, x: float, y: float, *, positive: bool = True, frame: int | None = None, object: int | None = None
    ) -> Masks:
        """Say that a pixel is on the object, or off it."""
        return self._step({"do": "click", "x": x, "y": y, "positive": positive, "frame": frame, "object": object})

    def scribble(
        self,
        points: Sequence[Sequence[float]],
        *,
        positive: bool = True,
        frame: int | None = None,
        object: int | None = None,
    ) -> Masks:
        """Say of all pixels along a line that they are on the object, or off it."""
        line = _line(points)
        return self._step({"do": "scribble", "points": line, "positive": positive, "frame": frame, "object": object})

    def box(
        self, x0: float, y0: float, x1: float, y1: float, *, frame: int | None = None, object: int | None = None
    ) -> Masks:
        """Draw a box around the object."""
        return self._step({"do": "box", "box": [x0, y0, x1, y1], "frame": frame, "object": object})

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
        """Show an example of what is meant, or of what is not."""
        step = {"do": "exemplar", "box": [x0, y0, x1, y1], "positive": positive, "phrase": phrase, "frame": frame}
        return self._step(step)

    def paint(
        self,
        points: Sequence[Sequence[float]],
        *,
        radius: float = 3.0,
        adding: bool = True,
        frame: int | None = None,
        object: int | None = None,
    ) -> Masks:
        """Brush pixels onto the object, or off it, exactly."""
        step = {"do": "paint", "points": _line(points), "radius": radius, "adding": adding}
        return self._step(step | {"frame": frame, "object": object})

    def select(self, object: int | None) -> Masks:
        """Make an object the current one; None lets the next positive click begin a new one."""
        return self._step({"do": "select", "object": object})

    def remove(self, object: int | None = None) -> Masks:
        """Take an object out."""
        return self._step({"do": "remove", "object": object})

    def accept(self, object: int | None = None) -> Masks:
        """Say that an object is right."""
        return self._step({"do": "accept", "object": object})

    def propagate(self, object: int | None = None, *, progress: Report | None = None) -> Masks:
        """Follow an object both ways from the frames that were corrected since the last time."""
        return self._step({"do": "propagate", "object": object}, progress)

    def reset(self) -> Masks:
        """Begin again with nothing."""
        return self._step({"do": "reset"})

    def undo(self) -> Masks:
        """Take the last step back."""
        return self._step({"do": "undo"})

    def redo(self) -> Masks:
        """Do the step again that was taken back last."""
        return self._step({"do": "redo"})

    def _step(self, step: JsonObject, progress: Report | None = None) -> Masks:
        if self.image.shape[0] > 1 and step["do"] in _LONG:
            begun = self._connection.json("POST", f"{self._path}/steps/job", step)
            self._about = self._follow(self.image, begun, progress)
        else:
            self._about = self._connection.json("POST", f"{self._path}/steps", step)
        self._found = None
        return self.masks

    def _now(self) -> _Found:
        """What is found now, asked for once after each step."""
        if self._found is None:
            content = self._connection.content(f"{self._path}/objects")
            try:
                told = json.loads(content)
                masks = {one["number"]: tuple(map(unpacked, one.pop("masks"))) for one in told["objects"]}
                objects = tuple(RemoteObject(**one) for one in told["objects"])
                concepts = tuple(from_about(one) for one in told["concepts"])
                self._found = _Found(from_about(told["joint"]), concepts, objects, masks)
            except (ValueError, KeyError, TypeError, zlib.error) as error:
                raise InputError(f"the server's masks cannot be read ({error!r}): bring both to one version") from error
        return self._found

    def _placed(self, said: Masks, masks: dict[int, tuple[ObjectMask, ...]]) -> Masks:
        items = sorted((item for parts in masks.values() for item in parts), key=lambda item: -item.score)
        return replace(said, objects=tuple(items), image=self.image)


def _line(points: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in points]
