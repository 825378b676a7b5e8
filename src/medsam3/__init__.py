"""Medical image segmentation by concept: `load` a model, `read` an image, `segment` it by a phrase, `write` masks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsam3.client.client import Client as Client
    from medsam3.errors import InputError as InputError
    from medsam3.image import Image as Image
    from medsam3.image import Masks as Masks
    from medsam3.io import read as read
    from medsam3.io import write as write
    from medsam3.io.in_memory import as_image as as_image
    from medsam3.models.registry import load as load
    from medsam3.prompts import Box as Box
    from medsam3.prompts import Point as Point
    from medsam3.prompts import Prompt as Prompt
    from medsam3.segmentation.options import Options as Options
    from medsam3.segmentation.run import segment as segment
    from medsam3.segmentation.run import segment_many as segment_many
    from medsam3.segmentation.session import Session as Session

__version__ = "0.2.0"

_HOMES = {
    "Client": "medsam3.client.client",
    "InputError": "medsam3.errors",
    "Image": "medsam3.image",
    "Masks": "medsam3.image",
    "Options": "medsam3.segmentation.options",
    "Box": "medsam3.prompts",
    "Point": "medsam3.prompts",
    "Prompt": "medsam3.prompts",
    "Session": "medsam3.segmentation.session",
    "as_image": "medsam3.io.in_memory",
    "load": "medsam3.models.registry",
    "read": "medsam3.io",
    "segment": "medsam3.segmentation.run",
    "segment_many": "medsam3.segmentation.run",
    "write": "medsam3.io",
}
__all__ = [
    "Box",
    "Client",
    "Image",
    "InputError",
    "Masks",
    "Options",
    "Point",
    "Prompt",
    "Session",
    "as_image",
    "load",
    "read",
    "segment",
    "segment_many",
    "write",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import medsam3` stays fast and free of torch."""
    if name == "agent":
        return importlib.import_module("medsam3.agent")
    if name not in _HOMES:
        raise AttributeError(f"module 'medsam3' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
