"""The data folder as a client's store: images by the names of their files, and labels that are kept beside them."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from medsam3.server.problems import RefusedError, not_here
from medsam3.server.reader import stem_of
from medsam3.server.settings import Settings

LABELS = "labels"
_IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class StoreCounts(BaseModel):
    """The number of images, and of those that have a label."""

    total: int
    completed: int
    label_tags: dict[str, int] = {}
    train: list[str] = []


class StoredFile(BaseModel):
    """The ending of an image's or a label's file, and its name where the client needs it."""

    ext: str
    info: dict[str, str] = {}


class StoredObject(BaseModel):
    """An image and its labels by their tags."""

    image: StoredFile
    labels: dict[str, StoredFile]


class StoreListing(BaseModel):
    """All images and labels."""

    name: str = "medsam3"
    images_dir: str = "."
    labels_dir: str = LABELS
    objects: dict[str, StoredObject]


@dataclass(frozen=True)
class Store:
    """Images right in a folder, and labels below it; without a folder there is nothing."""

    root: Path | None

    @classmethod
    def of(cls, settings: Settings) -> Store:
        """Give the store of a server."""
        return cls(settings.data)

    def images(self) -> dict[str, Path]:
        """List the images by the names of their files without endings; a folder is one if it holds a DICOM series."""
        if self.root is None:
            return {}
        found: dict[str, Path] = {}
        root = self.root.resolve()
        for path in sorted(self.root.iterdir()):
            is_wanted = path.name != LABELS if path.is_dir() else path.name.lower().endswith(_IMAGES)
            if is_wanted and not path.name.startswith(".") and path.resolve().is_relative_to(root):
                found.setdefault(stem_of(path.name), path)
        return found

    def image(self, name: str) -> Path | None:
        """Find an image by its name, with or without the ending."""
        images = self.images()
        return images.get(name) or next((path for path in images.values() if path.name == name), None)

    def label_to_be(self, name: str, tag: str) -> Path:
        """Say where a label is to be kept.

        Raises:
            RefusedError: There is no folder, or the name does not suit one.
        """
        if self.root is None:
            raise RefusedError(409, "labels are kept in the data folder, and there is none: start with --data FOLDER")
        if not re.fullmatch(r"[^/\\\0]{1,200}", name) or name.startswith("."):
            raise RefusedError(400, f"image {name[:100]!r} cannot name a file: leave out slashes and dots before it")
        return self.root / LABELS / tag / f"{stem_of(name)}.nii.gz"

    def label(self, name: str, tag: str) -> Path:
        """Find a label that was kept.

        Raises:
            RefusedError: There is none.
        """
        if self.root is None or not re.fullmatch("[A-Za-z0-9_-]{1,40}", tag):
            raise not_here("label")
        path = self.label_to_be(name, tag)
        if not path.is_file():
            raise not_here("label")
        return path

    def tags(self, name: str) -> list[str]:
        """List the tags under which an image has labels."""
        if self.root is None:
            return []
        return sorted(path.parent.name for path in (self.root / LABELS).glob(f"*/{glob.escape(name)}.nii.gz"))

    def without_label(self) -> dict[str, Path]:
        """List the images that have none."""
        return {name: path for name, path in self.images().items() if not self.tags(name)}

    def counts(self) -> StoreCounts:
        """Count images, and those that have a label."""
        total = len(self.images())
        return StoreCounts(total=total, completed=total - len(self.without_label()))

    def listing(self) -> StoreListing:
        """List images and labels as MONAI Label's own store does."""
        objects = {
            name: StoredObject(
                image=StoredFile(ext=path.name[len(name) :], info={"name": path.name}),
                labels={tag: StoredFile(ext=".nii.gz") for tag in self.tags(name)},
            )
            for name, path in self.images().items()
        }
        return StoreListing(objects=objects)

    def datalist(self) -> list[dict[str, str]]:
        """List pairs of an image and its label, below the folder."""
        return [
            {"image": path.name, "label": f"{LABELS}/{tag}/{name}.nii.gz"}
            for name, path in self.images().items()
            for tag in self.tags(name)
        ]
