"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from medsam3.models import registry
from threshold_segmenter import ThresholdSegmenter

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from made_archive import Orthanc
    from page_browser import Process


@pytest.fixture
def threshold_model(monkeypatch: pytest.MonkeyPatch) -> ThresholdSegmenter:
    """A model without weights, to be had as `--model threshold`."""
    segmenter = ThresholdSegmenter()
    monkeypatch.setitem(registry.LOADERS, "threshold", lambda weights, device: segmenter)
    return segmenter


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of frozen features, which go by a picture's contents: encoded once in a run, for all its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "features"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """One server with the fast fake model, for all tests that change none of its settings."""
    from made_server import started  # noqa: PLC0415  FastAPI, for the server's tests alone

    with started() as client:
        yield client


@pytest.fixture(scope="module")
def page_server() -> Iterator[Process]:
    """The page's server with the fast fake model, for the tests of a module that do not end it."""
    from page_browser import serving  # noqa: PLC0415

    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without WebGL, for the tests of a module."""
    from page_browser import browsing  # noqa: PLC0415

    with browsing() as made:
        yield made


@pytest.fixture
def page(browser: Any, page_server: Process) -> Iterator[Any]:
    """The page, as another person opens it for each test."""
    from page_browser import shown  # noqa: PLC0415

    with shown(browser, page_server.address) as made:
        yield made


@pytest.fixture(scope="session")
def _shared_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    from made_archive import MISSING, Orthanc  # noqa: PLC0415  an HTTP client

    if MISSING is not None:
        pytest.skip(MISSING)
    made = Orthanc(tmp_path_factory.mktemp("orthanc")).start()
    yield made
    made.stop()


@pytest.fixture
def orthanc(_shared_orthanc: Orthanc, logged_in: None) -> Orthanc:
    """One archive for all tests that do not stop it; each has studies of its own."""
    return _shared_orthanc


@pytest.fixture
def own_orthanc(tmp_path: Path, logged_in: None) -> Iterator[Orthanc]:
    """An archive that the test may stop and start."""
    from made_archive import MISSING, Orthanc  # noqa: PLC0415  an HTTP client

    if MISSING is not None:
        pytest.skip(MISSING)
    made = Orthanc(tmp_path / "orthanc").start()
    yield made
    made.stop()


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the user and password of the test's archives known."""
    from made_archive import PASSWORD, USER  # noqa: PLC0415  an HTTP client

    monkeypatch.delenv("MEDSAM3_DICOMWEB_TOKEN", raising=False)
    monkeypatch.setenv("MEDSAM3_DICOMWEB_USER", USER)
    monkeypatch.setenv("MEDSAM3_DICOMWEB_PASSWORD", PASSWORD)
