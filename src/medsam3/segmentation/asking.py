"""One question on one slice: which part of a prompt holds there, and the answer in a form that a journal takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from medsam3.image import Masks
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt
from medsam3.segmentation.packed import PackedMask
from medsam3.segmentation.sweep import Found


@dataclass(frozen=True)
class Answer:
    """What a prompt found on one slice by itself.

    Attributes:
        objects: All down to a low score.
        presence: Probability; None where no phrase was asked.
        is_present: The model's own verdict; None likewise.
        is_sure: False if it affirms without being sure.
        is_asked: Something was asked on this slice at all.
    """

    objects: tuple[Found, ...] = ()
    presence: float | None = None
    is_present: bool | None = None
    is_asked: bool = False
    is_sure: bool = True

    def to_fields(self) -> Mapping[str, Any]:
        """For a journal."""
        objects = [{"mask": one.mask.to_fields(), "score": one.score} for one in self.objects]
        verdict = {"presence": self.presence, "is_present": self.is_present, "is_sure": self.is_sure}
        return {"objects": objects, **verdict}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Read what `to_fields` gave."""
        objects = tuple(Found(PackedMask.from_fields(one["mask"]), one["score"]) for one in fields["objects"])
        return cls(objects, fields["presence"], fields["is_present"], True, fields["is_sure"])


def ask(segmenter: Segmenter, features: Any, prompt: Prompt, *, threshold: float | None, weak_score: float) -> Answer:
    """Ask a prompt; a phrase alone also gives what is below the model's own threshold, down to `weak_score`.

    Where the model says yes and yet has nothing above `weak_score`, its own threshold decides.
    """
    if prompt.text is None or has_geometry(prompt):
        return answer_of(segmenter.decode(features, prompt, threshold=threshold))
    least = weak_score if threshold is None else min(weak_score, threshold)
    answer = answer_of(segmenter.decode(features, prompt, threshold=least))
    if answer.is_present and not answer.objects:
        return answer_of(segmenter.decode(features, prompt))
    return answer


def answer_of(masks: Masks) -> Answer:
    """The masks of one frame as an answer."""
    objects = tuple(Found(PackedMask.of(masks.dense(k)[0]), masks.scores[k]) for k in range(len(masks)))
    return Answer(objects, masks.presence, masks.is_present, True, masks.is_sure)


def has_geometry(prompt: Prompt) -> bool:
    """Whether something of it is drawn on one slice."""
    return bool(prompt.boxes or prompt.points or prompt.exemplars)


def asked_elsewhere(prompt: Prompt) -> Prompt | None:
    """What of a prompt is asked on slices that nothing is drawn on; None where nothing is.

    A phrase with a box or a point means the one object that is drawn, which is then followed; a phrase with examples
    is asked everywhere.
    """
    if prompt.text is None or prompt.boxes or prompt.points:
        return None
    return replace(prompt, exemplars=())
