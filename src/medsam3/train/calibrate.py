"""Thresholds and shares of the small model, chosen on the validation split and stored beside its weights.

Every choice is a small grid search by Dice: first the share and the agreement of the box decoder, if it is worth its
time, then the share of the closer look, the mask threshold, and the box decoder's share if a box is drawn. How much the
closer look says of presence is chosen by AUROC. Each concept of a data set weighs as the square root of its images: one
of two images says little, and one of two hundred shall not rule. Presence has two limits: at least 95 % of what is
present is affirmed, and of what is absent at most 5 % surely. Kinds of a lesion have limits of their own. Without
images that lack their concepts nothing can be said of presence, and its numbers stay.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from medsam3.concepts import find
from medsam3.data.samples import Sample
from medsam3.geometry import box_of_mask
from medsam3.measure.outline import dice
from medsam3.measure.presence import auroc
from medsam3.models.mini.card import MiniThresholds, PresenceLimits
from medsam3.models.mini.letterbox import SIDE, Letterbox, letterbox_labels
from medsam3.models.mini.objects import blend_where_agreed
from medsam3.models.mini.segmenter import CloserLook, MiniFeatures, MiniSegmenter, with_second_presence
from medsam3.prompts import Box, Prompt
from medsam3.train.cache import Features

Logits = NDArray[np.float32]
MASK_GRID = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
SHARE_GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
CLOSER_GRID = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 1.0)
IOU_GRID = (0.0, 0.7, 0.8, 0.9)
WORTH_ITS_TIME = 0.005
"""Least gain in mean Dice for which the box decoder is heard on a phrase: it takes most of the time."""
LEAST_SENSITIVITY = 0.95
LEAST_SPECIFICITY = 0.95
LEAST_POSITIVES = 20
"""Fewer present answers do not move thresholds that were chosen on more: five polyps chose a second opinion in full."""
LEAST_NEGATIVES = 10
"""Fewer absent answers say too little of presence: if none of 9 is affirmed, up to 28 % may still be (95 % bound)."""
NOWHERE = np.full((SIDE, SIDE), np.nan, dtype=np.float32)


@dataclass(frozen=True)
class Answer:
    """The model's raw answer to one question of the validation split, on the 256 x 256 square.

    The closer looks are NaN outside their window; `closer_presence` is None where there was no such look.
    """

    dataset: str
    concept: str
    is_present: bool
    presence: float
    closer_presence: float | None
    truth: NDArray[np.bool_]
    text: Logits
    refined: Logits
    closer: Logits
    boxed_text: Logits
    boxed_closer: Logits
    box: Logits


@dataclass(frozen=True)
class Calibration:
    """The chosen numbers, and what they reach on the validation split.

    Attributes:
        presence_auroc: None if presence was not calibrated.
        presence_kept: Why it was not, so that its threshold and share stay as they were; "" if it was.
    """

    thresholds: MiniThresholds
    dice_text: dict[str, float]
    dice_text_box: dict[str, float]
    presence_auroc: float | None
    presence_kept: str


def collect(
    segmenter: MiniSegmenter,
    samples: Sequence[Sample],
    cached: Features,
    *,
    on_image: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Ask every target of the samples, from cached features."""
    answers = []
    for sample in samples:
        features = _features(segmenter, sample, cached, with_frame=True)
        for target in sample.targets:
            truth = letterbox_labels(target.load()) > 0
            answers.append(_answer(segmenter, features, sample.dataset, target.concept, truth))
        on_image()
    return answers


def _features(segmenter: MiniSegmenter, sample: Sample, cached: Features, *, with_frame: bool) -> MiniFeatures:
    """Read a sample's square as it is cached; its picture is read if closer looks are taken."""
    found = cached.get(sample.name, 0)
    neck, square = torch.from_numpy(found["neck"]).float(), found["pixels"][0]
    if not with_frame:
        return segmenter.features(square, Letterbox(256, 256), neck)
    rgb = sample.load_rgb()
    features = segmenter.features(square, Letterbox(rgb.shape[0], rgb.shape[1]), neck)
    return replace(features, closer=segmenter.closer_features(rgb))


def _answer(
    segmenter: MiniSegmenter, features: MiniFeatures, dataset: str, concept: str, truth: NDArray[np.bool_]
) -> Answer:
    with torch.inference_mode():
        phrase = Prompt(text=concept)
        found = segmenter.concept_map(features, concept)
        look = segmenter.closer_look(features, phrase, found)
        edges = box_of_mask(truth)
        blank = torch.full_like(found.logits, -20.0)
        refined = boxed = drawn = blank
        boxed_look = None
        if edges is not None:
            refined = segmenter.refined(features, found.logits)
            box = Box(*features.place.boxes_from_square(np.array([edges]))[0])
            asked = segmenter.concept_map(features, concept, (box,))
            boxed, boxed_look = asked.logits, segmenter.closer_look(features, replace(phrase, boxes=(box,)), asked)
            drawn = segmenter.lite_medsam.decode(features.neck, torch.tensor([edges]).float()).logits[0]
    text, refined_, boxed_, drawn_ = (
        value.numpy().astype(np.float32) for value in (found.logits, refined, boxed, drawn)
    )
    return Answer(
        dataset,
        concept,
        bool(truth.any()),
        found.presence,
        None if look is None else look.presence,
        truth,
        text,
        refined_,
        _on_square(look, features.place),
        boxed_,
        _on_square(boxed_look, features.place),
        drawn_,
    )


def _on_square(look: CloserLook | None, place: Letterbox) -> Logits:
    """A closer look's logits on the square (256, 256), NaN outside its window."""
    if look is None:
        return NOWHERE
    framed = np.full(place.shape, np.nan, dtype=np.float32)
    look.window.cut(framed)[:] = look.logits.numpy()
    return place.sampled_on_square(framed, outside=np.nan)


def text_dice(segmenter: MiniSegmenter, samples: Sequence[Sample], cached: Features) -> float:
    """Average over the concepts the mean Dice of a phrase alone, without the box decoder: what early stopping reads."""
    found: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        features = _features(segmenter, sample, cached, with_frame=False)
        for target in sample.targets:
            if target.is_present:
                truth = letterbox_labels(target.load()) > 0
                with torch.inference_mode():
                    mask = segmenter.concept_map(features, target.concept).logits.numpy() > 0
                scored = dice(truth, mask) if truth.any() else 0.0  # too small for the square: it cannot be found
                found[f"{sample.dataset}/{target.concept}"].append(scored)
    return float(np.mean([np.mean(values) for values in found.values()])) if found else 0.0


def calibrate(answers: Sequence[Answer], prior: MiniThresholds | None = None) -> Calibration:
    """Choose mask threshold, shares, and the limits of presence.

    Args:
        answers: Of the validation split.
        prior: Thresholds of the weights that training started from, which stay where val holds too little to choose
            others; None takes the default ones.
    """
    present = sum(answer.is_present for answer in answers)
    shares = prior if prior is not None and present < LEAST_POSITIVES else _with_shares(prior, answers)
    chosen, reached = _with_presence(shares, answers)
    mixed = _looked_closer(_refined(chosen.refine_share, chosen.refine_iou), chosen.closer_share)
    return Calibration(
        thresholds=chosen,
        dice_text=dice_by_concept(answers, mixed, chosen.mask),
        dice_text_box=dice_by_concept(answers, _boxed(chosen.box_share, chosen.closer_share), chosen.mask),
        presence_auroc=reached,
        presence_kept=why_presence_stays(_of_kinds(answers, is_kind=False), shares.presence),
    )


def _with_shares(prior: MiniThresholds | None, answers: Sequence[Answer]) -> MiniThresholds:
    """Choose mask threshold and shares by Dice."""
    counts = Counter(f"{answer.dataset}/{answer.concept}" for answer in answers if answer.is_present)

    def merit(logits: Callable[[Answer], Logits], level: float) -> float:
        found = dice_by_concept(answers, logits, level)
        weights = [counts[name] ** 0.5 for name in found]
        return float(np.average(list(found.values()), weights=weights)) if found else 0.0

    refine, least_iou = max(product(SHARE_GRID, IOU_GRID), key=lambda pair: merit(_refined(*pair), 0.5))
    if merit(_refined(refine, least_iou), 0.5) < merit(_refined(0.0, least_iou), 0.5) + WORTH_ITS_TIME:
        refine = 0.0
    whole = _refined(refine, least_iou)
    closer = max(CLOSER_GRID, key=lambda value: merit(_looked_closer(whole, value), 0.5))
    mixed = _looked_closer(whole, closer)
    mask = max(MASK_GRID, key=lambda level: merit(mixed, level))
    share = max(SHARE_GRID, key=lambda value: merit(_boxed(value, closer), mask))
    return replace(
        prior or MiniThresholds(),
        mask=mask,
        box_share=share,
        refine_share=refine,
        refine_iou=least_iou,
        closer_share=closer,
    )


def _with_presence(prior: MiniThresholds, answers: Sequence[Answer]) -> tuple[MiniThresholds, float | None]:
    """Choose the limits of presence, and give its AUROC; without enough negatives they stay, and there is none."""
    concepts, kinds = (_of_kinds(answers, is_kind=is_kind) for is_kind in (False, True))
    chosen, reached = prior, None
    if not why_presence_stays(concepts, prior.presence):
        truth = np.array([answer.is_present for answer in answers])
        of_look = max(CLOSER_GRID, key=lambda value: auroc(truth, presences(answers, value)))
        limits = presence_limits(concepts, of_look, prior.of_concepts)
        chosen = replace(prior, closer_presence=of_look, presence=limits.affirmed, presence_sure=limits.sure)
        reached = auroc(truth, presences(answers, of_look))
    if not why_presence_stays(kinds, prior.presence):
        limits = presence_limits(kinds, chosen.closer_presence, prior.of_kinds or MiniThresholds().of_concepts)
        chosen = replace(chosen, kind_presence=limits.affirmed, kind_sure=limits.sure)
    return chosen, reached


def _of_kinds(answers: Sequence[Answer], *, is_kind: bool) -> list[Answer]:
    """Choose the answers about kinds of a lesion, or those about anything else."""
    named = [(answer, find(answer.concept)) for answer in answers]
    return [answer for answer, concept in named if (concept is not None and concept.kind_of is not None) == is_kind]


def why_presence_stays(answers: Sequence[Answer], threshold: float) -> str:
    """Say why presence cannot be calibrated on these answers; "" if it can.

    Absent answers count only for concepts that other images show: what is never present is denied by its words alone.
    """
    shown = {(answer.dataset, answer.concept) for answer in answers if answer.is_present}
    count = sum(not answer.is_present and (answer.dataset, answer.concept) in shown for answer in answers)
    if count >= LEAST_NEGATIVES:
        return ""
    return (
        f"the presence threshold stays at {threshold:g}, and no AUROC is given: in the val images {count} answers are "
        f"of a concept that the image lacks and others show, {LEAST_NEGATIVES} are needed: "
        "add val images without the concepts"
    )


def presences(answers: Sequence[Answer], share: float) -> NDArray[np.float64]:
    """Presence of each answer, with a share of its closer look's where there was one."""
    return np.array([with_second_presence(one.presence, one.closer_presence, share) for one in answers])


def _looked_closer(whole: Callable[[Answer], Logits], share: float) -> Callable[[Answer], Logits]:
    return lambda answer: _within(whole(answer), answer.closer, share)


def _within(whole: Logits, closer: Logits, share: float) -> Logits:
    mixed: Logits = np.where(np.isnan(closer), whole, (1 - share) * whole + share * closer)
    return mixed


def _boxed(share: float, closer: float) -> Callable[[Answer], Logits]:
    def mixed(answer: Answer) -> Logits:
        result: Logits = (1 - share) * _within(answer.boxed_text, answer.boxed_closer, closer) + share * answer.box
        return result

    return mixed


def _refined(share: float, least_iou: float) -> Callable[[Answer], Logits]:
    return lambda answer: blend_where_agreed(answer.text, answer.refined, share, least_iou)


def dice_by_concept(
    answers: Sequence[Answer], logits: Callable[[Answer], Logits], threshold: float
) -> dict[str, float]:
    """Mean Dice of the present concepts, by `data set/concept`."""
    level = float(np.log(threshold / (1 - threshold)))
    found: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if answer.is_present:
            mask = logits(answer) > level
            found[f"{answer.dataset}/{answer.concept}"].append(dice(answer.truth, mask))
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def presence_limits(answers: Sequence[Answer], of_look: float, prior: PresenceLimits) -> PresenceLimits:
    """Choose from which presence on a concept is affirmed, and from which on surely, rounded to thousandths.

    It is affirmed from the prior level on, or from a lower one if it takes that to affirm 95 % of what is present: to
    miss a lesion is worse than to draw one too many, which is seen at once. A level that was fitted to probabilities
    near 1 would miss what other images show less clearly. It is sure from the lowest level on that denies 95 % of what
    is absent.
    """
    truth, probabilities = np.array([answer.is_present for answer in answers]), presences(answers, of_look)
    highest = np.quantile(probabilities[truth], 1 - LEAST_SENSITIVITY, method="lower")
    lowest = np.quantile(probabilities[~truth], LEAST_SPECIFICITY, method="higher")
    affirmed = min(prior.affirmed, float(np.floor(highest * 1000) / 1000))
    return PresenceLimits(affirmed, max(affirmed, float(np.floor(lowest * 1000 + 1) / 1000)))
