"""What is asked and answered, as the server takes and gives it: settings, prompts, files of an image, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from medsam3.client.connection import Form
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io.files import HEADERS
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options

_NOT_SENT = ("journal", "encode", "memory_bytes", "disk_bytes", "work")


def options_body(options: Options | None) -> dict[str, Any]:
    """Give settings as a request holds them.

    Raises:
        InputError: A setting that only this machine can heed.
    """
    asked = options or Options()
    if asked.journal is not None or asked.encode is not None:
        raise InputError("journal and encode are of this machine, and a server cannot heed them: leave them out")
    sent = {name: value for name, value in vars(asked).items() if name not in _NOT_SENT}
    sent["propagate"] = sent.pop("is_followed")
    sent["neighbours"] = sent.pop("has_neighbours")
    window = asked.window
    sent["window"] = None if window is None else [float(window.low), float(window.high)]
    sent["frames"] = None if asked.frames is None else [int(n) for n in asked.frames]
    return sent | {"tracking": asdict(asked.tracking), "fusion": asdict(asked.fusion)}


def prompt_body(prompt: Prompt) -> dict[str, Any]:
    """Give a prompt as a request holds it."""
    return {
        "text": prompt.text,
        "boxes": [box.xyxy for box in prompt.boxes],
        "points": [(point.x, point.y, point.is_positive) for point in prompt.points],
        "exemplars": [(*box.xyxy, box.is_positive) for box in prompt.exemplars],
    }


def files_of(path: Path, image: Image) -> Form:
    """List the files that an image was read from, under names that tell nothing but their order and form."""
    if path.name.lower().endswith(HEADERS):
        stem = path.name.rpartition(".")[0]
        return [(one.name, one) for one in sorted(path.parent.iterdir()) if one.name.startswith(f"{stem}.")]
    if len(image.source) == 1:
        return [(f"image{_ending(image.source[0])}", image.source[0])]
    return [(f"stack/{n:06d}{_ending(one)}", one) for n, one in enumerate(image.source)]


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix


def check_same(image: Image, about: dict[str, Any]) -> None:
    """Refuse a server that read another image out of the files than this machine does.

    Raises:
        InputError: Another kind, or other sizes.
    """
    there = about["kind"], (about["frames"], about["height"], about["width"])
    if there != (image.kind, image.shape):
        raise InputError(
            f"the server read a {there[0]} of {there[1]}, this machine a {image.kind} of {image.shape}: "
            "bring both to the same version of medsam3"
        )


def placed(masks: Sequence[Masks], image: Image) -> list[Masks]:
    """Give masks the image that they are over."""
    return [replace(one, image=image) for one in masks]
