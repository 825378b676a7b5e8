"""OpenVINO in the place of torch: the same answers in float32, near ones in bfloat16, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam3.errors import InputError
from medsam3.models.sam3.clip_phrases import PhraseTokenizer
from medsam3.models.sam3.compiled import OpenVinoPrecision, use_openvino
from medsam3.models.sam3.lora import Adapter, AdapterSwitch
from medsam3.models.sam3.segmenter import Sam3Options, Sam3Segmenter
from medsam3.models.segmenter import RGB
from medsam3.prompts import Box, Point, Prompt
from sam3_small import small_architecture, small_network

pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'medsam3[openvino]'")

PROMPTS = (
    Prompt(text="polyp"),
    Prompt(text="two words", exemplars=(Box(5, 5, 40, 30), Box(30, 30, 60, 50, is_positive=False))),
    Prompt(points=(Point(5, 5),)),
)


class WordTokenizer:
    """Stands for CLIP's: one token a word, numbered by its length."""

    def no_padding(self) -> None: ...

    def no_truncation(self) -> None: ...

    def encode(self, phrase: str) -> WordTokenizer:
        self.ids = [49406, *(100 + len(word) for word in phrase.split()), 49407]
        return self


def segmenter(adapter: AdapterSwitch | None = None) -> Sam3Segmenter:
    options = Sam3Options(threshold=0.0, suppression="off", image_cache_bytes=0)
    return Sam3Segmenter(small_network(), PhraseTokenizer(WordTokenizer()), options, adapter=adapter)


def frame(seed: int = 3) -> RGB:
    return np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def compiled() -> dict[str, Sam3Segmenter]:
    names: tuple[OpenVinoPrecision, ...] = ("float32", "bfloat16")
    return {name: use_openvino(segmenter(), precision=name) for name in names}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_float32_answers_as_torch_does(compiled: dict[str, Sam3Segmenter], prompt: Prompt) -> None:
    torch_model, model = segmenter(), compiled["float32"]
    expected = torch_model.decode(torch_model.encode(frame()), prompt)
    found = model.decode(model.encode(frame()), prompt)
    assert found.scores == pytest.approx(expected.scores, abs=1e-4)
    for number in range(len(expected)):
        assert (found.dense(number) == expected.dense(number)).mean() > 0.999


def test_levels_agree_to_1e_4_in_float32_and_to_a_hundredth_of_their_range_in_bfloat16(
    compiled: dict[str, Sam3Segmenter],
) -> None:
    expected = segmenter().encode(frame()).levels.detector.maps
    for name, share in (("float32", 1e-4), ("bfloat16", 1e-2)):
        for level, own in zip(expected, compiled[name].encode(frame()).levels.detector.maps, strict=True):
            assert (own - level).abs().mean() < share * (level.max() - level.min()), name


def test_a_batch_is_what_its_images_are_one_by_one(compiled: dict[str, Sam3Segmenter]) -> None:
    model = compiled["float32"]
    both = model.encode_many([frame(1), frame(2)])
    for seed, features in zip((1, 2), both, strict=True):
        alone = model.encode(frame(seed)).levels.detector.maps
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features.levels.detector.maps, alone, strict=True))


def test_other_number_formats_and_adapters_kept_apart_are_refused() -> None:
    model = segmenter()
    model.network.to(torch.bfloat16)
    with pytest.raises(InputError, match="load it on cpu in float32"):
        use_openvino(model)
    network = small_network(small_architecture())
    with pytest.raises(InputError, match="merge it"):
        use_openvino(segmenter(AdapterSwitch(network, Adapter((), 1.0, 0, ()))))
    with pytest.raises(InputError, match="float32, bfloat16"):
        use_openvino(segmenter(), precision="int8")  # type: ignore[arg-type]
