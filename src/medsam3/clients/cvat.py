"""An auto-annotation function for `cvat-cli`: labels are phrases, and interactors take clicks and boxes.

    cvat-cli task auto-annotate 7 --function-module medsam3.clients.cvat -p labels=str:"optic disc;OC=optic cup"

The images stay on the machine that runs this, and the masks go to CVAT.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import medsam3
from medsam3.errors import InputError, require
from medsam3.geometry import BoolArray
from medsam3.image import ObjectMask
from medsam3.io.contours import outlines
from medsam3.prompts import check_phrase

if TYPE_CHECKING:
    from medsam3.segmentation.session import Session

LEAST_POLYGON_NUMBERS = 6


def create(labels: str = "", model: str = "mini", kind: str = "detector") -> Detector | Interactor:
    """Make the function that `cvat-cli` calls; its parameters are given by `-p NAME=TYPE:VALUE`.

    Args:
        labels: Phrases with semicolons between; NAME=PHRASE where the label of the task has another name.
        model: What `medsam3.load` takes.
        kind: `detector` finds the labels' phrases in every frame, `interactor` what is clicked on.

    Raises:
        InputError: No label for a detector, a label twice, a phrase that is not allowed, an unknown kind or model.
    """
    if kind == "interactor":
        return Interactor(medsam3.load(model))
    if kind != "detector":
        raise InputError(f"kind is {kind!r}, allowed are detector and interactor")
    return Detector(labels_in(labels), medsam3.load(model))


def labels_in(text: str) -> dict[str, str]:
    """Read labels and their phrases.

    Raises:
        InputError: None, one twice, or a phrase that is not allowed.
    """
    found: dict[str, str] = {}
    for part in (one.strip() for one in text.split(";")):
        name, _, phrase = part.partition("=")
        if not part:
            continue
        if name.strip() in found:
            raise InputError(f"label {name.strip()!r} is there twice: name each once")
        found[name.strip()] = check_phrase(phrase.strip() or name.strip())
    if not found:
        raise InputError(
            'no labels were given: add -p labels=str:"optic disc;optic cup", as the labels of the task are'
        )
    return found


class Detector:
    """A `DetectionFunction` of cvat-sdk: masks, or polygons where these are asked for."""

    def __init__(self, labels: dict[str, str], model: Any) -> None:
        annotation = require("cvat_sdk.auto_annotation", extra="cvat")
        self._phrases, self._model = list(labels.values()), model
        self.spec = annotation.DetectionFunctionSpec(
            labels=[annotation.label_spec(name, number, type="mask") for number, name in enumerate(labels)]
        )

    def detect(self, context: Any, image: Any) -> list[Any]:
        """Find the objects of all labels in one frame; none of a phrase that the model says is not there."""
        least = context.conf_threshold
        found = medsam3.segment(image.convert("RGB"), self._phrases, self._model, threshold=least)
        numbers = {phrase: number for number, phrase in enumerate(self._phrases)}
        return [
            shape
            for masks in found
            if masks.concept in numbers
            for item in masks.objects
            if least is None or item.score >= least
            for shape in _shapes(numbers[masks.concept], item, masks.shape, is_polygon=context.conv_mask_to_poly)
        ]


class Interactor:
    """An `InteractionFunction` of cvat-sdk: clicks on and off an object, and a box around it."""

    def __init__(self, model: Any) -> None:
        annotation = require("cvat_sdk.auto_annotation", extra="cvat")
        self._model, self._lock = model, threading.Lock()
        self.spec = annotation.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    def preprocess_image(self, context: Any, image: Any) -> Session:
        """Make a session on the image, which keeps what the model sees in it."""
        return medsam3.Session(image.convert("RGB"), self._model)

    def detect(self, context: Any, pp_image: Session, prompts: Any) -> list[Any]:
        """Outline the object that is meant.

        Raises:
            InputError: Neither a box nor a click on the object.
        """
        with self._lock:
            try:
                found = _outlined(pp_image, prompts)
            finally:
                pp_image.reset()  # it stays as it was for the next prompts
        annotation = require("cvat_sdk.auto_annotation", extra="cvat")
        encode = require("cvat_sdk.masks", extra="cvat").encode_mask
        return [annotation.InteractionResultShape(type="mask", points=encode(found))] if found.any() else []


def _outlined(session: Session, prompts: Any) -> BoolArray:
    if prompts.bounding_box is not None:
        (x0, y0), (x1, y1) = prompts.bounding_box
        session.box(x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5)
    elif not prompts.pos_points:
        raise InputError("there is neither a box nor a click on an object: give one")
    for points, is_positive in ((prompts.pos_points, True), (prompts.neg_points, False)):
        for x, y in points:
            session.click(x - 0.5, y - 0.5, positive=is_positive)  # CVAT counts from the pixel's corner
    found: BoolArray = session.masks.union()[0]
    return found


def _shapes(label: int, item: ObjectMask, shape: tuple[int, int, int], *, is_polygon: bool) -> list[Any]:
    """Give one object as a mask, or as a polygon around each of its parts."""
    annotation = require("cvat_sdk.auto_annotation", extra="cvat")
    mask = item.plane(0, shape[1:])
    if not is_polygon:
        return [annotation.mask(label, require("cvat_sdk.masks", extra="cvat").encode_mask(mask))]
    lines = [(line + 0.5).ravel().tolist() for line in outlines(mask)]
    return [annotation.polygon(label, line) for line in lines if len(line) >= LEAST_POLYGON_NUMBERS]
