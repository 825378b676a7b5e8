"""The two values that everything passes around: `Image`, what was read, and `Masks`, what was found in it.

Both are checked once when they are made and trusted afterwards. They know nothing of files, prompts or models.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, check_frame
from medsam3.geometry import Affine, BoolArray, box_of_mask, check_affine, spacing_mm

Kind = Literal["picture", "volume", "video"]
PresenceVerdict = Literal["yes", "not sure", "no"]
Pixels = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """Linear display window in stored units: `low` becomes black, `high` white."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise InputError(f"window is {self.low} to {self.high}, it must be two finite values, the lower one first")


class Frames(Protocol):
    """Frames that are read when they are asked for; an array (N, H, W, C) is one, its frames in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        ...

    def __getitem__(self, n: int, /) -> Any:
        """Pixels (H, W, C) of frame n."""
        ...


@dataclass(frozen=True)
class LazyFrames:
    """Frames that a function reads one at a time.

    Attributes:
        shape: (N, H, W, C).
        read: From n to the pixels (H, W, C) of that frame. A picklable one makes a picklable image.
    """

    shape: tuple[int, int, int, int]
    read: Callable[[int], Pixels]

    def __getitem__(self, n: int) -> Pixels:
        return self.read(n)


@dataclass(frozen=True, eq=False)
class Image:
    """Frames with their place in the world: a picture is a stack of one, a volume of slices, a video of frames.

    Frames of a file are read when they are asked for, so an image of any length is small until then.

    Attributes:
        frames: (N, H, W, C), an array or what reads one frame at a time; C 1 (grey) or 3 (RGB), any real dtype, in the
            file's own units after rescaling (CT: HU).
        kind: What the N axis means.
        affine: Index (n, row, col) to LPS mm, (4, 4); None where the file tells no position.
        fps: Frames a second, of a video only.
        window: How the file asks to be shown, in the units of the pixels.
        padding: Lowest and highest value that stand for "nothing was imaged here" (DICOM's PixelPaddingValue).
        source: The files that it was read from, in the order of the N axis.
        metadata: Technical facts (modality, bit depth); never names, dates or identifiers of a patient.

    Raises:
        InputError: Wrong shape, no pixels, a bad affine; of an array, values that are not real or not finite.
    """

    frames: Frames
    kind: Kind = "picture"
    affine: Affine | None = None
    fps: float | None = None
    window: Window | None = None
    padding: tuple[float, float] | None = None
    source: tuple[Path, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.frames.shape)
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise InputError(f"pixels have shape {shape}, allowed is (N, H, W, 1 or 3) with nothing empty")
        if isinstance(self.frames, np.ndarray):
            _check_values(self.frames, "pixels hold")
        if self.kind == "picture" and shape[0] != 1:
            raise InputError(f"a picture has one frame, this one has {shape[0]}: use kind 'volume' or 'video'")
        if self.affine is not None:
            object.__setattr__(self, "affine", check_affine(self.affine))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    @classmethod
    def without_pixels(cls, shape: tuple[int, int, int]) -> Self:
        """Make an image of a size whose pixels are not at hand; reading them is an `InputError`."""
        return cls(LazyFrames((*shape, 1), _refused), "picture" if shape[0] == 1 else "volume")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        count, height, width, _ = self.frames.shape
        return count, height, width

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.frames.shape[3]

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance of voxel centres along (n, row, col) in mm; None where no position is known."""
        if self.affine is None:
            return None
        along_n, along_rows, along_columns = spacing_mm(self.affine).tolist()
        return along_n, along_rows, along_columns

    @property
    def pixel_size_mm(self) -> tuple[float, float] | None:
        """(row, col) spacing in mm, also of a picture that tells its pixel size but no position; None if unknown."""
        if self.spacing_mm is not None:
            return self.spacing_mm[1:]
        known = self.metadata.get("pixel_spacing_mm")  # "row column"
        if known is None:
            return None
        along_rows, along_columns = (float(size) for size in known.split())
        return along_rows, along_columns

    def area_mm2(self, pixels: int) -> float | None:
        """Give the area of so many pixels, of a stack those of all slices together; None if their size is unknown."""
        size = self.pixel_size_mm
        return None if size is None else pixels * size[0] * size[1]

    def volume_ml(self, voxels: int) -> float | None:
        """Give the volume of so many voxels; None for a picture or video, and where no spacing is known."""
        if self.affine is None or self.kind != "volume":
            return None
        return voxels * abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    def pixels(self, n: int) -> Pixels:
        """Read frame n as (H, W, C).

        Raises:
            InputError: There is no such frame, it cannot be decoded, its size differs, or it holds NaN or infinity.
        """
        pixels: Pixels = self.frames[check_frame(n, self.shape[0])]
        wanted = tuple(self.frames.shape[1:])
        if pixels.shape != wanted:
            raise InputError(
                f"frame {n} is {pixels.shape} but frame 0 is {wanted} (rows, columns, channels): separate them"
            )
        if not isinstance(self.frames, np.ndarray):
            _check_values(pixels, f"frame {n} holds")
        return pixels

    def array(self) -> Pixels:
        """Read all frames into one array (N, H, W, C).

        Raises:
            InputError: As `pixels`.
        """
        if isinstance(self.frames, np.ndarray):
            return self.frames
        return np.stack([self.pixels(n) for n in range(self.shape[0])])

    def load(self) -> Image:
        """Read all frames into memory, and give the same image over them."""
        return replace(self, frames=self.array())

    def frame(self, n: int) -> Image:
        """Read frame or slice `n` as a picture in its own place.

        Raises:
            InputError: As `pixels`.
        """
        affine = None
        if self.affine is not None:
            affine = self.affine.copy()
            affine[:3, 3] += n * affine[:3, 0]
        source = self.source[n : n + 1] if len(self.source) == self.shape[0] else self.source
        return replace(self, frames=self.pixels(n)[None], kind="picture", affine=affine, fps=None, source=source)

    def __eq__(self, other: object) -> bool:
        """Whether two images hold the same values at the same place; all frames of both are read."""
        if not isinstance(other, Image):
            return NotImplemented
        if self is other:
            return True
        if (self.frames.shape, self._about()) != (other.frames.shape, other._about()):
            return False
        return all(np.array_equal(self.pixels(n), other.pixels(n)) for n in range(self.shape[0]))

    def content_hash(self) -> str:
        """Hash the pixels of all frames, their type and size, and the place: SHA-256 in hex."""
        digest = hashlib.sha256(repr((tuple(self.frames.shape), self.kind)).encode())
        if self.affine is not None:
            digest.update(np.round(self.affine, 4).tobytes())
        for n in range(self.shape[0]):
            pixels = np.ascontiguousarray(self.pixels(n))
            digest.update(pixels.dtype.str.encode() + pixels.tobytes())
        return digest.hexdigest()

    def __hash__(self) -> int:
        return hash((tuple(self.frames.shape), self.kind, self.source))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "metadata": dict(self.metadata)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, metadata=MappingProxyType(state["metadata"]))

    def _about(self) -> tuple[Any, ...]:
        """All but the pixels and the files."""
        affine = None if self.affine is None else self.affine.tolist()
        return self.kind, affine, self.fps, self.window, self.padding, dict(self.metadata)


def _refused(n: int) -> Pixels:
    raise InputError("the image's pixels are not at hand: read the image again, and give it along")


def _check_values(pixels: Pixels, what: str) -> None:
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{what} values of type {pixels.dtype}, allowed are integers and real numbers")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(f"{what} NaN or infinity: replace them before reading the image")


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object, kept as the crop around it, so that hundreds of them stay small.

    Attributes:
        start: (n, row, col) of the crop's first voxel.
        crop: (N', H', W') bool, the smallest block that holds the object.
        score: Confidence in 0..1.
    """

    start: tuple[int, int, int]
    crop: BoolArray
    score: float

    @classmethod
    def from_dense(cls, mask: BoolArray, score: float) -> Self | None:
        """Crop a dense mask (N, H, W); None where it is empty."""
        if mask.ndim != 3 or mask.dtype != np.bool_:
            raise InputError(f"mask is {mask.dtype} of shape {mask.shape}, allowed is bool of (N, H, W)")
        spans = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if spans[0].size == 0:
            return None
        block = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
        start = (block[0].start, block[1].start, block[2].start)
        return cls(start, mask[block].copy(), float(score))

    def __eq__(self, other: object) -> bool:
        """Whether two objects have the same voxels and score."""
        if not isinstance(other, ObjectMask):
            return NotImplemented
        return (self.start, self.score) == (other.start, other.score) and np.array_equal(self.crop, other.crop)

    def __hash__(self) -> int:
        return hash((self.start, self.crop.shape, self.score))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """xyxy around the object over all its frames, outer pixel edges included."""
        flat: BoolArray = np.asarray(self.crop.any(axis=0))
        box = box_of_mask(flat)
        assert box is not None, "a crop is never empty"
        x, y = self.start[2], self.start[1]
        return box[0] + x, box[1] + y, box[2] + x, box[3] + y

    @property
    def voxels(self) -> int:
        """How many pixels or voxels belong to the object."""
        return int(self.crop.sum())

    @property
    def block(self) -> tuple[slice, ...]:
        """The crop's place in a dense (N, H, W) array."""
        return tuple(slice(first, first + length) for first, length in zip(self.start, self.crop.shape, strict=True))

    def paste(self, target: BoolArray) -> None:
        """Set the object's voxels in a dense (N, H, W) mask."""
        target[self.block] |= self.crop

    def plane(self, at: int, size: Sequence[int], axis: int = 0) -> BoolArray:
        """The object on plane `at` across `axis` as bool of `size`; empty where it is not there. Axis 0: a frame."""
        plane = np.zeros(tuple(size), dtype=np.bool_)
        offset = at - self.start[axis]
        if 0 <= offset < self.crop.shape[axis]:
            cut: BoolArray = np.take(self.crop, offset, axis=axis)
            top, left = (self.start[k] for k in range(3) if k != axis)
            plane[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
        return plane


def verdict_of(is_present: bool | None, *, is_sure: bool) -> PresenceVerdict | None:
    """Say whether a concept is there; None where none was asked for."""
    if is_present is None:
        return None
    return "no" if not is_present else "yes" if is_sure else "not sure"


@dataclass(frozen=True)
class Masks:
    """Objects of one concept: K of them over (N, H, W), at the input's own size.

    Attributes:
        shape: (N, H, W) of the image.
        objects: The K objects, best score first; empty where nothing was found.
        concept: The phrase that was asked for; "" where only boxes or points were given.
        presence: Probability in 0..1 that the concept is in the image at all; None where no phrase was asked.
        is_present: Whether the model affirms the concept, surely or not; None where no phrase was asked.
        is_sure: False if it affirms a presence between its two limits; see `verdict`.
        found_as: The name by which a drawn object was found again where following lost it; "" where it was not.
        image: What was segmented, for pictures and for the place in the world; pickles leave its pixels behind.
    """

    shape: tuple[int, int, int]
    objects: tuple[ObjectMask, ...] = ()
    concept: str = ""
    presence: float | None = None
    is_present: bool | None = None
    is_sure: bool = True
    found_as: str = ""
    image: Image | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for found in self.objects:
            stops = [first + length for first, length in zip(found.start, found.crop.shape, strict=True)]
            if min(found.start) < 0 or any(stop > size for stop, size in zip(stops, self.shape, strict=True)):
                raise InputError(f"an object spans {found.start} to {stops}, outside the image's {self.shape}")

    @classmethod
    def from_dense(cls, masks: BoolArray, scores: Iterable[float], **about: Any) -> Self:
        """Masks from (K, N, H, W) bool; empty ones are left out. `about`: concept, presence, is_present, is_sure."""
        cropped = [ObjectMask.from_dense(mask, score) for mask, score in zip(masks, scores, strict=True)]
        found = sorted((mask for mask in cropped if mask is not None), key=lambda mask: -mask.score)
        shape = (masks.shape[1], masks.shape[2], masks.shape[3])
        return cls(shape, tuple(found), **about)

    def __len__(self) -> int:
        return len(self.objects)

    def __getstate__(self) -> dict[str, Any]:
        image = self.image
        if image is not None:
            image = replace(image, frames=LazyFrames((*self.shape, image.channels), _refused))
        return {**self.__dict__, "image": image}

    def __copy__(self) -> Self:
        return self  # it never changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def array(self) -> BoolArray:
        """(K, N, H, W) bool, the objects one by one; `union` and `label_map` take less memory."""
        return np.stack([self.dense(k) for k in range(len(self))]) if len(self) else np.zeros((0, *self.shape), bool)

    def overlay(self, n: int | None = None, image: Image | None = None) -> NDArray[np.uint8]:
        """Draw the masks over their image as the model saw it, (H, W, 3).

        Args:
            n: The image's frame; None takes the one that holds most of the objects.
            image: What was segmented, if these masks come out of a pickle.

        Raises:
            InputError: The image's pixels are not at hand, or there is no such frame.
        """
        picture: NDArray[np.uint8] = _notebook().drawn(self, n, image)
        return picture

    def to_nibabel(self) -> Any:
        """Hand over a label map (W, H, N) in the image's place, as a nibabel image; object k is k + 1."""
        return importlib.import_module("medsam3.io.in_memory").to_nibabel(self)

    def to_sitk(self) -> Any:
        """Hand over a label map in the image's place, as a SimpleITK image; object k is k + 1."""
        return importlib.import_module("medsam3.io.in_memory").to_sitk(self)

    def _repr_html_(self) -> str:
        page: str = _notebook().html_of(self)
        return page

    def _repr_png_(self) -> bytes | None:
        png: bytes | None = _notebook().png_of(self)
        return png

    @property
    def scores(self) -> tuple[float, ...]:
        """The K objects' confidences in 0..1."""
        return tuple(found.score for found in self.objects)

    @property
    def says_present(self) -> bool:
        """The model's yes or no; where it states none, whether anything was found."""
        return len(self) > 0 if self.is_present is None else self.is_present

    @property
    def verdict(self) -> PresenceVerdict | None:
        """Whether the concept is there; None where no phrase was asked. With `not sure` masks are given too."""
        return verdict_of(self.is_present, is_sure=self.is_sure)

    @property
    def stated_presence(self) -> float:
        """Presence of the phrase, in 0..1; a model without a presence output is taken by its best object."""
        return max(self.scores, default=0.0) if self.presence is None else self.presence

    def dense(self, k: int) -> BoolArray:
        """Object `k` as (N, H, W) bool."""
        mask = np.zeros(self.shape, dtype=np.bool_)
        self.objects[k].paste(mask)
        return mask

    def union(self) -> BoolArray:
        """All objects together as (N, H, W) bool."""
        mask = np.zeros(self.shape, dtype=np.bool_)
        for found in self.objects:
            found.paste(mask)
        return mask

    def label_map(self) -> NDArray[np.uint16]:
        """(N, H, W) uint16: 0 for background, object k as k + 1; where two overlap, the better score wins.

        Raises:
            InputError: More than 65,535 objects.
        """
        if len(self.objects) > np.iinfo(np.uint16).max:
            raise InputError(f"{len(self.objects)} objects do not fit a 16-bit label map: raise the threshold")
        labels = np.zeros(self.shape, dtype=np.uint16)
        for k in reversed(range(len(self.objects))):
            labels[self.dense(k)] = k + 1
        return labels


def _notebook() -> Any:
    """The drawing of masks, which stands above the values and is needed only by those who look at them."""
    return importlib.import_module("medsam3.view.notebook")
