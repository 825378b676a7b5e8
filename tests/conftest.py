"""Fixtures for all tests."""

from __future__ import annotations

import pytest

from medsam3.models import registry
from threshold_segmenter import ThresholdSegmenter


@pytest.fixture
def threshold_model(monkeypatch: pytest.MonkeyPatch) -> ThresholdSegmenter:
    """A model without weights, to be had as `--model threshold`."""
    segmenter = ThresholdSegmenter()
    monkeypatch.setitem(registry.LOADERS, "threshold", lambda weights, device: segmenter)
    return segmenter
