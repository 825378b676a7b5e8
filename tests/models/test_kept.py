"""What is kept of an image between prompts changes no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from medsam3.models.detector import ExemplarBoxes, PromptTokens, VisionLevels, decode_semantic, detect
from medsam3.models.kept import doubled
from medsam3.models.mini.detector import MiniDetector, MiniDetectorConfig


def test_a_kernel_on_a_doubled_map_is_what_four_small_ones_give() -> None:
    torch.manual_seed(0)
    coarse, weight = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(F.interpolate(coarse, scale_factor=2, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(doubled(coarse, weight), expected)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_next_phrase_of_an_image_is_answered_as_if_it_were_the_first(number: int) -> None:
    torch.manual_seed(1)
    detector = MiniDetector(MiniDetectorConfig(width=16, feed_forward=32)).eval().requires_grad_(False)
    maps = (torch.randn(1, 16, 32, 32), torch.randn(1, 16, 16, 16), torch.randn(1, 16, 8, 8))
    bare = VisionLevels(maps, torch.randn(1, 16, 8, 8))
    kept = replace(bare, kept={})
    none = ExemplarBoxes.none(1, torch.device("cpu"))
    phrases = [PromptTokens(torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)) for _ in range(number)]
    answers = []
    for phrase in phrases:
        found = detect(detector, kept, phrase, none)
        answers.append((found.presence, decode_semantic(detector, kept, found)))
    alone = detect(detector, bare, phrases[-1], none)
    torch.testing.assert_close(answers[-1], (alone.presence, decode_semantic(detector, bare, alone)))


def test_an_example_is_not_answered_by_what_was_kept_without_one() -> None:
    torch.manual_seed(2)
    detector = MiniDetector(MiniDetectorConfig(width=16, feed_forward=32)).eval().requires_grad_(False)
    bare = VisionLevels((torch.randn(1, 16, 16, 16), torch.randn(1, 16, 8, 8)), torch.randn(1, 16, 8, 8))
    kept = replace(bare, kept={})
    text = PromptTokens(torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool))
    yes = torch.ones(1, 1, dtype=torch.bool)
    drawn = ExemplarBoxes(torch.tensor([[[0.5, 0.4, 0.3, 0.2]]]), yes, yes)
    detect(detector, kept, text, ExemplarBoxes.none(1, torch.device("cpu")))
    torch.testing.assert_close(detect(detector, kept, text, drawn).queries, detect(detector, bare, text, drawn).queries)
