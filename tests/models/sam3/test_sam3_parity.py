"""Agreement with Meta's and MedSAM-3's own code on the same weights, in float32: every difference below 1e-4."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import Sam3TrackerVideoConfig
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from medsam3.models.detector import Detection, ExemplarBoxes, MaskLogits, PromptTokens, decode_masks, detect
from medsam3.models.roi_align import roi_align
from medsam3.models.sam3.checkpoints import read_adapter, read_checkpoint
from medsam3.models.sam3.keys import rename
from medsam3.models.sam3.lora import AdapterSwitch, LoraSource, merge
from medsam3.models.sam3.network import ImageLevels, Sam3Network, blank_network, fill_constants, fill_network
from medsam3.models.sam3.tracker import ExactTracker, segment_by_points
from sam3_small import needs_parity, parity

pytestmark = needs_parity

TOLERANCE = 1e-4
CPU = torch.device("cpu")
CASES = ("text_only", "text_box", "text_two_boxes", "text_padded_boxes", "box_only")
Tensors = dict[str, Tensor]


def difference(first: Tensor, second: Tensor) -> float:
    return float((first.flatten() - second.flatten()).abs().max())


def inputs() -> Tensors:
    return load_file(parity("tiny") / "inputs.safetensors")


def network_of(tensors: Tensors | None = None) -> Sam3Network:
    checkpoint = read_checkpoint(parity("tiny") / "sam3.pt")
    network = blank_network(checkpoint.architecture)
    return fill_network(network, tensors or checkpoint.tensors, dtype=torch.float32, device=CPU)


def with_adapter() -> Tensors:
    adapter = read_adapter(LoraSource(parity("tiny_lora") / "best_lora_weights.pt"))
    return merge(read_checkpoint(parity("tiny") / "sam3.pt").tensors, adapter)


def run(network: Sam3Network, case: str) -> tuple[ImageLevels, Detection, MaskLogits]:
    given = inputs()
    with torch.inference_mode():
        levels = network.encode_images(given["pixel_values"])
        text = network.encode_phrases(given["token_ids"], given["token_mask"])
        items, phrases = given[f"{case}.image_index"], given[f"{case}.text_index"]
        chosen = levels.detector.select(items)
        exemplars = ExemplarBoxes.none(len(items), CPU)
        if f"{case}.boxes" in given:
            is_used = given[f"{case}.box_padding"] == 0
            exemplars = ExemplarBoxes(given[f"{case}.boxes"], given[f"{case}.labels"] == 1, is_used)
        found = detect(
            network.detector_model, chosen, PromptTokens(text.features[phrases], text.mask[phrases]), exemplars
        )
        return levels, found, decode_masks(network.detector_model, chosen, found)


def worst(case: str, expected: Tensors, found: Detection, masks: MaskLogits) -> dict[str, float]:
    pairs = {
        "layer_logits": found.logits,
        "layer_boxes_cxcywh": found.boxes_cxcywh,
        "layer_presence": found.presence,
        "encoder_features": found.fused,
        "pred_masks": masks.instances,
        "semantic_seg": masks.semantic,
    }
    return {name: difference(tensor, expected[f"{case}.{name}"]) for name, tensor in pairs.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_detector_gives_metas_numbers(case: str) -> None:
    expected = load_file(parity("tiny") / "outputs.safetensors")
    _, found, masks = run(network_of(), case)
    assert max(worst(case, expected, found, masks).values()) < TOLERANCE


@pytest.mark.parametrize("fixture", ["tiny", "tiny_lora"])
def test_levels_and_text_features_are_the_originals(fixture: str) -> None:
    given, expected = inputs(), load_file(parity(fixture) / "outputs.safetensors")
    network = network_of(with_adapter() if fixture == "tiny_lora" else None)
    with torch.inference_mode():
        levels = network.encode_images(given["pixel_values"]).detector
        text = network.encode_phrases(given["token_ids"], given["token_mask"])
    real = given["token_mask"] == 1
    assert max(difference(levels.maps[n], expected[f"vision.fpn_{n}"]) for n in range(3)) < TOLERANCE
    assert "vision.pos_2" not in expected or difference(levels.position, expected["vision.pos_2"]) < TOLERANCE
    assert difference(text.features[real], expected["text.features"][real]) < TOLERANCE


def test_a_phrase_without_its_padding_has_the_same_features() -> None:
    given = inputs()
    network = network_of()
    with torch.inference_mode():
        whole = network.encode_phrases(given["token_ids"][:1], given["token_mask"][:1])
        trimmed = network.encode_phrases(given["token_ids"][:1, :5], given["token_mask"][:1, :5])
    assert difference(whole.features[:, :5], trimmed.features) < 1e-5


@pytest.mark.parametrize("case", ["text_only", "text_box"])
def test_a_merged_adapter_gives_medsam3s_numbers(case: str) -> None:
    expected = load_file(parity("tiny_lora") / "outputs.safetensors")
    _, found, masks = run(network_of(with_adapter()), case)
    assert max(worst(case, expected, found, masks).values()) < TOLERANCE


def test_an_adapter_kept_apart_gives_the_same_numbers_and_sam3s_when_off() -> None:
    network = network_of()
    switch = AdapterSwitch(network, read_adapter(LoraSource(parity("tiny_lora") / "best_lora_weights.pt")))
    on = worst("text_box", load_file(parity("tiny_lora") / "outputs.safetensors"), *run(network, "text_box")[1:])
    with switch.off():
        off = worst("text_box", load_file(parity("tiny") / "outputs.safetensors"), *run(network, "text_box")[1:])
    assert max(on.values()) < TOLERANCE
    assert max(off.values()) < TOLERANCE


def test_an_adapter_has_128_modules_of_which_the_three_point_projections_have_no_home() -> None:
    adapter = read_adapter(LoraSource(parity("tiny_lora") / "best_lora_weights.pt"))
    assert adapter.modules == 128
    assert adapter.scale == 2  # alpha 8, rank 4
    assert [name.split(".")[1] for name in adapter.left_over] == [
        "points_direct_project",
        "points_pool_project",
        "points_pos_enc_project",
    ]


def tracker() -> ExactTracker:
    folder = parity("tiny_tracker")
    config = Sam3TrackerVideoConfig(**json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        made: ExactTracker = ExactTracker(config).eval()
    renamed = rename(load_file(folder / "state_dict.safetensors"))
    assert renamed.left_over == ()
    homes = (("detector_model.", ""), ("tracker_neck.", "vision_encoder.neck."), ("tracker_model.", ""))
    tensors = {}
    for name, tensor in renamed.tensors.items():
        start, home = next(pair for pair in homes if name.startswith(pair[0]))
        tensors[home + name.removeprefix(start)] = tensor
    made.load_state_dict(tensors, strict=True, assign=True)
    fill_constants(made, CPU)
    return made


def prompt(case: str, given: Tensors) -> tuple[Tensor, Tensor]:
    if case == "box":
        return given["box.box_xyxy"].view(1, 2, 2), torch.tensor([[2, 3]])
    return given[f"{case}.coords"], given[f"{case}.labels"]


@pytest.mark.parametrize("case", ["box", "point", "points", "mask"])
def test_the_tracker_gives_metas_numbers_on_all_four_frames(case: str) -> None:
    given = load_file(parity("tiny_tracker") / "inputs.safetensors")
    expected = load_file(parity("tiny_tracker") / "outputs.safetensors")
    session = Sam3TrackerVideoInferenceSession(
        video=given["frames"], video_height=112, video_width=112, dtype=torch.float32
    )
    item = session.obj_id_to_idx(1)
    session.obj_with_new_inputs = [1]
    if case == "mask":
        session.add_mask_inputs(item, 0, given["mask.mask"])
    else:
        points, labels = prompt(case, given)
        session.add_point_inputs(item, 0, {"point_coords": points[None], "point_labels": labels[None]})
    model = tracker()
    names = {
        "mask_logits": "pred_masks",
        "object_score_logit": "object_score_logits",
        "object_pointer": "object_pointer",
        "memory_features": "maskmem_features",
    }
    for frame in range(4):
        with torch.inference_mode():
            model(session, frame_idx=frame)
        kind = "cond_frame_outputs" if frame == 0 else "non_cond_frame_outputs"
        output = dict(session.output_dict_per_obj[item][kind][frame])
        output["maskmem_features"] = output["maskmem_features"].permute(1, 2, 0)  # (B, C, H*W), as Meta keeps it
        for name, own_name in names.items():
            assert difference(output[own_name], expected[f"{case}.frame{frame}.{name}"]) < TOLERANCE, (frame, name)


@pytest.mark.parametrize("case", ["box", "point", "points"])
def test_the_interactive_head_gives_the_trackers_first_frame(case: str) -> None:
    given = load_file(parity("tiny_tracker") / "inputs.safetensors")
    expected = load_file(parity("tiny_tracker") / "outputs.safetensors")
    model = tracker()
    with torch.inference_mode():
        levels = model.project_levels(model.vision_encoder(given["frames"][:1]).fpn_hidden_states[:3])
        logits, ious = segment_by_points(model, levels, *prompt(case, given))
    assert max(difference(levels[n], expected[f"vision.frame0.level{n}"]) for n in range(3)) < TOLERANCE
    assert difference(logits, expected[f"{case}.frame0.mask_logits"]) < TOLERANCE
    assert float(ious) == pytest.approx(float(expected[f"{case}.frame0.iou_scores"].max()), abs=TOLERANCE)


def test_a_converted_folder_is_read_by_transformers_itself_with_metas_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.models.sam3.modeling_sam3 as stock  # noqa: PLC0415

    torchvision = SimpleNamespace(ops=SimpleNamespace(roi_align=roi_align))
    monkeypatch.setattr(stock, "torchvision", torchvision, raising=False)
    from medsam3.models.sam3.checkpoints import convert  # noqa: PLC0415

    done = convert(parity("tiny") / "sam3.pt", tmp_path / "out")
    assert (done.tensors, done.has_tracker) == (len(read_checkpoint(tmp_path / "out").tensors), False)
    given, expected = inputs(), load_file(parity("tiny") / "outputs.safetensors")
    model = stock.Sam3Model.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        output = model(
            pixel_values=given["pixel_values"],
            input_ids=given["token_ids"][[0, 2]],
            attention_mask=given["token_mask"][[0, 2]],
            input_boxes=given["text_box.boxes"],
            input_boxes_labels=given["text_box.labels"],
        )
    assert difference(output.pred_masks, expected["text_box.pred_masks"]) < TOLERANCE
