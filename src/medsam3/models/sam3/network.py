"""SAM 3's network at any size: transformers' detector, and the tracker beside it on the same trunk.

Built without memory on the `meta` device, then given tensors that were read elsewhere; so a model never exists twice.
It reads no file and knows no prompt. What transformers would compute at first use and get wrong in half precision
(rotary positions, sine positions) is computed here in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings
from transformers.models.sam3.configuration_sam3 import Sam3Config
from transformers.models.sam3.modeling_sam3 import Sam3Model, Sam3VisionNeck, Sam3ViTLayer
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import Sam3TrackerVideoConfig
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoMemoryAttention
from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig

from medsam3.errors import InputError, reason_of
from medsam3.models import detr
from medsam3.models.detector import PromptTokens, VisionLevels, without_values
from medsam3.models.sam3.tracker import ExactTracker
from medsam3.store import JsonObject

MOST_WINDOWS = 6
"""Windows of the trunk along the longest side of an image, twice those of the published size."""
MOST_LAYERS, LARGEST_SIZE = 256, 1_000_000
"""Of any network part in a `config.json`: more is a damaged file, and would be built for minutes."""
TRUNK_LAYER_NORM_EPS = 1e-5
"""Of Meta's trunk; transformers' default of 1e-6 moves masks by 1e-3."""

_DETECTOR_LEVELS = 3  # the neck's fourth level, at half the trunk's size, is used by nothing


@dataclass(frozen=True)
class Architecture:
    """Sizes of the detector, and of the tracker where there is one."""

    detector: Any
    tracker: Any = None

    def to_json(self) -> JsonObject:
        """Give the fields of `config.json` in transformers' layout."""
        if self.tracker is None:
            return {**self.detector.to_dict(), "architectures": ["Sam3Model"]}
        both = Sam3VideoConfig(detector_config=self.detector.to_dict(), tracker_config=self.tracker.to_dict())
        return {**both.to_dict(), "architectures": ["Sam3VideoModel"]}

    def without_tracker(self) -> Architecture:
        """The detector alone."""
        return Architecture(self.detector)


@dataclass(frozen=True)
class ImageLevels:
    """The encoder's output for B images: the detector's levels, and the tracker's if there is one.

    Attributes:
        detector: Three levels at strides 3.5, 7 and 14, of 256 channels at full size.
        tracker: The tracker's levels, the finer two already projected for its mask decoder; None without a tracker.
    """

    detector: VisionLevels
    tracker: tuple[Tensor, ...] | None


class Sam3Network(nn.Module):
    """Detector and tracker under the names of the published checkpoint."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.detector_model = Sam3Model(architecture.detector)
        _use_own_parts(self.detector_model)
        self.tracker_model: ExactTracker | None = None
        self.tracker_neck: nn.Module | None = None
        if architecture.tracker is not None:
            self.tracker_model = ExactTracker(architecture.tracker, remove_vision_encoder=True)
            self.tracker_neck = Sam3VisionNeck(architecture.detector.vision_config)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.detector_model.config.vision_config.backbone_config.image_size)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        dtype: torch.dtype = self.detector_model.text_projection.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.detector_model.text_projection.weight.device
        return device

    def encode_images(self, pixels: Tensor) -> ImageLevels:
        """Levels of images (B, 3, S, S) in -1..1."""
        trunk = self.encode_trunk(pixels.to(self.dtype))
        levels = self.detector_levels(trunk)
        tracker = None
        if self.tracker_model is not None and self.tracker_neck is not None:
            tracker = self.tracker_model.project_levels(_levels(self.tracker_neck, trunk))
        return ImageLevels(levels, tracker)

    def encode_trunk(self, pixels: Tensor) -> Tensor:
        """The trunk's output (B, D, H, W) for images (B, 3, S, S) in -1..1, in the trunk's number format."""
        encoder = self.detector_model.vision_encoder
        trunk = encoder.backbone(pixels).last_hidden_state  # (B, H*W, D)
        side = self.image_size // encoder.config.backbone_config.patch_size
        return trunk.view(trunk.shape[0], side, side, -1).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def detector_levels(self, trunk: Tensor) -> VisionLevels:
        """The detector's levels of the trunk's output (B, D, H, W)."""
        neck = self.detector_model.vision_encoder.neck
        maps = _levels(neck, trunk)
        coarse = maps[-1][:1]
        position = neck.position_encoding(coarse.shape, coarse.device, torch.float32).to(coarse.dtype)
        if position.is_inference() and not torch.is_inference_mode_enabled():
            position = position.clone()  # transformers remembers it from segmenting, and training could not save it
        return VisionLevels(maps, position)

    def encode_phrases(self, token_ids: Tensor, mask: Tensor) -> PromptTokens:
        """Text tokens (B, L, D) of token ids (B, L) with their mask (B, L), True where a token is real."""
        encoded = self.detector_model.text_encoder(input_ids=token_ids, attention_mask=mask.long())
        return PromptTokens(self.detector_model.text_projection(encoded.last_hidden_state), mask.bool())


def _use_own_parts(model: Any) -> None:
    """Put the parts that `models.detector` runs in the place of transformers', which have the same tensors."""
    config = model.config
    decoder = _sizes(config.detr_decoder_config)
    model.geometry_encoder = detr.GeometryEncoder(_sizes(config.geometry_encoder_config))
    model.detr_encoder = detr.DetrEncoder(_sizes(config.detr_encoder_config))
    model.detr_decoder = detr.DetrDecoder(decoder)
    model.mask_decoder = detr.MaskDecoder(_sizes(config.mask_decoder_config))
    model.dot_product_scoring = detr.Scoring(decoder)


def _sizes(config: Any) -> detr.PartSizes:
    """Sizes of one part, which may differ from those of the others; what the part has not is left at its default."""
    names = {
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
        "layers": "num_layers",
        "queries": "num_queries",
        "upsampling_stages": "num_upsampling_stages",
        "dropout": "dropout",
    }
    return detr.PartSizes(**{own: getattr(config, theirs) for own, theirs in names.items() if hasattr(config, theirs)})


def full_size() -> Architecture:
    """The published model."""
    both = Sam3VideoConfig()
    return _with_trunk_eps(Architecture(both.detector_config, both.tracker_config))


def architecture_from_json(fields: JsonObject) -> Architecture:
    """Read `config.json` of transformers' layout.

    Raises:
        InputError: Another kind of model, or fields that no SAM 3 has.
    """
    kind = fields.get("model_type")
    _refuse_absurd(fields)
    try:
        if kind == "sam3_video":
            both = Sam3VideoConfig(**fields)
            return _with_trunk_eps(Architecture(both.detector_config, both.tracker_config))
        if kind == "sam3":
            return _with_trunk_eps(Architecture(Sam3Config(**fields)))
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, StrictDataclassError) as error:
        reason = reason_of(error)[:200]
        raise InputError(f"config.json does not describe a SAM 3 ({reason}): download the folder again") from error
    raise InputError(f"config.json is of a model of type {kind!r}, allowed are 'sam3' and 'sam3_video'")


def _refuse_absurd(fields: Mapping[str, Any]) -> None:
    """Refuse sizes that no SAM 3 has, at any depth.

    Raises:
        InputError: The first of them.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _refuse_absurd(value)
        most = MOST_LAYERS if str(name).endswith("layers") else LARGEST_SIZE
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, (int, float)) and abs(number) > most for number in numbers):
            raise InputError(f"config.json says {name} = {value!r}, allowed is up to {most}: download the folder again")


def at_image_size(architecture: Architecture, image_size: int) -> Architecture:
    """Change an architecture to square inputs of another side, for the same weights.

    Raises:
        InputError: The trunk's patches would not fill the image, or it is absurdly large.
    """
    trunk = architecture.detector.vision_config.backbone_config
    window = trunk.window_size * trunk.patch_size
    if image_size % trunk.patch_size or not window <= image_size <= MOST_WINDOWS * window:
        several = ", ".join(str(window * count) for count in (1, 2, 3))
        raise InputError(
            f"image size is {image_size}, allowed are multiples of {trunk.patch_size} from {window} to "
            f"{MOST_WINDOWS * window}; those of {window} waste nothing: {several}"
        )
    detector = Sam3Config(**architecture.detector.to_dict())
    detector.image_size = image_size
    tracker = None
    if architecture.tracker is not None:
        tracker = Sam3TrackerVideoConfig(**{**architecture.tracker.to_dict(), "image_size": image_size})
        tracker.image_size = image_size
    return Architecture(detector, tracker)


def blank_network(architecture: Architecture) -> Sam3Network:
    """The network on the `meta` device: names and shapes only."""
    with without_values():
        return Sam3Network(architecture).eval().requires_grad_(False)


def fill_network(
    network: Sam3Network, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device
) -> Sam3Network:
    """Give a blank network its tensors, already checked to fit, and compute its constants.

    The position matrix of the tracker's points stays in float32, as do rotary positions.
    """
    placed = {
        name: tensor.to(device, torch.float32 if name.endswith("positional_embedding") else dtype)
        for name, tensor in tensors.items()
    }
    network.load_state_dict(placed, strict=True, assign=True)
    fill_constants(network, device)
    return network.eval().requires_grad_(False)


def fill_constants(network: nn.Module, device: torch.device) -> None:
    """Compute all buffers that no checkpoint holds, in float32 and for the network's own image size."""
    for module in network.modules():
        if isinstance(module, Sam3ViTLayer):
            positions = module.precompute_positions(module.config, module.window_size)
            module.position_ids = positions.to(device)
            _fill_frequencies(module.rotary_emb, device)
        elif isinstance(module, Sam3TrackerVideoMemoryAttention):
            module.position_ids = module.precompute_positions(module.config).to(device)
            _fill_frequencies(module.rotary_emb, device)
        elif isinstance(module, CLIPTextEmbeddings):
            count = module.position_embedding.num_embeddings
            module.position_ids = torch.arange(count, device=device)[None]
    for name, buffer in network.named_buffers():
        assert not buffer.is_meta, f"buffer {name} was not filled"


def _fill_frequencies(rotary: Any, device: torch.device) -> None:
    frequencies, _ = rotary.compute_axial_rope_parameters(rotary.config)
    rotary.inv_freq = frequencies.to(device)
    rotary.original_inv_freq = frequencies.to(device).clone()  # tracing refuses buffers that share memory


def _levels(neck: Any, trunk: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer(trunk) for layer in neck.fpn_layers[:_DETECTOR_LEVELS])


def _with_trunk_eps(architecture: Architecture) -> Architecture:
    """Set Meta's epsilon: published configurations may carry transformers' default, the weights are the same."""
    architecture.detector.vision_config.backbone_config.layer_norm_eps = TRUNK_LAYER_NORM_EPS
    if architecture.tracker is not None:
        architecture.tracker.vision_config.backbone_config.layer_norm_eps = TRUNK_LAYER_NORM_EPS
    return architecture
