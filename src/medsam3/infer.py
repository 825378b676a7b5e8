"""From an image and prompts to masks, with any segmenter. It knows no model, and of files only that `io` reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt
from medsam3.render import to_rgb


def segment(
    image: Image | str | Path,
    prompts: str | Prompt | Sequence[str | Prompt],
    segmenter: Segmenter,
    *,
    threshold: float | None = None,
    frames: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Masks]:
    """Objects of each prompt, at the image's own size and position.

    Each frame is encoded once and decoded once for each prompt. In a stack, every frame is segmented by itself: an
    object belongs to one frame, nothing is followed from slice to slice yet.

    Args:
        image: What to segment, or a path that `medsam3.read` takes.
        prompts: A phrase, a prompt, or several; boxes and points hold for every chosen frame.
        segmenter: A model, as `medsam3.load` gives.
        threshold: Least score in 0..1 of an object that is kept; None takes the weights' own.
        frames: Indices along N of the frames to segment; None takes all.
        progress: Called with the number of frames that are done and that there are, first with 0.

    Returns:
        One `Masks` over (N, H, W) for each prompt, in their order; objects best score first. The presence of a stack is
        that of its best frame.

    Raises:
        InputError: No prompt, one that lies outside the image, a frame that does not exist, a threshold outside 0..1.
    """
    if not isinstance(image, Image):
        from medsam3.io import read  # noqa: PLC0415  readers are heavy and not needed for an image at hand

        image = read(Path(image))
    asked = as_prompts(prompts)
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, allowed is 0 to 1")
    chosen = _check_frames(frames, image.shape[0])
    for prompt in asked:
        prompt.check_inside(*image.shape[1:])
    report = progress or (lambda done, count: None)
    report(0, len(chosen))
    answers: list[list[Masks]] = [[] for _ in asked]
    for done, n in enumerate(chosen, start=1):
        features = segmenter.encode(to_rgb(image, n))
        for answer, prompt in zip(answers, asked, strict=True):
            answer.append(segmenter.decode(features, prompt, threshold=threshold))
        report(done, len(chosen))
    return [stack_frames(image.shape, chosen, answer) for answer in answers]


def as_prompts(prompts: str | Prompt | Sequence[str | Prompt]) -> list[Prompt]:
    """A list of prompts from one or many, each phrase as a text prompt.

    Raises:
        InputError: There is none.
    """
    many = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
    if not many:
        raise InputError("no prompt was given: name at least one concept such as 'polyp'")
    return [Prompt(text=prompt) if isinstance(prompt, str) else prompt for prompt in many]


def stack_frames(shape: tuple[int, int, int], frames: Sequence[int], masks: Sequence[Masks]) -> Masks:
    """The masks over (1, H, W) of single frames, at least one, as masks over `shape` (N, H, W).

    The concept is that of the first; presence is the highest of the frames, and present is what is so in any.
    """
    objects = [
        replace(found, start=(n, *found.start[1:]))
        for n, frame in zip(frames, masks, strict=True)
        for found in frame.objects
    ]
    presences = [frame.presence for frame in masks if frame.presence is not None]
    verdicts = [frame.is_present for frame in masks if frame.is_present is not None]
    return Masks(
        shape,
        tuple(sorted(objects, key=lambda found: -found.score)),
        concept=masks[0].concept,
        presence=max(presences, default=None),
        is_present=any(verdicts) if verdicts else None,
    )


def _check_frames(frames: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if frames is None else sorted(set(frames))
    if not chosen:
        raise InputError(f"no frame was chosen, allowed are 0 to {count - 1}")
    for n in chosen:
        if not 0 <= n < count:
            raise InputError(f"frame {n} was asked for, allowed is 0 to {count - 1}")
    return chosen
