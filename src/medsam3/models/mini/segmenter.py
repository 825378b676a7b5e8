"""The small model as a segmenter: frozen LiteMedSAM and MiniLM, and the detector trained on top of them.

`encode` runs the image encoder once; `decode` answers phrases and exemplars with the detector, boxes and points with
LiteMedSAM's own mask decoder, and a phrase with a box with both. The networks run on one device, masks are made on the
CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medsam3.concepts import find, side_of
from medsam3.errors import InputError
from medsam3.geometry import BoolArray, box_of_mask, normalised_cxcywh_from_xyxy
from medsam3.image import Masks, ObjectMask
from medsam3.models.detector import ExemplarBoxes, VisionLevels, checked_device, decode_semantic, detect, without_values
from medsam3.models.mini.card import MiniCard, read_card
from medsam3.models.mini.clicker import Clicker, ClickFrame, Said, load_clicker
from medsam3.models.mini.detector import MiniDetector
from medsam3.models.mini.efficientnet import fold_norms
from medsam3.models.mini.encoder_files import EncoderFiles
from medsam3.models.mini.letterbox import SIDE, Letterbox, letterbox, square_tensor
from medsam3.models.mini.lite_medsam import LiteMedSam
from medsam3.models.mini.objects import agreeing, blend_where_agreed
from medsam3.models.mini.phrase_table import vectors_of
from medsam3.models.mini.proposals import boxed, corrected
from medsam3.models.mini.text_encoder import TextEncoder
from medsam3.models.objects import split_objects
from medsam3.models.phrase_reader import PhraseReader, Reading
from medsam3.models.refiner import Hints, check_begun
from medsam3.models.tracker import Tracker
from medsam3.prompts import Box, Point, Prompt
from medsam3.view.crops import Crop, closer_window

SHIPPED_WEIGHTS = Path(__file__).parents[2] / "weights" / "mini.safetensors"
VISUAL_PHRASE = "visual"
MOST_REFINED = 4
LEAST_FIT = 0.6
"""Least intersection over union of a drawn box and the box of what the detector finds in it."""
LOOKED_AT_FROM = 0.1
"""Least presence in the whole frame at which a phrase is worth a closer look."""
MOST_WINDOWS = 4
"""Of one frame, how many windows' features are kept for the next phrase."""
RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class MiniOptions:
    """Choices that are made when the model is loaded.

    Attributes:
        name: Of the weights, for tables and file names.
        flips: Ask phrases of the mirrored square too, and answer with the mean of both; twice the time.
        device: Where the networks run, such as `cpu` or `cuda`.
    """

    name: str = "mini"
    flips: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class MiniFeatures:
    """One encoded frame. The neck, which boxes, clicks and following need, is computed when it is first asked for, and
    so are the features of the mirrored square and of a window of the frame; `closer` is None where the frame itself is
    not at hand. Answers are kept: of the detector for what is asked again, in other words or with a box; of the box
    decoder the last one, for the same boxes asked with another phrase.
    """

    place: Letterbox
    levels: tuple[VisionLevels, ...]  # one for each detector
    make_neck: Callable[[], Tensor]
    make_mirrored: Callable[[], tuple[VisionLevels, ...]]
    closer: Callable[[Crop], MiniFeatures] | None = None
    frame: ClickFrame | None = field(default=None, repr=False)
    asked: dict[tuple[str, tuple[Box, ...]], ConceptMap] = field(default_factory=dict, repr=False)
    drawn: dict[tuple[Box, ...], Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def neck(self) -> Tensor:
        """LiteMedSAM's features (1, 256, 64, 64)."""
        return self.make_neck()

    @cached_property
    def mirrored(self) -> tuple[VisionLevels, ...]:
        """The levels of the mirrored square."""
        return self.make_mirrored()


@dataclass(frozen=True)
class ConceptMap:
    """The detector's answer over the square; its pixels are computed when they are first looked at."""

    presence: float
    draw: Callable[[], Tensor]

    @cached_property
    def logits(self) -> Tensor:
        """The logit of each pixel (256, 256)."""
        with torch.inference_mode():
            return torch.nn.functional.interpolate(self.draw(), size=(SIDE, SIDE), mode="bilinear")[0, 0]


@dataclass(frozen=True)
class CloserLook:
    """The answer to a phrase in a window of the frame, enlarged to the whole square."""

    window: Crop
    presence: float
    logits: Tensor  # (h, w) of the window

    def onto(self, logits: Tensor, share: float) -> Tensor:
        """The frame's logits (H, W), mixed inside the window with `share` of these."""
        mixed = logits.clone()
        self.window.cut(mixed).lerp_(self.logits, share)
        return mixed


class MiniSegmenter:
    """The small model; see `models.segmenter.Segmenter`. Where it has several detectors, their mean logits answer."""

    def __init__(
        self,
        lite_medsam: LiteMedSam,
        texts: TextEncoder,
        detectors: Sequence[MiniDetector],
        card: MiniCard,
        options: MiniOptions | None = None,
    ) -> None:
        self.lite_medsam, self.texts, self.card = lite_medsam, texts, card
        self.options = options or MiniOptions()
        self.device = checked_device(self.options.device)
        for detector in detectors:  # convolutions take half the time with the channels last
            detector.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            fold_norms(detector)
        self.detectors = list(detectors)
        self._texts_of = [texts if d.text_lora is None else texts.adapted(d.text_lora) for d in self.detectors]

    def with_flips(self) -> MiniSegmenter:
        """Give a model of the same weights that asks phrases of the mirrored square too."""
        options = replace(self.options, flips=True)
        return MiniSegmenter(self.lite_medsam, self.texts, self.detectors, self.card, options)

    @property
    def name(self) -> str:
        """`mini`, or the name of other weights that ship beside it."""
        return self.options.name

    def tracker(self) -> Tracker:
        """Follow by the likeness of LiteMedSAM's features."""
        from medsam3.models.mini.tracker import MiniTracker  # noqa: PLC0415  it stands on this module

        return MiniTracker(self)

    def slice_tracker(self) -> Tracker | None:
        """Follow through slices by the detector, to which the object on the slice before is an example."""
        from medsam3.models.mini.tracker import SliceTracker  # noqa: PLC0415  it stands on this module

        return None if self.options.flips else SliceTracker(self)

    def encode(self, rgb: RGB) -> MiniFeatures:
        """Features of one frame (H, W, 3) uint8."""
        square, place = letterbox(rgb)
        features = self.features(square, place, self._needed_neck(square))
        return replace(features, closer=self.closer_features(rgb), frame=ClickFrame(rgb, features.levels))

    def read(self, phrase: str) -> Reading:
        """Read a phrase that is asked by itself: a concept that the weights were taught, or what it says."""
        return self.reader.read(phrase)

    def __getstate__(self) -> dict[str, object]:
        """Leave the reader of phrases and the decoder of clicks behind, which are made again when they are asked."""
        return {name: value for name, value in self.__dict__.items() if name not in ("reader", "clicker")}

    @cached_property
    def reader(self) -> PhraseReader:
        """Reads phrases for these weights."""
        return PhraseReader(
            self.card.concepts, lambda phrases: vectors_of(phrases, self.texts), is_word=self.texts.knows_word
        )

    def closer_features(self, rgb: RGB) -> Callable[[Crop], MiniFeatures]:
        """Features of a frame's windows, the last few of which are kept for the next phrase, in sight of who counts."""
        return cached(LRUCache(MOST_WINDOWS))(lambda window: self.encode(window.cut(rgb)))

    def features(self, square: RGB, place: Letterbox, neck: Tensor | None = None) -> MiniFeatures:
        """Encode a square, with its neck (1, 256, 64, 64) if that is already there."""
        make_neck = partial(self.lite_medsam.neck, square) if neck is None else lambda: neck
        return MiniFeatures(place, self._levels(square, neck), make_neck, partial(self._mirrored_levels, square))

    def _mirrored_levels(self, square: RGB) -> tuple[VisionLevels, ...]:
        mirrored = np.ascontiguousarray(square[:, ::-1])
        return self._levels(mirrored, self._needed_neck(mirrored))

    def _levels(self, square: RGB, neck: Tensor | None) -> tuple[VisionLevels, ...]:
        with torch.inference_mode():
            pixels = square_tensor(square).to(self.device)
            given = None if neck is None else neck.to(self.device)
            return tuple(replace(detector.levels(pixels, given), kept={}) for detector in self.detectors)

    def _needed_neck(self, square: RGB) -> Tensor | None:
        """LiteMedSAM's features where a detector stands on them."""
        return self.lite_medsam.neck(square) if any(detector.config.is_frozen for detector in self.detectors) else None

    def decode(self, features: MiniFeatures, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        """Objects over (1, H, W), best score first. `threshold` applies to presence x object score."""
        with torch.inference_mode():
            if prompt.text is None and not prompt.exemplars:
                return self._decode_geometry(features, prompt, threshold)
            return self._decode_concept(features, prompt, threshold)

    def refine(self, features: MiniFeatures, hints: Hints) -> Masks:
        """Answer clicks and boxes about one object; see `models.refiner.Refines`.

        A first click's object is what the detector finds that is like a box around it; see `models.mini.proposals`.
        Later clicks change it by the interactive decoder; see `models.mini.clicker`.
        """
        mask = None if hints.is_box_new else hints.mask
        check_begun(mask, hints)
        with torch.inference_mode():
            if mask is None and hints.box is not None:
                mask = self.decode(features, Prompt(text=hints.text, boxes=(hints.box,))).union()[0]
            found = self._corrected(features, replace(hints, mask=mask))
        item = ObjectMask.from_dense(found[None], 1.0)  # a person says so
        return Masks((1, *found.shape), () if item is None else (item,), concept=hints.text or "")

    def _corrected(self, features: MiniFeatures, hints: Hints) -> BoolArray:
        """Find the object by the detector, and change it by the interactive decoder where that is at hand."""
        frame, clicks, shape = features.frame, hints.clicks, features.place.shape
        ask = partial(self.like, features, hints.text)
        clicker = self.clicker if frame is not None and clicks else None
        if frame is None or clicker is None:
            return corrected(ask, hints.mask, clicks, shape)

        def change(mask: BoolArray, newest: Point) -> BoolArray:
            return clicker.corrected(frame, Said(mask, clicks, hints.box), newest)

        return corrected(ask, hints.mask, clicks, shape, change=change, guess=partial(clicker.box_around, frame))

    @cached_property
    def clicker(self) -> Clicker | None:
        """The interactive decoder, read when it is first needed; None where it was not trained for these weights."""
        return load_clicker(self.detectors[0].levels)

    def like(self, features: MiniFeatures, text: str | None, window: Crop | None, box: Box) -> NDArray[np.float32]:
        """Probability (H, W) of what is like the one in a box, asked of the frame or of a window; 0 outside that."""
        if window is None or features.closer is None:
            found = self.concept_map(features, text, (box,))
            whole: NDArray[np.float32] = features.place.logits_to_frame(found.logits[None])[0].sigmoid().numpy()
            return whole
        near = self.like(features.closer(window), text, None, _moved(box, window))
        probability = np.zeros(features.place.shape, dtype=np.float32)
        window.cut(probability)[:] = near
        return probability

    def concept_map(self, features: MiniFeatures, text: str | None, exemplars: tuple[Box, ...] = ()) -> ConceptMap:
        """Presence and pixel logits of a concept, from a phrase, exemplars, or both."""
        phrase = VISUAL_PHRASE if text is None else self.read(text).text
        if (phrase, exemplars) not in features.asked:
            features.asked[phrase, exemplars] = self._new_map(features, phrase, exemplars)
        return features.asked[phrase, exemplars]

    def _new_map(self, features: MiniFeatures, phrase: str, exemplars: tuple[Box, ...]) -> ConceptMap:
        boxes = _exemplars(exemplars, features.place).to(self.device)
        presence, draw = self._answer(features.levels, phrase, boxes)
        if self.options.flips and side_of(phrase) is None:
            second, draw_mirrored = self._answer(features.mirrored, phrase, boxes.mirrored())
            both = (presence + second) / 2
            return ConceptMap(float(both.sigmoid()), lambda: (draw() + draw_mirrored().flip(-1)) / 2)
        return ConceptMap(float(presence.sigmoid()), draw)

    def _answer(
        self, all_levels: tuple[VisionLevels, ...], phrase: str, boxes: ExemplarBoxes
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """The detectors' mean logit of presence (), and how to draw that of each pixel (1, 1, h, w)."""
        detections = []
        for detector, texts, levels in zip(self.detectors, self._texts_of, all_levels, strict=True):
            tokens = texts.encode([phrase])
            asked = detector.project_text(tokens.features.to(self.device), tokens.mask.to(self.device))
            detections.append(detect(detector, levels, asked, boxes))

        def draw() -> Tensor:
            found = zip(self.detectors, all_levels, detections, strict=True)
            return torch.stack([decode_semantic(*one) for one in found]).mean(dim=0).cpu()

        return torch.stack([one.presence[-1, 0, 0] for one in detections]).mean().cpu(), draw

    def probability_map(self, features: MiniFeatures, prompt: Prompt) -> NDArray[np.float32]:
        """Probability (H, W) in 0..1 that a pixel belongs to the phrase's concept, given that it is there."""
        with torch.inference_mode():
            outlined = self.outlined_as(prompt)
            found = self.concept_map(features, outlined.text, outlined.exemplars)
            look = self.closer_look(features, outlined, found) if self.card.thresholds.looks_closer else None
            probability: NDArray[np.float32] = self._settled(features, outlined, found, look).sigmoid().numpy()
            return probability

    def outlined_as(self, prompt: Prompt) -> Prompt:
        """The prompt whose outline answers a prompt: of a kind of lesion alone, the lesion's, if it was taught."""
        if prompt.text is None or prompt.boxes or prompt.exemplars or self.card.thresholds.of_kinds is None:
            return prompt
        concept = find(self.read(prompt.text).text)
        lesion = None if concept is None else concept.kind_of
        return prompt if lesion is None or lesion not in self.card.concepts else replace(prompt, text=lesion)

    def refined(self, features: MiniFeatures, logits: Tensor) -> Tensor:
        """LiteMedSAM's logits (256, 256) for boxes around the parts of a concept's logits (256, 256).

        The logits come back unchanged where there is no part, or more than `MOST_REFINED`.
        """
        parts = split_objects(logits.sigmoid().numpy(), 0.5)
        if not 0 < len(parts) <= MOST_REFINED:
            return logits
        boxes = torch.tensor([part.box for part in parts], dtype=torch.float32)
        return self.lite_medsam.decode(features.neck, boxes).logits.amax(dim=0)

    def closer_look(self, features: MiniFeatures, prompt: Prompt, found: ConceptMap) -> CloserLook | None:
        """A phrase asked again in a window around drawn boxes, or around all parts that the whole frame showed of it.

        None where the concept is hardly there, what was found fills the frame, or the prompt has examples.
        """
        if features.closer is None or prompt.text is None or prompt.exemplars:
            return None
        edges = np.array([box.xyxy for box in prompt.boxes], dtype=np.float64)
        if not len(edges):
            parts = box_of_mask((found.logits > 0).numpy()) if found.presence >= LOOKED_AT_FROM else None
            if parts is None:
                return None
            edges = features.place.boxes_from_square(np.array([parts]))
        low, high = edges.min(axis=0), edges.max(axis=0)
        window = closer_window((low[0], low[1], high[2], high[3]), features.place.shape)
        if window is None:
            return None
        near = features.closer(window)
        again = self.concept_map(near, prompt.text, tuple(_moved(box, window) for box in prompt.boxes))
        return CloserLook(window, again.presence, near.place.logits_to_frame(again.logits[None])[0])

    def _decode_concept(self, features: MiniFeatures, prompt: Prompt, threshold: float | None) -> Masks:
        limits, outlined = self.card.thresholds, self.outlined_as(prompt)
        found = self.concept_map(features, outlined.text, prompt.exemplars + prompt.boxes)
        look = self.closer_look(features, outlined, found) if limits.looks_closer else None
        presence = with_second_presence(found.presence, None if look is None else look.presence, limits.closer_presence)
        # A drawn box or an example says that the concept is there; the phrase alone has to earn it.
        is_drawn = bool(prompt.boxes) or prompt.text is None
        is_present = is_drawn or presence >= limits.of_concepts.affirmed
        is_sure = is_drawn or presence >= limits.of_concepts.sure
        if outlined is not prompt and limits.of_kinds is not None:
            of_kind = self._presence_of_kind(features, prompt)
            is_present &= of_kind >= limits.of_kinds.affirmed
            is_sure &= of_kind >= limits.of_kinds.sure
            presence = min(presence, of_kind)
        objects: list[ObjectMask] = []
        frame = features.place.shape
        if is_present if threshold is None else presence >= threshold:
            probability = self._settled(features, outlined, found, look).sigmoid().numpy()
            parts = split_objects(probability, limits.mask, is_round=self._is_round(prompt))
            parts = agreeing(parts, frame, prompt.points)
            scored = [replace(part, score=presence * part.score) for part in parts]
            kept = [part for part in scored if part.score >= (threshold or 0.0)]
            objects = sorted(kept, key=lambda part: -part.score)
        if prompt.text is None:
            return Masks((1, *frame), tuple(objects))
        return Masks((1, *frame), tuple(objects), prompt.text, presence, is_present, is_sure or not is_present)

    def _is_round(self, prompt: Prompt) -> bool:
        """Whether the objects of the prompt's concept are told apart at their waists."""
        concept = None if prompt.text is None else find(self.read(prompt.text).text)
        return concept is not None and concept.is_round

    def _presence_of_kind(self, features: MiniFeatures, prompt: Prompt) -> float:
        """How probable a kind of lesion is by its own phrase."""
        found, share = self.concept_map(features, prompt.text), self.card.thresholds.closer_presence
        look = self.closer_look(features, prompt, found) if share else None
        return with_second_presence(found.presence, None if look is None else look.presence, share)

    def _settled(self, features: MiniFeatures, prompt: Prompt, found: ConceptMap, look: CloserLook | None) -> Tensor:
        """A concept's logits over the frame (H, W) after the closer look and the box decoder were heard, the latter on
        drawn boxes or on those of the parts.
        """
        limits, logits = self.card.thresholds, found.logits
        if limits.refine_share and not prompt.boxes:
            second = self.refined(features, logits).numpy()
            logits = torch.from_numpy(
                blend_where_agreed(logits.numpy(), second, limits.refine_share, limits.refine_iou)
            )
        framed = features.place.logits_to_frame(logits[None])[0]
        if look is not None:
            framed = look.onto(framed, limits.closer_share)
        if prompt.boxes:
            drawn = features.place.logits_to_frame(self._geometry_logits(features, prompt)).amax(dim=0)
            framed = _inside_boxes(framed.lerp(drawn, limits.box_share), prompt.boxes)
        return framed

    def _decode_geometry(self, features: MiniFeatures, prompt: Prompt, threshold: float | None) -> Masks:
        if prompt.points:
            if len(prompt.boxes) > 1:
                raise InputError(
                    f"{len(prompt.boxes)} boxes and points were given together: give one box, whose object they are on"
                )
            found = self.refine(features, Hints(box=next(iter(prompt.boxes), None), clicks=prompt.points))
            return replace(found, objects=tuple(one for one in found.objects if one.score >= (threshold or 0.0)))
        probability = self._in_boxes(features, prompt.boxes)
        masks = probability > 0.5
        scores = [float(p[m].mean()) if m.any() else 0.0 for p, m in zip(probability, masks, strict=True)]
        kept = [k for k, score in enumerate(scores) if score >= (threshold or 0.0)]
        return Masks.from_dense(masks[kept][:, None], [scores[k] for k in kept])

    def _in_boxes(self, features: MiniFeatures, boxes: tuple[Box, ...]) -> NDArray[np.float32]:
        """Probability (K, H, W) of the object in each box: the detector's, or LiteMedSAM's if that does not fill it."""
        own = [boxed(partial(self.like, features, None), box, features.place.shape) for box in boxes]
        probability = np.stack([found for found, _ in own])
        others = [k for k, (_, fit) in enumerate(own) if fit < LEAST_FIT]
        if others:
            logits = self._geometry_logits(features, Prompt(boxes=tuple(boxes[k] for k in others)))
            probability[others] = features.place.logits_to_frame(logits).sigmoid().numpy()
        return probability

    def _geometry_logits(self, features: MiniFeatures, prompt: Prompt) -> Tensor:
        """One logit map (K, 256, 256) for each box."""
        place = features.place
        if prompt.boxes not in features.drawn:
            edges = np.array([box.xyxy for box in prompt.boxes], dtype=np.float64)
            boxes = torch.from_numpy(place.boxes_to_square(edges)).float()
            features.drawn.clear()
            features.drawn[prompt.boxes] = self.lite_medsam.decode(features.neck, boxes).logits
        return features.drawn[prompt.boxes]


def _exemplars(exemplars: tuple[Box, ...], place: Letterbox) -> ExemplarBoxes:
    if not exemplars:
        return ExemplarBoxes.none(1, torch.device("cpu"))
    edges = np.clip(np.array([box.xyxy for box in exemplars], dtype=np.float64), -0.5, None)
    square = np.clip(place.boxes_to_square(edges), -0.5, SIDE - 0.5)
    boxes = torch.from_numpy(normalised_cxcywh_from_xyxy(square, SIDE, SIDE)).float()
    positive = torch.tensor([box.is_positive for box in exemplars])
    return ExemplarBoxes(boxes[None], positive[None], torch.ones_like(positive)[None])


def with_second_presence(first: float, second: float | None, share: float) -> float:
    """A probability with `share` of a second one mixed in, as logits; the first where there is no second."""
    if second is None:
        return first
    logits = torch.logit(torch.tensor([first, second], dtype=torch.float64), eps=1e-6)
    return float(logits[0].lerp(logits[1], share).sigmoid())


def _moved(box: Box, window: Crop) -> Box:
    """A box of the frame as one of a window."""
    x0, y0, x1, y1 = box.xyxy
    return replace(box, x0=x0 - window.left, y0=y0 - window.top, x1=x1 - window.left, y1=y1 - window.top)


def _inside_boxes(logits: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Push the logits (H, W) far below zero outside the drawn boxes, with a margin of a tenth of their sides."""
    keep = torch.zeros_like(logits, dtype=torch.bool)
    for x0, y0, x1, y1 in (box.xyxy for box in boxes):
        dx, dy = (x1 - x0) / 10, (y1 - y0) / 10
        rows = slice(max(0, int(y0 - dy)), max(0, int(np.ceil(y1 + dy)) + 1))
        keep[rows, max(0, int(x0 - dx)) : max(0, int(np.ceil(x1 + dx)) + 1)] = True
    return torch.where(keep, logits, torch.full_like(logits, -20.0))


def load_mini(weights: Path | None, encoders: EncoderFiles, options: MiniOptions | None = None) -> MiniSegmenter:
    """The small model with its shipped weights, or with those of a training run.

    Args:
        weights: A `.safetensors` file with its `.json` card beside it; None takes the shipped one.
        encoders: Where the frozen encoders lie.
        options: Its name and how it answers; None takes the defaults.

    Raises:
        InputError: Weights or card missing, damaged, or not of this model.
    """
    path, chosen = weights or SHIPPED_WEIGHTS, options or MiniOptions()
    card = read_card(path)
    with without_values():
        detectors = torch.nn.ModuleList(MiniDetector(config) for config in card.detectors)
    holder = detectors if len(detectors) > 1 else detectors[0]
    try:
        holder.load_state_dict({name: value.float() for name, value in load_file(path).items()}, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} does not hold the weights of model mini ({reason}): give a file of medsam3 train"
        ) from error
    lite_medsam = LiteMedSam(encoders.lite_medsam, device=chosen.device)
    texts = TextEncoder.from_files(encoders.text_model, encoders.tokenizer)
    return MiniSegmenter(lite_medsam, texts, cast("list[MiniDetector]", list(detectors)), card, chosen)
