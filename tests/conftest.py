"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from medsam3.models import registry
from threshold_segmenter import ThresholdSegmenter

if TYPE_CHECKING:
    from starlette.testclient import TestClient


@pytest.fixture
def threshold_model(monkeypatch: pytest.MonkeyPatch) -> ThresholdSegmenter:
    """A model without weights, to be had as `--model threshold`."""
    segmenter = ThresholdSegmenter()
    monkeypatch.setitem(registry.LOADERS, "threshold", lambda weights, device: segmenter)
    return segmenter


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of frozen features, which go by a picture's contents: encoded once for all tests that train on it."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """One server with the fast fake model, for all tests that change none of its settings."""
    from made_server import started  # noqa: PLC0415  FastAPI, for the server's tests alone

    with started() as client:
        yield client
