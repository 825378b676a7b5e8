"""LiteMedSAM's prompt encoder and mask decoder, frozen: boxes, points or a rough mask to masks.

One job: from the encoder's neck and the geometry of K objects to the logits of their masks, all in the frame of the
256 x 256 letterboxed input. It knows nothing of images, files, phrases or the frame's relation to the picture.

Coordinates are pixel centres at integers, as everywhere here: SAM's code adds 0.5 before it divides by 256, so x = 0 is
the middle of the first column, and x is the number that LiteMedSAM's own code takes.

Only the box and the single mask are of use with these weights. The other inputs work as in SAM's architecture, but
behave as if never trained, in the original code too: a point or a mask alone finds nothing, added to a box it makes the
mask worse, and the predicted IoU of the three candidates stays near 0.2.

Source: Kirillov et al., Segment Anything, ICCV 2023; weights: Ma et al., Nature Communications 15, 2024.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import SamConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from medsam3.errors import InputError

INPUT_SIZE = 256
NECK_SIZE = 64
NECK_DIM = 256
OBJECTS_AT_ONCE = 4  # time grows as their number, so a greater one only costs memory
ON_OBJECT, ON_BACKGROUND, NO_POINT = 1, 0, -1

_GAUSSIAN = "positional_encoding_gaussian_matrix"
_PARTS = ("prompt_encoder.", "mask_decoder.")
# From this module's names to LiteMedSAM's; the first pattern that matches decides.
_RENAMES = (
    (r"^prompt_encoder\.shared_embedding\.positional_embedding$", f"prompt_encoder.pe_layer.{_GAUSSIAN}"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)proj_in\.", r"\1layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.0\.", r"\1layers.1."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)proj_out\.", r"\1layers.2."),
    (r"^(mask_decoder\.transformer\.)layer_norm_final_attn\.", r"\1norm_final_attn."),
    (r"^(mask_decoder\.transformer\.layers\.\d\.)layer_norm(\d)\.", r"\1norm\2."),
)


@dataclass(frozen=True)
class BoxMasks:
    """Masks of K objects in the letterboxed frame, M candidates each (1, or 3 from whole to part).

    Attributes:
        logits: (K, M, 256, 256) float, mask where > 0; pixel (row, column) is the input's own.
        iou: (K, M) float, the decoder's guess of each mask's IoU; not held to 0..1.
    """

    logits: Tensor
    iou: Tensor


@dataclass(frozen=True)
class Geometry:
    """What is known of K objects, in the letterboxed frame; at least one of boxes, points and masks.

    Attributes:
        boxes: (K, 4) xyxy.
        points: (K, P, 2) xy.
        point_labels: (K, P): 1 on the object, 0 on background, -1 no point (to fill up shorter lists).
        masks: (K, 1, 256, 256) logits of a rough mask, as an earlier decode gave them.

    Raises:
        InputError: Nothing is given, a shape is wrong, K differs, points and labels do not come together.
    """

    boxes: Tensor | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.points is None) != (self.point_labels is None):
            raise InputError("points and point labels come together: give both, (K, P, 2) and (K, P), or neither")
        counts = {len(given) for given in (self.boxes, self.points, self.masks) if given is not None}
        if not counts:
            raise InputError("the mask decoder got no geometry: give boxes, points or masks")
        if len(counts) != 1:
            raise InputError(f"boxes, points and masks are of {sorted(counts)} objects: give each for the same objects")
        self._check_shapes()

    def _check_shapes(self) -> None:
        if self.points is not None and self.point_labels is not None:
            if self.points.ndim != 3 or self.points.shape[2] != 2:
                raise InputError(f"points: shape {tuple(self.points.shape)}, expected (K, P, 2)")
            _check_shape("point labels", self.point_labels, tuple(self.points.shape[:2]))
        if self.boxes is not None:
            _check_shape("boxes", self.boxes, (len(self), 4))
        if self.masks is not None:
            _check_shape("masks", self.masks, (len(self), 1, INPUT_SIZE, INPUT_SIZE))

    def __len__(self) -> int:
        """K, the number of objects."""
        given = next(value for value in (self.boxes, self.points, self.masks) if value is not None)
        return len(given)

    def __getitem__(self, objects: slice) -> Geometry:
        """The geometry of some of the objects."""
        values = (self.boxes, self.points, self.point_labels, self.masks)
        return Geometry(*(None if value is None else value[objects] for value in values))


class BoxDecoder(nn.Module):
    """LiteMedSAM without its image encoder. Its parameters are frozen."""

    def __init__(self) -> None:
        super().__init__()
        config = _sam_config()
        self.prompt_encoder = SamPromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        self.register_buffer("neck_positions", self._encode_neck_positions(), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_neck_positions)  # type: ignore[no-untyped-call]
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_lite_medsam(cls, state: Mapping[str, Tensor]) -> BoxDecoder:
        """The decoder with the tensors of `lite_medsam.pth`; those of its image encoder are left alone.

        Raises:
            InputError: A tensor of the prompt encoder or mask decoder is missing, unknown, or of another shape.
        """
        with torch.device("meta"):  # no time is spent on random numbers that the weights replace
            decoder = cls()
        expected = {lite_medsam_name(name): name for name in decoder.state_dict()}
        given = {name: value for name, value in state.items() if name.startswith(_PARTS)}
        _check_names(set(expected), set(given))
        renamed = {expected[name]: value for name, value in given.items()}
        for name, empty in decoder.state_dict().items():
            _check_shape(f"{lite_medsam_name(name)} of the LiteMedSAM weights", renamed[name], tuple(empty.shape))
        decoder.load_state_dict(renamed, assign=True)
        decoder.requires_grad_(False)
        return decoder

    def decode(self, neck: Tensor, geometry: Geometry, *, multimask: bool = False) -> BoxMasks:
        """Masks of K objects of one image; each object is answered by itself.

        Args:
            neck: (1, 256, 64, 64), what `TinyViT` gives; half precision is widened.
            geometry: The K objects, in the frame of the 256 x 256 letterboxed input.
            multimask: The three candidates of SAM's heads (whole, part, part of part) instead of the single mask.

        Returns:
            K = 0 gives empty tensors.

        Raises:
            InputError: The neck is not of one image.
        """
        _check_shape("the neck", neck, (1, NECK_DIM, NECK_SIZE, NECK_SIZE))
        weight = self.mask_decoder.iou_token.weight
        candidates = self.mask_decoder.num_multimask_outputs if multimask else 1
        logits = [weight.new_zeros(0, candidates, INPUT_SIZE, INPUT_SIZE)]
        iou = [weight.new_zeros(0, candidates)]
        for start in range(0, len(geometry), OBJECTS_AT_ONCE):
            some = self._decode_some(neck.to(weight), geometry[start : start + OBJECTS_AT_ONCE], multimask)
            logits.append(some.logits)
            iou.append(some.iou)
        return BoxMasks(logits=torch.cat(logits), iou=torch.cat(iou))

    def _decode_some(self, neck: Tensor, geometry: Geometry, multimask: bool) -> BoxMasks:
        # The parts take (images, objects, ...); here every object is its own image, so that each may have a mask.
        sparse, dense = self.prompt_encoder(
            input_points=None if geometry.points is None else self._to_device(geometry.points)[:, None],
            input_labels=None if geometry.point_labels is None else self._to_device(geometry.point_labels)[:, None],
            input_boxes=None if geometry.boxes is None else self._to_device(geometry.boxes)[:, None],
            input_masks=None if geometry.masks is None else self._to_device(geometry.masks),
        )  # (K, 1, tokens, 256) or None, (K, 256, 64, 64)
        logits, iou = self.mask_decoder(
            image_embeddings=neck.expand(len(geometry), -1, -1, -1),
            image_positional_embeddings=self.get_buffer("neck_positions"),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )  # (K, 1, M, 256, 256), (K, 1, M)
        return BoxMasks(logits=logits[:, 0], iou=iou[:, 0])

    def _to_device(self, value: Tensor) -> Tensor:
        return value.to(self.mask_decoder.iou_token.weight)

    def _encode_neck_positions(self) -> Tensor:
        """Positional encoding of the neck's cell centres: (1, 256, 64, 64)."""
        embedding = self.prompt_encoder.shared_embedding
        centres = (torch.arange(NECK_SIZE, device=embedding.positional_embedding.device) + 0.5) / NECK_SIZE
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        encoded: Tensor = embedding(torch.stack([columns, rows], dim=-1))  # (64, 64, 256), x before y
        return encoded.detach().permute(2, 0, 1)[None]


def lite_medsam_name(name: str) -> str:
    """The name that a tensor of `BoxDecoder` has in `lite_medsam.pth`."""
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _sam_config() -> SamConfig:
    config = SamConfig(
        vision_config={"num_pos_feats": NECK_DIM // 2, "hidden_size": 2},  # random frequencies of unit scale, as SAM's
        prompt_encoder_config={
            "hidden_size": NECK_DIM,
            "image_size": INPUT_SIZE,
            "patch_size": INPUT_SIZE // NECK_SIZE,
            "mask_input_channels": 16,
        },
        mask_decoder_config={
            "hidden_size": NECK_DIM,
            "mlp_dim": 2048,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_multimask_outputs": 3,
            "layer_norm_eps": 1e-5,  # SAM's transformer was trained with this; transformers' default is 1e-6
        },
    )
    config.mask_decoder_config._attn_implementation = "sdpa"  # unset, the parts warn at every use
    return config


def _refresh_neck_positions(decoder: nn.Module, _incompatible: object) -> None:
    assert isinstance(decoder, BoxDecoder)
    decoder.register_buffer("neck_positions", decoder._encode_neck_positions(), persistent=False)


def _check_names(expected: set[str], given: set[str]) -> None:
    missing, unknown = sorted(expected - given), sorted(given - expected)
    if missing or unknown:
        example = "lacks " + missing[0] if missing else "has " + unknown[0]
        raise InputError(
            f"the LiteMedSAM weights lack {len(missing)} and have {len(unknown)} unknown of the {len(expected)} "
            f"tensors of its prompt encoder and mask decoder ({example}); give the published lite_medsam.pth"
        )


def _check_shape(what: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise InputError(f"{what}: shape {tuple(value.shape)}, expected {shape}")
