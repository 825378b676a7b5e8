"""Meta's names of SAM 3's tensors to transformers' names, for `sam3.pt` and for adapters trained on Meta's code.

Only names, and the few tensors that are laid out differently (fused projections, a transposed one, a CLS row, point
embeddings kept apart). It reads no file and builds no model. Meta's names are those of facebookresearch/sam3; the
result has the layout of the published `facebook/sam3`: `detector_model.*`, `tracker_model.*`, `tracker_neck.*`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Cut = Literal["whole", "first third", "second third", "last third", "transposed", "without first row"]

_THIRDS: tuple[tuple[str, Cut], ...] = (("q", "first third"), ("k", "second third"), ("v", "last third"))
_POINT_ROW = re.compile(r"tracker\.sam_prompt_encoder\.point_embeddings\.(\d+)\.weight")
_POINT_TABLE = "tracker_model.prompt_encoder.point_embed.weight"
_POSITION_MATRIX = "tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_POSITION_PLACES = (
    "tracker_model.shared_image_embedding.positional_embedding",
    "tracker_model.prompt_encoder.shared_embedding.positional_embedding",
)
_HOMELESS = re.compile(r"\.attn\.freqs_cis(_real|_imag)?$|^detector\.geometry_encoder\.points_\w+_project\.")
_NECKS_OF_31 = re.compile(r"^detector\.backbone\.vision_backbone\.(interactive|propagation)_convs\.")
_TRACKING_OF_31 = re.compile(rf"{_NECKS_OF_31.pattern}|^tracker\.|^detector\.backbone\.vision_backbone\.sam2_convs\.")
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_BARE_DETECTOR = (
    "backbone.vision_backbone.",
    "backbone.language_backbone.",
    "geometry_encoder.",
    "transformer.",
    "segmentation_head.",
    "dot_prod_scoring.",
)

Rules = tuple[tuple[str, str], ...]

_NECK: Rules = (
    (r"\.dconv_2x2_1\.", ".scale_layers.2."),
    (r"\.dconv_2x2(_0)?\.", ".scale_layers.0."),
    (r"\.conv_1x1\.", ".proj1."),
    (r"\.conv_3x3\.", ".proj2."),
)
_TRUNK: Rules = (
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^ln_pre\.", "layer_norm."),
    (r"^blocks\.", "layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.", ".attention."),
)
_TEXT: Rules = (
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_FUSION: Rules = (
    (r"\.cross_attn_image\.", ".cross_attn."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)
_GEOMETRY: Rules = (
    (r"^encode\.", "layers."),
    (r"^encode_norm\.", "output_layer_norm."),
    (r"^img_pre_norm\.", "vision_layer_norm."),
    (r"^norm\.", "prompt_layer_norm."),
    *_FUSION,
)
_DECODER: Rules = (
    (r"^norm\.", "output_layer_norm."),
    (r"^bbox_embed\.layers\.", "box_head.layers."),
    (r"^presence_token_head\.", "presence_head."),
    (r"^presence_token_out_norm\.", "presence_layer_norm."),
    (r"^boxRPB_embed_(\w)\.", r"box_rpb_embed_\1."),
    (r"^(\w+)\.layers\.0\.", r"\1.layer1."),
    (r"^(\w+)\.layers\.1\.", r"\1.layer2."),
    (r"^(\w+)\.layers\.2\.", r"\1.layer3."),
    (r"\.cross_attn\.", ".vision_cross_attn."),
    (r"\.ca_text\.", ".text_cross_attn."),
    (r"\.norm1\.", ".vision_cross_attn_layer_norm."),
    (r"\.catext_norm\.", ".text_cross_attn_layer_norm."),
    (r"\.norm2\.", ".self_attn_layer_norm."),
    (r"\.norm3\.", ".mlp_layer_norm."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
)
_MASKS: Rules = (
    (r"^mask_predictor\.mask_embed\.", "mask_embedder."),
    (r"^instance_seg_head\.", "instance_projection."),
    (r"^semantic_seg_head\.", "semantic_projection."),
    (r"^cross_attend_prompt\.", "prompt_cross_attn."),
    (r"^cross_attn_norm\.", "prompt_cross_attn_norm."),
    (r"\.out_proj\.", ".o_proj."),
)
_SCORING: Rules = (
    (r"^prompt_mlp\.layers\.0\.", "text_mlp.layer1."),
    (r"^prompt_mlp\.layers\.1\.", "text_mlp.layer2."),
    (r"^prompt_mlp\.out_norm\.", "text_mlp_out_norm."),
    (r"^prompt_proj\.", "text_proj."),
    (r"^hs_proj\.", "query_proj."),
)
_MLP_ENDS: Rules = (
    (r"\.layers\.0\.(weight|bias)$", r".proj_in.\1"),
    (r"\.layers\.1\.(weight|bias)$", r".layers.0.\1"),
    (r"\.layers\.2\.(weight|bias)$", r".proj_out.\1"),
)
_SAM_PROMPTS: Rules = (
    (r"^mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"^mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"^mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"^mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"^mask_downscaling\.6\.", "mask_embed.conv3."),
)
_SAM_MASKS: Rules = (
    (r"^output_upscaling\.0\.", "upscale_conv1."),
    (r"^output_upscaling\.1\.", "upscale_layer_norm."),
    (r"^output_upscaling\.3\.", "upscale_conv2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.mlp\.lin1\.", ".mlp.proj_in."),
    (r"\.mlp\.lin2\.", ".mlp.proj_out."),
    *_MLP_ENDS,
)
_MEMORY_ATTENTION: Rules = (
    (r"^norm\.", "layer_norm."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
)
_MEMORY_ENCODER: Rules = (
    (r"^pix_feat_proj\.", "feature_projection."),
    (r"^out_proj\.", "projection."),
    (r"^fuser\.", "memory_fuser."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"\.norm\.", ".layer_norm."),
    (r"\.gamma$", ".scale"),
    (r"\.encoder\.12\.", ".final_conv."),
    *((rf"\.encoder\.{3 * layer}\.", f".layers.{layer}.conv.") for layer in range(4)),
    *((rf"\.encoder\.{3 * layer + 1}\.", f".layers.{layer}.layer_norm.") for layer in range(4)),
)
_TRACKER: Rules = (
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    *_MLP_ENDS,
)
_SECTIONS: tuple[tuple[str, str, Rules], ...] = (
    ("detector.backbone.vision_backbone.trunk.", "detector_model.vision_encoder.backbone.", _TRUNK),
    ("detector.backbone.vision_backbone.convs.", "detector_model.vision_encoder.neck.fpn_layers.", _NECK),
    ("detector.backbone.vision_backbone.sam2_convs.", "tracker_neck.fpn_layers.", _NECK),
    ("detector.backbone.language_backbone.encoder.", "detector_model.text_encoder.", _TEXT),
    ("detector.backbone.language_backbone.resizer.", "detector_model.text_projection.", ()),
    ("detector.geometry_encoder.", "detector_model.geometry_encoder.", _GEOMETRY),
    ("detector.transformer.encoder.", "detector_model.detr_encoder.", _FUSION),
    ("detector.transformer.decoder.", "detector_model.detr_decoder.", _DECODER),
    ("detector.segmentation_head.", "detector_model.mask_decoder.", _MASKS),
    ("detector.dot_prod_scoring.", "detector_model.dot_product_scoring.", _SCORING),
    ("tracker.sam_prompt_encoder.", "tracker_model.prompt_encoder.", _SAM_PROMPTS),
    ("tracker.sam_mask_decoder.", "tracker_model.mask_decoder.", _SAM_MASKS),
    ("tracker.transformer.encoder.", "tracker_model.memory_attention.", _MEMORY_ATTENTION),
    ("tracker.maskmem_backbone.", "tracker_model.memory_encoder.", _MEMORY_ENCODER),
    ("tracker.", "tracker_model.", _TRACKER),
)


@dataclass(frozen=True)
class TensorPlace:
    """A tensor's name in transformers' layout, and which part of Meta's tensor belongs there."""

    name: str
    cut: Cut = "whole"

    def take(self, tensor: Tensor) -> Tensor:
        """That part of Meta's tensor, a view where one is possible."""
        if self.cut == "whole":
            return tensor
        if self.cut == "transposed":
            return tensor.transpose(0, 1).contiguous()
        if self.cut == "without first row":
            return tensor[:, 1:].contiguous()
        third = [cut for _, cut in _THIRDS].index(self.cut)
        return tensor.chunk(3, dim=0)[third]


@dataclass(frozen=True)
class Renamed:
    """Tensors under transformers' names, and Meta's names that have no home there."""

    tensors: dict[str, Tensor]
    left_over: tuple[str, ...]


def with_full_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without what trainers put before all names (`module.`), and a bare detector's with `detector.` before."""
    found = dict(tensors)
    while wrapper := next((start for start in _WRAPPERS if found and all(n.startswith(start) for n in found)), ""):
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    if not any(name.startswith("backbone.vision_backbone.") for name in found):
        return found
    return {f"detector.{name}" if name.startswith(_BARE_DETECTOR) else name: tensor for name, tensor in found.items()}


def without_tracking_of_31(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The detector of a SAM 3.1, whose tracker and two more necks have no home here; other weights as they are."""
    if not any(_NECKS_OF_31.match(name) for name in tensors):
        return dict(tensors)
    return {name: tensor for name, tensor in tensors.items() if not _TRACKING_OF_31.match(name)}


def is_meta_name(name: str) -> bool:
    """Whether a tensor's name is in Meta's layout of `sam3.pt`."""
    return name.startswith(("detector.", "tracker."))


def is_homeless(name: str) -> bool:
    """Whether a tensor of Meta's is known to have no home: rotary tables, point projections."""
    return _HOMELESS.search(name) is not None


def places(name: str) -> tuple[TensorPlace, ...]:
    """Find where a tensor of Meta's goes; empty if transformers has no place for it.

    Point embeddings are not answered here, since four of Meta's tensors make one: see `rename`.
    """
    if is_homeless(name):
        return ()
    if name == _POSITION_MATRIX:
        return tuple(TensorPlace(target) for target in _POSITION_PLACES)
    for start, target, rules in _SECTIONS:
        if name.startswith(start):
            renamed = name.removeprefix(start)
            for pattern, replacement in rules:
                renamed = re.sub(pattern, replacement, renamed)
            return _split(target + renamed, name)
    return ()


def rename(tensors: Mapping[str, Tensor]) -> Renamed:
    """All tensors of a checkpoint in Meta's layout, under transformers' names.

    Args:
        tensors: Meta's names to tensors, on any device, `meta` included.
    """
    renamed: dict[str, Tensor] = {}
    point_rows: dict[int, Tensor] = {}
    left_over = []
    for name, tensor in tensors.items():
        if row := _POINT_ROW.fullmatch(name):
            point_rows[int(row[1])] = tensor
            continue
        found = places(name)
        if not found:
            left_over.append(name)
        for place in found:
            renamed[place.name] = place.take(tensor)
    if point_rows:
        renamed[_POINT_TABLE] = torch.cat([point_rows[row] for row in sorted(point_rows)])
    return Renamed(renamed, tuple(left_over))


def _split(target: str, name: str) -> tuple[TensorPlace, ...]:
    """One place, or the three of a fused projection."""
    if name.endswith("trunk.pos_embed"):
        return (TensorPlace(target, "without first row"),)
    if name.endswith("language_backbone.encoder.text_projection"):
        return (TensorPlace(target, "transposed"),)
    fused = re.fullmatch(r"(.*\.)(?:qkv\.|in_proj_)(weight|bias)", target)
    if fused:
        return tuple(TensorPlace(f"{fused[1]}{letter}_proj.{fused[2]}", cut) for letter, cut in _THIRDS)
    return (TensorPlace(target),)
