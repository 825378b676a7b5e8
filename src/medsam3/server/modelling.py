"""Tasks of a model process: the steps of sessions, and whole images. It keeps the sessions that it was asked last."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from cachetools import LRUCache

from medsam3.errors import InputError, check_frame
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.measures import longest_diameter
from medsam3.io.nifti import write_slices
from medsam3.io.packed_masks import about, packed
from medsam3.models.segmenter import Segmenter, reader_of
from medsam3.prompts import Box, Point, Prompt, check_phrase
from medsam3.segmentation.composing import readings_of
from medsam3.segmentation.kept_features import KeptFeatures
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import Report, segment
from medsam3.segmentation.session import Session
from medsam3.server.pool import report
from medsam3.server.reader import opened, save_masks, shown, window_of
from medsam3.server.schemas import (
    Click,
    ConceptFound,
    DrawBox,
    Found,
    FrameMasks,
    JobAsked,
    MaskRuns,
    ModelAnswer,
    ObjectFound,
    OnObject,
    OptionsAsked,
    Paint,
    PhraseAnswer,
    Plain,
    Scribble,
    Segment,
    SessionPlace,
    ShowExample,
    Source,
    Step,
)
from medsam3.server.settings import Load
from medsam3.view.draw import fullest_frame


@dataclass
class _State:
    """The model of this process, and the sessions that are ready."""

    load: Load
    name: str
    sessions: LRUCache[str, tuple[Session, int]]
    features: KeptFeatures
    model: Segmenter | None = None


_state: _State | None = None


def prepare(load: Load, name: str, most_sessions: int, feature_bytes: int) -> None:
    """Set up a model process; the model is loaded with its first task."""
    global _state  # noqa: PLW0603  the process holds one model
    _state = _State(load, name, LRUCache(most_sessions), KeptFeatures(feature_bytes))


def about_model() -> ModelAnswer:
    """Load the model if it is not there yet, and tell what it is and what it was taught."""
    loaded = model()
    card = getattr(loaded, "card", None)
    return ModelAnswer(name=loaded.name, concepts=sorted(getattr(card, "concepts", ())))


def do_step(place: SessionPlace, step: Step) -> Found:
    """Do one step of a session; one that fails changes nothing."""
    session = _session(place)
    del _held().sessions[place.id]  # a step that is broken off may leave it half done
    try:
        apply_step(session, step)
    except InputError:
        _held().sessions[place.id] = (session, len(place.steps))
        raise
    _held().sessions[place.id] = (session, len(place.steps) + 1)
    return found_by(session)


def frame_masks(place: SessionPlace, frame: int, grid: Literal["display", "file"]) -> FrameMasks:
    """Give the masks of a session on one frame, over the pixels of its display or of the file.

    Raises:
        InputError: No such frame.
    """
    session = _session(place)
    image = session.image
    check_frame(frame, image.shape[0])
    view = shown(place.image, place.asked.window)
    height, width = view.size if grid == "display" else image.shape[1:]
    masks = []
    for one in session.objects:
        plane = _plane(session.object_masks(one.number), frame)
        if not plane.any():
            continue
        if grid == "display":
            alone = Masks.from_dense(plane[None, None], [1.0])
            moved = Masks(image.shape, tuple(_at(item, frame) for item in alone.objects))
            plane = _plane(view.masks_forth(moved), view.number(frame))
        masks.append(MaskRuns(number=one.number, concept=one.concept, runs=runs_of(plane)))
    return FrameMasks(frame=frame, width=width, height=height, masks=masks)


def keep_session(place: SessionPlace, path: Path) -> Found:
    """Keep the masks of a session as they stand now."""
    session = _session(place)
    save_masks(session.masks_by_concept or [Masks(session.image.shape)], path)
    return found_by(session)


def session_objects(place: SessionPlace, path: Path) -> None:
    """Write all that a session has found, each object by itself, for `medsam3.Client`."""
    session = _session(place)
    objects = [
        {
            "number": one.number,
            "concept": one.concept,
            "score": one.score,
            "is_accepted": one.is_accepted,
            "masks": [packed(item) for item in session.object_masks(one.number).objects],
        }
        for one in session.objects
    ]
    joint = about(session.masks)
    concepts = [about(masks) for masks in session.masks_by_concept]
    document = {"joint": joint, "concepts": concepts, "objects": objects}
    path.write_text(json.dumps(document), encoding="ascii")


def session_labels(place: SessionPlace, path: Path) -> None:
    """Write all objects of a session as one label map on the file's grid: object k as k + 1, later ones on top."""
    session = _session(place)
    count = max((one.number for one in session.objects), default=0) + 1
    labels = np.zeros(session.image.shape, dtype=np.uint8 if count <= np.iinfo(np.uint8).max else np.uint16)
    for one in session.objects:
        for item in session.object_masks(one.number).objects:
            labels[item.block][item.crop] = one.number + 1
    write_slices(session.image, lambda n: labels[n], path)


def read_phrase(phrase: str) -> list[PhraseAnswer]:
    """Tell how a phrase is read, each concept that it joins by itself.

    Raises:
        InputError: It is not understood.
    """
    readings = reader_of(model()).readings(check_phrase(phrase))
    return [PhraseAnswer(phrase=one.phrase, read_as=one.told, is_taught=one.is_taught) for one in readings]


def drop_session(name: str) -> None:
    """Let go of a session."""
    _held().sessions.pop(name, None)


def segment_image(source: Source, asked: JobAsked, path: Path) -> Found:
    """Segment a whole image, and keep the masks.

    Raises:
        InputError: As `medsam3.segment`.
    """
    image = opened(source)
    prompts = [
        Prompt(
            one.text,
            tuple(Box(*edges) for edges in one.boxes),
            tuple(Point(x, y, is_positive) for x, y, is_positive in one.points),
            tuple(Box(*edges) for edges in one.exemplars),
        )
        for one in asked.asked
    ]
    found = segment(image, prompts, model(), options_of(asked), progress=report)
    save_masks(found, path)
    return found_in(found, image)


def options_of(asked: OptionsAsked) -> Options:
    """Read the settings of a request.

    Raises:
        InputError: A value that is not allowed.
    """
    return Options(
        is_followed=asked.propagate,
        key_every=asked.key_every,
        at=asked.at,
        frames=None if asked.frames is None else tuple(asked.frames),
        plane=asked.plane,
        window=window_of(asked.window),
        has_neighbours=asked.neighbours,
        threshold=asked.threshold,
        weak_score=asked.weak_score,
        weak_share=asked.weak_share,
        is_recognised=asked.is_recognised,
        tracking=asked.tracking,
        fusion=asked.fusion,
    )


def found_in(found: Sequence[Masks], image: Image) -> Found:
    """Tell what was found, all objects numbered through."""
    objects = [_object(number, masks.concept, item, image) for number, (masks, item) in enumerate(_each(found))]
    return Found(concepts=[_concept(masks, image, model()) for masks in found], objects=objects)


def runs_of(mask: BoolArray) -> list[int]:
    """Lengths of runs, row by row, beginning with those outside; [4] for an empty mask of four pixels."""
    flat = mask.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *lengths] if flat.size and flat[0] else [int(length) for length in lengths]


def apply_step(session: Session, step: Step, progress: Report = report) -> None:
    """Do one step of a session.

    Raises:
        InputError: As the session says.
    """
    match step:
        case Segment():
            session.segment(step.phrase, frame=step.frame, progress=progress)
        case Click():
            session.click(step.x, step.y, positive=step.positive, frame=step.frame, object=step.object)
        case Scribble():
            session.scribble(step.points, positive=step.positive, frame=step.frame, object=step.object)
        case DrawBox():
            session.box(*step.box, frame=step.frame, object=step.object)
        case ShowExample():
            session.exemplar(*step.box, positive=step.positive, phrase=step.phrase, frame=step.frame)
        case Paint():
            session.paint(step.points, radius=step.radius, adding=step.adding, frame=step.frame, object=step.object)
        case OnObject(do="propagate"):
            session.propagate(step.object, progress=progress)
        case OnObject():
            chosen: Callable[[int | None], Masks] = getattr(session, step.do)
            chosen(step.object)
        case Plain():
            plain: Callable[[], Masks] = getattr(session, step.do)
            plain()


def _session(place: SessionPlace) -> Session:
    """Take the session as it stood after its steps, if it is ready, or make it again by doing them."""
    held = _held().sessions.get(place.id)
    if held is not None and held[1] == len(place.steps):
        return held[0]
    session = Session(
        opened(place.image),
        model(),
        frame=place.asked.frame,
        options=options_of(place.asked),
        features=_held().features,
    )
    for step in place.steps:
        apply_step(session, step)
    _held().sessions[place.id] = (session, len(place.steps))
    return session


def _held() -> _State:
    assert _state is not None, "prepare was called"
    return _state


def model() -> Segmenter:
    """Give the model of this process, loaded when it is first needed."""
    held = _held()
    if held.model is None:
        held.model = held.load(held.name)
    return held.model


def _each(found: Sequence[Masks]) -> list[tuple[Masks, ObjectMask]]:
    return [(masks, item) for masks in found for item in masks.objects]


def found_by(session: Session) -> Found:
    """Tell what a session has found so far."""
    objects = []
    for one in session.objects:
        items = session.object_masks(one.number).objects
        item = items[0] if items else None
        objects.append(_object(one.number, one.concept, item, session.image, one.score, one.is_accepted))
    return Found(
        concepts=[_concept(masks, session.image, session.model) for masks in session.masks_by_concept],
        objects=objects,
        current=session.current,
        touched=list(session.touched),
    )


def _concept(masks: Masks, image: Image, model: Segmenter) -> ConceptFound:
    reading = readings_of(image, masks.concept, model)[0] if masks.concept else None
    pixels = int(masks.union().sum()) if len(masks) else 0
    return ConceptFound(
        phrase=masks.concept,
        presence=masks.presence,
        is_present=masks.is_present,
        verdict=masks.verdict,
        read_as=None if reading is None else reading.told,
        is_taught=None if reading is None else reading.is_taught,
        objects=len(masks),
        pixels=pixels,
        fullest_frame=fullest_frame([masks], masks.shape[0]) if len(masks) else None,
        **_sizes(pixels, image),
    )


def _object(
    number: int, concept: str, item: ObjectMask | None, image: Image, score: float | None = None, accepted: bool = False
) -> ObjectFound:
    pixels = 0 if item is None else item.voxels
    return ObjectFound(
        number=number,
        concept=concept,
        score=score if score is not None else item.score if item is not None else 0.0,
        pixels=pixels,
        box=None if item is None else item.box,
        first_frame=None if item is None else item.start[0],
        last_frame=None if item is None else item.start[0] + len(item.crop) - 1,
        is_accepted=accepted,
        **({} if item is None else _diameter(item, image)),
        **_sizes(pixels, image),
    )


def _diameter(item: ObjectMask, image: Image) -> dict[str, float]:
    """Longest diameter within one frame, as the CSV has it: in mm, or in pixels where no spacing is known."""
    size = image.pixel_size_mm if image.kind != "video" else None
    longest = max(_longest(np.packbits(plane).tobytes(), plane.shape, size or (1.0, 1.0)) for plane in item.crop)
    return {"diameter_px" if size is None else "diameter_mm": longest}


@lru_cache(1024)
def _longest(packed: bytes, shape: tuple[int, int], size: tuple[float, float]) -> float:
    """Measure a plane, or take it from those that were measured last: a step changes few of them."""
    plane = np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1]).astype(np.bool_)
    return longest_diameter(plane.reshape(shape), *size)


def _sizes(pixels: int, image: Image) -> dict[str, float]:
    """Area of a picture in mm2, volume of a volume in mL, as far as the spacing is known."""
    area = image.area_mm2(pixels) if image.kind == "picture" else None
    sizes = {"area_mm2": area, "volume_ml": image.volume_ml(pixels)}
    return {name: size for name, size in sizes.items() if size is not None}


def _plane(masks: Masks, frame: int) -> BoolArray:
    plane: BoolArray = np.zeros(masks.shape[1:], dtype=np.bool_)
    for item in masks.objects:
        plane |= item.plane(frame, masks.shape[1:])
    return plane


def _at(item: ObjectMask, frame: int) -> ObjectMask:
    return ObjectMask((frame, *item.start[1:]), item.crop, item.score)
