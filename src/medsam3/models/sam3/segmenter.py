"""SAM 3 and MedSAM-3 as a `Segmenter`: a frame is encoded once, then any number of prompts is answered.

Phrases and exemplars go to the detector; boxes and points to the tracker's interactive head, where the weights have
one. It knows the forward passes and the order of the steps, and no file format: see `checkpoints`.

Source: Carion et al., SAM 3, arXiv 2511.16719; Liu et al., MedSAM-3, arXiv 2511.19046.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from torch import Tensor

from medsam3.errors import InputError
from medsam3.geometry import BoolArray, FloatArray, box_iou, xyxy_from_normalised_cxcywh
from medsam3.image import Masks, ObjectMask
from medsam3.models.detector import (
    Detection,
    PromptTokens,
    VisionLevels,
    checked_device,
    decode_masks,
    detect,
    select_items,
)
from medsam3.models.detr import DetrEncoder
from medsam3.models.refiner import Hints, box_candidates, refine_by_boxes
from medsam3.models.registry import Precision
from medsam3.models.sam3.checkpoints import read_adapter, read_checkpoint
from medsam3.models.sam3.clip_phrases import VISUAL_TOKENS, PhraseTokenizer, load_tokenizer, vocabulary_files
from medsam3.models.sam3.lora import AdapterSwitch, LoraSource, merge
from medsam3.models.sam3.network import ImageLevels, Sam3Network, at_image_size, blank_network, fill_network
from medsam3.models.sam3.objects import (
    best_for_boxes,
    click_points,
    exemplar_boxes,
    mask_iou,
    padded,
    stretched,
    unlike,
    upsampled,
)
from medsam3.models.sam3.tracker import model_points, segment_by_points
from medsam3.models.segmenter import RGB
from medsam3.models.tracker import Tracker
from medsam3.prompts import Prompt

Suppression = Literal["masks", "boxes", "off"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ACCELERATOR_BATCH = 8


@dataclass(frozen=True)
class Sam3Options:
    """How the model runs.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Number format of weights and activations; rotary positions stay in float32.
        image_size: Side of the square that frames are stretched to, in pixels: 1008, or 672 and 336, which are faster
            and see less detail. None takes the weights' own. Masks come back at the frame's size in any case.
        threshold: Least presence x object score of an object that is kept.
        suppression: What two objects are compared by before the weaker one is dropped as a duplicate.
        suppression_iou: IoU above which they are duplicates, in 0..1.
        image_cache_bytes: Features of frames that were encoded before are kept up to this size.
        text_cache_bytes: Text features of phrases that were asked before are kept up to this size.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    image_size: int | None = None
    threshold: float = 0.5
    suppression: Suppression = "masks"
    suppression_iou: float = 0.5
    image_cache_bytes: int = 256 << 20
    text_cache_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.precision not in _DTYPES:
            raise InputError(f"precision is {self.precision!r}, allowed are {', '.join(_DTYPES)}")
        if self.suppression not in ("masks", "boxes", "off"):
            raise InputError(f"suppression is {self.suppression!r}, allowed are masks, boxes, off")
        for name in ("threshold", "suppression_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, allowed is 0 to 1")
        for name in ("image_cache_bytes", "text_cache_bytes"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, allowed is 0 (keep nothing) and above")


@dataclass(frozen=True)
class Sam3Features:
    """One encoded frame: its size (H, W), and the levels of the network, batch 1."""

    shape: tuple[int, int]
    levels: ImageLevels

    @property
    def nbytes(self) -> int:
        """Bytes of the features in memory, with what the first two prompts add to them for the others."""
        detector = self.levels.detector
        maps = detector.maps if detector.kept is None else (*detector.maps, *detector.maps)
        tensors = (*maps, detector.position, *(self.levels.tracker or ()))
        return sum(tensor.nbytes for tensor in tensors)


class Sam3Segmenter:
    """SAM 3 with the weights it was given; see `load_sam3`."""

    def __init__(
        self,
        network: Sam3Network,
        tokenizer: PhraseTokenizer | None,
        options: Sam3Options,
        *,
        name: str = "sam3",
        adapter: AdapterSwitch | None = None,
    ) -> None:
        self.network = network
        self.options = options
        self.adapter = adapter
        self._name = name
        self._tokenizer = tokenizer
        self._begin_caches()

    def _begin_caches(self) -> None:
        self._lock = threading.Lock()
        self._phrases: LRUCache[tuple[object, ...], PromptTokens] = LRUCache(
            self.options.text_cache_bytes, lambda tokens: tokens.features.nbytes
        )
        self._images: LRUCache[tuple[object, ...], Sam3Features] = LRUCache(
            self.options.image_cache_bytes, lambda features: features.nbytes
        )

    def __getstate__(self) -> dict[str, object]:
        """Leave the caches behind, whose locks no other process shares."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_phrases", "_images")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin_caches()

    @property
    def name(self) -> str:
        """`sam3`, or `sam3+lora` with an adapter."""
        return self._name

    @property
    def has_tracker(self) -> bool:
        """Whether points can be answered."""
        return self.network.tracker_model is not None

    def tracker(self) -> Tracker | None:
        """Follow by SAM 3's memory; None if the weights hold no tracker."""
        from medsam3.models.sam3.memory import Sam3Tracker  # noqa: PLC0415  it stands on this module

        return Sam3Tracker(self) if self.has_tracker else None

    def encode(self, rgb: RGB) -> Sam3Features:
        """Features of one frame (H, W, 3) uint8, from the cache where it was encoded before."""
        return self.encode_many([rgb])[0]

    def encode_many(self, frames: Sequence[RGB]) -> list[Sam3Features]:
        """Features of frames of any sizes; those not in the cache in batches of eight, on a CPU one by one."""
        keys = [(hashlib.blake2b(rgb.tobytes()).digest(), rgb.shape, self._adapter_state) for rgb in frames]
        with self._lock:
            found = {key: self._images.get(key) for key in keys}
        fresh = {key: rgb for key, rgb in zip(keys, frames, strict=True) if found[key] is None}
        if fresh:
            for key, features in zip(fresh, self._encode_all(list(fresh.values())), strict=True):
                found[key] = features
                with self._lock, suppress(ValueError):  # larger than the whole cache
                    self._images[key] = features
        return [features for features in (found[key] for key in keys) if features is not None]

    def decode(self, features: Sam3Features, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        """Objects over (1, H, W) of the encoded frame; see `decode_many`."""
        return self.decode_many(features, [prompt], threshold=threshold)[0]

    def decode_many(
        self, features: Sam3Features, prompts: Sequence[Prompt], *, threshold: float | None = None
    ) -> list[Masks]:
        """Objects of each prompt, best score first.

        A phrase finds all its objects. Exemplars with or without it find all that look like the positive ones. Boxes
        with a phrase, or where the weights have no tracker, pick the detected object that fits each box best. Boxes
        alone and points are answered by the tracker's head, one mask each; a phrase beside points only names it.

        Raises:
            InputError: Points with exemplars, with more than one box, or with weights that hold no tracker.
        """
        answers: list[Masks | None] = [None] * len(prompts)
        with torch.inference_mode():
            for number, prompt in enumerate(prompts):
                if self._is_for_tracker(prompt):
                    answers[number] = self._point_at(features, prompt, threshold)
            waiting = [number for number, answer in enumerate(answers) if answer is None]
            for start in range(0, len(waiting), self._batch):
                chosen = waiting[start : start + self._batch]
                detection = self._detect(features, [prompts[number] for number in chosen])
                for item, number in enumerate(chosen):
                    answers[number] = self._objects(features, detection, item, prompts[number], threshold)
        return [answer for answer in answers if answer is not None]

    def refine(self, features: Sam3Features, hints: Hints) -> Masks:
        """Answer clicks and a box about one object by the tracker's head; see `models.refiner.Refines`."""
        if not self.has_tracker:
            return refine_by_boxes(self, features, hints, box_candidates(self, features))
        boxes = () if hints.box is None else (hints.box,)
        with torch.inference_mode():
            logits, score = self._pointed(
                features, click_points(boxes, hints.clicks), None if hints.is_box_new else hints.mask
            )
            found = upsampled(logits.float(), score.tolist(), features.shape)
        return Masks((1, *features.shape), tuple(found), hints.text or "")

    @property
    def _adapter_state(self) -> bool:
        return self.adapter is not None and self.adapter.is_on

    @property
    def _keeps(self) -> bool:
        """Whether a prompt leaves to the next one what no prompt changes: compiled parts and an adapter cannot."""
        return self.adapter is None and isinstance(self.network.detector_model.detr_encoder, DetrEncoder)

    @property
    def _batch(self) -> int:
        """How many images or prompts go through the network at once: a CPU gains nothing by more than one."""
        return 1 if self.network.device.type == "cpu" else _ACCELERATOR_BATCH

    def _encode_all(self, frames: Sequence[RGB]) -> list[Sam3Features]:
        starts = range(0, len(frames), self._batch)
        return [one for start in starts for one in self._encode_batch(frames[start : start + self._batch])]

    def _encode_batch(self, frames: Sequence[RGB]) -> list[Sam3Features]:
        size = self.network.image_size
        pixels = torch.from_numpy(np.stack([stretched(rgb, size) for rgb in frames])).to(self.network.device)
        with torch.inference_mode():
            scaled = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, S, S)
            levels = self.network.encode_images(scaled)
        shapes = [(int(rgb.shape[0]), int(rgb.shape[1])) for rgb in frames]
        items = [_item(levels, number, len(frames)) for number in range(len(frames))]
        if self._keeps:
            items = [replace(item, detector=replace(item.detector, kept={})) for item in items]
        return [Sam3Features(shape, item) for shape, item in zip(shapes, items, strict=True)]

    def _encode_phrase(self, phrase: str | None) -> PromptTokens:
        """Text tokens (1, L, D) of a phrase, without padding; of "visual" where there is none."""
        if phrase is not None and self._tokenizer is None:
            self._tokenizer = load_tokenizer(None, None)
        ids = VISUAL_TOKENS if phrase is None or self._tokenizer is None else self._tokenizer(phrase)

        @cached(self._phrases, key=lambda: (ids, self._adapter_state), lock=self._lock)
        def encode() -> PromptTokens:
            token_ids = torch.tensor([ids], device=self.network.device)
            return self.network.encode_phrases(token_ids, torch.ones_like(token_ids))

        return encode()

    def _detect(self, features: Sam3Features, prompts: Sequence[Prompt]) -> Detection:
        levels = features.levels.detector
        count = len(prompts)
        maps = tuple(level.expand(count, -1, -1, -1) for level in levels.maps)
        repeated = VisionLevels(maps, levels.position, levels.kept if count == 1 else None)
        text = padded([self._encode_phrase(prompt.text) for prompt in prompts])
        exemplars = exemplar_boxes([(*prompt.exemplars, *prompt.boxes) for prompt in prompts], features.shape)
        return detect(self.network.detector_model, repeated, text, exemplars.to(self.network.device))

    def _objects(
        self, features: Sam3Features, detection: Detection, item: int, prompt: Prompt, threshold: float | None
    ) -> Masks:
        """Objects of one item of a detection batch: chosen by score and place, then their masks alone decoded."""
        presence = float(detection.presence[-1, item, 0].float().sigmoid())
        scores = detection.logits[-1, item].float().sigmoid().cpu().numpy().astype(np.float64) * presence
        boxes = xyxy_from_normalised_cxcywh(detection.boxes_cxcywh[-1, item].float().cpu().numpy(), *features.shape)
        least = self.options.threshold if threshold is None else threshold
        if prompt.boxes:
            kept = best_for_boxes(scores, boxes, prompt.boxes)
            if prompt.text is not None or threshold is not None:
                kept = [query for query in kept if scores[query] >= least]
        else:
            kept = [int(query) for query in np.argsort(-scores, kind="stable") if scores[query] >= least]
            if self.options.suppression == "boxes":
                kept = [
                    kept[place] for place in unlike(box_iou(boxes[kept], boxes[kept]), self.options.suppression_iou)
                ]
        logits = self._mask_logits(features, detection, item, kept)
        if self.options.suppression == "masks" and not prompt.boxes:
            places = unlike(mask_iou(logits > 0), self.options.suppression_iou)
            logits, kept = logits[places], [kept[place] for place in places]
        found = upsampled(logits, [float(scores[query]) for query in kept], features.shape)
        return self._answer(features, prompt, found, presence)

    def _mask_logits(self, features: Sam3Features, detection: Detection, item: int, queries: Sequence[int]) -> Tensor:
        """Mask logits (K, h, w) of some queries of one item."""
        if not queries:
            return torch.zeros(0, 1, 1)
        device = self.network.device
        one = select_items(detection, torch.tensor([item], device=device))
        chosen = one.queries.index_select(2, torch.tensor(list(queries), device=device))
        masks = decode_masks(self.network.detector_model, features.levels.detector, replace(one, queries=chosen))
        return masks.instances[0].float()

    def _is_for_tracker(self, prompt: Prompt) -> bool:
        if prompt.points:
            if prompt.exemplars or len(prompt.boxes) > 1:
                raise InputError("points go with a phrase and at most one box in one prompt: ask in two prompts")
            if not self.has_tracker:
                raise InputError(
                    "the weights hold no tracker, which answers points: give a box, or load all of sam3.pt"
                )
            return True
        return bool(prompt.boxes) and prompt.text is None and not prompt.exemplars and self.has_tracker

    def _point_at(self, features: Sam3Features, prompt: Prompt, threshold: float | None) -> Masks:
        """One mask for each box, or one for all points."""
        logits, ious = self._pointed(features, click_points(prompt.boxes, prompt.points))
        scores = ious.tolist()
        kept = [number for number, score in enumerate(scores) if threshold is None or score >= threshold]
        found = upsampled(logits[kept].float(), [scores[number] for number in kept], features.shape)
        presence = None
        if prompt.text is not None:
            detection = self._detect(features, [Prompt(text=prompt.text)])
            presence = float(detection.presence[-1, 0, 0].float().sigmoid())
        return self._answer(features, prompt, found, presence)

    def _pointed(
        self, features: Sam3Features, points: tuple[FloatArray, NDArray[np.int64]], so_far: BoolArray | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (K, h, w) of the tracker's head for points and their labels, and the masks' expected IoU (K,)."""
        tracker, levels = self.network.tracker_model, features.levels.tracker
        assert tracker is not None and levels is not None, "asked for only where there is a tracker"
        device = self.network.device
        placed = model_points(points[0], features.shape, self.network.image_size)
        logits, ious = segment_by_points(
            tracker,
            levels,
            torch.from_numpy(placed).float().to(device),
            torch.from_numpy(points[1]).to(device),
            None if so_far is None else torch.from_numpy(so_far).float().to(device)[None, None],
        )
        return logits, ious.float().clamp(0, 1)

    def _answer(
        self, features: Sam3Features, prompt: Prompt, found: Sequence[ObjectMask], presence: float | None
    ) -> Masks:
        asked = presence if prompt.text is not None else None
        return Masks(
            (1, *features.shape),
            tuple(sorted(found, key=lambda mask: -mask.score)),
            concept=prompt.text or "",
            presence=asked,
            is_present=None if asked is None else asked >= 0.5,
        )


def load_sam3(
    source: str | Path = "facebook/sam3",
    *,
    options: Sam3Options | None = None,
    lora: LoraSource | None = None,
    is_lora_switchable: bool = False,
    vocabulary: Path | None = None,
) -> Sam3Segmenter:
    """SAM 3 from published weights, with MedSAM-3's adapter on top if one is given.

    Args:
        source: `facebook/sam3`, a folder in transformers' layout, `sam3.pt`, or what `checkpoints.convert` wrote.
        options: How it runs; None takes the defaults.
        lora: MedSAM-3 v1's `best_lora_weights.pt`.
        is_lora_switchable: Keep the adapter apart, so that `segmenter.adapter.off()` runs SAM 3 itself; it is slower.
        vocabulary: CLIP's vocabulary where it is not beside the weights.

    Raises:
        InputError: As `checkpoints.read_checkpoint`, `sam3_lora.adapter_from` and `clip_phrases.load_tokenizer` say; a
            device that is not there, an image size that the windows do not fill.
    """
    chosen = options or Sam3Options()
    device = checked_device(chosen.device)
    checkpoint = read_checkpoint(source)
    tokenizer = None  # boxes need none, so that a missing vocabulary is an error only once a phrase is asked
    if vocabulary is not None or vocabulary_files(None, checkpoint.folder):
        tokenizer = load_tokenizer(vocabulary, checkpoint.folder)
    tensors, adapter = checkpoint.tensors, None
    if lora is not None:
        adapter = read_adapter(lora)
        tensors = tensors if is_lora_switchable else merge(tensors, adapter)
    architecture = checkpoint.architecture
    if chosen.image_size is not None:
        architecture = at_image_size(architecture, chosen.image_size)
    network = blank_network(architecture)
    network = fill_network(network, tensors, dtype=_DTYPES[chosen.precision], device=device)
    switch = AdapterSwitch(network, adapter) if adapter is not None and is_lora_switchable else None
    name = "sam3" if lora is None else "sam3+lora"
    return Sam3Segmenter(network, tokenizer, chosen, name=name, adapter=switch)


def _item(levels: ImageLevels, item: int, count: int) -> ImageLevels:
    """One image's levels; a copy where the batch has more, so that the batch can be freed."""
    if count == 1:
        return levels
    maps = tuple(level[item : item + 1].clone() for level in levels.detector.maps)
    tracker = None
    if levels.tracker is not None:
        tracker = tuple(level[item : item + 1].clone() for level in levels.tracker)
    return ImageLevels(VisionLevels(maps, levels.detector.position), tracker)
