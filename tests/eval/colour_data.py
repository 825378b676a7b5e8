"""A small data folder and a segmenter that answers by colour, so that every number can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.prompts import Box, Prompt

SIZE = (20, 30)
HEADER = "dataset,image,mask,concept,label_value,split,group,present"


@dataclass
class ColourSegmenter:
    """Finds red as "polyp" (and "polyps"), green as "optic disc"; a box gives all of it, up to its last whole pixel."""

    encoded: list[str] = field(default_factory=list)
    asked: list[Prompt] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "colour"

    def encode(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.encoded.append(str(rgb.shape))
        return rgb

    def decode(self, features: NDArray[np.uint8], prompt: Prompt, *, threshold: float | None = None) -> Masks:
        self.asked.append(prompt)
        if prompt.boxes:
            masks = np.array([_filled(box, features.shape[:2]) for box in prompt.boxes])[:, None]
            return Masks.from_dense(masks, [0.9] * len(masks), presence=0.8 if prompt.text else None)
        channel = {"polyp": 0, "polyps": 0, "optic disc": 1}.get(prompt.text or "")
        if channel is None:
            return Masks((1, *SIZE), presence=0.1, is_present=False)
        found = features[..., channel] > 127
        presence = 0.9 if found.any() else 0.2
        return Masks.from_dense(found[None, None], [presence], presence=presence, is_present=bool(found.any()))


def _filled(box: Box, size: tuple[int, ...]) -> BoolArray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside: BoolArray = (columns >= box.x0) & (columns <= box.x1) & (rows >= box.y0) & (rows <= box.y1)
    return inside


@dataclass
class DataFolder:
    """Writes pictures, masks and index.csv."""

    path: Path
    lines: list[str] = field(default_factory=lambda: [HEADER])

    def add(self, dataset: str, stem: str, shown: BoolArray, labels: NDArray[np.uint8], *concepts: str) -> None:
        """One picture, red where `shown`; `concepts` as `name=value=group`, present where the label map has it."""
        for kind in ("images", "masks"):
            (self.path / dataset / kind).mkdir(parents=True, exist_ok=True)
        rgb = np.zeros((*SIZE, 3), dtype=np.uint8)
        rgb[shown, 0] = 255
        PIL.Image.fromarray(rgb).save(self.path / dataset / "images" / f"{stem}.png")
        PIL.Image.fromarray(labels).save(self.path / dataset / "masks" / f"{stem}.png")
        for concept in concepts:
            name, value, group = concept.split("=")
            present = int((labels == int(value)).any())
            files = f"{dataset}/images/{stem}.png,{dataset}/masks/{stem}.png"
            self.lines.append(f"{dataset},{files},{name},{value},test,{group},{present}")
        self.write()

    def write(self) -> None:
        """Write the index."""
        (self.path / "index.csv").write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def block(rows: tuple[int, int], columns: tuple[int, int]) -> BoolArray:
    """True in a rectangle of a picture, stops excluded."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def polyp_folder(path: Path) -> DataFolder:
    """Four pictures with the concept polyp; the first is asked about an absent optic disc too.

    Dice of "polyp" by text: a 1, b 0.5, c 0; d has none and nothing is found there.
    """
    folder = DataFolder(path)
    polyp = block((4, 8), (6, 14))  # 4 x 8 = 32 pixels
    labels = polyp.astype(np.uint8)
    folder.add("gut", "a", polyp, labels, "polyp=1=p1", "optic disc=2=p1")
    folder.add("gut", "b", block((4, 8), (10, 18)), labels, "polyp=1=p1")  # shares 4 columns of 8: Dice .5
    folder.add("gut", "c", block((0, 0), (0, 0)), labels, "polyp=1=p2")
    folder.add("gut", "d", block((0, 0), (0, 0)), labels * 0, "polyp=1=p3")
    return folder
