"""The adapter: v1's modules, its file in the authors' own format, and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sam3_tiny as tiny
import torch

from medsam3.errors import InputError
from medsam3.models.detector import ExemplarBoxes, PromptTokens, detect
from medsam3.models.sam3.checkpoints import read_adapter, read_checkpoint
from medsam3.models.sam3.lora import LoraSource, merge
from medsam3.models.sam3.network import Sam3Network, blank_network, fill_network, full_size
from medsam3.train.config import LoraConfig, Sam3FitConfig
from medsam3.train.trainee_sam3 import add_adapter, v1_modules

PARITY = os.environ.get("MEDSAM3_PARITY", "")
CONFIG = LoraConfig(rank=3, alpha=6.0, dropout=0.0)


def scores(network: Sam3Network) -> torch.Tensor:
    """Logits of one random image for one phrase of three tokens."""
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        levels = network.encode_images(pixels).detector
        text: PromptTokens = network.encode_phrases(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
        boxes = ExemplarBoxes(torch.tensor([[[0.5, 0.5, 0.2, 0.3]]]), *(torch.ones(1, 1, dtype=torch.bool),) * 2)
        return detect(network.detector_model, levels, text, boxes).logits


def shaken(network: Sam3Network) -> None:
    """Give every B some values, so that the adapter changes what the network says."""
    source = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if name.endswith("lora_B"):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=source)


def test_v1_adapts_458_modules_of_the_published_size_with_18_5_million_parameters() -> None:
    network = blank_network(full_size().without_tracker())
    adapter = add_adapter(network, LoraConfig())
    assert len(list(v1_modules(network))) == 458
    assert len(adapter.homeless) == 3
    placed = sum(p.numel() for name, p in network.named_parameters() if ".lora." in name)
    homeless = sum(16 * (inputs + outputs) for inputs, outputs in adapter.homeless.values())
    assert (placed + homeless) / 1e6 == pytest.approx(18.5, abs=0.05)


@pytest.mark.skipif(not PARITY, reason="needs the parity fixtures: set MEDSAM3_PARITY to their folder")
def test_keys_and_shapes_are_those_of_a_file_that_medsam3s_own_code_saved() -> None:
    fixtures = Path(PARITY)
    saved = torch.load(fixtures / "tiny_lora" / "best_lora_weights.pt", weights_only=True)
    checkpoint = read_checkpoint(fixtures / "tiny" / "sam3.pt")
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("detector_model.")}
    blank = blank_network(checkpoint.architecture.without_tracker())
    network = fill_network(blank, own, dtype=torch.float32, device=torch.device("cpu"))
    adapter = add_adapter(network, LoraConfig(rank=4, alpha=8))
    made = adapter.authors_tensors(network.state_dict())
    assert {name: tensor.shape for name, tensor in made.items()} == {name: t.shape for name, t in saved.items()}


def test_the_factors_lie_where_the_weights_are() -> None:
    network = blank_network(tiny.architecture())  # on the meta device
    add_adapter(network, CONFIG)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_a_fresh_adapter_changes_nothing() -> None:
    network = tiny.network()
    before = scores(network)
    add_adapter(network, CONFIG)
    assert torch.equal(scores(network), before)


def test_a_trained_adapter_saved_and_merged_says_what_it_said_in_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = tiny.network()
    before = scores(network)
    adapter = add_adapter(network, CONFIG)
    shaken(network)
    trained = scores(network)
    assert (trained - before).abs().max() > 0.01
    torch.save(adapter.authors_tensors(network.state_dict()), tmp_path / "best_lora_weights.pt")
    (tmp_path / "lora_config.yaml").write_text(adapter.yaml())
    read = read_adapter(LoraSource(tmp_path / "best_lora_weights.pt"))
    assert read.scale == 2.0
    assert set(read.left_over) == set(adapter.homeless)
    sizes = tiny.architecture()
    merged = merge(tiny.random_tensors(sizes), read)
    plain = fill_network(blank_network(sizes), merged, dtype=torch.float32, device=torch.device("cpu"))
    assert torch.allclose(scores(plain), trained, atol=1e-4)


def test_the_trunks_query_key_and_value_share_one_a_and_take_a_third_of_b_each() -> None:
    network = tiny.network()
    add_adapter(network, LoraConfig(rank=1, alpha=1.0, dropout=0.0))
    attention = network.detector_model.vision_encoder.backbone.layers[0].attention
    pair = attention.q_proj.lora
    assert pair.lora_A.shape == (32, 1)
    assert pair.lora_B.shape == (1, 96)
    ones = torch.ones(1, 32)
    before = [projection(ones) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
    pair.lora_A.data = torch.full((32, 1), 0.5)  # x A = 16
    pair.lora_B.data = torch.cat([torch.full((1, 32), value) for value in (1.0, 2.0, 3.0)], dim=1)
    after = [projection(ones) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
    changes = [(new - old).mean().item() for new, old in zip(after, before, strict=True)]
    assert changes == pytest.approx([16, 32, 48], rel=1e-5)


@pytest.mark.parametrize("bad", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_numbers_that_make_no_adapter_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="rank from 1"):
        LoraConfig(**bad)  # type: ignore[arg-type]


def test_an_unknown_choice_of_what_trains_is_refused() -> None:
    with pytest.raises(InputError, match="detector, lora, all"):
        Sam3FitConfig(trains="head")  # type: ignore[arg-type]
