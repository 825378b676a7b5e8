"""SAM 3 in training: what is frozen, one prompt and many, prompts without an object, and memory kept small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sam3_tiny as tiny
import torch
from torch import Tensor

from medsam3.models.detector import decode_masks
from medsam3.models.sam3.network import Sam3Network
from medsam3.train.batches import Batch, Exemplar, Question
from medsam3.train.config import Sam3FitConfig, Sam3Trains
from medsam3.train.estimate import PartSize
from medsam3.train.losses import PromptTarget
from medsam3.train.trainee_sam3 import (
    Sam3Trainee,
    drop_text_encoder,
    drop_trunk,
    encode_phrases,
    halve_trunk,
    trunk_of,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.weights_folder(tmp_path_factory.mktemp("weights"))


def trainee(folder: Path, network: Sam3Network | None = None, **changes: object) -> Sam3Trainee:
    torch.manual_seed(0)
    config = tiny.configured(**{"is_cached": False, **changes})
    return Sam3Trainee(network or tiny.network(), config, tokenizer=tiny.tokenizer(folder))


def squares(count: int) -> PromptTarget:
    """Objects of 8 x 8 pixels of 32, one below the other at the left; none for 0."""
    masks = torch.zeros(count, 32, 32)
    boxes = torch.zeros(count, 4)
    for number in range(count):
        masks[number, 8 * number : 8 * number + 8, :8] = 1
        boxes[number] = torch.tensor([0.125, 0.25 * number + 0.125, 0.25, 0.25])
    whole = masks.amax(dim=0) if count else torch.zeros(32, 32)
    return PromptTarget(boxes, masks, whole, is_present=count > 0)


def batch(*counts: int, images: int = 2) -> Batch:
    """Questions on random images by turns, with so many objects each; the second one has an exemplar."""
    pixels = torch.randint(0, 256, (images, 3, 112, 112), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    phrases = ("polyp", "a much longer phrase", "needle")
    questions = [
        Question(
            number % images,
            phrases[number % 3],
            Exemplar((0.3, 0.4, 0.2, 0.2)) if number == 1 else None,
            squares(count),
        )
        for number, count in enumerate(counts)
    ]
    return Batch(pixels, None, tuple(questions))


def alone(whole: Batch, number: int) -> Batch:
    """One question of a batch with its image."""
    question = whole.questions[number]
    assert whole.pixels is not None
    only = Question(0, question.phrase, question.exemplar, question.truth)
    return Batch(whole.pixels[[question.image]], None, (only,))


def trained_names(model: Sam3Trainee) -> set[str]:
    """Top modules of the detector with a parameter that trains."""
    named = model.network.detector_model.named_parameters()
    return {name.split(".")[0] for name, parameter in named if parameter.requires_grad}


def test_the_papers_recipe_trains_the_detector_behind_both_encoders(folder: Path) -> None:
    assert trained_names(trainee(folder)) == {
        "geometry_encoder",
        "detr_encoder",
        "detr_decoder",
        "mask_decoder",
        "dot_product_scoring",
    }


def test_all_trains_every_parameter(folder: Path) -> None:
    parts = trainee(folder, trains="all").parts()
    assert all(part.trained == part.total for part in parts)


def test_the_adapter_alone_trains_in_every_part_and_is_counted_as_extra(folder: Path) -> None:
    adapted, plain = trainee(folder, trains="lora"), trainee(folder)
    named = adapted.network.detector_model.named_parameters()
    assert {".lora." in name for name, parameter in named if parameter.requires_grad} == {True}
    assert [part.total for part in adapted.parts()] == [part.total for part in plain.parts()]
    assert all(part.trained > 0 for part in adapted.parts())


def test_parts_add_up_to_the_whole_network(folder: Path) -> None:
    model = trainee(folder)
    total = sum(parameter.numel() for parameter in model.network.parameters())
    assert sum(part.total for part in model.parts()) == total
    assert PartSize("text encoder", model.parts()[1].total, 0) == model.parts()[1]


def test_biases_and_norms_have_no_weight_decay_and_each_encoder_its_own_rate(folder: Path) -> None:
    groups = trainee(folder, trains="all")._groups()
    rates = {(group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {(rate, decay) for rate in (1e-3, 2.5e-5, 5e-6) for decay in (0.0, 0.1)}
    for group in groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}


def test_frozen_encoders_get_no_gradient_and_the_detector_does(folder: Path) -> None:
    model = trainee(folder)
    model(lambda: batch(1, 2))[0].backward()
    named = dict(model.network.detector_model.named_parameters())
    assert {name for name, p in named.items() if p.grad is not None and not p.requires_grad} == set()
    without = {name for name, p in named.items() if p.requires_grad and p.grad is None}
    third = "mask_decoder.pixel_decoder"  # its third stage is in the published weights and reached by no level
    assert without == {f"{third}.{kind}.2.{value}" for kind in ("conv_layers", "norms") for value in ("weight", "bias")}


@pytest.mark.parametrize("trains", ["detector", "all"])
def test_a_batch_costs_the_mean_of_its_prompts_one_by_one(folder: Path, trains: Sam3Trains) -> None:
    model = trainee(folder, trains=trains).eval()
    whole = batch(1, 3, 2)  # padded texts, padded exemplars, padded matches
    together = model(lambda: whole)[1]
    single = [model(lambda number=number: alone(whole, number))[1] for number in range(3)]
    for name, value in together.items():
        mean = sum(terms[name].item() for terms in single) / 3
        assert value.item() == pytest.approx(mean, rel=1e-3, abs=1e-6), name


def test_a_prompt_with_no_object_costs_presence_alone_and_gives_finite_gradients(folder: Path) -> None:
    model = trainee(folder)
    loss, terms = model(lambda: batch(0, 0))
    loss.backward()
    assert set(terms) == {"box_l1", "box_giou", "score", "presence"}
    assert loss.item() == pytest.approx(10 * terms["presence"].item())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_an_absent_prompt_beside_a_present_one_changes_no_mask_term(folder: Path) -> None:
    model = trainee(folder).eval()
    both, one = model(lambda: batch(2, 0))[1], model(lambda: alone(batch(2), 0))[1]
    for name in ("mask_focal", "mask_dice", "semantic_focal", "semantic_dice", "box_l1", "score"):
        assert both[name].item() == pytest.approx(one[name].item(), rel=1e-3), name


def test_only_masks_of_matched_queries_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Size] = []

    def recorded(*args: Any) -> Any:
        masks = decode_masks(*args)
        made.append(masks.instances.shape)
        return masks

    monkeypatch.setattr("medsam3.train.trainee_sam3.decode_masks", recorded)
    trainee(folder)(lambda: batch(3, 0, 1))
    assert made == [torch.Size([2, 3, 32, 32])]  # two present prompts, at most three objects, and not ten queries


@pytest.mark.parametrize("trains", ["detector", "lora", "all"])
def test_recomputing_layers_changes_no_gradient(folder: Path, trains: Sam3Trains) -> None:
    gradients: list[dict[str, Tensor]] = []
    for is_checkpointed in (False, True):
        model = trainee(folder, trains=trains, is_checkpointed=is_checkpointed)
        torch.manual_seed(9)  # the same dropout
        model(lambda: batch(1, 2))[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-3), name


def test_a_step_from_cached_features_is_the_step_from_pixels(folder: Path) -> None:
    whole, phrases = batch(1, 2), ("polyp", "a much longer phrase")
    network = tiny.network()
    with torch.no_grad():
        trunk = trunk_of(network, whole.pixels) if whole.pixels is not None else torch.empty(0)
        known = {one: encode_phrases(network, tiny.tokenizer(folder), [one]) for one in phrases}
    drop_trunk(network)
    drop_text_encoder(network)
    cached = Sam3Trainee(network, tiny.configured(), phrases=known).eval()
    from_pixels = trainee(folder).eval()(lambda: whole)[1]
    from_cache = cached(lambda: Batch(None, trunk, whole.questions))[1]
    for name, value in from_pixels.items():
        assert from_cache[name].item() == pytest.approx(value.item(), rel=1e-3), name


def test_bfloat16_stays_near_float32(folder: Path) -> None:
    exact = trainee(folder).eval()(lambda: batch(1, 2))[0].item()
    network = tiny.network()
    halve_trunk(network)
    assert trainee(folder, network, bf16=True).eval()(lambda: batch(1, 2))[0].item() == pytest.approx(exact, rel=0.1)


def test_a_halved_trunk_keeps_its_rotary_positions_in_float32() -> None:
    network = tiny.network()
    halve_trunk(network)
    trunk = network.detector_model.vision_encoder.backbone
    assert {p.dtype for p in trunk.parameters()} == {torch.bfloat16}
    assert trunk.layers[0].rotary_emb.inv_freq.dtype == torch.float32


def test_defaults_are_the_published_recipe() -> None:
    config = Sam3FitConfig()
    assert (config.trains, config.learning_rate, config.weight_decay, config.clip_norm) == ("detector", 8e-5, 0.1, 0.1)
    assert (config.lora.rank, config.lora.alpha) == (16, 32)
